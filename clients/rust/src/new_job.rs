//! What a publisher says of a job.

use std::time::{Duration, SystemTime};

use errand_proto::v1::{
    JobSpec,
    job_spec::{Expiry, Start},
};
use serde::Serialize;
use tonic::metadata::{Ascii, MetadataValue};

use crate::Error;

/// A job to publish: a function's name and a payload, which must be a JSON object. The rest has defaults.
///
/// Durations are whole seconds; a part of a second counts as a whole one.
///
/// ```
/// use std::time::Duration;
///
/// use errand_client::NewJob;
/// use serde_json::json;
///
/// let job = NewJob::new("report.render", json!({"month": "2030-01"}))
///     .channel("reports")
///     .delay(Duration::from_secs(60))
///     .expires_in(Duration::from_secs(3600))
///     .max_retries(5)
///     .max_exec(Duration::from_secs(300))
///     .priority(10)
///     .idempotency_key("report-2030-01");
/// # let _ = job;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    spec: JobSpec,
    traceparent: Option<String>,
    /// The first thing said that cannot be; told when it is published.
    fault: Option<String>,
}

impl NewJob {
    pub fn new(func: impl Into<String>, payload: impl Serialize) -> Self {
        let mut job = Self::like();
        job.spec.func = func.into();
        job.payload(payload)
    }

    /// Nothing but what is said with its methods: for [`Client::publish_like`](crate::Client::publish_like).
    pub fn like() -> Self {
        Self { spec: JobSpec::default(), traceparent: None, fault: None }
    }

    /// A JSON object.
    #[must_use]
    pub fn payload(mut self, payload: impl Serialize) -> Self {
        match serde_json::to_string(&payload) {
            Ok(json) if json.starts_with('{') => self.spec.payload_json = json,
            Ok(_) => self.blame("payload must be a JSON object".to_owned()),
            Err(error) => self.blame(format!("payload cannot be JSON: {error}")),
        }
        self
    }

    /// `default` unless said.
    #[must_use]
    pub fn channel(mut self, channel: impl Into<String>) -> Self {
        self.spec.channel = channel.into();
        self
    }

    /// Start no sooner than this from now.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.spec.start = self.seconds("delay", delay).map(Start::DelaySeconds);
        self
    }

    /// Start no sooner than this.
    #[must_use]
    pub fn run_at(mut self, time: SystemTime) -> Self {
        self.spec.start = Some(Start::RunAt(time.into()));
        self
    }

    /// Give up where it has not started this long after its run time; 900 s unless said.
    #[must_use]
    pub fn expires_in(mut self, patience: Duration) -> Self {
        self.spec.expiry = self.seconds("expires_in", patience).map(Expiry::ExpiresInSeconds);
        self
    }

    /// Give up where it has not started by then.
    #[must_use]
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.spec.expiry = Some(Expiry::ExpiresAt(time.into()));
        self
    }

    /// Retries after the first execution; 3 unless said.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.spec.max_retries = Some(retries);
        self
    }

    /// The delay before retry k is `base` to the power of k, in seconds, but at most `max`; 2.0 and an hour unless
    /// said.
    #[must_use]
    pub fn backoff(mut self, base: f64, max: Duration) -> Self {
        self.spec.backoff_base = Some(base);
        self.spec.backoff_max_seconds = self.seconds("backoff", max);
        self
    }

    /// Every live runner of the channel executes it once.
    #[must_use]
    pub fn broadcast(mut self) -> Self {
        self.spec.broadcast = Some(true);
        self
    }

    /// The hard limit of one execution; none unless said.
    #[must_use]
    pub fn max_exec(mut self, limit: Duration) -> Self {
        self.spec.max_exec_seconds = self.seconds("max_exec", limit);
        self
    }

    /// Publishes once however often this key is used.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.spec.idempotency_key = key.into();
        self
    }

    /// Higher goes first within the channel; 0 unless said.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.spec.priority = Some(priority);
        self
    }

    /// The W3C trace context that the execution's span is to link to.
    #[must_use]
    pub fn traceparent(mut self, context: impl Into<String>) -> Self {
        self.traceparent = Some(context.into());
        self
    }

    fn seconds(&mut self, what: &str, span: Duration) -> Option<u32> {
        match whole_seconds(what, span) {
            Ok(seconds) => Some(seconds),
            Err(error) => {
                self.blame(error.to_string());
                None
            }
        }
    }

    fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    pub(crate) fn has_idempotency_key(&self) -> bool {
        !self.spec.idempotency_key.is_empty()
    }

    pub(crate) fn trace_context(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let parse = |context: &String| context.parse().map_err(|_| Error::Invalid("traceparent must be ASCII".into()));
        self.traceparent.as_ref().map(parse).transpose()
    }

    pub(crate) fn into_spec(self) -> Result<JobSpec, Error> {
        match self.fault {
            Some(fault) => Err(Error::Invalid(fault)),
            None => Ok(self.spec),
        }
    }
}

/// Rounded up.
pub(crate) fn whole_seconds(what: &str, span: Duration) -> Result<u32, Error> {
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    u32::try_from(seconds).map_err(|_| Error::Invalid(format!("{what} must be less than 136 years")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_option_reaches_the_contract() {
        let spec = NewJob::new("f", json!({"a": 1}))
            .channel("c")
            .delay(Duration::from_millis(1_500))
            .expires_in(Duration::from_secs(9))
            .max_retries(0)
            .backoff(0.0, Duration::from_secs(5))
            .broadcast()
            .max_exec(Duration::from_secs(7))
            .idempotency_key("k")
            .priority(-1)
            .into_spec()
            .unwrap();
        let expected = JobSpec {
            func: "f".into(),
            payload_json: r#"{"a":1}"#.into(),
            channel: "c".into(),
            start: Some(Start::DelaySeconds(2)),
            expiry: Some(Expiry::ExpiresInSeconds(9)),
            max_retries: Some(0),
            backoff_base: Some(0.0),
            backoff_max_seconds: Some(5),
            broadcast: Some(true),
            max_exec_seconds: Some(7),
            idempotency_key: "k".into(),
            priority: Some(-1),
        };
        assert_eq!(spec, expected);
    }

    #[test]
    fn a_payload_that_is_no_object_is_said_at_once() {
        let error = NewJob::new("f", json!([1])).into_spec().unwrap_err();
        assert_eq!(error.to_string(), "payload must be a JSON object");
    }
}

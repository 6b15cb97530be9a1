//! What a function gets: its job, and what it may say and hear while it runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use errand_proto::v1::{Job, LogLine};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use tokio::time::Instant;

use crate::{
    Failure, LogKind,
    session::{JobContext, Reporter, Stop},
};

/// One attempt of one job, in the hands of the function that executes it. May be cloned and handed to tasks and
/// threads of the function.
#[derive(Clone, Debug)]
pub struct Execution {
    job: Arc<Job>,
    started: Instant,
    stops: Arc<JobContext>,
    reporter: Reporter,
    saw_cancel: Arc<AtomicBool>,
}

impl Execution {
    pub(crate) fn new(job: Job, context: &JobContext) -> Self {
        Self {
            job: Arc::new(job),
            started: Instant::now(),
            stops: Arc::new(context.ear()),
            reporter: context.reporter(),
            saw_cancel: Arc::default(),
        }
    }

    /// The job's id: a key for effects that must not happen twice.
    pub fn job_id(&self) -> &str {
        &self.job.id
    }

    /// The name that the function was called by.
    pub fn func(&self) -> &str {
        &self.job.func
    }

    pub fn channel(&self) -> &str {
        &self.job.channel
    }

    /// 1 in the first execution, 2 in the first retry.
    pub fn attempt(&self) -> u32 {
        self.job.attempt
    }

    /// Retries after the first execution, at most.
    pub fn max_retries(&self) -> u32 {
        self.job.max_retries
    }

    /// The payload, read as `T`. A payload that is no `T` will not be one at the next attempt either, so that fails
    /// for good.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.job.payload_json)
            .map_err(|error| Failure::for_good(format!("the payload is not what {} takes: {error}", self.job.func)))
    }

    /// The payload as the publisher spelt it: numbers of any size, the order of the keys.
    pub fn payload_json(&self) -> &str {
        &self.job.payload_json
    }

    /// The payload as the publisher spelt it, as a value that can be returned or embedded.
    pub fn raw_payload(&self) -> Result<Box<RawValue>, Failure> {
        self.payload()
    }

    /// The publisher's trace context, to link this execution's spans to: a W3C `traceparent`.
    pub fn traceparent(&self) -> Option<&str> {
        Some(self.job.traceparent.as_str()).filter(|context| !context.is_empty())
    }

    /// When the job's time limit is over, if it has one.
    pub fn deadline(&self) -> Option<Instant> {
        let limit = Duration::from_secs(u64::from(self.job.max_exec_seconds?));
        self.started.checked_add(limit)
    }

    /// The job as the contract has it, with everything that is not told here.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// True once somebody asked for the job's cancellation. A function that has seen it and returns `Ok` ends the
    /// job canceled; one that never looks ends it as it ends itself.
    pub fn cancel_requested(&self) -> bool {
        let requested = self.stops.stop() > Stop::Run;
        if requested {
            self.saw_cancel.store(true, Ordering::Relaxed);
        }
        requested
    }

    /// Waits until somebody asks for the job's cancellation; for `select!`. Cancel-safe.
    pub async fn canceled(&self) {
        self.stops.ear().stop_beyond(Stop::Run).await;
        self.saw_cancel.store(true, Ordering::Relaxed);
    }

    /// Replaces the job's metadata, for others to see while it runs: a JSON object. Never waits; where reports come
    /// faster than they can be sent, the latest counts.
    pub fn set_metadata(&self, metadata: impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string(&metadata)?;
        if !json.starts_with('{') {
            return Err(Failure::for_good("metadata must be a JSON object"));
        }
        self.reporter.set_metadata(json);
        Ok(())
    }

    /// Adds a line to the job's log. `meta` is a JSON object, or `None`; anything else is left out. Never waits; lines
    /// are dropped while 10,000 of them wait for a connection.
    pub fn add_log(&self, message: impl Into<String>, kind: LogKind, meta: impl Into<Option<Value>>) {
        let meta = meta.into().filter(Value::is_object);
        let line = LogLine {
            at: Some(SystemTime::now().into()),
            kind: errand_proto::v1::LogKind::from(kind).into(),
            // NUL is no text to every database.
            message: message.into().replace('\0', "\u{fffd}"),
            meta_json: meta.map(|meta| meta.to_string()).unwrap_or_default(),
        };
        if self.reporter.try_log(vec![line]).is_err() {
            tracing::warn!(job = self.job.id, "a log line was dropped: too many wait to be sent");
        }
    }

    pub(crate) fn saw_cancel(&self) -> bool {
        self.saw_cancel.load(Ordering::Relaxed)
    }
}

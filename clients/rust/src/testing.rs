//! Runs a function against a job without a service, for an application's own tests.
//!
//! Deliberately absent: retries, queues, and everything else that the service does. A trial is one execution.

use std::{pin::Pin, time::Duration};

use errand_proto::v1::{Assignment, Job, Lease, LogLine};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use crate::{
    LogKind, Runner,
    session::{Executor, JobContext, Outcome, Stop},
};

/// A job to try a function with.
///
/// ```
/// use errand_client::{Runner, testing::Trial};
/// use serde_json::{Value, json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let runner = Runner::new("unused").function("double", |job| async move {
///     let payload: Value = job.payload()?;
///     job.set_metadata(json!({"attempt": job.attempt()}))?;
///     Ok(payload["n"].as_i64().unwrap_or(0) * 2)
/// });
/// let tried = Trial::of("double", json!({"n": 21})).attempt(3).run(&runner).await;
/// assert_eq!(tried.result::<i64>(), Ok(42));
/// assert_eq!(tried.metadata.as_deref(), Some(r#"{"attempt":3}"#));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Trial {
    job: Job,
    cancel_after: Option<Duration>,
}

impl Trial {
    /// # Panics
    ///
    /// Where `payload` is nothing that JSON can say.
    pub fn of(func: impl Into<String>, payload: impl Serialize) -> Self {
        let payload_json = match serde_json::to_string(&payload) {
            Ok(json) => json,
            Err(error) => panic!("the payload must be JSON: {error}"),
        };
        let job = Job {
            id: "00000000000000000000000000000001".to_owned(),
            channel: "default".to_owned(),
            func: func.into(),
            payload_json,
            attempt: 1,
            max_retries: 3,
            ..Job::default()
        };
        Self { job, cancel_after: None }
    }

    /// 1 unless said.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.job.attempt = attempt;
        self
    }

    /// The job's hard limit.
    #[must_use]
    pub fn max_exec_seconds(mut self, seconds: u32) -> Self {
        self.job.max_exec_seconds = Some(seconds);
        self
    }

    /// Asks for the job's cancellation after this time.
    #[must_use]
    pub fn cancel_after(mut self, delay: Duration) -> Self {
        self.cancel_after = Some(delay);
        self
    }

    /// Anything else of the job, as the contract has it.
    #[must_use]
    pub fn job(mut self, change: impl FnOnce(&mut Job)) -> Self {
        change(&mut self.job);
        self
    }

    /// Calls the runner's function of that name and waits for its end. A panic is the test's.
    pub async fn run(self, runner: &Runner) -> Tried {
        let lease = Lease { job_id: self.job.id.clone(), attempt: self.job.attempt };
        let (context, stop, reporter) = JobContext::detached(&lease);
        let assignment = Assignment { lease: Some(lease), job: Some(self.job) };
        let mut execution: Pin<Box<_>> = Box::pin(runner.functions.execute(assignment, context));
        let outcome = match self.cancel_after {
            None => execution.await,
            Some(delay) => tokio::select! {
                outcome = &mut execution => outcome,
                () = sleep(delay) => {
                    stop.send_replace(Stop::Cancel);
                    execution.await
                }
            },
        };
        let mut logs = Vec::new();
        while let Some(progress) = reporter.take() {
            logs.extend(progress.logs.into_iter().map(Line::from));
        }
        Tried { outcome, metadata: reporter.last_metadata(), logs }
    }
}

/// How a trial went.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    pub outcome: Outcome,
    /// The metadata reported last, a JSON object.
    pub metadata: Option<String>,
    pub logs: Vec<Line>,
}

impl Tried {
    /// What the function returned, or why there is nothing.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, String> {
        match &self.outcome {
            Outcome::Completed { result_json } => serde_json::from_str(result_json).map_err(|error| error.to_string()),
            Outcome::Failed { error, .. } => Err(error.clone()),
            Outcome::Canceled => Err("canceled".to_owned()),
            Outcome::Released => Err("stopped".to_owned()),
        }
    }
}

/// A line of the job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: LogKind,
    pub message: String,
    /// A JSON object, or nothing.
    pub meta_json: String,
}

impl From<LogLine> for Line {
    fn from(line: LogLine) -> Self {
        Self { kind: line.kind().into(), message: line.message, meta_json: line.meta_json }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Failure;

    fn runner() -> Runner {
        Runner::new("unused")
            .function("echo", |job| async move { job.raw_payload() })
            .function("fail", |_| async { Err::<(), _>(Failure::for_good("no")) })
            .function("wait", |job| async move {
                job.canceled().await;
                Ok(())
            })
            .function("ignore", |_| async {
                sleep(Duration::from_millis(20)).await;
                Ok(7)
            })
            .function("log", |job| async move {
                job.add_log("careful", LogKind::Warn, json!({"k": 1}));
                job.add_log("no object", LogKind::Info, json!(1));
                Ok(())
            })
            .function("forever", |_| async { std::future::pending::<Result<(), Failure>>().await })
            .blocking_function("compute", |job| Ok(job.payload::<Value>()?["n"].as_u64().map(|n| n + 1)))
    }

    #[tokio::test]
    async fn a_payload_comes_back_as_it_was_spelt() {
        let raw: Box<serde_json::value::RawValue> =
            serde_json::from_str(r#"{"b": 12345678901234567890123, "a": 1.0}"#).unwrap();
        let tried = Trial::of("echo", raw).run(&runner()).await;
        let result_json = r#"{"b": 12345678901234567890123, "a": 1.0}"#.to_owned();
        assert_eq!(tried.outcome, Outcome::Completed { result_json });
    }

    #[tokio::test]
    async fn a_failure_keeps_its_words() {
        let tried = Trial::of("fail", json!({})).run(&runner()).await;
        assert_eq!(tried.result::<Value>(), Err("no".to_owned()));
        assert!(matches!(tried.outcome, Outcome::Failed { permanent: true, .. }));
    }

    #[tokio::test]
    async fn an_unknown_function_is_named_with_those_there_are() {
        let tried = Trial::of("nope", json!({})).run(&runner()).await;
        let Outcome::Failed { error, permanent: true, .. } = tried.outcome else { panic!("{tried:?}") };
        assert!(error.contains("\"nope\"") && error.contains("compute, echo"), "{error}");
    }

    #[tokio::test]
    async fn returning_after_a_cancel_that_was_seen_is_canceled() {
        let soon = Duration::from_millis(1);
        let seen = Trial::of("wait", json!({})).cancel_after(soon).run(&runner()).await;
        assert_eq!(seen.outcome, Outcome::Canceled);
        let unseen = Trial::of("ignore", json!({})).cancel_after(soon).run(&runner()).await;
        assert_eq!(unseen.result::<u8>(), Ok(7));
    }

    #[tokio::test]
    async fn logs_keep_kind_and_meta() {
        let tried = Trial::of("log", json!({})).run(&runner()).await;
        let line = |kind, message: &str, meta: &str| Line { kind, message: message.into(), meta_json: meta.into() };
        let expected = [line(LogKind::Warn, "careful", r#"{"k":1}"#), line(LogKind::Info, "no object", "")];
        assert_eq!(tried.logs, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_function_over_its_limit_is_dropped() {
        let tried = Trial::of("forever", json!({})).max_exec_seconds(1).run(&runner()).await;
        assert_eq!(tried.result::<()>(), Err("ran longer than 1 seconds".to_owned()));
    }

    #[tokio::test]
    async fn a_blocking_function_has_a_thread() {
        assert_eq!(Trial::of("compute", json!({"n": 1})).run(&runner()).await.result::<u64>(), Ok(2));
    }
}

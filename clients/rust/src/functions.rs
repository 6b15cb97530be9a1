//! Functions by name, and how one execution of one of them ends.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use errand_proto::v1::{Assignment, Job};
use futures::{FutureExt, future::BoxFuture};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::{
    Execution, Failure,
    session::{Executor, JobContext, Outcome, Stop},
};

/// The service enforces the time limit; this long after it the runner does, in case it could not be told.
const LIMIT_GRACE: Duration = Duration::from_secs(2);

type Ended = Result<String, Failure>;
type Function = Arc<dyn Fn(Execution) -> BoxFuture<'static, Ended> + Send + Sync>;
/// Answers the service's RELOAD command.
pub(crate) type Reload = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(crate) struct Functions {
    by_name: BTreeMap<String, Function>,
    pub(crate) reload: Option<Reload>,
}

impl Functions {
    pub(crate) fn add<F, R, T>(&mut self, name: String, function: F)
    where
        F: Fn(Execution) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, Failure>> + Send + 'static,
        T: Serialize,
    {
        let function = move |execution| {
            let result = function(execution);
            async move { Ok(serde_json::to_string(&result.await?)?) }.boxed()
        };
        self.by_name.insert(name, Arc::new(function));
    }

    pub(crate) fn add_blocking<F, T>(&mut self, name: String, function: F)
    where
        F: Fn(Execution) -> Result<T, Failure> + Send + Sync + 'static,
        T: Serialize,
    {
        let function = Arc::new(function);
        let function = move |execution| {
            let function = Arc::clone(&function);
            let called = move || Ok(serde_json::to_string(&function(execution)?)?);
            async move {
                match tokio::task::spawn_blocking(called).await {
                    Ok(ended) => ended,
                    Err(error) => match error.try_into_panic() {
                        // The session tells what a panic said.
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(error) => Err(Failure::new(error)),
                    },
                }
            }
            .boxed()
        };
        self.by_name.insert(name, Arc::new(function));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    fn unknown(&self, name: &str) -> Failure {
        let offered = self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        Failure::for_good(format!("unknown function {name:?}: this runner offers {offered}"))
    }

    async fn call(&self, job: Job, mut context: JobContext) -> Outcome {
        let Some(function) = self.by_name.get(&job.func) else {
            return self.unknown(&job.func).into();
        };
        let limit = job.max_exec_seconds;
        let limit_at = limit.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)) + LIMIT_GRACE);
        let execution = Execution::new(job, &context);
        let ended = function(execution.clone());
        // Dropping an asynchronous function stops it; a blocking one goes on unheard.
        tokio::select! {
            ended = ended => match ended {
                Ok(_) if execution.saw_cancel() => Outcome::Canceled,
                Ok(result_json) => Outcome::Completed { result_json },
                Err(failure) => failure.into(),
            },
            _ = context.stop_beyond(Stop::Cancel) => Outcome::Released,
            () = at(limit_at) => Outcome::failed(format!("ran longer than {} seconds", limit.unwrap_or_default())),
        }
    }
}

#[async_trait::async_trait]
impl Executor for Functions {
    async fn execute(&self, assignment: Assignment, context: JobContext) -> Outcome {
        self.call(assignment.job.unwrap_or_default(), context).await
    }

    fn reload(&self) -> Result<(), String> {
        self.reload.as_ref().map_or(Ok(()), |reload| reload())
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

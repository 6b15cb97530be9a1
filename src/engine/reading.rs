//! Reading jobs: what a caller may see of them.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;

use super::{EngineError, Shared, error::JOB_NOT_FOUND};
use crate::model::{Caller, Job, JobEvent, JobId, Status, access::Permission};

/// Events in a status answer.
const RECENT_EVENTS: u32 = 10;
/// How often a job that is watched is looked at, beside its events.
const WATCH_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// A job with its latest events and its place in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    pub job: Job,
    /// Oldest first.
    pub recent_events: Vec<JobEvent>,
    /// 1 is next; absent unless pending.
    pub queue_position: Option<u64>,
}

impl Shared {
    /// A job that exists for this caller.
    pub(super) async fn visible(&self, id: JobId, caller: &Caller) -> Result<Job, EngineError> {
        let job = self.load(id).await?.ok_or(JOB_NOT_FOUND)?;
        if caller.sees(&job.owner) { Ok(job) } else { Err(JOB_NOT_FOUND) }
    }

    pub(super) async fn view(&self, job: Job) -> Result<JobView, EngineError> {
        let recent_events = self.store.events(job.id, RECENT_EVENTS).await?;
        let queue_position = match job.status {
            Status::Pending => Some(self.store.jobs_before(&job, self.now()).await? + 1),
            _ => None,
        };
        Ok(JobView { job, recent_events, queue_position })
    }

    /// The last event of a job that has ended.
    async fn end_of(&self, id: JobId) -> Result<Option<(JobEvent, Arc<Job>)>, EngineError> {
        let Some(job) = self.load(id).await?.filter(|job| job.status.is_terminal()) else { return Ok(None) };
        Ok(self.store.events(id, 1).await?.pop().map(|event| (event, Arc::new(job))))
    }

    /// Looks again and again whether a job has ended; never returns without a job. `None`: it is gone.
    async fn await_end_of(&self, id: Option<JobId>) -> Option<Result<(JobEvent, Arc<Job>), EngineError>> {
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let Some(id) = id else { continue };
            match self.load(id).await {
                Ok(Some(job)) if !job.status.is_terminal() => {}
                Ok(None) => return None,
                _ => return self.end_of(id).await.transpose(),
            }
        }
    }

    /// Events as they happen. With a job it ends once that job is terminal; one that is terminal already is told at
    /// once, by its last event.
    pub(super) async fn watch(
        self: &Arc<Shared>,
        job_id: Option<JobId>,
        channel: Option<String>,
        caller: Caller,
    ) -> Result<impl Stream<Item = Result<(JobEvent, Arc<Job>), EngineError>> + Send + use<>, EngineError> {
        let receiver = self.events.subscribe();
        self.ask_for_events().await;
        let mut past = Vec::new();
        let mut over = false;
        if let Some(id) = job_id {
            self.visible(id, &caller).await?;
            past = self.end_of(id).await?.into_iter().map(Ok).collect();
            over = !past.is_empty();
        }
        let sees_all = caller.has(Permission::ViewJobs);
        let wanted = move |event: &JobEvent, job: &Job| {
            job_id.is_none_or(|id| id == event.job_id)
                && channel.as_ref().is_none_or(|channel| **channel == *event.channel)
                && (job_id.is_some() || job.parent_id.is_none())
                && (sees_all || *job.owner == *caller.subject)
        };
        let shared = self.clone();
        let follow = futures::stream::unfold((receiver, over), move |(mut receiver, over)| {
            let (wanted, shared) = (wanted.clone(), shared.clone());
            async move {
                let stopped = shared.stopped();
                if over {
                    return None;
                }
                loop {
                    let received = tokio::select! {
                        received = receiver.recv() => received,
                        // Another node may have stored the end, and its letter may be lost.
                        end = shared.await_end_of(job_id) => return end.map(|end| (end, (receiver, true))),
                        () = stopped.cancelled() => return None,
                    };
                    match received {
                        Ok((event, job)) if wanted(&event, &job) => {
                            let over = job_id.is_some() && job.status.is_terminal();
                            return Some((Ok((event, job)), (receiver, over)));
                        }
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => {
                            let behind = EngineError::Busy("the watch fell behind and missed events; watch again");
                            return Some((Err(behind), (receiver, true)));
                        }
                        Err(RecvError::Closed) => return None,
                    }
                }
            }
        });
        Ok(futures::stream::iter(past).chain(follow))
    }
}

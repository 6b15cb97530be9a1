//! Reading jobs: what a caller may see of them.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;

use super::{EngineError, Shared, error::JOB_NOT_FOUND};
use crate::model::{Caller, Job, JobEvent, JobId, Status, access::Permission};

/// Events in a status answer.
const RECENT_EVENTS: u32 = 10;

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

    /// Events as they happen. With a job it ends once that job is terminal; one that is terminal already is told at
    /// once, by its last event.
    pub(super) async fn watch(
        self: &Arc<Shared>,
        job_id: Option<JobId>,
        channel: Option<String>,
        caller: Caller,
    ) -> Result<impl Stream<Item = Result<(JobEvent, Arc<Job>), EngineError>> + Send + use<>, EngineError> {
        let receiver = self.events.subscribe();
        let mut past = Vec::new();
        let mut over = false;
        if let Some(id) = job_id {
            let job = Arc::new(self.visible(id, &caller).await?);
            if job.status.is_terminal() {
                past = self.store.events(id, 1).await?.into_iter().map(|event| Ok((event, job.clone()))).collect();
                over = true;
            }
        }
        let sees_all = caller.has(Permission::ViewJobs);
        let wanted = move |event: &JobEvent, job: &Job| {
            job_id.is_none_or(|id| id == event.job_id)
                && channel.as_ref().is_none_or(|channel| **channel == *event.channel)
                && (job_id.is_some() || job.parent_id.is_none())
                && (sees_all || *job.owner == *caller.subject)
        };
        let stopped = self.stopped();
        let follow = futures::stream::unfold((receiver, over), move |(mut receiver, over)| {
            let (wanted, stopped) = (wanted.clone(), stopped.clone());
            async move {
                if over {
                    return None;
                }
                loop {
                    let received = tokio::select! {
                        received = receiver.recv() => received,
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

//! The door. Every public operation goes through here, and every one checks permission first.

use std::{sync::Arc, time::Duration};

use futures::Stream;

use super::{
    EngineError, Shared,
    control::Order,
    error::JOB_NOT_FOUND,
    health::{ChannelHealth, Stats, SystemHealth},
    messages::{Hello, Presence, Reply},
    publish::{Overrides, Published},
    reading::JobView,
    ready_of,
    session::{self, Attachment},
    transition::{Cancellation, Retried},
};
use crate::{
    model::{
        Caller, Invalid, Job, JobEvent, JobId, JobSpec, Operation, Status,
        access::Permission,
        limits,
        log::{JobLog, LogKind},
        spec::{check_channel, check_runner_id},
    },
    store::{ListQuery, Page},
};

type Result<T> = std::result::Result<T, EngineError>;

/// The longest a command may wait for its replies.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How often a delete is tried anew when the job changes meanwhile.
const DELETE_TRIES_MAX: usize = 8;

/// What a caller may do.
#[derive(Clone)]
pub struct OnBehalf {
    shared: Arc<Shared>,
    caller: Caller,
}

impl OnBehalf {
    pub(super) fn new(shared: Arc<Shared>, caller: Caller) -> OnBehalf {
        OnBehalf { shared, caller }
    }

    pub async fn publish(&self, spec: JobSpec) -> Result<Published> {
        self.caller.may(Operation::Publish)?;
        self.shared.publish(spec, &self.caller).await
    }

    /// All of them in one commit, or none.
    pub async fn publish_all(&self, specs: Vec<JobSpec>) -> Result<Vec<Published>> {
        self.caller.may(Operation::Publish)?;
        self.shared.publish_all(specs, &self.caller).await
    }

    /// A new job, the caller's own, from one that it may see.
    pub async fn clone_job(&self, template: JobId, overrides: Overrides) -> Result<Published> {
        self.caller.may(Operation::Publish)?;
        let template = self.shared.visible(template, &self.caller).await?;
        self.shared.clone_job(&template, overrides, &self.caller).await
    }

    pub async fn job(&self, id: JobId) -> Result<Job> {
        self.caller.may(Operation::ReadJobs)?;
        self.shared.visible(id, &self.caller).await
    }

    pub async fn job_status(&self, id: JobId) -> Result<JobView> {
        self.caller.may(Operation::ReadJobs)?;
        let job = self.shared.visible(id, &self.caller).await?;
        self.shared.view(job).await
    }

    /// Other people's jobs are left out where the caller may not see them.
    pub async fn list(&self, query: ListQuery) -> Result<Page> {
        self.caller.may(Operation::ReadJobs)?;
        let owner = (!self.caller.has(Permission::ViewJobs)).then(|| self.caller.subject.clone());
        let limit = query.limit.min(limits::PAGE_MAX + 1);
        Ok(self.shared.store.list(&ListQuery { owner, limit, ..query }).await?)
    }

    pub async fn events(&self, id: JobId) -> Result<Vec<JobEvent>> {
        self.caller.may(Operation::ReadJobs)?;
        let job = self.shared.visible(id, &self.caller).await?;
        Ok(self.shared.store.events(job.id, limits::EVENTS_MAX).await?)
    }

    pub async fn logs(&self, id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>> {
        self.caller.may(Operation::ReadJobs)?;
        let job = self.shared.visible(id, &self.caller).await?;
        Ok(self.shared.store.logs(job.id, kinds, after, limit.min(limits::PAGE_MAX + 1)).await?)
    }

    /// Events as they happen, of one job or of every job that the caller may see.
    pub async fn watch(
        &self,
        job_id: Option<JobId>,
        channel: Option<String>,
    ) -> Result<impl Stream<Item = Result<(JobEvent, Arc<Job>)>> + Send + 'static + use<>> {
        self.caller.may(Operation::ReadJobs)?;
        self.shared.watch(job_id, channel, self.caller.clone()).await
    }

    pub async fn cancel(&self, id: JobId) -> Result<Cancellation> {
        let job = self.may_steer(id).await?;
        self.shared.cancel(&job).await
    }

    pub async fn retry(&self, id: JobId, delay_seconds: Option<u32>) -> Result<Retried> {
        let job = self.may_steer(id).await?;
        self.shared.retry(&job, delay_seconds.unwrap_or(0)).await
    }

    pub async fn delete(&self, id: JobId) -> Result<()> {
        let mut job = self.may_steer(id).await?;
        for _ in 0..DELETE_TRIES_MAX {
            if job.status == Status::Running {
                return Err(EngineError::Refused("Cannot delete job in running state".to_owned()));
            }
            if self.shared.store.delete(id, job.version).await? {
                self.shared.queue.forget(&[ready_of(&job)]).await;
                return Ok(());
            }
            job = self.shared.load(id).await?.ok_or(JOB_NOT_FOUND)?;
        }
        Err(EngineError::Busy("the job changes too fast; try again"))
    }

    /// A caller that may not even see the job learns only that: for it, there is no such job.
    async fn may_steer(&self, id: JobId) -> Result<Job> {
        self.caller.may(Operation::SteerJobs)?;
        self.shared.visible(id, &self.caller).await
    }

    /// Attaches a runner; Welcome is the first message of its outbox.
    pub async fn attach(&self, hello: Hello) -> Result<Attachment> {
        self.caller.may(Operation::RunJobs)?;
        check_runner_id(&hello.runner_id)?;
        if hello.channels.is_empty() || hello.channels.len() > limits::RUNNER_CHANNELS_MAX {
            let wanted = format!("must be 1 to {} channels", limits::RUNNER_CHANNELS_MAX);
            return Err(Invalid::new("channels", wanted).into());
        }
        for channel in &hello.channels {
            check_channel("channels", channel)?;
            if !self.caller.is_bound_to(channel) {
                return Err(EngineError::ChannelDenied(channel.clone()));
            }
        }
        if hello.capacity > limits::RUNNER_CAPACITY_MAX {
            let wanted = format!("must be at most {}", limits::RUNNER_CAPACITY_MAX);
            return Err(Invalid::new("capacity", wanted).into());
        }
        if hello.leases.len() > limits::RUNNER_CAPACITY_MAX as usize {
            return Err(Invalid::new("leases", "must be no more than a runner may hold").into());
        }
        session::attach(self.shared.clone(), hello).await
    }

    pub async fn runners(&self, channel: Option<String>) -> Result<Vec<Presence>> {
        self.caller.may(Operation::ReadRunners)?;
        let mut roster = self.shared.registry.roster(self.shared.now()).await;
        if let Some(channel) = channel {
            roster.retain(|runner| runner.channels.iter().any(|own| **own == *channel));
        }
        Ok(roster)
    }

    /// The round trip, or none where the runner does not answer in time.
    pub async fn ping(&self, runner_id: &str, timeout: Duration) -> Result<Option<Duration>> {
        self.caller.may(Operation::SteerRunners)?;
        check_timeout(timeout)?;
        Ok(self.shared.ping(runner_id, timeout).await)
    }

    pub async fn shutdown(&self, runner_id: &str, graceful: bool) -> Result<()> {
        self.caller.may(Operation::SteerRunners)?;
        self.shared.shutdown(runner_id, graceful).await
    }

    pub async fn broadcast(&self, order: Order) -> Result<Vec<Reply>> {
        self.caller.may(Operation::SteerRunners)?;
        check_timeout(order.timeout)?;
        Ok(self.shared.broadcast(order).await)
    }

    pub async fn channel_health(&self, channel: &str) -> Result<ChannelHealth> {
        self.caller.may(Operation::ReadHealth)?;
        check_channel("channel", channel)?;
        self.shared.channel_health(channel).await
    }

    pub async fn system_health(&self) -> Result<SystemHealth> {
        self.caller.may(Operation::ReadHealth)?;
        self.shared.system_health().await
    }

    pub async fn stats(&self) -> Result<Stats> {
        self.caller.may(Operation::ReadHealth)?;
        self.shared.stats().await
    }
}

fn check_timeout(timeout: Duration) -> Result<()> {
    if timeout > TIMEOUT_MAX {
        return Err(Invalid::new("timeout", "must be 0 to 60 seconds").into());
    }
    Ok(())
}

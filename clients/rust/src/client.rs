//! The publisher: hands in jobs, follows and steers them.
//!
//! A client may know several servers of one service and stays with one while that answers. A call that did not
//! reach it moves on to the next, once around; one that may have been carried out is repeated only where doing it
//! twice changes nothing. Deliberately absent: waiting for a service that is down. The caller hears of it at once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use errand_proto::v1::{
    CancelJobRequest, CloneJobRequest, DeleteJobRequest, GetJobRequest, GetJobStatusRequest, ListJobEventsRequest,
    ListJobLogsRequest, ListJobsRequest, PublishJobRequest, PublishJobsRequest, RetryJobRequest, WatchJobsRequest,
    WatchJobsResponse, jobs_client::JobsClient,
};
use tonic::{Response, Status, Streaming};

use crate::{
    Dialer, Error, Job, JobEvent, JobLog, JobState, JobStatus, NewJob, Servers,
    endpoint::{MESSAGE_BYTES_MAX, Transport},
    error::is_broken_off,
    new_job::whole_seconds,
};

/// Between two looks at a job where it cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The largest page that the service gives.
const PAGE_MAX: u32 = 1_000;
/// Lines of one log that are read at most; a log beyond it is for a log system.
const LOG_LINES_MAX: usize = 100_000;

/// Publishes jobs and follows them to their end. Cheap to clone; clones share a connection.
///
/// ```no_run
/// use errand_client::{Client, NewJob, Servers};
/// use serde_json::{Value, json};
///
/// # async fn example() -> Result<(), errand_client::Error> {
/// let client = Client::connect(Servers::from_env()).await?;
/// let job = client.publish(NewJob::new("send", json!({"to": "ada@example.com"})).channel("emails")).await?.job;
/// let result: Value = client.wait(&job.id).await?.result()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    dialer: Dialer,
    line: Arc<Mutex<Line>>,
}

#[derive(Clone, Debug)]
struct Line {
    transport: Transport,
    server: usize,
}

/// A job that was handed in.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    pub job: Job,
    /// True where the idempotency key named a job that was there before.
    pub deduplicated: bool,
}

/// One of many jobs that were handed in together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub job_id: String,
    pub deduplicated: bool,
}

/// Whether a call that got no answer may be made again elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    /// It changes nothing the second time.
    Harmless,
    /// Only if it was never sent.
    Harmful,
}

impl Client {
    /// Connects to the first of the servers that answers.
    pub async fn connect(servers: impl Into<Servers>) -> Result<Self, Error> {
        Self::with_dialer(servers.into().dialer()?).await
    }

    /// The same, with servers that were checked before.
    pub async fn with_dialer(dialer: Dialer) -> Result<Self, Error> {
        let transport = dialer.connect_any(0).await?;
        Ok(Self { dialer, line: Arc::new(Mutex::new(Line { transport, server: 0 })) })
    }

    /// The connection itself, for calls of the contract that have no method here.
    pub fn transport(&self) -> Transport {
        self.line().transport
    }

    /// Hands in one job; it is durable once this returns.
    pub async fn publish(&self, job: NewJob) -> Result<Published, Error> {
        let twice = if job.has_idempotency_key() { Twice::Harmless } else { Twice::Harmful };
        let traceparent = job.trace_context()?;
        let request = PublishJobRequest { spec: Some(job.into_spec()?) };
        let answer = self
            .call(twice, |mut jobs| {
                let request = with_trace(request.clone(), traceparent.as_ref());
                async move { jobs.publish_job(request).await }
            })
            .await?;
        Ok(Published { job: answer.job.unwrap_or_default().into(), deduplicated: answer.deduplicated })
    }

    /// Hands in up to 1,000 jobs at once: all of them, or none. The receipts are in the order of the jobs; the trace
    /// context of the first job counts for all.
    pub async fn publish_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Receipt>, Error> {
        let keyed = jobs.iter().all(NewJob::has_idempotency_key);
        let twice = if keyed { Twice::Harmless } else { Twice::Harmful };
        let traceparent = jobs.first().map(NewJob::trace_context).transpose()?.flatten();
        let specs = jobs.into_iter().map(NewJob::into_spec).collect::<Result<_, _>>()?;
        let request = PublishJobsRequest { specs };
        let answer = self
            .call(twice, |mut jobs| {
                let request = with_trace(request.clone(), traceparent.as_ref());
                async move { jobs.publish_jobs(request).await }
            })
            .await?;
        let receipts = answer.receipts.into_iter();
        Ok(receipts.map(|one| Receipt { job_id: one.job_id, deduplicated: one.deduplicated }).collect())
    }

    /// A new job from an old one, with what `overrides` says replaced. Its id is returned.
    pub async fn publish_like(&self, template_job_id: &str, overrides: NewJob) -> Result<String, Error> {
        let request =
            CloneJobRequest { template_job_id: template_job_id.to_owned(), overrides: Some(overrides.into_spec()?) };
        let answer = self.call(Twice::Harmful, |mut jobs| {
            let request = request.clone();
            async move { jobs.clone_job(request).await }
        });
        Ok(answer.await?.job_id)
    }

    /// One job.
    pub async fn get(&self, job_id: &str) -> Result<Job, Error> {
        let answer = self.call(Twice::Harmless, |mut jobs| {
            let request = GetJobRequest { job_id: job_id.to_owned() };
            async move { jobs.get_job(request).await }
        });
        Ok(answer.await?.job.unwrap_or_default().into())
    }

    /// One job with its latest events and its place in the queue.
    pub async fn status(&self, job_id: &str) -> Result<JobState, Error> {
        let answer = self.call(Twice::Harmless, |mut jobs| {
            let request = GetJobStatusRequest { job_id: job_id.to_owned() };
            async move { jobs.get_job_status(request).await }
        });
        let answer = answer.await?;
        Ok(JobState {
            job: answer.job.unwrap_or_default().into(),
            recent_events: answer.recent_events.into_iter().map(JobEvent::from).collect(),
            queue_position: answer.queue_position,
        })
    }

    /// The job once nothing happens to it any more; [`Job::result`] has what its function returned. Waits as long as
    /// it takes, also for a service that restarts: bound it with `tokio::time::timeout`.
    pub async fn wait(&self, job_id: &str) -> Result<Job, Error> {
        // Watched before it is looked at, so that an end in between is not missed.
        let mut watch = self.watch_job(job_id).await.ok();
        loop {
            match self.get(job_id).await {
                Ok(job) if job.status.is_terminal() => return Ok(job),
                Ok(_) | Err(Error::Unavailable(_)) => {}
                Err(refusal) => return Err(refusal),
            }
            match watch.take() {
                Some(mut watch) => {
                    while let Ok(Some((_, job))) = watch.next().await {
                        if job.status.is_terminal() {
                            break;
                        }
                    }
                }
                None => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// What happens to the job from this moment on; ends with the job.
    pub async fn watch_job(&self, job_id: &str) -> Result<Watch, Error> {
        self.watch(WatchJobsRequest { job_id: job_id.to_owned(), channel: String::new() }).await
    }

    /// What happens in a channel from this moment on, to every job that the token may see.
    pub async fn watch_channel(&self, channel: &str) -> Result<Watch, Error> {
        self.watch(WatchJobsRequest { job_id: String::new(), channel: channel.to_owned() }).await
    }

    async fn watch(&self, request: WatchJobsRequest) -> Result<Watch, Error> {
        let opened = self.call(Twice::Harmless, |mut jobs| {
            let request = request.clone();
            async move { jobs.watch_jobs(request).await }
        });
        Ok(Watch(opened.await?))
    }

    /// Jobs, newest first.
    pub async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, Error> {
        let mut found: Vec<Job> = Vec::new();
        let mut request = filter.request.clone();
        while found.len() < filter.limit {
            let missing = u32::try_from(filter.limit - found.len()).unwrap_or(PAGE_MAX);
            request.page_size = missing.min(PAGE_MAX);
            let answer = self.call(Twice::Harmless, |mut jobs| {
                let request = request.clone();
                async move { jobs.list_jobs(request).await }
            });
            let answer = answer.await?;
            let is_last = answer.next_page_token.is_empty() || answer.jobs.is_empty();
            found.extend(answer.jobs.into_iter().map(Job::from));
            if is_last {
                break;
            }
            request.page_token = answer.next_page_token;
        }
        Ok(found)
    }

    /// The job's history, oldest first.
    pub async fn events(&self, job_id: &str) -> Result<Vec<JobEvent>, Error> {
        let answer = self.call(Twice::Harmless, |mut jobs| {
            let request = ListJobEventsRequest { job_id: job_id.to_owned() };
            async move { jobs.list_job_events(request).await }
        });
        Ok(answer.await?.events.into_iter().map(JobEvent::from).collect())
    }

    /// What the job's function wrote to its log, oldest first; at most 100,000 lines.
    pub async fn logs(&self, job_id: &str) -> Result<Vec<JobLog>, Error> {
        let mut request =
            ListJobLogsRequest { job_id: job_id.to_owned(), page_size: PAGE_MAX, ..ListJobLogsRequest::default() };
        let mut logs = Vec::new();
        while logs.len() < LOG_LINES_MAX {
            let answer = self.call(Twice::Harmless, |mut jobs| {
                let request = request.clone();
                async move { jobs.list_job_logs(request).await }
            });
            let answer = answer.await?;
            let is_last = answer.next_page_token.is_empty() || answer.logs.is_empty();
            logs.extend(answer.logs.into_iter().map(JobLog::from));
            if is_last {
                break;
            }
            request.page_token = answer.next_page_token;
        }
        Ok(logs)
    }

    /// Cancels a pending job at once, and asks the runner of a running one to stop: the job as it stands after that.
    pub async fn cancel(&self, job_id: &str) -> Result<Job, Error> {
        let answer = self.call(Twice::Harmless, |mut jobs| {
            let request = CancelJobRequest { job_id: job_id.to_owned() };
            async move { jobs.cancel_job(request).await }
        });
        Ok(answer.await?.job.unwrap_or_default().into())
    }

    /// Publishes a failed, canceled or expired job anew, after `delay` (whole seconds; zero: at once). The new job's
    /// id is returned; the old one stays as it is.
    pub async fn retry(&self, job_id: &str, delay: Duration) -> Result<String, Error> {
        let delay_seconds = Some(whole_seconds("delay", delay)?);
        let answer = self.call(Twice::Harmful, |mut jobs| {
            let request = RetryJobRequest { job_id: job_id.to_owned(), delay_seconds };
            async move { jobs.retry_job(request).await }
        });
        Ok(answer.await?.new_job_id)
    }

    /// Removes a job that is not running, with its history and its log.
    pub async fn delete(&self, job_id: &str) -> Result<(), Error> {
        let answer = self.call(Twice::Harmful, |mut jobs| {
            let request = DeleteJobRequest { job_id: job_id.to_owned() };
            async move { jobs.delete_job(request).await }
        });
        answer.await.map(drop)
    }

    /// Makes a call, at most once a server.
    async fn call<T, F, R>(&self, twice: Twice, call: F) -> Result<T, Error>
    where
        F: Fn(JobsClient<Transport>) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let mut tries = 1;
        loop {
            let Line { transport, server } = self.line();
            let jobs = JobsClient::new(transport).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let refusal = match call(jobs).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let elsewhere = is_broken_off(&refusal) && (twice == Twice::Harmless || was_never_sent(&refusal));
            if !elsewhere || tries >= self.dialer.count() {
                return Err(refusal.into());
            }
            tries += 1;
            self.move_on(server).await?;
        }
    }

    /// Leaves `server` for the next one that answers, unless somebody else did so meanwhile.
    async fn move_on(&self, server: usize) -> Result<(), Error> {
        if self.line().server != server {
            return Ok(());
        }
        let next = server.wrapping_add(1);
        let transport = self.dialer.connect_any(next).await?;
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.server == server {
            *line = Line { transport, server: next };
        }
        Ok(())
    }

    fn line(&self) -> Line {
        // Nothing panics while it holds the lock; what it guards is whole.
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The events of one job or channel, as they happen.
#[derive(Debug)]
pub struct Watch(Streaming<WatchJobsResponse>);

impl Watch {
    /// The next event, and the job as it stood after it; `None` at the end of the job.
    pub async fn next(&mut self) -> Result<Option<(JobEvent, Job)>, Error> {
        let told = self.0.message().await?;
        Ok(told.map(|told| (told.event.unwrap_or_default().into(), told.job.unwrap_or_default().into())))
    }
}

/// Which jobs to list; what is not said filters nothing.
#[derive(Clone, Debug)]
pub struct JobFilter {
    request: ListJobsRequest,
    limit: usize,
}

impl Default for JobFilter {
    /// The newest hundred.
    fn default() -> Self {
        Self { request: ListJobsRequest::default(), limit: 100 }
    }
}

impl JobFilter {
    /// How many at most; 100 unless said.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    #[must_use]
    pub fn channel(mut self, channel: impl Into<String>) -> Self {
        self.request.channel = channel.into();
        self
    }

    /// One more state; without any, all of them.
    #[must_use]
    pub fn status(mut self, status: JobStatus) -> Self {
        self.request.statuses.push(errand_proto::v1::JobStatus::from(status).into());
        self
    }

    #[must_use]
    pub fn func(mut self, func: impl Into<String>) -> Self {
        self.request.func = func.into();
        self
    }

    #[must_use]
    pub fn runner(mut self, runner_id: impl Into<String>) -> Self {
        self.request.runner_id = runner_id.into();
        self
    }

    /// The parts of one broadcast job; they are left out otherwise.
    #[must_use]
    pub fn parts_of(mut self, job_id: impl Into<String>) -> Self {
        self.request.parent_id = job_id.into();
        self
    }

    /// Created then or later.
    #[must_use]
    pub fn created_from(mut self, time: SystemTime) -> Self {
        self.request.created_from = Some(time.into());
        self
    }

    /// Created before then.
    #[must_use]
    pub fn created_to(mut self, time: SystemTime) -> Self {
        self.request.created_to = Some(time.into());
        self
    }
}

/// True where no server can have seen the call.
fn was_never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn with_trace<T>(
    message: T,
    traceparent: Option<&tonic::metadata::MetadataValue<tonic::metadata::Ascii>>,
) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(context) = traceparent {
        request.metadata_mut().insert("traceparent", context.clone());
    }
    request
}

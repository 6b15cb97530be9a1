//! `errand get`, `list`, `events` and `logs`.

use errand_client::endpoint::{MESSAGE_BYTES_MAX, Transport};
use errand_proto::v1::{
    GetJobStatusRequest, Job, JobEvent, JobLog, JobStatus, ListJobEventsRequest, ListJobLogsRequest, ListJobsRequest,
    jobs_client::JobsClient,
};
use prost_types::Timestamp;

use super::{
    Client, Common, Done, moment,
    table::{facts, table},
    view::{EventView, JobView, LogView, event_word, log_word, status_word},
};

/// Lines of one log that are read at most; a log beyond it is for a log system.
const LOG_LINES_MAX: usize = 100_000;
const PAGE_SIZE: u32 = 1000;

/// Shows a job.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// The job
    #[arg(value_name = "ID")]
    job_id: String,
    #[command(flatten)]
    common: Common,
}

impl Get {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let answer = jobs(&client).get_job_status(GetJobStatusRequest { job_id: self.job_id }).await;
        let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
        let job = answer.job.unwrap_or_default();
        let mut view = JobView::from(&job);
        view.queue_position = answer.queue_position;
        view.recent_events = Some(answer.recent_events.iter().map(EventView::from).collect());
        client.show(&view, || {
            let position = answer.queue_position.map(|position| position.to_string()).unwrap_or_default();
            job_facts(&job, position) + "\n" + &event_table(&answer.recent_events)
        })
    }
}

/// Lists jobs.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only jobs of this channel
    #[arg(long)]
    channel: Option<String>,
    /// Only jobs in these states, separated by commas: pending, running, completed, failed, canceled, expired
    #[arg(long, value_delimiter = ',', value_parser = status)]
    status: Vec<JobStatus>,
    /// Only jobs that run this
    #[arg(long)]
    func: Option<String>,
    /// Only jobs of this runner
    #[arg(long)]
    runner: Option<String>,
    /// Only jobs created since then: a time, or a duration like 2h
    #[arg(long, value_parser = moment::since)]
    since: Option<Timestamp>,
    /// How many at most, 1 to 1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

impl List {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let mut request = ListJobsRequest {
            channel: self.channel.unwrap_or_default(),
            statuses: self.status.iter().map(|status| (*status).into()).collect(),
            func: self.func.unwrap_or_default(),
            runner_id: self.runner.unwrap_or_default(),
            created_from: self.since,
            ..ListJobsRequest::default()
        };
        let limit = self.limit as usize;
        let mut found: Vec<Job> = Vec::new();
        loop {
            request.page_size = self.limit.saturating_sub(found.len() as u32);
            let answer = jobs(&client).list_jobs(request.clone()).await;
            let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
            let is_last = answer.next_page_token.is_empty() || answer.jobs.is_empty();
            found.extend(answer.jobs);
            if is_last || found.len() >= limit {
                break;
            }
            request.page_token = answer.next_page_token;
        }
        found.truncate(limit);
        let views: Vec<JobView> = found.iter().map(JobView::from).collect();
        client.show(&views, || job_table(&found))
    }
}

/// Shows a job's history.
#[derive(Debug, clap::Args)]
pub struct Events {
    /// The job
    #[arg(value_name = "ID")]
    job_id: String,
    #[command(flatten)]
    common: Common,
}

impl Events {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let answer = jobs(&client).list_job_events(ListJobEventsRequest { job_id: self.job_id }).await;
        let events = answer.map_err(|status| client.refusal(&status))?.into_inner().events;
        let views: Vec<EventView> = events.iter().map(EventView::from).collect();
        client.show(&views, || event_table(&events))
    }
}

/// Shows a job's log.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// The job
    #[arg(value_name = "ID")]
    job_id: String,
    #[command(flatten)]
    common: Common,
}

impl Logs {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let mut request = ListJobLogsRequest { job_id: self.job_id, page_size: PAGE_SIZE, ..Default::default() };
        let mut logs: Vec<JobLog> = Vec::new();
        while logs.len() < LOG_LINES_MAX {
            let answer = jobs(&client).list_job_logs(request.clone()).await;
            let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
            let is_last = answer.next_page_token.is_empty() || answer.logs.is_empty();
            logs.extend(answer.logs);
            if is_last {
                break;
            }
            request.page_token = answer.next_page_token;
        }
        let views: Vec<LogView> = logs.iter().map(LogView::from).collect();
        client.show(&views, || {
            let rows = logs.iter().map(|log| [time(log.created.as_ref()), log_word(log.kind()), log.message.clone()]);
            table(["at", "kind", "message"], rows)
        })
    }
}

fn jobs(client: &Client) -> JobsClient<Transport> {
    JobsClient::new(client.transport.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn job_facts(job: &Job, queue_position: String) -> String {
    let yes = |claim: bool| {
        if claim { "yes".to_owned() } else { String::new() }
    };
    facts([
        ("id", job.id.clone()),
        ("func", job.func.clone()),
        ("channel", job.channel.clone()),
        ("status", status_word(job.status())),
        ("queue position", queue_position),
        ("attempt", format!("{} of at most {}", job.attempt, job.max_retries.saturating_add(1))),
        ("runner", job.runner_id.clone()),
        ("owner", job.owner.clone()),
        ("broadcast", yes(job.broadcast)),
        ("cancel requested", yes(job.cancel_requested)),
        ("created", time(job.created.as_ref())),
        ("run at", time(job.run_at.as_ref())),
        ("expires at", time(job.expires_at.as_ref())),
        ("started at", time(job.started_at.as_ref())),
        ("finished at", time(job.finished_at.as_ref())),
        ("payload", job.payload_json.clone()),
        ("metadata", job.metadata_json.clone()),
        ("result", job.result_json.clone()),
        ("error", job.last_error.clone()),
    ])
}

fn job_table(jobs: &[Job]) -> String {
    let rows = jobs.iter().map(|job| {
        [
            job.id.clone(),
            status_word(job.status()),
            job.channel.clone(),
            job.func.clone(),
            job.attempt.to_string(),
            job.runner_id.clone(),
            time(job.created.as_ref()),
            job.last_error.chars().take(60).collect(),
        ]
    });
    table(["id", "status", "channel", "func", "attempt", "runner", "created", "error"], rows)
}

fn event_table(events: &[JobEvent]) -> String {
    let rows = events.iter().map(|event| {
        [
            time(event.at.as_ref()),
            event_word(event.kind()),
            event.attempt.to_string(),
            event.runner_id.clone(),
            event.details_json.clone(),
        ]
    });
    table(["at", "event", "attempt", "runner", "details"], rows)
}

fn time(time: Option<&Timestamp>) -> String {
    moment::written(time).unwrap_or_default()
}

/// Reads a job state.
fn status(word: &str) -> Result<JobStatus, String> {
    match JobStatus::from_str_name(&format!("JOB_STATUS_{}", word.to_uppercase())) {
        Some(status) if status != JobStatus::Unspecified => Ok(status),
        _ => Err("must be pending, running, completed, failed, canceled or expired".to_owned()),
    }
}

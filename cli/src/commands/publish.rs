//! `errand publish`: store a job, and with `--wait` follow it to its end.

use std::{io::Read, process::ExitCode};

use errand_client::endpoint::MESSAGE_BYTES_MAX;
use errand_proto::v1::{
    GetJobRequest, JobSpec, JobStatus, PublishJobRequest,
    job_spec::{Expiry, Start},
    jobs_client::JobsClient,
};
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    ClientError, Common, Done, moment,
    table::facts,
    view::{JobView, status_word},
};

/// What to publish.
#[derive(Debug, clap::Args)]
pub struct Publish {
    /// What to run, e.g. myapp.jobs.send_email
    #[arg(value_name = "FUNC")]
    func: String,
    /// A JSON object; - reads it from standard input
    #[arg(value_name = "PAYLOAD", default_value = "{}")]
    payload: String,
    /// The channel whose runners may take it
    #[arg(long, default_value = "default")]
    channel: String,
    /// Start no sooner than this from now: seconds, or a duration like 90s
    #[arg(long, value_parser = moment::seconds, conflicts_with = "run_at")]
    delay: Option<u32>,
    /// Start no sooner than this time, e.g. 2030-01-31T18:00:00Z
    #[arg(long, value_parser = moment::moment)]
    run_at: Option<Timestamp>,
    /// Give up where it has not started this long after its run time
    #[arg(long, value_parser = moment::seconds, conflicts_with = "expires_at")]
    expires_in: Option<u32>,
    /// Give up where it has not started by this time
    #[arg(long, value_parser = moment::moment)]
    expires_at: Option<Timestamp>,
    /// Retries after the first execution; 3 unless said
    #[arg(long)]
    max_retries: Option<u32>,
    /// The delay before retry k is this to the power of k, in seconds; 2.0 unless said
    #[arg(long)]
    backoff_base: Option<f64>,
    /// The longest delay before a retry; 3600 seconds unless said
    #[arg(long, value_parser = moment::seconds)]
    backoff_max: Option<u32>,
    /// Run it once on every runner of the channel
    #[arg(long)]
    broadcast: bool,
    /// Stop an execution that takes longer than this many seconds
    #[arg(long, value_parser = moment::seconds)]
    max_exec_seconds: Option<u32>,
    /// Publish once however often this key is used
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Higher goes first within the channel; 0 unless said
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Wait for the end; exit 0 where the job completed, 1 otherwise
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Published {
    #[serde(flatten)]
    job: JobView,
    deduplicated: bool,
}

impl Publish {
    pub(super) async fn run(self) -> Done {
        let (wait, common) = (self.wait, self.common.clone());
        let spec = self.spec()?;
        let client = common.connect().await?;
        let mut jobs = JobsClient::new(client.transport.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = jobs.publish_job(PublishJobRequest { spec: Some(spec) }).await;
        let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
        let job = answer.job.unwrap_or_default();
        if !wait {
            let published = Published { job: (&job).into(), deduplicated: answer.deduplicated };
            return client.show(&published, || format!("{}\n", job.id));
        }
        errand_client::Client::with_dialer(client.servers.clone()).await?.wait(&job.id).await?;
        let answer = jobs.get_job(GetJobRequest { job_id: job.id }).await;
        let job = answer.map_err(|status| client.refusal(&status))?.into_inner().job.unwrap_or_default();
        client.show(&JobView::from(&job), || {
            facts([
                ("id", job.id.clone()),
                ("status", status_word(job.status())),
                ("attempt", job.attempt.to_string()),
                ("result", job.result_json.clone()),
                ("error", job.last_error.clone()),
            ])
        })?;
        Ok(if job.status() == JobStatus::Completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn spec(self) -> Result<JobSpec, ClientError> {
        let payload_json = if self.payload == "-" { from_stdin()? } else { self.payload };
        let is_object = payload_json.trim_start().starts_with('{');
        if !is_object || serde_json::from_str::<&RawValue>(&payload_json).is_err() {
            return Err(ClientError::Usage("PAYLOAD must be a JSON object, e.g. '{\"to\": \"ada\"}'".to_owned()));
        }
        let start = self.run_at.map(Start::RunAt).or(self.delay.map(Start::DelaySeconds));
        let expiry = self.expires_at.map(Expiry::ExpiresAt).or(self.expires_in.map(Expiry::ExpiresInSeconds));
        Ok(JobSpec {
            func: self.func,
            payload_json,
            channel: self.channel,
            start,
            expiry,
            max_retries: self.max_retries,
            backoff_base: self.backoff_base,
            backoff_max_seconds: self.backoff_max,
            broadcast: self.broadcast.then_some(true),
            max_exec_seconds: self.max_exec_seconds,
            idempotency_key: self.idempotency_key.unwrap_or_default(),
            priority: self.priority,
        })
    }
}

fn from_stdin() -> Result<String, ClientError> {
    let mut text = String::new();
    // One byte more than can be sent, so that the service names its own limit.
    let limit = MESSAGE_BYTES_MAX as u64;
    match std::io::stdin().lock().take(limit).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(ClientError::Usage(format!("cannot read the payload from standard input: {error}"))),
    }
}

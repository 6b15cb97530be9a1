//! `errand cancel`, `retry` and `delete`.

use errand_proto::v1::{CancelJobRequest, DeleteJobRequest, RetryJobRequest, jobs_client::JobsClient};
use serde_json::json;

use super::{Common, Done, moment};

/// Cancels a job.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    /// The job
    #[arg(value_name = "ID")]
    job_id: String,
    #[command(flatten)]
    common: Common,
}

impl Cancel {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let answer =
            JobsClient::new(client.transport.clone()).cancel_job(CancelJobRequest { job_id: self.job_id }).await;
        let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
        let job = answer.job.unwrap_or_default();
        let status = super::view::status_word(job.status());
        let document = json!({"job_id": job.id, "status": status, "forced": answer.forced});
        client.show(&document, || format!("job {} cancellation requested, it is {status}\n", job.id))
    }
}

/// Publishes a job anew.
#[derive(Debug, clap::Args)]
pub struct Retry {
    /// The job
    #[arg(value_name = "ID")]
    job_id: String,
    /// Start no sooner than this from now: seconds, or a duration like 90s
    #[arg(long, value_parser = moment::seconds)]
    delay: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl Retry {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let request = RetryJobRequest { job_id: self.job_id, delay_seconds: self.delay };
        let answer = JobsClient::new(client.transport.clone()).retry_job(request).await;
        let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
        let document = json!({
            "original_job_id": answer.original_job_id,
            "new_job_id": answer.new_job_id,
            "delayed": answer.delayed,
        });
        client.show(&document, || format!("{}\n", answer.new_job_id))
    }
}

/// Deletes a job.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// The job
    #[arg(value_name = "ID")]
    job_id: String,
    #[command(flatten)]
    common: Common,
}

impl Delete {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let request = DeleteJobRequest { job_id: self.job_id.clone() };
        let answer = JobsClient::new(client.transport.clone()).delete_job(request).await;
        answer.map_err(|status| client.refusal(&status))?;
        client.show(&json!({"job_id": self.job_id, "deleted": true}), || format!("job {} deleted\n", self.job_id))
    }
}

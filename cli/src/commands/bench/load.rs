//! Publishers: one by one, in batches, and over streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use errand_proto::v1::{
    JobSpec, PublishJobRequest, PublishJobStreamRequest, PublishJobsRequest, job_spec::Expiry, jobs_client::JobsClient,
    publish_job_stream_response::Outcome,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{ClientError, target::Target};
use errand_client::endpoint::Transport;

/// Jobs in one batch.
pub const BATCH: usize = 100;
/// Publishers of batches.
pub const BATCH_PUBLISHERS: usize = 16;
/// Publishing streams.
pub const STREAMS: usize = 4;
/// Requests of one stream that may wait for its connection.
const STREAM_AHEAD: usize = 256;
/// What a publisher that is told to try again waits.
const WHEN_BUSY: Duration = Duration::from_millis(2);
/// Jobs of a long run must not expire in the queue.
const EXPIRES_IN_SECONDS: u32 = 7 * 24 * 3600;

/// The jobs of one part: on its own channels, all alike.
#[derive(Clone)]
pub struct Mould {
    pub channels: Arc<[String]>,
    payload: Arc<str>,
}

impl Mould {
    pub fn new(part: &str, channels: u32, payload_bytes: usize) -> Mould {
        let run = std::process::id();
        let channels = (0..channels).map(|number| format!("bench-{run}-{part}-{number}")).collect();
        // {"filler":"..."} is 13 bytes longer than the filler.
        let filler = "x".repeat(payload_bytes.saturating_sub(13));
        Mould { channels, payload: format!(r#"{{"filler":"{filler}"}}"#).into() }
    }

    pub fn payload(&self) -> &str {
        &self.payload
    }

    pub fn channel(&self, number: usize) -> &str {
        // There is at least one channel, so the remainder is of no zero.
        &self.channels[number % self.channels.len().max(1)]
    }

    pub fn spec(&self, number: usize) -> JobSpec {
        JobSpec {
            func: "bench.run".to_owned(),
            payload_json: self.payload.to_string(),
            channel: self.channel(number).to_owned(),
            expiry: Some(Expiry::ExpiresInSeconds(EXPIRES_IN_SECONDS)),
            ..JobSpec::default()
        }
    }
}

/// When publishers stop.
#[derive(Clone)]
pub enum Until {
    Time(Instant),
    /// Jobs that are still to be published, by all of them together.
    Jobs(Arc<AtomicU64>),
}

impl Until {
    /// Takes up to `jobs` from what is left; 0 ends the publisher.
    fn take(&self, jobs: u64) -> u64 {
        match self {
            Until::Time(end) => {
                if Instant::now() < *end {
                    jobs
                } else {
                    0
                }
            }
            Until::Jobs(left) => {
                let take = |left: u64| Some(left.saturating_sub(jobs));
                let before = left.fetch_update(Relaxed, Relaxed, take).unwrap_or(0);
                before.min(jobs)
            }
        }
    }
}

/// Publishers at work; what they published is in `published` as soon as it is acknowledged.
pub struct Publishers {
    tasks: JoinSet<Result<(), Status>>,
    pub published: Arc<AtomicU64>,
}

impl Publishers {
    fn new() -> Publishers {
        Publishers { tasks: JoinSet::new(), published: Arc::default() }
    }

    /// Single publishes, always so many in flight, over one connection.
    pub async fn singles(
        target: &Target,
        mould: &Mould,
        in_flight: usize,
        until: Until,
    ) -> Result<Publishers, ClientError> {
        let mut publishers = Publishers::new();
        let client = target.jobs().await?;
        for number in 0..in_flight {
            let publisher = singles(client.clone(), mould.clone(), number, until.clone(), publishers.published.clone());
            publishers.tasks.spawn(publisher);
        }
        Ok(publishers)
    }

    /// Batches, one in flight for each of so many publishers, over one connection.
    pub async fn batches(target: &Target, mould: &Mould, until: Until) -> Result<Publishers, ClientError> {
        let mut publishers = Publishers::new();
        let client = target.jobs().await?;
        for number in 0..BATCH_PUBLISHERS {
            let publisher = batches(client.clone(), mould.clone(), number, until.clone(), publishers.published.clone());
            publishers.tasks.spawn(publisher);
        }
        Ok(publishers)
    }

    /// Publishing streams, each over a connection of its own.
    pub async fn streams(target: &Target, mould: &Mould, until: Until) -> Result<Publishers, ClientError> {
        let mut publishers = Publishers::new();
        for number in 0..STREAMS {
            let client = target.jobs().await?;
            publishers.tasks.spawn(stream(client, mould.clone(), number, until.clone(), publishers.published.clone()));
        }
        Ok(publishers)
    }

    pub fn published(&self) -> u64 {
        self.published.load(Relaxed)
    }

    /// Waits until all have stopped; tells how many jobs they published.
    pub async fn done(mut self, target: &Target) -> Result<u64, ClientError> {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(status)) => return Err(target.refusal(&status)),
                Err(error) => return Err(ClientError::Failed(format!("a publisher died: {error}"))),
            }
        }
        Ok(self.published())
    }
}

async fn singles(
    mut client: JobsClient<Transport>,
    mould: Mould,
    number: usize,
    until: Until,
    published: Arc<AtomicU64>,
) -> Result<(), Status> {
    while until.take(1) > 0 {
        while !acknowledged(client.publish_job(PublishJobRequest { spec: Some(mould.spec(number)) }).await).await? {}
        published.fetch_add(1, Relaxed);
    }
    Ok(())
}

async fn batches(
    mut client: JobsClient<Transport>,
    mould: Mould,
    number: usize,
    until: Until,
    published: Arc<AtomicU64>,
) -> Result<(), Status> {
    let specs = vec![mould.spec(number); BATCH];
    loop {
        let jobs = until.take(BATCH as u64);
        let specs = specs[..BATCH.min(jobs as usize)].to_vec();
        if specs.is_empty() {
            return Ok(());
        }
        while !acknowledged(client.publish_jobs(PublishJobsRequest { specs: specs.clone() }).await).await? {}
        published.fetch_add(jobs, Relaxed);
    }
}

async fn stream(
    mut client: JobsClient<Transport>,
    mould: Mould,
    number: usize,
    until: Until,
    published: Arc<AtomicU64>,
) -> Result<(), Status> {
    let (requests, outgoing) = mpsc::channel(STREAM_AHEAD);
    let writing = tokio::spawn(async move {
        while until.take(1) > 0 {
            let request = PublishJobStreamRequest { spec: Some(mould.spec(number)) };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    });
    let mut answers = client.publish_job_stream(ReceiverStream::new(outgoing)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        match answer.outcome {
            Some(Outcome::Receipt(_)) => {
                published.fetch_add(1, Relaxed);
            }
            Some(Outcome::Refusal(refusal)) => return Err(Status::new(Code::from(refusal.code), refusal.message)),
            None => {}
        }
    }
    // The service closes only after the last request, so nothing is written any more.
    writing.abort();
    Ok(())
}

/// False where the service is busy: the same again, a little later.
async fn acknowledged<T>(answer: Result<T, Status>) -> Result<bool, Status> {
    match answer {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::ResourceExhausted => {
            sleep(WHEN_BUSY).await;
            Ok(false)
        }
        Err(status) => Err(status),
    }
}

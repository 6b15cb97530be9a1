//! Runners that have every job done at once, as cheaply as the protocol allows.
//!
//! Deliberately absent: resuming, heartbeats that name leases (no execution lasts longer than its assignment's way
//! through this file), and retries: a runner that loses its stream ends the run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use errand_proto::v1::{
    AttachRequest, Completed, Heartbeat, Hello, Result as JobResult, Results, attach_request, attach_response,
    result::Outcome, runners_client::RunnersClient,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::interval,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{ClientError, target::Target};
use errand_client::{Dialer, endpoint::Transport};

/// A silent runner gets no jobs after twice the service's interval, which is 5 s unless said.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Messages that may wait beside the results, of which there are never more than the capacity.
const OUTGOING_SPARE: usize = 16;
/// How long jobs may stay undone before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hears the payload of every job that starts.
pub type Started = Arc<dyn Fn(&str) + Send + Sync>;

/// Attached runners; dropping them closes their streams.
pub struct Crew {
    runners: JoinSet<Result<(), ClientError>>,
    receipts: Arc<Receipts>,
}

/// Results that the service has acknowledged.
#[derive(Default)]
pub struct Receipts {
    accepted: AtomicU64,
    changed: Notify,
}

impl Receipts {
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }
}

impl Crew {
    /// Attaches `count` runners of `capacity` each and returns once all are welcome.
    pub async fn attach(
        target: &Target,
        channels: &[String],
        count: u32,
        capacity: u32,
        started: Option<Started>,
    ) -> Result<Crew, ClientError> {
        let mut crew = Crew { runners: JoinSet::new(), receipts: Arc::default() };
        for _ in 0..count {
            let runner = Runner {
                client: target.runners().await?,
                dialer: target.dialer(),
                receipts: crew.receipts.clone(),
                started: started.clone(),
            };
            let (welcome, welcomed) = tokio::sync::oneshot::channel();
            crew.runners.spawn(runner.run(hello(channels, capacity), welcome));
            if welcomed.await.is_err() {
                crew.ended().await?;
            }
        }
        Ok(crew)
    }

    pub fn receipts(&self) -> Arc<Receipts> {
        self.receipts.clone()
    }

    /// Waits until so many results have their receipts.
    pub async fn until(&mut self, jobs: u64) -> Result<(), ClientError> {
        loop {
            let accepted = self.receipts.accepted();
            if accepted >= jobs {
                return Ok(());
            }
            // Each branch only waits; nothing is lost with the one that is dropped.
            tokio::select! {
                () = self.receipts.changed.notified() => {}
                ended = self.runners.join_next() => return Err(failure(ended)),
                () = tokio::time::sleep(PATIENCE) => return Err(ClientError::Failed(format!(
                    "{accepted} of {jobs} jobs are done, and none more for {} s", PATIENCE.as_secs()
                ))),
            }
        }
    }

    async fn ended(&mut self) -> Result<(), ClientError> {
        Err(failure(self.runners.join_next().await))
    }
}

fn failure(ended: Option<Result<Result<(), ClientError>, tokio::task::JoinError>>) -> ClientError {
    match ended {
        Some(Ok(Err(error))) => error,
        _ => ClientError::Failed("a runner's stream has closed".to_owned()),
    }
}

fn hello(channels: &[String], capacity: u32) -> Hello {
    /// Runner ids of one process differ.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    Hello {
        runner_id: format!("bench-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed)),
        channels: channels.to_vec(),
        capacity,
        client: concat!("errand-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..Hello::default()
    }
}

struct Runner {
    client: RunnersClient<Transport>,
    dialer: Dialer,
    receipts: Arc<Receipts>,
    started: Option<Started>,
}

impl Runner {
    async fn run(mut self, hello: Hello, welcome: tokio::sync::oneshot::Sender<()>) -> Result<(), ClientError> {
        let room = hello.capacity as usize + OUTGOING_SPARE;
        let (outgoing, messages) = mpsc::channel(room);
        let say = |message| {
            let request = AttachRequest { message: Some(message) };
            // There is room for a message of each job that is held, so a full queue is one that nobody reads.
            outgoing.try_send(request).map_err(|_| ClientError::Failed("the service reads no results".to_owned()))
        };
        say(attach_request::Message::Hello(hello))?;
        let attached = self.client.attach(ReceiverStream::new(messages)).await;
        let mut incoming = attached.map_err(|status| ClientError::refusal(&status, &self.dialer))?.into_inner();
        let mut welcome = Some(welcome);
        let mut heartbeat = interval(HEARTBEAT);
        loop {
            // Cancel-safe: a message that is half there stays in the stream, and a tick that is missed comes late.
            let message = tokio::select! {
                message = incoming.message() => message,
                _ = heartbeat.tick() => {
                    if welcome.is_none() && outgoing.capacity() > OUTGOING_SPARE / 2 {
                        say(attach_request::Message::Heartbeat(Heartbeat::default()))?;
                    }
                    continue;
                }
            };
            let message = message.map_err(|status| ClientError::refusal(&status, &self.dialer))?;
            match message.and_then(|message| message.message) {
                Some(attach_response::Message::Welcome(_)) => {
                    if let Some(welcome) = welcome.take() {
                        // Nobody listens any more where the run was given up.
                        let _ = welcome.send(());
                    }
                }
                Some(attach_response::Message::Assignments(work)) => {
                    if let Some(started) = &self.started {
                        work.assignments
                            .iter()
                            .filter_map(|job| job.job.as_ref())
                            .for_each(|job| started(&job.payload_json));
                    }
                    let results = work.assignments.into_iter().map(|job| JobResult {
                        lease: job.lease,
                        outcome: Some(Outcome::Completed(Completed { result_json: String::new() })),
                        metadata_json: None,
                    });
                    say(attach_request::Message::Results(Results { results: results.collect() }))?;
                }
                Some(attach_response::Message::ResultsAccepted(answer)) => {
                    let accepted = answer.receipts.iter().filter(|receipt| receipt.accepted).count();
                    self.receipts.accepted.fetch_add(accepted as u64, Relaxed);
                    self.receipts.changed.notify_one();
                }
                Some(attach_response::Message::GoAway(_)) | None => return Ok(()),
                Some(attach_response::Message::Interrupt(_) | attach_response::Message::Command(_)) => {}
            }
        }
    }
}

//! A `Runners` service played by hand: for servers that misbehave, and for looking at every message.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use errand_proto::v1::{
    Assignment, Assignments, AttachRequest, AttachResponse, BroadcastCommandRequest, BroadcastCommandResponse, Command,
    CommandKind, GoAway, Hello, Interrupt, InterruptReason, Job, Lease, ListRunnersRequest, ListRunnersResponse,
    PingRunnerRequest, PingRunnerResponse, Result as JobResult, ResultReceipt, ResultsAccepted, ShutdownRunnerRequest,
    ShutdownRunnerResponse, Welcome,
    attach_request::Message as Said,
    attach_response::Message as Told,
    runners_server::{Runners, RunnersServer},
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    kit::Kit,
    scenario::{Flaw, PATIENCE, Verdict, soon},
    subject::{Part, Subject},
};

/// What the runner is to show, and what it is not checked against here.
pub const TOKEN: &str = "a.scripted.token";
const CHANNEL: &str = "scripted";
/// Messages that may wait to be sent to the runner.
const TOLD_MAX: usize = 1_024;
/// Streams that may wait for their scenario.
const LINES_MAX: usize = 64;
/// As the real service takes them.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A listener whose streams the scenario gets. Dropped, it closes.
#[derive(Debug)]
pub struct Script {
    url: String,
    lines: mpsc::Receiver<Line>,
    stage: Arc<Door>,
    closed: CancellationToken,
}

/// What happens to whoever opens a stream.
#[derive(Debug)]
struct Door {
    lines: mpsc::Sender<Line>,
    refusals: Mutex<VecDeque<Status>>,
    attaches: AtomicUsize,
}

impl Script {
    pub async fn open() -> Verdict<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (sender, lines) = mpsc::channel(LINES_MAX);
        let stage = Arc::new(Door { lines: sender, refusals: Mutex::default(), attaches: AtomicUsize::new(0) });
        let service = RunnersServer::new(Player(Arc::clone(&stage))).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let closed = CancellationToken::new();
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), closed.clone().cancelled_owned());
        // Hangs up at once, without waiting for streams.
        let hang_up = closed.clone();
        tokio::spawn(async move { hang_up.run_until_cancelled(serve).await });
        Ok(Self { url, lines, stage, closed })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Refuses the next streams, each with one of these.
    pub fn refuse(&self, refusals: impl IntoIterator<Item = Status>) {
        self.stage.refusals.lock().unwrap_or_else(PoisonError::into_inner).extend(refusals);
    }

    /// Streams that were opened or refused so far.
    pub fn attaches(&self) -> usize {
        self.stage.attaches.load(Ordering::SeqCst)
    }

    /// The next stream that the runner opens.
    pub async fn line(&mut self) -> Verdict<Line> {
        let line = soon("the runner opens a stream", self.lines.recv()).await?;
        line.ok_or_else(|| Flaw("the script is over".to_owned()))
    }

    /// The next stream, with its Hello, answered by Welcome.
    pub async fn welcomed(&mut self, welcome: Welcome) -> Verdict<(Line, Hello)> {
        let mut line = self.line().await?;
        let hello = line.hello().await?;
        line.tell(Told::Welcome(welcome)).await?;
        Ok((line, hello))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// A script, and the runner under test on it.
#[derive(Debug)]
pub struct Play {
    pub script: Script,
    pub runner: Subject,
}

impl Play {
    pub async fn start(kit: &Kit, capacity: u32) -> Verdict<Self> {
        let script = Script::open().await?;
        let runner = Subject::start(kit, &part(&[&script], capacity))?;
        Ok(Self { script, runner })
    }

    /// With the first stream open and welcomed.
    pub async fn begin(kit: &Kit, capacity: u32) -> Verdict<(Self, Line)> {
        let mut play = Self::start(kit, capacity).await?;
        let (line, _) = play.script.welcomed(welcome()).await?;
        Ok((play, line))
    }
}

/// What a runner of these scripts is told to be.
pub fn part(scripts: &[&Script], capacity: u32) -> Part {
    let servers = scripts.iter().map(|script| script.url().to_owned()).collect();
    Part { servers, token: TOKEN.to_owned(), channel: CHANNEL.to_owned(), capacity, files: Vec::new() }
}

/// A Welcome with a heartbeat interval of 300 ms.
pub fn welcome() -> Welcome {
    let millis = |millis: u64| prost_types::Duration::try_from(Duration::from_millis(millis)).ok();
    Welcome {
        session_id: "5e55105e55105e55105e55105e551051".to_owned(),
        node_id: "script".to_owned(),
        heartbeat_interval: millis(300),
        accept_timeout: millis(5_000),
        lease_ttl: millis(5_000),
        resume_window: millis(5_000),
        lost: Vec::new(),
    }
}

/// The first attempt of job number `number`.
pub fn lease(number: u32) -> Lease {
    Lease { job_id: format!("{number:032x}"), attempt: 1 }
}

/// One open stream.
#[derive(Debug)]
pub struct Line {
    said: Streaming<AttachRequest>,
    told: mpsc::Sender<Result<AttachResponse, Status>>,
    /// The authorization header.
    pub authorization: Option<String>,
}

impl Line {
    /// The next message, with its time.
    pub async fn next(&mut self) -> Verdict<Said> {
        let end = Instant::now() + PATIENCE;
        match self.before(end).await? {
            Some(said) => Ok(said),
            None => Err(Flaw(format!("the runner said nothing for {} s", PATIENCE.as_secs()))),
        }
    }

    /// The next message before `end`. Messages of a later protocol are passed over.
    async fn before(&mut self, end: Instant) -> Verdict<Option<Said>> {
        loop {
            match timeout_at(end, self.said.message()).await {
                Err(_) => return Ok(None),
                Ok(Ok(Some(AttachRequest { message: Some(said) }))) => return Ok(Some(said)),
                Ok(Ok(Some(AttachRequest { message: None }))) => {}
                Ok(Ok(None)) => return Err(Flaw("the runner closed the stream".to_owned())),
                Ok(Err(status)) => return Err(Flaw(format!("the runner broke the stream off: {status}"))),
            }
        }
    }

    /// The first message, which must be Hello.
    pub async fn hello(&mut self) -> Verdict<Hello> {
        match self.next().await? {
            Said::Hello(hello) => Ok(hello),
            other => Err(Flaw(format!("the first message should be Hello, and is {}", name(&other)))),
        }
    }

    /// Listens until a message is what is wanted.
    pub async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(Said) -> Verdict<Option<T>>) -> Verdict<T> {
        let end = Instant::now() + PATIENCE;
        while let Some(said) = self.before(end).await? {
            if let Some(found) = pick(said)? {
                return Ok(found);
            }
        }
        Err(Flaw(format!("within {} s it did not happen that {what}", PATIENCE.as_secs())))
    }

    /// Everything that is said within a span, and when.
    pub async fn listen(&mut self, span: Duration) -> Verdict<Vec<(Instant, Said)>> {
        let end = Instant::now() + span;
        let mut heard = Vec::new();
        while let Some(said) = self.before(end).await? {
            heard.push((Instant::now(), said));
        }
        Ok(heard)
    }

    /// Listens until the runner has closed its half or is gone.
    pub async fn drained(&mut self) -> Verdict {
        soon("the runner closes the stream", async { while let Ok(Some(_)) = self.said.message().await {} }).await
    }

    /// The next result, whatever is said before it.
    pub async fn result(&mut self) -> Verdict<JobResult> {
        let mut results = self.results(1).await?;
        results.pop().ok_or_else(|| Flaw("an empty message of results".to_owned()))
    }

    /// The next results, at least so many of them.
    pub async fn results(&mut self, count: usize) -> Verdict<Vec<JobResult>> {
        let mut results = Vec::new();
        while results.len() < count {
            let more = self.until("a result comes", |said| match said {
                Said::Results(results) => Ok(Some(results.results)),
                _ => Ok(None),
            });
            results.extend(more.await?);
        }
        Ok(results)
    }

    /// Waits for a heartbeat that names exactly these leases.
    pub async fn heartbeat_of(&mut self, leases: &[Lease]) -> Verdict {
        let wanted = sorted(leases);
        let names: Vec<_> = wanted.iter().map(|(job, _)| job.trim_start_matches('0')).collect();
        let what = format!("a heartbeat names exactly the leases of jobs [{}]", names.join(", "));
        self.until(&what, |said| match said {
            Said::Heartbeat(beat) if sorted(&beat.leases) == wanted => Ok(Some(())),
            _ => Ok(None),
        })
        .await
    }

    pub async fn tell(&self, told: Told) -> Verdict {
        let message = AttachResponse { message: Some(told) };
        self.told.send(Ok(message)).await.map_err(|_| Flaw("the runner's stream is gone".to_owned()))
    }

    /// Ends the stream with an error.
    pub async fn fail(&self, status: Status) -> Verdict {
        self.told.send(Err(status)).await.map_err(|_| Flaw("the runner's stream is gone".to_owned()))
    }

    /// A message that says nothing a runner of this contract knows.
    pub async fn tell_something_unknown(&self) -> Verdict {
        let sent = self.told.send(Ok(AttachResponse { message: None })).await;
        sent.map_err(|_| Flaw("the runner's stream is gone".to_owned()))
    }

    /// One job for a function.
    pub async fn assign(&self, lease: &Lease, func: &str, payload: &str) -> Verdict {
        self.assign_all(&[(lease.clone(), func, payload)]).await
    }

    /// Several jobs in one message.
    pub async fn assign_all(&self, jobs: &[(Lease, &str, &str)]) -> Verdict {
        let assignment = |(lease, func, payload): &(Lease, &str, &str)| Assignment {
            lease: Some(lease.clone()),
            job: Some(Job {
                id: lease.job_id.clone(),
                channel: CHANNEL.to_owned(),
                func: (*func).to_owned(),
                payload_json: (*payload).to_owned(),
                attempt: 1,
                max_retries: 3,
                ..Job::default()
            }),
        };
        self.tell(Told::Assignments(Assignments { assignments: jobs.iter().map(assignment).collect() })).await
    }

    /// Receipts for results.
    pub async fn accept(&self, leases: &[Lease]) -> Verdict {
        self.receipt(leases, true).await
    }

    pub async fn receipt(&self, leases: &[Lease], accepted: bool) -> Verdict {
        let receipt = |lease: &Lease| ResultReceipt { lease: Some(lease.clone()), accepted };
        self.tell(Told::ResultsAccepted(ResultsAccepted { receipts: leases.iter().map(receipt).collect() })).await
    }

    pub async fn interrupt(&self, lease: &Lease, reason: InterruptReason) -> Verdict {
        self.tell(Told::Interrupt(Interrupt { lease: Some(lease.clone()), reason: reason.into() })).await
    }

    pub async fn command(&self, command_id: &str, kind: i32) -> Verdict {
        let command_id = command_id.to_owned();
        self.tell(Told::Command(Command { command_id, kind, data_json: "{}".to_owned(), graceful: true })).await
    }

    pub async fn shut_down(&self) -> Verdict {
        self.command("shutdown", CommandKind::Shutdown.into()).await
    }

    pub async fn go_away(&self) -> Verdict {
        self.tell(Told::GoAway(GoAway { reason: "the script says so".to_owned() })).await
    }
}

/// Leases in an order of their own.
pub fn sorted(leases: &[Lease]) -> Vec<(String, u32)> {
    let mut sorted: Vec<_> = leases.iter().map(|lease| (lease.job_id.clone(), lease.attempt)).collect();
    sorted.sort();
    sorted
}

/// What a message is called.
pub fn name(said: &Said) -> &'static str {
    match said {
        Said::Hello(_) => "Hello",
        Said::Heartbeat(_) => "Heartbeat",
        Said::Results(_) => "Results",
        Said::Progress(_) => "Progress",
        Said::CommandReply(_) => "CommandReply",
        Said::SetCapacity(_) => "SetCapacity",
    }
}

struct Player(Arc<Door>);

#[tonic::async_trait]
impl Runners for Player {
    type AttachStream = ReceiverStream<Result<AttachResponse, Status>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        self.0.attaches.fetch_add(1, Ordering::SeqCst);
        let refusal = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let authorization = header.map(str::to_owned);
        let (told, telling) = mpsc::channel(TOLD_MAX);
        let line = Line { said: request.into_inner(), told, authorization };
        self.0.lines.send(line).await.map_err(|_| Status::unavailable("the script is over"))?;
        Ok(Response::new(ReceiverStream::new(telling)))
    }

    async fn list_runners(&self, _: Request<ListRunnersRequest>) -> Result<Response<ListRunnersResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn ping_runner(&self, _: Request<PingRunnerRequest>) -> Result<Response<PingRunnerResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn shutdown_runner(
        &self,
        _: Request<ShutdownRunnerRequest>,
    ) -> Result<Response<ShutdownRunnerResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn broadcast_command(
        &self,
        _: Request<BroadcastCommandRequest>,
    ) -> Result<Response<BroadcastCommandResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

//! The runner against a service that the test plays by hand, over a real socket.

use std::{sync::Arc, time::Duration};

use errand_client::{
    Servers,
    session::{self, Executor, JobContext, Outcome, RunnerConfig, SessionError, Shutdown, Stop},
};
use errand_proto::v1::{
    attach_request::Message as Said,
    attach_response::Message as Told,
    result::Outcome as Ended,
    runners_server::{Runners, RunnersServer},
    *,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answers = mpsc::Sender<Result<AttachResponse>>;

/// Hands every opened stream to the test.
struct Fake(mpsc::Sender<Stream>);

struct Stream {
    said: Streaming<AttachRequest>,
    answers: Answers,
}

impl Stream {
    async fn next(&mut self) -> Said {
        let message = tokio::time::timeout(Duration::from_secs(20), self.said.message());
        message.await.expect("the runner says something").unwrap().unwrap().message.unwrap()
    }

    /// The next message that `pick` wants.
    async fn until<T>(&mut self, pick: impl Fn(Said) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next().await) {
                return found;
            }
        }
    }

    async fn tell(&self, told: Told) {
        self.answers.send(Ok(AttachResponse { message: Some(told) })).await.unwrap();
    }

    async fn welcome(&mut self) -> Hello {
        let Said::Hello(hello) = self.next().await else { panic!("Hello comes first") };
        let beat = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
        let session_id = "session-1".to_owned();
        self.tell(Told::Welcome(Welcome { session_id, heartbeat_interval: beat, ..Default::default() })).await;
        hello
    }

    async fn assign(&self, job: &str, payload: &str) {
        let lease = Some(lease(job));
        let job = Job { id: job.to_owned(), payload_json: payload.to_owned(), attempt: 1, ..Default::default() };
        let assignments = vec![Assignment { lease, job: Some(job) }];
        self.tell(Told::Assignments(Assignments { assignments })).await;
    }

    async fn result(&mut self) -> Result_ {
        self.until(|said| match said {
            Said::Results(results) => results.results.into_iter().next(),
            _ => None,
        })
        .await
    }

    async fn accept(&self, job: &str) {
        let receipts = vec![ResultReceipt { lease: Some(lease(job)), accepted: true }];
        self.tell(Told::ResultsAccepted(ResultsAccepted { receipts })).await;
    }
}

type Result_ = errand_proto::v1::Result;
type Result<T, E = Status> = std::result::Result<T, E>;

#[tonic::async_trait]
impl Runners for Fake {
    type AttachStream = ReceiverStream<Result<AttachResponse>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>> {
        if request.metadata().get("authorization").is_none() {
            return Err(Status::unauthenticated("Authentication required"));
        }
        let (answers, told) = mpsc::channel(16);
        let stream = Stream { said: request.into_inner(), answers };
        self.0.send(stream).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(ReceiverStream::new(told)))
    }
    async fn list_runners(&self, _: Request<ListRunnersRequest>) -> Result<Response<ListRunnersResponse>> {
        Err(Status::unimplemented(""))
    }
    async fn ping_runner(&self, _: Request<PingRunnerRequest>) -> Result<Response<PingRunnerResponse>> {
        Err(Status::unimplemented(""))
    }
    async fn shutdown_runner(&self, _: Request<ShutdownRunnerRequest>) -> Result<Response<ShutdownRunnerResponse>> {
        Err(Status::unimplemented(""))
    }
    async fn broadcast_command(
        &self,
        _: Request<BroadcastCommandRequest>,
    ) -> Result<Response<BroadcastCommandResponse>> {
        Err(Status::unimplemented(""))
    }
}

fn lease(job: &str) -> Lease {
    Lease { job_id: job.to_owned(), attempt: 1 }
}

/// A service on a port of its own, and the streams that runners open.
async fn service() -> (String, mpsc::Receiver<Stream>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (streams, opened) = mpsc::channel(4);
    let server = tonic::transport::Server::builder().add_service(RunnersServer::new(Fake(streams)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (url, opened)
}

/// Completes a job once the test says so.
struct Gate(Arc<Notify>);

#[tonic::async_trait]
impl Executor for Gate {
    async fn execute(&self, _: Assignment, mut context: JobContext) -> Outcome {
        tokio::select! {
            () = self.0.notified() => Outcome::Completed { result_json: "7".to_owned() },
            _ = context.stop_beyond(Stop::Run) => Outcome::Canceled,
        }
    }
}

fn config(url: &str, token: Option<&str>) -> RunnerConfig {
    RunnerConfig {
        servers: Servers::at(url).token(token.unwrap_or_default()).dialer().unwrap(),
        runner_id: "r1".to_owned(),
        channels: vec!["c".to_owned()],
        capacity: 2,
        hostname: "h".to_owned(),
        client: "test".to_owned(),
    }
}

#[tokio::test]
async fn a_lost_stream_is_resumed_and_the_result_said_again() {
    let (url, mut opened) = service().await;
    let gate = Arc::new(Notify::new());
    let (shutdown, shut) = watch::channel(Shutdown::Stay);
    let runner = tokio::spawn(session::run(config(&url, Some("t")), Gate(Arc::clone(&gate)), shut));

    let mut stream = opened.recv().await.unwrap();
    assert!(stream.welcome().await.session_id.is_empty());
    stream.assign("j1", "{}").await;
    stream.until(|said| matches!(said, Said::Heartbeat(beat) if !beat.leases.is_empty()).then_some(())).await;
    drop(stream);

    // In the middle of the job: the lease is named and kept.
    let mut stream = opened.recv().await.unwrap();
    let hello = stream.welcome().await;
    assert_eq!((hello.session_id.as_str(), hello.leases), ("session-1", vec![lease("j1")]));
    gate.notify_one();
    stream.result().await;
    stream.tell(Told::GoAway(GoAway { reason: "restart".to_owned() })).await;

    // After the job, without a receipt: still held, and said again.
    let mut stream = opened.recv().await.unwrap();
    assert_eq!(stream.welcome().await.leases, [lease("j1")]);
    let result = stream.result().await;
    assert_eq!(result.outcome, Some(Ended::Completed(Completed { result_json: "7".to_owned() })));
    stream.accept("j1").await;
    shutdown.send_replace(Shutdown::Drain);
    while let Ok(Some(_)) = stream.said.message().await {}
    drop(stream);
    assert!(runner.await.unwrap().is_ok());
}

#[tokio::test]
async fn leaving_at_once_hands_the_job_back() {
    let (url, mut opened) = service().await;
    let (shutdown, shut) = watch::channel(Shutdown::Stay);
    let runner = tokio::spawn(session::run(config(&url, Some("t")), Gate(Arc::new(Notify::new())), shut));
    let mut stream = opened.recv().await.unwrap();
    stream.welcome().await;
    stream.assign("j1", "{}").await;
    stream.until(|said| matches!(said, Said::Heartbeat(beat) if !beat.leases.is_empty()).then_some(())).await;
    shutdown.send_replace(Shutdown::Release);
    assert_eq!(stream.result().await.outcome, Some(Ended::Released(Released {})));
    stream.accept("j1").await;
    while let Ok(Some(_)) = stream.said.message().await {}
    drop(stream);
    assert!(runner.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_runner_without_a_token_is_told_so_at_once() {
    let (url, _opened) = service().await;
    let (_shutdown, shut) = watch::channel(Shutdown::Stay);
    let refused = session::run(config(&url, None), Gate(Arc::new(Notify::new())), shut).await;
    assert!(matches!(refused, Err(SessionError::Refused(_))));
}

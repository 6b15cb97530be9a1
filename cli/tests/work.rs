//! `errand work` against a service that the test plays by hand, over a real socket.

use std::time::Duration;

use clap::Parser;
use errand_cli::ClientCommand;
use errand_proto::v1::{
    attach_request::Message as Said,
    attach_response::Message as Told,
    result::Outcome as Ended,
    runners_server::{Runners, RunnersServer},
    *,
};
use tokio::sync::mpsc;
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

    async fn shut_down(&self) {
        let kind = CommandKind::Shutdown.into();
        let command = Command { command_id: "c1".to_owned(), kind, graceful: true, ..Default::default() };
        self.tell(Told::Command(command)).await;
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

#[derive(clap::Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: ClientCommand,
}

async fn work(url: &str, command: &[&str]) -> std::process::ExitCode {
    let switches = ["errand", "work", "--channel", "c", "--server", url, "--token", "t", "--kill-after", "5", "--"];
    let line = CommandLine::try_parse_from(switches.iter().chain(command)).unwrap();
    errand_cli::run(line.command).await
}

#[tokio::test]
async fn a_command_answers_its_payload_and_drains_on_shutdown() {
    let (url, mut opened) = service().await;
    let play = async {
        let mut stream = opened.recv().await.unwrap();
        stream.welcome().await;
        stream.assign("j1", r#"{"n": 12345678901234567890}"#).await;
        let result = stream.result().await;
        let result_json = r#"{"n": 12345678901234567890}"#.to_owned();
        assert_eq!(result.outcome, Some(Ended::Completed(Completed { result_json })));
        stream.accept("j1").await;
        stream.shut_down().await;
        while let Ok(Some(_)) = stream.said.message().await {}
    };
    let (code, ()) = tokio::join!(work(&url, &["cat"]), play);
    assert_eq!(code, std::process::ExitCode::SUCCESS);
}

#[tokio::test]
async fn standard_error_is_the_log_and_goes_before_the_result() {
    let (url, mut opened) = service().await;
    let play = async {
        let mut stream = opened.recv().await.unwrap();
        stream.welcome().await;
        stream.assign("j1", "{}").await;
        let lines = stream.until(|said| match said {
            Said::Progress(progress) => Some(progress.logs),
            Said::Results(_) => panic!("the result came first"),
            _ => None,
        });
        assert_eq!(lines.await[0].message, "no such address");
        let Some(Ended::Failed(failed)) = stream.result().await.outcome else { panic!("it failed") };
        assert!(failed.permanent);
        assert_eq!(failed.error, "no such address");
        stream.accept("j1").await;
        stream.shut_down().await;
        while let Ok(Some(_)) = stream.said.message().await {}
    };
    tokio::join!(work(&url, &["sh", "-c", "echo no such address >&2; exit 64"]), play);
}

#[tokio::test]
async fn a_cancel_stops_the_whole_process_group() {
    let (url, mut opened) = service().await;
    let play = async {
        let mut stream = opened.recv().await.unwrap();
        stream.welcome().await;
        stream.assign("j1", "{}").await;
        stream.until(|said| matches!(said, Said::Progress(_)).then_some(())).await;
        let reason = InterruptReason::Requested.into();
        stream.tell(Told::Interrupt(Interrupt { lease: Some(lease("j1")), reason })).await;
        assert_eq!(stream.result().await.outcome, Some(Ended::Canceled(Canceled {})));
        stream.accept("j1").await;
        stream.shut_down().await;
        while let Ok(Some(_)) = stream.said.message().await {}
    };
    tokio::join!(work(&url, &["sh", "-c", "echo started >&2; sleep 600; true"]), play);
}

//! A service that a test plays by hand, over a real socket.

use std::time::Duration;

use errand_proto::v1::{
    attach_request::Message as Said,
    attach_response::Message as Told,
    runners_server::{Runners, RunnersServer},
    *,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answers = mpsc::Sender<Result<AttachResponse>>;

/// Hands every opened stream to the test.
struct Fake(mpsc::Sender<Stream>);

pub struct Stream {
    pub said: Streaming<AttachRequest>,
    answers: Answers,
}

impl Stream {
    pub async fn next(&mut self) -> Said {
        let message = tokio::time::timeout(Duration::from_secs(20), self.said.message());
        message.await.expect("the runner says something").unwrap().unwrap().message.unwrap()
    }

    /// The next message that `pick` wants.
    pub async fn until<T>(&mut self, pick: impl Fn(Said) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next().await) {
                return found;
            }
        }
    }

    pub async fn tell(&self, told: Told) {
        self.answers.send(Ok(AttachResponse { message: Some(told) })).await.unwrap();
    }

    pub async fn welcome(&mut self) -> Hello {
        let Said::Hello(hello) = self.next().await else { panic!("Hello comes first") };
        let beat = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
        let session_id = "session-1".to_owned();
        self.tell(Told::Welcome(Welcome { session_id, heartbeat_interval: beat, ..Default::default() })).await;
        hello
    }

    pub async fn assign(&self, job: &str, payload: &str) {
        let lease = Some(lease(job));
        let job = Job { id: job.to_owned(), payload_json: payload.to_owned(), attempt: 1, ..Default::default() };
        let assignments = vec![Assignment { lease, job: Some(job) }];
        self.tell(Told::Assignments(Assignments { assignments })).await;
    }

    pub async fn result(&mut self) -> errand_proto::v1::Result {
        self.until(|said| match said {
            Said::Results(results) => results.results.into_iter().next(),
            _ => None,
        })
        .await
    }

    pub async fn accept(&self, job: &str) {
        let receipts = vec![ResultReceipt { lease: Some(lease(job)), accepted: true }];
        self.tell(Told::ResultsAccepted(ResultsAccepted { receipts })).await;
    }
}

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

pub fn lease(job: &str) -> Lease {
    Lease { job_id: job.to_owned(), attempt: 1 }
}

/// A service on a port of its own, and the streams that runners open.
pub async fn service() -> (String, mpsc::Receiver<Stream>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (streams, opened) = mpsc::channel(4);
    let server = tonic::transport::Server::builder().add_service(RunnersServer::new(Fake(streams)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (url, opened)
}

//! The runner against a service that the test plays by hand, over a real socket.

use std::sync::Arc;

use errand_client::{
    Servers,
    session::{self, Executor, JobContext, Outcome, RunnerConfig, SessionError, Shutdown, Stop},
};
use errand_proto::v1::{
    attach_request::Message as Said, attach_response::Message as Told, result::Outcome as Ended, *,
};
use fake::{lease, service};
use tokio::sync::{Notify, watch};

mod fake;

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

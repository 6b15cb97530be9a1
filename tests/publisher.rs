//! The Rust client's publisher against the built program.

#![expect(clippy::disallowed_methods, reason = "a publisher has the wall clock of its own machine")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use errand_client::{Client, Error, JobEventKind, JobFilter, JobStatus, NewJob, Runner, Servers, Stopper};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};

const PATIENCE: Duration = Duration::from_secs(30);

/// `errand serve` on a data directory of its own. Dropped, it is killed.
struct Service {
    folder: tempfile::TempDir,
    child: Child,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    fn start() -> Service {
        let folder = tempfile::tempdir().unwrap();
        let mut child = errand(folder.path())
            .args(["serve", "--http", "off", "--grpc", "127.0.0.1:0", "--data-dir", "data"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.trim().rsplit("grpc=").next().unwrap().to_owned();
        Service { folder, child, address }
    }

    fn token(&self, subject: &str, permissions: &[&str]) -> String {
        let mut command = errand(self.folder.path());
        command.args(["token", "--data-dir", "data", "--subject", subject]);
        for permission in permissions {
            command.args(["--permission", permission]);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    }

    fn servers(&self) -> Servers {
        Servers::at(&self.address).token(self.token("me", &["manage_jobs", "run_jobs"]))
    }

    async fn client(&self) -> Client {
        Client::connect(self.servers()).await.unwrap()
    }

    /// The service has to live as long as its client.
    async fn start_with_client() -> (Service, Client) {
        let service = Service::start();
        let client = service.client().await;
        (service, client)
    }

    /// A runner of the channel `work`, until it is drained.
    fn runner(&self) -> (Stopper, JoinHandle<()>) {
        let runner = Runner::new(self.servers())
            .channel("work")
            .function("add", |job| async move {
                let numbers: Vec<i64> = serde_json::from_value(job.payload::<Value>()?["numbers"].clone())?;
                job.add_log("adding", errand_client::LogKind::Debug, None);
                Ok(numbers.iter().sum::<i64>())
            })
            .function("wait", |job| async move {
                job.canceled().await;
                Ok(())
            });
        let stopper = runner.stopper();
        (stopper, tokio::spawn(async { runner.run_without_signals().await.unwrap() }))
    }
}

/// Without the variables of whoever runs the tests.
fn errand(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_errand"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ERRAND_")) {
        command.env_remove(name);
    }
    command.current_dir(folder);
    command
}

fn add(numbers: &[i64]) -> NewJob {
    NewJob::new("add", json!({"numbers": numbers})).channel("work")
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it should not take that long")
}

#[tokio::test]
async fn a_job_is_published_and_its_result_waited_for() {
    let service = Service::start();
    let client = service.client().await;
    let (stopper, runner) = service.runner();
    let job = client.publish(add(&[1, 2, 39])).await.unwrap().job;
    assert_eq!((job.status, job.owner.as_str()), (JobStatus::Pending, "me"));
    let job = soon(client.wait(&job.id)).await.unwrap();
    assert_eq!(job.result::<i64>().unwrap(), 42);
    let kinds: Vec<_> = client.events(&job.id).await.unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&JobEventKind::Created), Some(&JobEventKind::Completed)));
    assert_eq!(client.logs(&job.id).await.unwrap()[0].message, "adding");
    stopper.drain();
    soon(runner).await.unwrap();
}

#[tokio::test]
async fn every_option_is_kept() {
    let (_service, client) = Service::start_with_client().await;
    let run_at = SystemTime::now() + Duration::from_secs(3_600);
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let job = add(&[])
        .run_at(run_at)
        .expires_at(run_at + Duration::from_secs(60))
        .max_retries(7)
        .backoff(1.5, Duration::from_secs(99))
        .max_exec(Duration::from_secs(5))
        .priority(3)
        .idempotency_key("key")
        .traceparent(context);
    let published = client.publish(job.clone()).await.unwrap();
    let kept = client.get(&published.job.id).await.unwrap();
    assert_eq!((kept.max_retries, kept.backoff_base, kept.backoff_max), (7, 1.5, Duration::from_secs(99)));
    assert_eq!((kept.max_exec, kept.priority), (Some(Duration::from_secs(5)), 3));
    assert_eq!((kept.idempotency_key.as_deref(), kept.traceparent.as_deref()), (Some("key"), Some(context)));
    assert_eq!(kept.payload_json, r#"{"numbers":[]}"#);
    // Times are kept to the millisecond.
    let distance = kept.run_at.unwrap().duration_since(run_at).unwrap_or_else(|error| error.duration());
    assert!(distance < Duration::from_millis(1), "{distance:?}");
    assert_eq!(kept.expires_at.unwrap().duration_since(kept.run_at.unwrap()).unwrap(), Duration::from_secs(60));
    let again = client.publish(job).await.unwrap();
    assert_eq!((again.deduplicated, again.job.id), (true, kept.id));
}

#[tokio::test]
async fn jobs_are_listed_by_what_is_asked_for() {
    let (_service, client) = Service::start_with_client().await;
    let receipts = client.publish_all((0..30).map(|n| add(&[n])).collect()).await.unwrap();
    client.publish(NewJob::new("other", json!({}))).await.unwrap();
    client.cancel(&receipts[0].job_id).await.unwrap();
    let count = async |filter: JobFilter| client.list(&filter).await.unwrap().len();
    assert_eq!(count(JobFilter::default()).await, 31);
    assert_eq!(count(JobFilter::default().limit(7)).await, 7);
    assert_eq!(count(JobFilter::default().channel("work")).await, 30);
    assert_eq!(count(JobFilter::default().func("other")).await, 1);
    assert_eq!(count(JobFilter::default().status(JobStatus::Canceled)).await, 1);
    assert_eq!(count(JobFilter::default().created_from(SystemTime::now() + Duration::from_secs(60))).await, 0);
    let newest = client.list(&JobFilter::default().limit(1)).await.unwrap();
    assert_eq!(newest[0].func, "other");
}

#[tokio::test]
async fn a_job_is_steered_to_its_end() {
    let service = Service::start();
    let client = service.client().await;
    let (stopper, runner) = service.runner();
    let job = client.publish(NewJob::new("wait", json!({})).channel("work")).await.unwrap().job;
    let mut watch = client.watch_job(&job.id).await.unwrap();
    soon(async { while client.get(&job.id).await.unwrap().status != JobStatus::Running {} }).await;
    client.cancel(&job.id).await.unwrap();
    let ended = soon(async {
        let mut last = None;
        while let Some((event, _)) = watch.next().await.unwrap() {
            last = Some(event.kind);
        }
        last
    });
    assert_eq!(ended.await, Some(JobEventKind::Canceled));
    let error = client.wait(&job.id).await.unwrap().result::<()>().unwrap_err();
    assert!(matches!(error, Error::NotCompleted { status: JobStatus::Canceled, .. }), "{error}");
    let again = client.retry(&job.id, Duration::from_secs(3_600)).await.unwrap();
    let like = client.publish_like(&again, NewJob::like().channel("elsewhere")).await.unwrap();
    let state = client.status(&like).await.unwrap();
    assert_eq!((state.job.func.as_str(), state.job.channel.as_str()), ("wait", "elsewhere"));
    assert_eq!(state.queue_position, Some(1));
    assert_eq!(state.recent_events[0].kind, JobEventKind::Created);
    client.delete(&like).await.unwrap();
    assert!(matches!(client.get(&like).await, Err(Error::NotFound(_))));
    stopper.release();
    soon(runner).await.unwrap();
}

#[tokio::test]
async fn refusals_tell_what_can_be_done() {
    let service = Service::start();
    let client = service.client().await;
    let refusal = async |job: NewJob| client.publish(job).await.unwrap_err();
    let error = refusal(NewJob::new("has space", json!({}))).await;
    assert!(matches!(&error, Error::Invalid(text) if text.contains("func")), "{error:?}");
    assert!(matches!(refusal(NewJob::new("f", json!(1))).await, Error::Invalid(_)));
    let large = NewJob::new("f", json!({"text": "x".repeat(2_000_000)}));
    assert!(matches!(refusal(large).await, Error::Busy(_)));
    assert!(matches!(client.get("nonsense").await, Err(Error::NotFound(_))));
    let stranger = Client::connect(Servers::at(&service.address).token(service.token("stranger", &[]))).await.unwrap();
    let job = client.publish(add(&[])).await.unwrap().job;
    assert!(matches!(stranger.get(&job.id).await, Err(Error::NotFound(_))));
    assert!(matches!(stranger.cancel(&job.id).await, Err(Error::Denied(_))));
    let nobody = Client::connect(Servers::at(&service.address)).await.unwrap();
    assert!(matches!(nobody.get(&job.id).await, Err(Error::Denied(_))));
    client.cancel(&job.id).await.unwrap();
    assert!(matches!(client.cancel(&job.id).await, Err(Error::Refused(_))));
}

#[tokio::test]
async fn a_dead_server_is_left_for_one_that_lives() {
    let service = Service::start();
    // A server of its own until it is taken away: it hands every connection on.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (first, second) = (listener.local_addr().unwrap(), service.address.clone());
    let connections: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
    let forward = {
        let (second, connections) = (second.clone(), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let second = second.clone();
                let carry = tokio::spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(second).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
                connections.lock().unwrap().push(carry);
            }
        })
    };
    let token = service.token("me", &[]);
    let client = Client::connect(Servers::at(format!("{first},{second}")).token(token)).await.unwrap();
    client.publish(add(&[1])).await.unwrap();
    forward.abort();
    assert!(forward.await.unwrap_err().is_cancelled());
    assert_eq!(connections.lock().unwrap().len(), 1, "the first server was not used");
    for carry in connections.lock().unwrap().drain(..) {
        carry.abort();
    }
    // The connection may die under this call, which then may have been carried out: a read is repeated.
    client.list(&JobFilter::default()).await.unwrap();
    client.publish(add(&[2])).await.unwrap();
    let alone = Client::connect(Servers::at(first.to_string())).await.unwrap_err();
    assert!(matches!(alone, Error::Unavailable(_)), "{alone:?}");
}

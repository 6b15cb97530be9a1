//! What holds for the contract as a whole.

use prost::Message;

use crate::model::Operation;

#[test]
fn every_rpc_has_a_row_in_the_policy_table() {
    let files = prost_types::FileDescriptorSet::decode(errand_proto::DESCRIPTORS).expect("descriptors decode");
    let mut rpcs = 0;
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                assert!(Operation::of_rpc(&name).is_some(), "{name} has no row in Operation::of_rpc");
                rpcs += 1;
            }
        }
    }
    assert!(rpcs >= 21, "the contract has {rpcs} RPCs only");
}

mod served {
    //! The stack, called in process over an engine on the in-memory store.

    use std::sync::Arc;

    use errand_proto::v1::{self, jobs_client::JobsClient};
    use tonic::{Code, Request, Status, service::Routes};
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    use tonic_types::StatusExt;

    use crate::{
        clock::{SystemClock, SystemDice},
        drain::Drain,
        engine::{Engine, Parts, Settings, messages::Timings},
        fleet::memory::Hub,
        grpc::{self, auth},
        model::limits::{Limits, Retention},
        queue::memory::MemoryQueue,
        store::memory::MemoryStore,
    };

    const SECRET: &[u8] = b"a secret of thirty-two bytes, no less";

    fn routes(limits: Limits) -> Routes {
        let settings =
            Settings { limits, timings: Timings::default(), retention: Retention::default(), node_id: "node".into() };
        let parts = Parts {
            store: Arc::new(MemoryStore::new()),
            queue: Arc::new(MemoryQueue::new(limits.window_max)),
            fleet: Arc::new(Hub::new(Timings::default().silent_after()).join("node".into())),
            clock: Arc::new(SystemClock::new()),
            dice: Arc::new(SystemDice::new()),
        };
        let drain = Drain::new();
        let engine = Engine::start(settings, parts, drain.clone());
        grpc::routes(engine, Arc::new(auth::Authenticator::from_secret(SECRET)), drain)
    }

    fn with_token<T>(message: T, permissions: &[&str]) -> Request<T> {
        let permissions: Vec<String> = permissions.iter().map(ToString::to_string).collect();
        let token = auth::mint(SECRET, "ann", &permissions, None, 4_000_000_000).expect("signs");
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ascii"));
        request
    }

    fn publish() -> v1::PublishJobRequest {
        let spec = v1::JobSpec { func: "f".to_owned(), payload_json: "{}".to_owned(), ..Default::default() };
        v1::PublishJobRequest { spec: Some(spec) }
    }

    fn reason(status: &Status) -> String {
        status.get_details_error_info().expect("an ErrorInfo").reason
    }

    #[tokio::test]
    async fn a_published_job_is_read_back_and_listed() {
        let mut jobs = JobsClient::new(routes(Limits::default()));
        let mut request = with_token(publish(), &[]);
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        request.metadata_mut().insert("traceparent", trace.parse().expect("ascii"));
        let job = jobs.publish_job(request).await.expect("publishes").into_inner().job.expect("a job");
        assert_eq!((job.owner.as_str(), job.traceparent.as_str()), ("ann", trace));
        let get = v1::GetJobRequest { job_id: job.id.clone() };
        let read = jobs.get_job(with_token(get, &[])).await.expect("reads").into_inner().job.expect("a job");
        assert_eq!(read, job);
        let listed = jobs.list_jobs(with_token(v1::ListJobsRequest::default(), &[])).await.expect("lists").into_inner();
        assert_eq!((listed.jobs, listed.next_page_token), (vec![job], String::new()));
    }

    #[tokio::test]
    async fn a_stream_answers_in_order_and_outlives_refusals() {
        let mut jobs = JobsClient::new(routes(Limits::default()));
        let specs = [publish().spec, None, publish().spec];
        let requests = futures::stream::iter(specs.map(|spec| v1::PublishJobStreamRequest { spec }));
        let mut answers = jobs.publish_job_stream(with_token(requests, &[])).await.expect("streams").into_inner();
        let mut accepted = Vec::new();
        while let Some(answer) = answers.message().await.expect("the stream goes on") {
            accepted.push(matches!(answer.outcome, Some(v1::publish_job_stream_response::Outcome::Receipt(_))));
        }
        assert_eq!(accepted, [true, false, true]);
    }

    #[tokio::test]
    async fn nothing_but_liveness_is_told_without_a_token() {
        let routes = routes(Limits::default());
        let status = JobsClient::new(routes.clone()).publish_job(publish()).await.expect_err("no token");
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "Authentication required"));
        assert_eq!(reason(&status), "UNAUTHENTICATED");
        let mut health = HealthClient::new(routes);
        let watch = HealthCheckRequest { service: "errand.v1.Jobs".to_owned() };
        let mut changes = health.watch(watch).await.expect("watches").into_inner();
        while changes.message().await.expect("a status").expect("a status").status() != ServingStatus::Serving {}
        let unknown = HealthCheckRequest { service: "nobody".to_owned() };
        assert_eq!(health.check(unknown).await.expect_err("unknown").code(), Code::NotFound);
    }

    #[tokio::test]
    async fn a_missing_permission_is_named() {
        let mut jobs = JobsClient::new(routes(Limits::default()));
        let cancel = v1::CancelJobRequest { job_id: "0190163d8694739b9f2b7d1c1f2b7d1c".to_owned() };
        let status = jobs.cancel_job(with_token(cancel.clone(), &["view_jobs"])).await.expect_err("denied");
        assert_eq!(status.message(), "Permission denied: manage_jobs required");
        let status = jobs.cancel_job(with_token(cancel, &["manage_jobs"])).await.expect_err("no such job");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "JOB_NOT_FOUND"));
    }

    #[tokio::test]
    async fn calls_over_the_limit_are_refused() {
        let mut jobs = JobsClient::new(routes(Limits { calls_max: 1, ..Limits::default() }));
        let watch = with_token(v1::WatchJobsRequest::default(), &["view_jobs"]);
        let held = jobs.watch_jobs(watch).await.expect("watches");
        let status = jobs.publish_job(with_token(publish(), &[])).await.expect_err("one call is one too many");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "BUSY"));
        drop(held);
        jobs.publish_job(with_token(publish(), &[])).await.expect("the watch is over");
    }

    #[tokio::test]
    async fn a_deadline_in_the_past_is_told() {
        let mut runners = v1::runners_client::RunnersClient::new(routes(Limits::default()));
        let silent = futures::stream::pending::<v1::AttachRequest>();
        let mut request = with_token(silent, &["run_jobs"]);
        request.set_timeout(std::time::Duration::from_millis(1));
        assert_eq!(runners.attach(request).await.expect_err("late").code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn pages_of_either_order_meet_every_job_once() {
        let mut jobs = JobsClient::new(routes(Limits::default()));
        for _ in 0..5 {
            jobs.publish_job(with_token(publish(), &[])).await.expect("publishes");
        }
        for order in [v1::ListOrder::Unspecified, v1::ListOrder::Created] {
            let mut query =
                v1::ListJobsRequest { page_size: 2, order: order.into(), count: true, ..Default::default() };
            let mut ids = Vec::new();
            loop {
                let page = jobs.list_jobs(with_token(query.clone(), &[])).await.expect("lists").into_inner();
                assert!(page.jobs.len() <= 2);
                ids.extend(page.jobs.into_iter().map(|job| job.id));
                if page.next_page_token.is_empty() {
                    break;
                }
                query.page_token = page.next_page_token;
            }
            let mut sorted = ids.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!((ids.len(), sorted.len()), (5, 5), "{order:?}");
        }
    }
}

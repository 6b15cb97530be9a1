//! The service `errand.v1.Jobs`.

use std::{pin::Pin, sync::Arc};

use errand_proto::v1::{self, jobs_server::Jobs, publish_job_stream_response::Outcome};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{convert, door};
use crate::engine::{Engine, OnBehalf};

/// The most jobs of one publishing stream that wait for their commit at once.
const PUBLISHES_IN_FLIGHT_MAX: usize = 256;

pub struct JobsService {
    engine: Engine,
}

impl JobsService {
    pub fn new(engine: Engine) -> JobsService {
        JobsService { engine }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn publish_job(
        &self,
        request: Request<v1::PublishJobRequest>,
    ) -> Result<Response<v1::PublishJobResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let traceparent = convert::traceparent(request.metadata());
        let published = door.publish(convert::spec(request.into_inner().spec, traceparent)?).await?;
        let job = Some(convert::job_to_wire(&published.job));
        Ok(Response::new(v1::PublishJobResponse { job, deduplicated: published.deduplicated }))
    }

    async fn publish_jobs(
        &self,
        request: Request<v1::PublishJobsRequest>,
    ) -> Result<Response<v1::PublishJobsResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let traceparent = convert::traceparent(request.metadata());
        let specs = request.into_inner().specs.into_iter().map(|spec| convert::spec(Some(spec), traceparent.clone()));
        let published = door.publish_all(specs.collect::<Result<_, _>>()?).await?;
        let receipts = published.iter().map(convert::receipt).collect();
        Ok(Response::new(v1::PublishJobsResponse { receipts }))
    }

    type PublishJobStreamStream = Answers<v1::PublishJobStreamResponse>;

    async fn publish_job_stream(
        &self,
        request: Request<Streaming<v1::PublishJobStreamRequest>>,
    ) -> Result<Response<Self::PublishJobStreamStream>, Status> {
        let door = Arc::new(door(&self.engine, &request)?);
        let traceparent = convert::traceparent(request.metadata());
        // Polled together and answered in order: the engine commits what is in flight as one group.
        let answers = request
            .into_inner()
            .map(move |message| {
                let (door, traceparent) = (door.clone(), traceparent.clone());
                async move { Ok(publish_one(&door, message?.spec, traceparent).await) }
            })
            .buffered(PUBLISHES_IN_FLIGHT_MAX);
        Ok(Response::new(answers.boxed()))
    }

    async fn clone_job(&self, request: Request<v1::CloneJobRequest>) -> Result<Response<v1::CloneJobResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let traceparent = convert::traceparent(request.metadata());
        let request = request.into_inner();
        let template = convert::job_id(&request.template_job_id)?;
        let published = door.clone_job(template, convert::overrides(request.overrides, traceparent)?).await?;
        Ok(Response::new(v1::CloneJobResponse { job_id: published.job.id.to_string() }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let job = door(&self.engine, &request)?.job(convert::job_id(&request.get_ref().job_id)?).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(convert::job_to_wire(&job)) }))
    }

    async fn get_job_status(
        &self,
        request: Request<v1::GetJobStatusRequest>,
    ) -> Result<Response<v1::GetJobStatusResponse>, Status> {
        let view = door(&self.engine, &request)?.job_status(convert::job_id(&request.get_ref().job_id)?).await?;
        Ok(Response::new(v1::GetJobStatusResponse {
            job: Some(convert::job_to_wire(&view.job)),
            recent_events: view.recent_events.iter().map(convert::event_to_wire).collect(),
            queue_position: view.queue_position,
        }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let (query, page) = convert::job_list(request.into_inner())?;
        Ok(Response::new(page.to_wire(door.list(query).await?)))
    }

    async fn list_job_events(
        &self,
        request: Request<v1::ListJobEventsRequest>,
    ) -> Result<Response<v1::ListJobEventsResponse>, Status> {
        let events = door(&self.engine, &request)?.events(convert::job_id(&request.get_ref().job_id)?).await?;
        let events = events.iter().map(convert::event_to_wire).collect();
        Ok(Response::new(v1::ListJobEventsResponse { events }))
    }

    async fn list_job_logs(
        &self,
        request: Request<v1::ListJobLogsRequest>,
    ) -> Result<Response<v1::ListJobLogsResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let list = convert::log_list(request.get_ref())?;
        let logs = door.logs(list.job_id, &list.kinds, list.after, list.limit()).await?;
        Ok(Response::new(list.to_wire(logs)))
    }

    type WatchJobsStream = Answers<v1::WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let door = door(&self.engine, &request)?;
        let request = request.into_inner();
        let job_id = convert::given(request.job_id).map(|id| convert::job_id(&id)).transpose()?;
        let changes = door.watch(job_id, convert::given(request.channel)).await?;
        let answers = changes.map(|change| {
            let (event, job) = change?;
            let (event, job) = (convert::event_to_wire(&event), convert::job_to_wire(&job));
            Ok(v1::WatchJobsResponse { event: Some(event), job: Some(job) })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let cancellation = door(&self.engine, &request)?.cancel(convert::job_id(&request.get_ref().job_id)?).await?;
        let job = Some(convert::job_to_wire(&cancellation.job));
        Ok(Response::new(v1::CancelJobResponse { job, forced: cancellation.forced }))
    }

    async fn retry_job(&self, request: Request<v1::RetryJobRequest>) -> Result<Response<v1::RetryJobResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let request = request.into_inner();
        let original = convert::job_id(&request.job_id)?;
        let retried = door.retry(original, request.delay_seconds).await?;
        Ok(Response::new(v1::RetryJobResponse {
            original_job_id: original.to_string(),
            new_job_id: retried.new_id.to_string(),
            delayed: retried.delayed,
        }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        door(&self.engine, &request)?.delete(convert::job_id(&request.get_ref().job_id)?).await?;
        Ok(Response::new(v1::DeleteJobResponse {}))
    }
}

/// A refusal concerns one request; the stream goes on.
async fn publish_one(door: &OnBehalf, spec: Option<v1::JobSpec>, traceparent: String) -> v1::PublishJobStreamResponse {
    let published = match convert::spec(spec, traceparent) {
        Ok(spec) => door.publish(spec).await.map_err(Status::from),
        Err(invalid) => Err(invalid.into()),
    };
    let outcome = match published {
        Ok(published) => Outcome::Receipt(convert::receipt(&published)),
        Err(status) => {
            Outcome::Refusal(v1::PublishRefusal { code: status.code().into(), message: status.message().to_owned() })
        }
    };
    v1::PublishJobStreamResponse { outcome: Some(outcome) }
}

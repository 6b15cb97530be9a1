//! Reading and deleting jobs.

use axum::extract::{FromRequestParts, Path, State};
use errand_proto::v1::{
    DeleteJobRequest, GetJobStatusRequest, JobStatus, ListJobEventsRequest, ListJobLogsRequest, ListJobsRequest,
    ListJobsResponse, ListOrder,
};
use http::request::Parts;

use crate::{
    Gateway,
    body::Parameters,
    json::{self, Fields, Graph, fields},
    problem::Problem,
    upstream::{CALL_TIMEOUT, Caller, answer},
};

const PAGE_JOBS_MAX: u32 = 1000;

/// The id in the path. Whether it names a job, only the core knows.
pub(crate) struct JobId(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for JobId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|_| Problem::invalid("Malformed path"))?;
        Ok(Self(id))
    }
}

/// `GET /api/jobs/job/<id>`
pub(crate) async fn job(
    State(gateway): State<Gateway>,
    caller: Caller,
    JobId(job_id): JobId,
    query: Parameters,
) -> Result<Fields, Problem> {
    let graph = graph(&query)?;
    let request = caller.request(GetJobStatusRequest { job_id }, CALL_TIMEOUT);
    let status = answer(CALL_TIMEOUT, gateway.upstream.jobs().get_job_status(request)).await?;
    Ok(fields! { "status" => true, "data" => json::single_job(&status, graph) })
}

/// `DELETE /api/jobs/job/<id>`
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    caller: Caller,
    JobId(job_id): JobId,
) -> Result<Fields, Problem> {
    let request = caller.request(DeleteJobRequest { job_id: job_id.clone() }, CALL_TIMEOUT);
    answer(CALL_TIMEOUT, gateway.upstream.jobs().delete_job(request)).await?;
    Ok(fields! { "status" => true, "message" => format!("Job {job_id} deleted"), "job_id" => job_id })
}

/// `GET /api/jobs/job/<id>/events`
pub(crate) async fn events(
    State(gateway): State<Gateway>,
    caller: Caller,
    JobId(job_id): JobId,
) -> Result<Fields, Problem> {
    let request = caller.request(ListJobEventsRequest { job_id: job_id.clone() }, CALL_TIMEOUT);
    let events = answer(CALL_TIMEOUT, gateway.upstream.jobs().list_job_events(request)).await?.events;
    let data: Vec<Fields> = events.iter().map(json::event).collect();
    Ok(fields! { "status" => true, "job_id" => job_id, "count" => data.len(), "data" => data })
}

/// `GET /api/jobs/job/<id>/logs`
pub(crate) async fn logs(
    State(gateway): State<Gateway>,
    caller: Caller,
    JobId(job_id): JobId,
) -> Result<Fields, Problem> {
    let message =
        ListJobLogsRequest { job_id: job_id.clone(), page_size: PAGE_JOBS_MAX, ..ListJobLogsRequest::default() };
    let request = caller.request(message, CALL_TIMEOUT);
    let logs = answer(CALL_TIMEOUT, gateway.upstream.jobs().list_job_logs(request)).await?.logs;
    let data: Vec<Fields> = logs.iter().map(json::log).collect();
    Ok(fields! { "status" => true, "job_id" => job_id, "count" => data.len(), "data" => data })
}

/// `GET /api/jobs/job`
pub(crate) async fn browse(
    State(gateway): State<Gateway>,
    caller: Caller,
    query: Parameters,
) -> Result<Fields, Problem> {
    let graph = graph(&query)?;
    let start = query.count("start", 0, 0, u32::MAX)?;
    let size = query.count("size", 20, 1, PAGE_JOBS_MAX)?;
    let message = ListJobsRequest {
        channel: query.string("channel"),
        statuses: statuses(&query)?,
        func: query.string("func"),
        runner_id: query.string("runner_id"),
        created_from: query.time("dr_start")?,
        created_to: query.time("dr_end")?,
        page_size: size,
        offset: start,
        search: query.string("search"),
        broadcast: query.boolean("broadcast")?,
        order: order(query.text("sort")).into(),
        count: true,
        ..ListJobsRequest::default()
    };
    let found = listed(&gateway, &caller, message).await?;
    let mut answer = fields! {
        "status" => true,
        "data" => found.jobs.iter().map(|job| json::job(job, graph)).collect::<Vec<_>>(),
        "count" => found.total,
        "start" => start,
        "size" => size,
        "graph" => graph.name(),
    };
    if found.total_is_estimate {
        answer.set("count_is_estimate", true);
    }
    Ok(answer)
}

/// `GET /api/jobs/list`
pub(crate) async fn list(State(gateway): State<Gateway>, caller: Caller, query: Parameters) -> Result<Fields, Problem> {
    let message = ListJobsRequest {
        channel: query.string("channel"),
        statuses: statuses(&query)?,
        created_from: query.time("since")?,
        page_size: query.count("limit", 100, 1, PAGE_JOBS_MAX)?,
        ..ListJobsRequest::default()
    };
    let jobs = listed(&gateway, &caller, message).await?.jobs;
    let data: Vec<Fields> = jobs.iter().map(|job| json::job(job, Graph::Default)).collect();
    Ok(fields! { "status" => true, "count" => data.len(), "data" => data })
}

async fn listed(gateway: &Gateway, caller: &Caller, message: ListJobsRequest) -> Result<ListJobsResponse, Problem> {
    let request = caller.request(message, CALL_TIMEOUT);
    answer(CALL_TIMEOUT, gateway.upstream.jobs().list_jobs(request)).await
}

fn graph(query: &Parameters) -> Result<Graph, Problem> {
    Graph::parse(query.text("graph"))
        .ok_or_else(|| Problem::field("graph", "must be one of default, detail, status, list"))
}

fn statuses(query: &Parameters) -> Result<Vec<i32>, Problem> {
    let names = query.text("status").unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let full = format!("JOB_STATUS_{}", name.to_ascii_uppercase());
            JobStatus::from_str_name(&full)
                .filter(|status| *status != JobStatus::Unspecified)
                .map(i32::from)
                .ok_or_else(|| {
                    Problem::field("status", "must be one of pending, running, completed, failed, canceled, expired")
                })
        })
        .collect()
}

/// A column that jobs cannot be sorted by falls back to the default: front ends offer every column.
fn order(sort: Option<&str>) -> ListOrder {
    match sort {
        Some("created") => ListOrder::Created,
        Some("modified") => ListOrder::Modified,
        Some("-modified") => ListOrder::ModifiedDesc,
        Some("started_at") => ListOrder::StartedAt,
        Some("-started_at") => ListOrder::StartedAtDesc,
        Some("finished_at") => ListOrder::FinishedAt,
        Some("-finished_at") => ListOrder::FinishedAtDesc,
        Some("run_at") => ListOrder::RunAt,
        Some("-run_at") => ListOrder::RunAtDesc,
        _ => ListOrder::CreatedDesc,
    }
}

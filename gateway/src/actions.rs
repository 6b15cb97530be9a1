//! What a `POST` to a job asks for: exactly one action.

use axum::extract::State;
use errand_proto::v1::{CancelJobRequest, CloneJobRequest, GetJobStatusRequest, RetryJobRequest};
use serde_json::value::RawValue;

use crate::{
    Gateway,
    body::Object,
    jobs::JobId,
    json::{self, Fields, fields},
    problem::Problem,
    publish,
    upstream::{CALL_TIMEOUT, Caller, answer},
};

const ACTIONS: [&str; 4] = ["cancel_request", "retry_request", "get_status", "publish_job"];
const RETRY_WANTED: &str = "retry_request must be true or {retry: true, delay: N}";
const PUBLISH_WANTED: &str = "publish_job must be an object with job parameters";

/// `POST`, `PUT` and `PATCH /api/jobs/job/<id>`
pub(crate) async fn act(
    State(gateway): State<Gateway>,
    caller: Caller,
    JobId(job_id): JobId,
    body: Object,
) -> Result<Fields, Problem> {
    let mut named = ACTIONS.iter().filter_map(|name| Some((*name, body.raw(name)?)));
    let (Some((action, value)), None) = (named.next(), named.next()) else {
        return Err(Problem::invalid(format!("exactly one action is required: {}", ACTIONS.join(", "))));
    };
    match action {
        "cancel_request" if body.is_true(action) => cancel(&gateway, &caller, job_id).await,
        "get_status" if body.is_true(action) => status(&gateway, &caller, job_id).await,
        "retry_request" => retry(&gateway, &caller, job_id, value).await,
        "publish_job" => publish_again(&gateway, &caller, job_id, value).await,
        _ => Err(Problem::invalid(format!("{action} must be true"))),
    }
}

async fn cancel(gateway: &Gateway, caller: &Caller, job_id: String) -> Result<Fields, Problem> {
    let request = caller.request(CancelJobRequest { job_id: job_id.clone() }, CALL_TIMEOUT);
    let canceled = answer(CALL_TIMEOUT, gateway.upstream.jobs().cancel_job(request)).await?;
    Ok(fields! {
        "status" => true,
        "message" => format!("Job {job_id} cancellation requested"),
        "job_id" => job_id,
        "forced" => canceled.forced,
    })
}

async fn status(gateway: &Gateway, caller: &Caller, job_id: String) -> Result<Fields, Problem> {
    let request = caller.request(GetJobStatusRequest { job_id }, CALL_TIMEOUT);
    let status = answer(CALL_TIMEOUT, gateway.upstream.jobs().get_job_status(request)).await?;
    Ok(fields! { "status" => true, "data" => json::job_status(&status) })
}

async fn retry(gateway: &Gateway, caller: &Caller, job_id: String, value: &RawValue) -> Result<Fields, Problem> {
    let delay_seconds = retry_delay(value)?;
    let request = caller.request(RetryJobRequest { job_id, delay_seconds }, CALL_TIMEOUT);
    let retried = answer(CALL_TIMEOUT, gateway.upstream.jobs().retry_job(request)).await?;
    Ok(fields! {
        "status" => true,
        "message" => "Job retry scheduled",
        "original_job_id" => retried.original_job_id,
        "new_job_id" => retried.new_job_id,
        "delayed" => retried.delayed,
    })
}

fn retry_delay(value: &RawValue) -> Result<Option<u32>, Problem> {
    if value.get() == "true" {
        return Ok(None);
    }
    let wanted = || Problem::invalid(RETRY_WANTED);
    let options = Object::nested(value).filter(|options| options.is_true("retry")).ok_or_else(wanted)?;
    options.count("delay").map_err(|_| wanted())
}

async fn publish_again(
    gateway: &Gateway,
    caller: &Caller,
    job_id: String,
    value: &RawValue,
) -> Result<Fields, Problem> {
    let parameters = Object::nested(value).ok_or_else(|| Problem::invalid(PUBLISH_WANTED))?;
    let overrides = Some(publish::spec(&parameters)?);
    let message = CloneJobRequest { template_job_id: job_id.clone(), overrides };
    let request = caller.request(message, CALL_TIMEOUT);
    let published = answer(CALL_TIMEOUT, gateway.upstream.jobs().clone_job(request)).await?;
    Ok(fields! {
        "status" => true,
        "message" => "Job published successfully",
        "job_id" => published.job_id,
        "template_job_id" => job_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_true_or_an_object_that_says_so() {
        let delay = |text: &str| retry_delay(&RawValue::from_string(text.to_owned()).unwrap());
        assert_eq!(delay("true"), Ok(None));
        assert_eq!(delay(r#"{"retry": true, "delay": 60}"#), Ok(Some(60)));
        for refused in ["false", "1", "{}", r#"{"retry": true, "delay": -1}"#, r#"{"retry": false}"#] {
            assert_eq!(delay(refused), Err(Problem::invalid(RETRY_WANTED)));
        }
    }
}

//! From a publish body to a [`JobSpec`].

use axum::extract::State;
use errand_proto::v1::{
    JobSpec, PublishJobRequest,
    job_spec::{Expiry, Start},
};

use crate::{
    Gateway,
    body::Object,
    json::{self, Fields, fields},
    problem::Problem,
    upstream::{CALL_TIMEOUT, Caller, answer},
};

const KNOWN: [&str; 14] = [
    "func",
    "payload",
    "channel",
    "delay",
    "run_at",
    "max_retries",
    "expires_in",
    "expires_at",
    "broadcast",
    "max_exec_seconds",
    "idempotency_key",
    "priority",
    "backoff_base",
    "backoff_max",
];

/// `POST /api/jobs/publish`
pub(crate) async fn publish(State(gateway): State<Gateway>, caller: Caller, body: Object) -> Result<Fields, Problem> {
    refuse_unknown(&body)?;
    let spec = spec(&body)?;
    refuse_missing(&body, &spec)?;
    let request = caller.request(PublishJobRequest { spec: Some(spec) }, CALL_TIMEOUT);
    let published = answer(CALL_TIMEOUT, gateway.upstream.jobs().publish_job(request)).await?;
    let job = published.job.unwrap_or_default();
    let mut reply = fields! { "status" => true, "job_id" => &job.id, "data" => json::published(&job) };
    if published.deduplicated {
        reply.set("deduplicated", true);
    }
    Ok(reply)
}

fn refuse_unknown(body: &Object) -> Result<(), Problem> {
    let unknown: Vec<&str> = body.keys().filter(|key| !KNOWN.contains(key)).collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(format!("unknown parameters: {}", unknown.join(", "))))
    }
}

fn refuse_missing(body: &Object, spec: &JobSpec) -> Result<(), Problem> {
    let absent = [("func", spec.func.is_empty()), ("payload", body.raw("payload").is_none())];
    let missing: Vec<&str> = absent.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(format!("missing required parameters: {}", missing.join(", "))))
    }
}

/// The known fields of `body`; an absent one stays unset.
pub(crate) fn spec(body: &Object) -> Result<JobSpec, Problem> {
    let delay = body.count("delay")?.map(Start::DelaySeconds);
    let expires_in = body.count("expires_in")?.map(Expiry::ExpiresInSeconds);
    Ok(JobSpec {
        func: body.string("func")?.unwrap_or_default(),
        payload_json: body.object("payload")?.unwrap_or_default(),
        channel: body.string("channel")?.unwrap_or_default(),
        start: body.time("run_at")?.map(Start::RunAt).or(delay),
        expiry: body.time("expires_at")?.map(Expiry::ExpiresAt).or(expires_in),
        max_retries: body.count("max_retries")?,
        backoff_base: body.number("backoff_base")?,
        backoff_max_seconds: body.count("backoff_max")?,
        broadcast: body.boolean("broadcast")?,
        max_exec_seconds: body.count("max_exec_seconds")?,
        idempotency_key: body.string("idempotency_key")?.unwrap_or_default(),
        priority: body.integer("priority")?,
    })
}

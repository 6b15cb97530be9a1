//! Cancel requests and time limits.

use std::time::Duration;

use errand_client::JobStatus;

use crate::{
    json::same,
    kit::Kit,
    scenario::{Verdict, ensure, scenarios},
    stage::{Setup, Stage, completed_at_once, failed},
};

scenarios! {
    a_cancel_ends_a_function_that_heeds_it: "a function that returns early after the request ends its job canceled",
    a_cancel_may_be_ignored: "a function that never looks completes with its result",
    without_a_cancel_it_completes: "a function that waits for a request in vain completes",
    a_cancel_leaves_the_others_alone: "only the job that was named is asked to stop",
    a_canceled_job_frees_its_slot: "after a cancel the next job runs",
    the_time_limit_frees_the_slot: "a job over its time limit fails, and the runner takes the next one",
    a_timed_out_job_is_retried: "after the time limit the job is run again where it has a retry left",
}

const ALONE: Setup = Setup { capacity: 1, timings: crate::service::QUICK };

async fn canceled(stage: &Stage, id: &str) -> Verdict {
    let job = stage.ended(id).await?;
    let error = &job.last_error;
    ensure!(job.status == JobStatus::Canceled, "the job should be canceled, and is {:?} ({error:?})", job.status);
    Ok(())
}

async fn a_cancel_ends_a_function_that_heeds_it(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let id = stage.publish("wait_for_cancel", r#"{"seconds": 25}"#).await?;
    stage.under_way(&id).await?;
    stage.client.cancel(&id).await?;
    canceled(&stage, &id).await
}

async fn a_cancel_may_be_ignored(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let id = stage.publish("sleep", r#"{"seconds": 1.5}"#).await?;
    stage.under_way(&id).await?;
    stage.client.cancel(&id).await?;
    let result = completed_at_once(&stage.ended(&id).await?)?;
    ensure!(same(&result, r#"{"slept": 1.5}"#), "the result should be {{\"slept\": 1.5}}, and is {result}");
    Ok(())
}

async fn without_a_cancel_it_completes(kit: Kit) -> Verdict {
    let result = Stage::usual(&kit).await?.result("wait_for_cancel", r#"{"seconds": 0.5}"#).await?;
    ensure!(same(&result, r#"{"waited": 0.5}"#), "the result should be {{\"waited\": 0.5}}, and is {result}");
    Ok(())
}

async fn a_cancel_leaves_the_others_alone(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let waits = |seconds: u32| format!(r#"{{"seconds": {seconds}}}"#);
    let ids = stage.publish_many("wait_for_cancel", [waits(25), waits(4), waits(4)]).await?;
    for id in &ids {
        stage.running(id).await?;
    }
    stage.client.cancel(&ids[0]).await?;
    canceled(&stage, &ids[0]).await?;
    for id in &ids[1..] {
        completed_at_once(&stage.ended(id).await?)?;
    }
    Ok(())
}

async fn a_canceled_job_frees_its_slot(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, ALONE).await?;
    let first = stage.publish("wait_for_cancel", r#"{"seconds": 25}"#).await?;
    stage.running(&first).await?;
    let second = stage.publish("echo", "{}").await?;
    stage.client.cancel(&first).await?;
    canceled(&stage, &first).await?;
    completed_at_once(&stage.ended(&second).await?)?;
    Ok(())
}

async fn the_time_limit_frees_the_slot(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, ALONE).await?;
    let job = stage.job("wait_for_cancel", r#"{"seconds": 25}"#)?.max_retries(0).max_exec(Duration::from_secs(1));
    let first = stage.client.publish(job).await?.job.id;
    let second = stage.publish("echo", "{}").await?;
    failed(&stage.ended(&first).await?)?;
    completed_at_once(&stage.ended(&second).await?)?;
    Ok(())
}

async fn a_timed_out_job_is_retried(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("wait_for_cancel", r#"{"seconds": 25}"#)?.max_exec(Duration::from_secs(1));
    let job = job.max_retries(1).backoff(0.0, Duration::ZERO);
    let job = stage.ended(&stage.client.publish(job).await?.job.id).await?;
    failed(&job)?;
    ensure!(job.attempt == 2, "with one retry the job should run twice, and ran {} times", job.attempt);
    Ok(())
}

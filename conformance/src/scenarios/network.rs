//! What networks and dying servers do, on the real service with a proxy before it.

use std::time::Duration;

use errand_client::JobStatus;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    json::same,
    kit::Kit,
    proxy::Proxy,
    scenario::{Verdict, ensure, eventually, scenarios},
    service::PATIENT,
    stage::{Setup, Stage, completed, completed_at_once},
};

scenarios! {
    a_severed_stream_is_resumed: "a job that runs while the stream breaks is not run twice",
    a_stream_that_breaks_again_and_again: "two hundred jobs complete once each over a stream that keeps breaking",
    a_result_waits_for_the_stream: "a function that ends while there is no stream has its result delivered later",
    a_result_without_receipt_is_sent_again: "a result whose receipt was lost is not lost, and the runner goes on",
    a_stalled_stream_is_left: "a stream that hangs without closing is noticed, and another one opened",
    a_restarted_service_finds_its_jobs_running: "a job that runs while the service is killed and started is not run twice",
    a_result_waits_for_the_service: "a function that ends while the service is down has its result delivered later",
    a_service_that_is_not_there_yet: "a runner that is started first waits for its service",
    a_second_server_takes_over: "when one of two servers dies, the runner goes on with the other",
    a_dead_first_server_does_no_harm: "when the first of two servers is down from the start, the second one is used",
    a_lease_that_lapsed_is_given_up: "after too long an absence the runner gives its job up, and runs it anew",
    reconnecting_is_no_storm: "while it is refused, the runner tries again, but not all the time",
    an_idle_runner_is_quiet: "a runner without jobs keeps one stream and says little",
}

const LASTING: Setup = Setup { capacity: 4, timings: PATIENT };

/// The job ran once, and the process started it once.
pub(super) fn ran_once(job: &errand_client::Job) -> Verdict {
    let result = completed_at_once(job)?;
    ensure!(same(&result, r#"{"starts": 1}"#), "the function should be started once: {result}");
    Ok(())
}

async fn a_severed_stream_is_resumed(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, LASTING).await?;
    let id = stage.publish("starts", r#"{"seconds": 3}"#).await?;
    stage.under_way(&id).await?;
    stage.proxy.cut();
    ran_once(&stage.ended(&id).await?)?;
    ensure!(stage.proxy.connects() >= 2, "the runner did not connect again");
    Ok(())
}

async fn a_stream_that_breaks_again_and_again(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, LASTING).await?;
    stage.publish_many("starts", std::iter::repeat_n(r#"{"seconds": 0.1}"#.to_owned(), 200)).await?;
    let cutting = async {
        for _ in 0..5 {
            sleep(Duration::from_millis(700)).await;
            stage.proxy.cut();
        }
        // The last cut is not the end of anything.
        std::future::pending().await
    };
    let jobs = tokio::select! {
        jobs = stage.all_ended() => jobs?,
        never = cutting => never,
    };
    for job in &jobs {
        // A claim whose assignment was lost on the way is handed out again as another attempt.
        let result = completed(job)?;
        ensure!(same(&result, r#"{"starts": 1}"#), "the function should be started once: {result}");
    }
    Ok(())
}

async fn a_result_waits_for_the_stream(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, LASTING).await?;
    let id = stage.publish("starts", r#"{"seconds": 1}"#).await?;
    stage.under_way(&id).await?;
    stage.proxy.refuse();
    // Until the function has ended for sure.
    sleep(Duration::from_secs(2)).await;
    ensure!(stage.client.get(&id).await?.status == JobStatus::Running, "the job ended without a stream");
    stage.proxy.allow();
    ran_once(&stage.ended(&id).await?)
}

async fn a_result_without_receipt_is_sent_again(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, LASTING).await?;
    let id = stage.publish("starts", r#"{"seconds": 1}"#).await?;
    stage.under_way(&id).await?;
    stage.proxy.deafen();
    ran_once(&stage.ended(&id).await?)?;
    stage.proxy.cut();
    // What was without a receipt does not keep its slots.
    for _ in 0..8 {
        stage.result("echo", "{}").await?;
    }
    Ok(())
}

async fn a_stalled_stream_is_left(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, LASTING).await?;
    stage.result("echo", "{}").await?;
    let before = stage.proxy.connects();
    stage.proxy.stall();
    eventually("the runner leaves a stream that hangs (HTTP/2 pings every 5 s notice it)", || async {
        Ok((stage.proxy.connects() > before).then_some(()))
    })
    .await?;
    let job = stage.job("echo", "{}")?.max_retries(3);
    completed(&stage.ended(&stage.client.publish(job).await?.job.id).await?)?;
    Ok(())
}

async fn a_restarted_service_finds_its_jobs_running(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, LASTING).await?;
    let id = stage.publish("starts", r#"{"seconds": 4}"#).await?;
    stage.under_way(&id).await?;
    stage.service.kill().await?;
    stage.service.start_again().await?;
    ran_once(&stage.ended(&id).await?)
}

async fn a_result_waits_for_the_service(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, LASTING).await?;
    let id = stage.publish("starts", r#"{"seconds": 1}"#).await?;
    stage.under_way(&id).await?;
    stage.service.kill().await?;
    // Until the function has ended for sure.
    sleep(Duration::from_secs(2)).await;
    stage.service.start_again().await?;
    ran_once(&stage.ended(&id).await?)
}

async fn a_service_that_is_not_there_yet(kit: Kit) -> Verdict {
    let mut stage = Stage::dark(&kit, LASTING, Proxy::refuse).await?;
    eventually("the runner tries", || async { Ok((stage.proxy.connects() >= 2).then_some(())) }).await?;
    stage.proxy.allow();
    stage.attached().await?;
    stage.result("echo", "{}").await?;
    Ok(())
}

async fn a_second_server_takes_over(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, LASTING).await?;
    stage.runner.terminate()?;
    stage.runner.exit_well().await?;
    let second = Proxy::before(stage.service.address()).await?;
    stage.part.servers.push(second.url());
    stage.start_runner()?;
    stage.attached().await?;
    let id = stage.publish("starts", r#"{"seconds": 3}"#).await?;
    stage.under_way(&id).await?;
    let (dies, stays) = if second.connects() > 0 { (&second, &stage.proxy) } else { (&stage.proxy, &second) };
    let before = stays.connects();
    dies.refuse();
    ran_once(&stage.ended(&id).await?)?;
    ensure!(stays.connects() > before, "the runner did not turn to the other server");
    stage.result("echo", "{}").await?;
    Ok(())
}

async fn a_dead_first_server_does_no_harm(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, LASTING).await?;
    stage.runner.terminate()?;
    stage.runner.exit_well().await?;
    let dead = Proxy::before(stage.service.address()).await?;
    stage.part.servers.insert(0, dead.url());
    drop(dead);
    stage.start_runner()?;
    stage.attached().await?;
    stage.result("echo", "{}").await?;
    Ok(())
}

async fn a_lease_that_lapsed_is_given_up(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("wait_for_cancel", r#"{"seconds": 12}"#)?.max_retries(1).backoff(0.0, Duration::ZERO);
    let id = stage.client.publish(job).await?.job.id;
    stage.under_way(&id).await?;
    // A lease that no heartbeat has named would cost no attempt: three intervals.
    sleep(Duration::from_millis(1_500)).await;
    stage.proxy.refuse();
    eventually("the service takes the job back", || async {
        Ok((stage.client.get(&id).await?.status == JobStatus::Pending).then_some(()))
    })
    .await?;
    stage.proxy.allow();
    let job = stage.ended(&id).await?;
    let result = completed(&job)?;
    ensure!(same(&result, r#"{"waited": 12}"#), "the result is {result}");
    ensure!(job.attempt == 2, "the job should have run twice, and ran {} times", job.attempt);
    Ok(())
}

async fn reconnecting_is_no_storm(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, LASTING).await?;
    let before = stage.proxy.connects();
    stage.proxy.refuse();
    sleep(Duration::from_secs(6)).await;
    let tries = stage.proxy.connects() - before;
    ensure!((2..=30).contains(&tries), "within 6 s of refusals it should try 2 to 30 times, and tried {tries} times");
    stage.proxy.allow();
    eventually("it is back", || async { Ok(stage.command(errand_proto::v1::CommandKind::Ping).await.ok()) }).await?;
    stage.attached().await?;
    stage.result("echo", "{}").await?;
    Ok(())
}

async fn an_idle_runner_is_quiet(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    stage.result("many", &json!({"index": 1}).to_string()).await?;
    let (connects, bytes) = (stage.proxy.connects(), stage.proxy.bytes_up());
    sleep(Duration::from_secs(4)).await;
    // Eight heartbeats, some HTTP/2 pings and window updates: some hundred bytes.
    let said = stage.proxy.bytes_up() - bytes;
    ensure!(said < 8_192, "an idle runner should say little, and said {said} bytes within 4 s");
    ensure!(said > 0, "an idle runner should send heartbeats, and said nothing within 4 s");
    ensure!(stage.proxy.connects() == connects, "an idle runner should keep its stream, and connected again");
    Ok(())
}

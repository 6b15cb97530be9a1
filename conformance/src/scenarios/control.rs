//! What operators say to a runner, on the real service.

use std::time::Duration;

use errand_client::JobStatus;
use errand_proto::v1::{CommandKind, PingRunnerRequest};
use serde_json::{Value, json};

use crate::{
    kit::Kit,
    scenario::{Flaw, Verdict, ensure, eventually, scenarios},
    service::QUICK,
    stage::{Setup, Stage, completed_at_once},
};

scenarios! {
    it_shows_who_it_is: "the list of runners has its channel, capacity, host and client",
    ping_is_answered: "a ping is answered",
    ping_is_answered_while_functions_run: "a ping is answered while every slot is taken",
    ping_is_answered_while_functions_compute: "a ping is answered while functions compute",
    status_is_answered: "status is answered with capacity, running and paused",
    sysinfo_is_answered: "sysinfo is answered with a JSON object that says something",
    reload_is_answered: "reload is answered without an error",
    pause_takes_nothing_more: "a paused runner takes no job until it is resumed",
    pause_in_mid_load: "under load a pause lets what runs finish, and resume goes on",
    a_pause_outlives_a_lost_stream: "a paused runner is still paused after it connected again",
}

async fn ping(stage: &Stage) -> Verdict {
    let runner = stage.live_runner().await?.ok_or_else(|| Flaw("the runner is not listed".to_owned()))?;
    let timeout = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    let answer = stage.runners().ping_runner(PingRunnerRequest { runner_id: runner.runner_id, timeout }).await?;
    ensure!(answer.into_inner().responsive, "the runner did not answer a ping within 10 s");
    Ok(())
}

/// What the runner answers to a command.
async fn reply(stage: &Stage, kind: CommandKind) -> Verdict<Value> {
    let reply = stage.command(kind).await?;
    ensure!(reply.error.is_empty(), "{} was answered with the error {:?}", kind.as_str_name(), reply.error);
    let data = if reply.data_json.is_empty() { "{}" } else { reply.data_json.as_str() };
    Ok(serde_json::from_str(data)?)
}

async fn it_shows_who_it_is(kit: Kit) -> Verdict {
    let mut stage = Stage::usual(&kit).await?;
    let runner = stage.attached().await?;
    ensure!(runner.channels == [stage.part.channel.as_str()], "its channels are {:?}", runner.channels);
    ensure!(runner.capacity == 4, "its capacity should be 4, and is {}", runner.capacity);
    ensure!(!runner.hostname.is_empty(), "it does not name its host");
    ensure!(!runner.client.is_empty(), "it does not name its client");
    Ok(())
}

async fn ping_is_answered(kit: Kit) -> Verdict {
    ping(&Stage::usual(&kit).await?).await
}

async fn ping_is_answered_while(kit: Kit, func: &str) -> Verdict {
    let stage = Stage::set(&kit, Setup { capacity: 2, timings: QUICK }).await?;
    let ids = stage.publish_many(func, std::iter::repeat_n(r#"{"seconds": 4}"#.to_owned(), 2)).await?;
    for id in &ids {
        stage.running(id).await?;
    }
    ping(&stage).await?;
    for id in &ids {
        completed_at_once(&stage.ended(id).await?)?;
    }
    Ok(())
}

async fn ping_is_answered_while_functions_run(kit: Kit) -> Verdict {
    ping_is_answered_while(kit, "sleep").await
}

async fn ping_is_answered_while_functions_compute(kit: Kit) -> Verdict {
    ping_is_answered_while(kit, "busy").await
}

async fn status_is_answered(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let id = stage.publish("sleep", r#"{"seconds": 5}"#).await?;
    stage.running(&id).await?;
    eventually("status tells of the job that runs", || async {
        let status = reply(&stage, CommandKind::Status).await?;
        ensure!(status["capacity"] == 4, "capacity should be 4, and the reply is {status}");
        ensure!(status["paused"] == false, "paused should be false, and the reply is {status}");
        ensure!(status["running"].is_u64(), "running should be a number, and the reply is {status}");
        Ok((status["running"] == 1).then_some(()))
    })
    .await
}

async fn sysinfo_is_answered(kit: Kit) -> Verdict {
    let info = reply(&Stage::usual(&kit).await?, CommandKind::Sysinfo).await?;
    let says_something = info.as_object().is_some_and(|members| !members.is_empty());
    ensure!(says_something, "the reply should be an object that says something, and is {info}");
    Ok(())
}

async fn reload_is_answered(kit: Kit) -> Verdict {
    reply(&Stage::usual(&kit).await?, CommandKind::Reload).await?;
    Ok(())
}

async fn pause_takes_nothing_more(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    reply(&stage, CommandKind::Pause).await?;
    let status = reply(&stage, CommandKind::Status).await?;
    ensure!(status["paused"] == true, "paused should be true, and the reply is {status}");
    let ids = stage.publish_many("many", (0..10).map(|index| json!({"index": index}).to_string())).await?;
    stays_pending(&stage, ids.len()).await?;
    reply(&stage, CommandKind::Resume).await?;
    for id in ids {
        completed_at_once(&stage.ended(&id).await?)?;
    }
    Ok(())
}

/// That nothing starts can only be watched for a while: two heartbeats.
async fn stays_pending(stage: &Stage, count: usize) -> Verdict {
    for _ in 0..10 {
        let pending = stage.jobs().await?.iter().filter(|job| job.status == JobStatus::Pending).count();
        ensure!(pending >= count, "a paused runner took a job: {pending} of {count} are still pending");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn pause_in_mid_load(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let ids = stage.publish_many("sleep", std::iter::repeat_n(r#"{"seconds": 0.05}"#.to_owned(), 200)).await?;
    eventually("the load is under way", || async {
        let done = stage.jobs().await?.iter().filter(|job| job.status.is_terminal()).count();
        Ok((done >= 10).then_some(()))
    })
    .await?;
    reply(&stage, CommandKind::Pause).await?;
    let pending = eventually("what runs is finished", || async {
        let jobs = stage.jobs().await?;
        let count = |status| jobs.iter().filter(|job| job.status == status).count();
        Ok((count(JobStatus::Running) == 0).then(|| count(JobStatus::Pending)))
    })
    .await?;
    ensure!(pending > 0, "the pause came too late to see anything");
    stays_pending(&stage, pending).await?;
    reply(&stage, CommandKind::Resume).await?;
    for id in ids {
        completed_at_once(&stage.ended(&id).await?)?;
    }
    Ok(())
}

async fn a_pause_outlives_a_lost_stream(kit: Kit) -> Verdict {
    let mut stage = Stage::usual(&kit).await?;
    reply(&stage, CommandKind::Pause).await?;
    let before = stage.proxy.connects();
    stage.proxy.cut();
    eventually("the runner connects again", || async { Ok((stage.proxy.connects() > before).then_some(())) }).await?;
    stage.attached().await?;
    eventually("it answers again", || async {
        let reply = stage.command(CommandKind::Status).await;
        Ok(reply.ok().filter(|reply| reply.data_json.contains("paused")))
    })
    .await?;
    let id = stage.publish("many", r#"{"index": 1}"#).await?;
    stays_pending(&stage, 1).await?;
    reply(&stage, CommandKind::Resume).await?;
    completed_at_once(&stage.ended(&id).await?)?;
    Ok(())
}

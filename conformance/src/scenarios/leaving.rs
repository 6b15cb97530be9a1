//! How a runner leaves, and when it will not start.

use errand_client::JobStatus;
use errand_proto::v1::{PingRunnerRequest, ShutdownRunnerRequest};

use crate::{
    kit::Kit,
    scenario::{Flaw, Verdict, ensure, eventually, scenarios},
    service::QUICK,
    stage::{Setup, Stage, completed_at_once},
    subject::Subject,
};

scenarios! {
    sigterm_ends_an_idle_runner: "an idle runner exits 0 at SIGTERM",
    sigterm_finishes_what_runs: "SIGTERM under load: what runs is finished, nothing is started, exit 0",
    a_second_sigterm_releases: "a second SIGTERM hands back what runs, at no cost to its attempts",
    a_graceful_shutdown_drains: "an operator's graceful shutdown finishes what runs and exits 0",
    a_hard_shutdown_releases: "an operator's other shutdown hands back what runs and exits 0",
    a_wrong_token_is_said: "a runner whose token is refused says so and exits",
    a_forbidden_channel_is_said: "a runner whose token is bound to another channel says so and exits",
}

const TWO: Setup = Setup { capacity: 2, timings: QUICK };

/// Two jobs that run and as many that wait as are wanted.
async fn load(stage: &Stage, seconds: u32, waiting: usize) -> Verdict<Vec<String>> {
    let payload = format!(r#"{{"seconds": {seconds}}}"#);
    let ids = stage.publish_many("sleep", std::iter::repeat_n(payload, 2 + waiting)).await?;
    eventually("both slots are taken", || async {
        let running = stage.jobs().await?.iter().filter(|job| job.status == JobStatus::Running).count();
        Ok((running == 2).then_some(()))
    })
    .await?;
    has_read(stage).await?;
    Ok(ids)
}

/// The runner has read what was sent to it so far: it answers a ping that came behind.
async fn has_read(stage: &Stage) -> Verdict {
    let runner = stage.live_runner().await?.ok_or_else(|| Flaw("the runner is not listed".to_owned()))?;
    let timeout = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    let request = PingRunnerRequest { runner_id: runner.runner_id, timeout };
    let answer = stage.runners().ping_runner(request).await?.into_inner();
    ensure!(answer.responsive, "the runner should answer a ping, and did not within 10 s");
    Ok(())
}

async fn drained(stage: &Stage) -> Verdict {
    let jobs = stage.jobs().await?;
    let with = |status| jobs.iter().filter(move |job| job.status == status);
    for job in with(JobStatus::Completed) {
        completed_at_once(job)?;
    }
    let (completed, pending) = (with(JobStatus::Completed).count(), with(JobStatus::Pending).count());
    let all = completed == 2 && pending + 2 == jobs.len();
    ensure!(all, "two jobs should be completed and the others pending: {completed} and {pending} of {}", jobs.len());
    Ok(())
}

/// Every job is pending as if it had never run.
async fn released(stage: &Stage) -> Verdict {
    eventually("what ran is pending again", || async {
        let jobs = stage.jobs().await?;
        Ok(jobs.iter().all(|job| job.status == JobStatus::Pending).then_some(jobs))
    })
    .await?
    .iter()
    .try_for_each(|job| {
        ensure!(job.attempt == 0, "a job that was handed back should have cost no attempt, and cost {}", job.attempt);
        Ok(())
    })
}

async fn sigterm_ends_an_idle_runner(kit: Kit) -> Verdict {
    let mut stage = Stage::usual(&kit).await?;
    stage.runner.terminate()?;
    stage.runner.exit_well().await
}

async fn sigterm_finishes_what_runs(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, TWO).await?;
    load(&stage, 3, 10).await?;
    stage.runner.terminate()?;
    stage.runner.exit_well().await?;
    drained(&stage).await
}

async fn a_second_sigterm_releases(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, TWO).await?;
    load(&stage, 60, 0).await?;
    let status = stage.runner.terminate_twice().await?;
    ensure!(status.success(), "the runner should exit 0, and ended with {status}");
    released(&stage).await
}

async fn shut_down(stage: &Stage, graceful: bool) -> Verdict {
    let runner = stage.live_runner().await?.ok_or_else(|| Flaw("the runner is not listed".to_owned()))?;
    let request = ShutdownRunnerRequest { runner_id: runner.runner_id, graceful };
    stage.runners().shutdown_runner(request).await?;
    Ok(())
}

async fn a_graceful_shutdown_drains(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, TWO).await?;
    load(&stage, 3, 10).await?;
    shut_down(&stage, true).await?;
    stage.runner.exit_well().await?;
    drained(&stage).await
}

async fn a_hard_shutdown_releases(kit: Kit) -> Verdict {
    let mut stage = Stage::set(&kit, TWO).await?;
    load(&stage, 60, 0).await?;
    shut_down(&stage, false).await?;
    stage.runner.exit_well().await?;
    released(&stage).await
}

/// A runner with this token exits by itself, not well, and not without a word.
async fn refused(kit: Kit, stage: &Stage, token: String) -> Verdict {
    let before = said(&kit);
    let part = crate::subject::Part { token, ..stage.part.clone() };
    let status = Subject::start(&kit, &part)?.exit().await?;
    ensure!(!status.success(), "a runner that is refused should not exit 0");
    ensure!(said(&kit) > before, "the runner exited without a word on standard error");
    Ok(())
}

fn said(kit: &Kit) -> u64 {
    std::fs::metadata(kit.runner_log()).map_or(0, |log| log.len())
}

async fn a_wrong_token_is_said(kit: Kit) -> Verdict {
    let mut stage = Stage::usual(&kit).await?;
    stage.runner.terminate()?;
    stage.runner.exit_well().await?;
    refused(kit, &stage, "not.a.token".to_owned()).await
}

async fn a_forbidden_channel_is_said(kit: Kit) -> Verdict {
    let mut stage = Stage::usual(&kit).await?;
    stage.runner.terminate()?;
    stage.runner.exit_well().await?;
    let token = stage.service.token_with(&["--permission", "run_jobs", "--channel", "another"]).await?;
    refused(kit, &stage, token).await
}

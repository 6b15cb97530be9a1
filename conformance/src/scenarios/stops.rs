//! Interrupts and the runner's own end, message by message.

use std::time::Duration;

use errand_proto::v1::{InterruptReason, attach_request::Message as Said, result::Outcome};

use crate::{
    kit::Kit,
    scenario::{Flaw, Verdict, ensure, scenarios},
    script::{Line, Play, lease},
};

scenarios! {
    a_cancel_request_ends_in_canceled: "a function that heeds the request is reported as canceled",
    a_cancel_request_twice_does_no_harm: "the same request twice ends the function once",
    a_lost_lease_is_given_up: "after LEASE_LOST there is no heartbeat and no result of the lease, and its slot is free",
    an_attempt_that_timed_out_is_given_up: "after TIMED_OUT there is no heartbeat and no result of the lease",
    an_interrupt_for_nothing_does_no_harm: "an interrupt of a lease that is not held changes nothing",
    a_drain_finishes_and_hands_in: "SIGTERM: what runs is reported, the receipt awaited, the stream closed, exit 0",
    a_drain_takes_nothing_more: "an assignment that comes after SIGTERM is handed back",
    a_drain_goes_on_over_a_new_stream: "a drain survives a lost stream: the result comes over the next one",
    a_shutdown_command_is_answered_and_obeyed: "SHUTDOWN is answered under its id, and ends the runner with exit 0",
    a_release_hands_back_by_name: "a second SIGTERM reports what runs as released",
}

const LONG: &str = r#"{"seconds": 25}"#;

/// A stream with one job that waits for its cancellation.
async fn waiting(kit: &Kit) -> Verdict<(Play, Line)> {
    let (play, mut line) = Play::begin(kit, 1).await?;
    line.assign(&lease(1), "wait_for_cancel", LONG).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    Ok((play, line))
}

async fn a_cancel_request_ends_in_canceled(kit: Kit) -> Verdict {
    let (_play, mut line) = waiting(&kit).await?;
    line.interrupt(&lease(1), InterruptReason::Requested).await?;
    let result = line.result().await?;
    let canceled = matches!(result.outcome, Some(Outcome::Canceled(_))) && result.lease == Some(lease(1));
    ensure!(canceled, "the result should be canceled, and is {result:?}");
    Ok(())
}

async fn a_cancel_request_twice_does_no_harm(kit: Kit) -> Verdict {
    let (_play, mut line) = waiting(&kit).await?;
    line.interrupt(&lease(1), InterruptReason::Requested).await?;
    line.interrupt(&lease(1), InterruptReason::Requested).await?;
    let result = line.result().await?;
    ensure!(matches!(result.outcome, Some(Outcome::Canceled(_))), "the result should be canceled, and is {result:?}");
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await?;
    works(&mut line).await
}

async fn works(line: &mut Line) -> Verdict {
    line.assign(&lease(2), "many", r#"{"index": 2}"#).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(2)), "a result of {:?} came", result.lease);
    let completed = matches!(result.outcome, Some(Outcome::Completed(_)));
    ensure!(completed, "the next job should complete, and ended as {:?}", result.outcome);
    line.accept(&[lease(2)]).await
}

async fn given_up(kit: Kit, reason: InterruptReason) -> Verdict {
    let (_play, mut line) = waiting(&kit).await?;
    line.interrupt(&lease(1), reason).await?;
    // Fails at once if a result of the lost one comes instead.
    line.until("a heartbeat without the lease", |said| match said {
        Said::Heartbeat(beat) if beat.leases.is_empty() => Ok(Some(())),
        Said::Results(results) => Err(Flaw(format!("a result of a lease that is gone: {results:?}"))),
        _ => Ok(None),
    })
    .await?;
    works(&mut line).await
}

async fn a_lost_lease_is_given_up(kit: Kit) -> Verdict {
    given_up(kit, InterruptReason::LeaseLost).await
}

async fn an_attempt_that_timed_out_is_given_up(kit: Kit) -> Verdict {
    given_up(kit, InterruptReason::TimedOut).await
}

async fn an_interrupt_for_nothing_does_no_harm(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    let reasons = [InterruptReason::Requested, InterruptReason::TimedOut, InterruptReason::LeaseLost];
    for reason in reasons {
        line.interrupt(&lease(7), reason).await?;
    }
    works(&mut line).await
}

async fn a_drain_finishes_and_hands_in(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 1}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    play.runner.terminate()?;
    let result = line.result().await?;
    let completed = matches!(result.outcome, Some(Outcome::Completed(_)));
    ensure!(completed, "what runs should be finished, and ended as {:?}", result.outcome);
    // It has to wait for the receipt.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let early = play.runner.exited()?;
    ensure!(early.is_none(), "the runner exited before the receipt of its result");
    line.accept(&[lease(1)]).await?;
    line.drained().await?;
    drop(line);
    play.runner.exit_well().await
}

async fn a_drain_takes_nothing_more(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 2).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 3}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    play.runner.terminate()?;
    line.until("a capacity of 0 is announced", |said| match said {
        Said::SetCapacity(set) if set.capacity == 0 => Ok(Some(())),
        _ => Ok(None),
    })
    .await?;
    line.assign(&lease(2), "many", r#"{"index": 2}"#).await?;
    let mut results = line.results(2).await?;
    results.sort_by_key(|result| result.lease.as_ref().map(|lease| lease.job_id.clone()));
    let fits = matches!(results[0].outcome, Some(Outcome::Completed(_)))
        && matches!(results[1].outcome, Some(Outcome::Released(_)));
    ensure!(fits, "the first should complete and the second be released: {results:?}");
    line.accept(&[lease(1), lease(2)]).await?;
    line.drained().await?;
    drop(line);
    play.runner.exit_well().await
}

async fn a_drain_goes_on_over_a_new_stream(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 2}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    play.runner.terminate()?;
    drop(line);
    let (mut line, hello) = play.script.welcomed(crate::script::welcome()).await?;
    ensure!(hello.leases == [lease(1)], "the new Hello should name the lease, and names {:?}", hello.leases);
    line.result().await?;
    line.accept(&[lease(1)]).await?;
    line.drained().await?;
    drop(line);
    play.runner.exit_well().await
}

async fn a_shutdown_command_is_answered_and_obeyed(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.shut_down().await?;
    line.until("SHUTDOWN is answered", |said| match said {
        Said::CommandReply(reply) if reply.command_id == "shutdown" && reply.error.is_empty() => Ok(Some(())),
        _ => Ok(None),
    })
    .await?;
    line.drained().await?;
    drop(line);
    play.runner.exit_well().await
}

async fn a_release_hands_back_by_name(kit: Kit) -> Verdict {
    let (mut play, mut line) = waiting(&kit).await?;
    play.runner.terminate()?;
    line.until("a capacity of 0 is announced", |said| match said {
        Said::SetCapacity(set) if set.capacity == 0 => Ok(Some(())),
        _ => Ok(None),
    })
    .await?;
    play.runner.terminate()?;
    let result = line.result().await?;
    let released = matches!(result.outcome, Some(Outcome::Released(_))) && result.lease == Some(lease(1));
    ensure!(released, "what runs should be released, and ended as {result:?}");
    line.accept(&[lease(1)]).await?;
    line.drained().await?;
    drop(line);
    play.runner.exit_well().await
}

//! Assignments, the leases they give, results and their receipts, message by message.

use std::time::Duration;

use errand_proto::v1::{Lease, Welcome, attach_request::Message as Said, result::Outcome};
use serde_json::{Value, json};

use crate::{
    json::same,
    kit::Kit,
    scenario::{Verdict, ensure, scenarios},
    script::{Play, lease, sorted, welcome},
};

scenarios! {
    an_assignment_is_accepted_at_once: "a new lease is named in a heartbeat long before the interval is over",
    heartbeats_name_all_that_is_held: "heartbeats name every lease that is held, and no other",
    a_lease_is_held_until_its_receipt: "a result without a receipt keeps its lease, and a receipt ends it",
    a_result_is_sent_once_a_stream: "on one stream a result is not sent over and over",
    results_come_as_they_are_ready: "a short job's result does not wait for a long one",
    what_is_over_capacity_is_handed_back: "assignments beyond the capacity are released, and do not run",
    a_receipt_makes_room: "after the receipt the next assignment is taken",
    the_same_assignment_twice_runs_once: "an assignment that comes twice is executed once",
    an_assignment_that_is_done_runs_no_more: "an assignment that was executed and received does not run again",
    a_duplicate_receipt_does_no_harm: "a receipt that comes twice, or for nothing, does no harm",
    a_refused_result_is_forgotten: "a result whose receipt says not accepted is not sent again",
    a_large_assignment_is_taken: "an assignment of 5 MB, beyond the usual limit of gRPC clients, is taken",
    logs_and_metadata_go_before_the_result: "what a function reported is told before its result, or with it",
    the_last_metadata_outlives_a_lost_stream: "metadata that was reported on a stream that broke comes with the result",
    a_hundred_assignments_in_one_message: "a hundred assignments in one message are all executed",
    a_lease_that_is_lost_in_welcome_is_given_up: "what Welcome names as lost is neither held nor reported",
}

async fn an_assignment_is_accepted_at_once(kit: Kit) -> Verdict {
    let mut play = Play::start(&kit, 1).await?;
    let heartbeat_interval = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    let (mut line, _) = play.script.welcomed(Welcome { heartbeat_interval, ..welcome() }).await?;
    line.assign(&lease(1), "wait_for_cancel", r#"{"seconds": 25}"#).await?;
    line.heartbeat_of(&[lease(1)]).await
}

async fn heartbeats_name_all_that_is_held(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 3).await?;
    let long = r#"{"seconds": 25}"#;
    line.assign(&lease(1), "wait_for_cancel", long).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    line.assign_all(&[(lease(2), "wait_for_cancel", long), (lease(3), "many", r#"{"index": 3}"#)]).await?;
    // The result may come before the heartbeat or after it; the lease is held either way.
    let all = sorted(&[lease(1), lease(2), lease(3)]);
    let (mut are_named, mut has_ended) = (false, false);
    line.until("the heartbeat names all three, and the third has ended", |said| {
        match said {
            Said::Heartbeat(beat) => are_named |= sorted(&beat.leases) == all,
            Said::Results(_) => has_ended = true,
            _ => {}
        }
        Ok((are_named && has_ended).then_some(()))
    })
    .await?;
    line.accept(&[lease(3)]).await?;
    line.heartbeat_of(&[lease(1), lease(2)]).await
}

async fn a_lease_is_held_until_its_receipt(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 2).await?;
    line.assign(&lease(1), "many", r#"{"index": 1}"#).await?;
    line.result().await?;
    for _ in 0..3 {
        line.heartbeat_of(&[lease(1)]).await?;
    }
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await
}

async fn a_result_is_sent_once_a_stream(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "many", r#"{"index": 1}"#).await?;
    line.result().await?;
    let heard = line.listen(Duration::from_secs(2)).await?;
    let again = heard.iter().filter(|(_, said)| matches!(said, Said::Results(_))).count();
    ensure!(again <= 1, "within 2 s without a receipt the result was sent {again} times more");
    Ok(())
}

async fn results_come_as_they_are_ready(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 2).await?;
    let jobs = [(lease(1), "wait_for_cancel", r#"{"seconds": 25}"#), (lease(2), "many", r#"{"index": 2}"#)];
    line.assign_all(&jobs).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(2)), "the first result is of {:?}", result.lease);
    Ok(())
}

async fn what_is_over_capacity_is_handed_back(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 2).await?;
    let jobs: Vec<_> = (1..=5).map(|number| (lease(number), "concurrency", r#"{"seconds": 1}"#)).collect();
    line.assign_all(&jobs).await?;
    let (mut released, mut peaks) = (0, Vec::new());
    for result in line.results(5).await? {
        match result.outcome {
            Some(Outcome::Released(_)) => released += 1,
            Some(Outcome::Completed(completed)) => {
                peaks.push(serde_json::from_str::<Value>(&completed.result_json)?["peak"].as_u64().unwrap_or_default());
            }
            other => return Err(crate::scenario::Flaw(format!("an assignment ended as {other:?}"))),
        }
    }
    let peak = peaks.iter().max().copied().unwrap_or_default();
    ensure!(released == 3 && peaks.len() == 2, "of 5 assignments at a capacity of 2, {released} were released");
    ensure!(peak <= 2, "{peak} functions ran at once at a capacity of 2");
    Ok(())
}

async fn a_receipt_makes_room(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    for number in 1..=20 {
        line.assign(&lease(number), "many", &json!({"index": number}).to_string()).await?;
        let result = line.result().await?;
        let Some(Outcome::Completed(completed)) = result.outcome else {
            return Err(crate::scenario::Flaw(format!("assignment {number} ended as {:?}", result.outcome)));
        };
        let expected = json!({"index": number}).to_string();
        ensure!(same(&completed.result_json, &expected), "job {number} returned {}", completed.result_json);
        line.accept(&[lease(number)]).await?;
    }
    Ok(())
}

/// How often the function says that it was started.
fn starts(result: &errand_proto::v1::Result) -> Verdict<u64> {
    let Some(Outcome::Completed(completed)) = &result.outcome else {
        return Err(crate::scenario::Flaw(format!("the job ended as {:?}", result.outcome)));
    };
    Ok(serde_json::from_str::<Value>(&completed.result_json)?["starts"].as_u64().unwrap_or_default())
}

async fn the_same_assignment_twice_runs_once(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 3).await?;
    for _ in 0..3 {
        line.assign(&lease(1), "starts", r#"{"seconds": 1}"#).await?;
    }
    let count = starts(&line.result().await?)?;
    ensure!(count == 1, "the function was started {count} times");
    let heard = line.listen(Duration::from_secs(2)).await?;
    for (_, said) in heard {
        let Said::Results(results) = said else { continue };
        for result in &results.results {
            ensure!(starts(result)? == 1, "the function was started again: {result:?}");
        }
    }
    Ok(())
}

async fn an_assignment_that_is_done_runs_no_more(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 2).await?;
    line.assign(&lease(1), "starts", r#"{"seconds": 0}"#).await?;
    line.result().await?;
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await?;
    line.assign(&lease(1), "starts", r#"{"seconds": 0}"#).await?;
    line.assign(&lease(2), "many", r#"{"index": 2}"#).await?;
    let mut leases: Vec<_> = line.results(1).await?.into_iter().map(|result| result.lease).collect();
    for (_, said) in line.listen(Duration::from_secs(1)).await? {
        if let Said::Results(results) = said {
            leases.extend(results.results.into_iter().map(|result| result.lease));
        }
    }
    ensure!(!leases.contains(&Some(lease(1))), "an attempt that was done ran again, or was reported again");
    ensure!(leases.contains(&Some(lease(2))), "the next job brought no result");
    Ok(())
}

async fn a_duplicate_receipt_does_no_harm(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    line.accept(&[lease(9)]).await?;
    line.assign(&lease(1), "many", r#"{"index": 1}"#).await?;
    line.result().await?;
    line.accept(&[lease(1), lease(1)]).await?;
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await?;
    line.assign(&lease(2), "many", r#"{"index": 2}"#).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(2)), "a result of {:?} came", result.lease);
    Ok(())
}

async fn a_refused_result_is_forgotten(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "many", r#"{"index": 1}"#).await?;
    line.result().await?;
    line.receipt(&[lease(1)], false).await?;
    line.heartbeat_of(&[]).await?;
    drop(line);
    let (mut line, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.leases.is_empty(), "a refused result still holds {:?}", hello.leases);
    line.assign(&lease(2), "many", r#"{"index": 2}"#).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(2)), "a refused result was sent again: {:?}", result.lease);
    Ok(())
}

async fn a_large_assignment_is_taken(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    let payload = json!({"index": 1, "padding": "z".repeat(5_000_000)}).to_string();
    line.assign(&lease(1), "many", &payload).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(1)), "a result of {:?} came", result.lease);
    Ok(())
}

async fn logs_and_metadata_go_before_the_result(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "unicode", r#"{"text": "said before"}"#).await?;
    let (mut logs, mut metadata) = (Vec::new(), None);
    let ended = line.until("a result comes", |said| match said {
        Said::Progress(progress) => {
            ensure!(progress.lease == Some(lease(1)), "progress names {:?}", progress.lease);
            logs.extend(progress.logs.into_iter().map(|log| log.message));
            metadata = progress.metadata_json.or(metadata.take());
            Ok(None)
        }
        Said::Results(results) => Ok(results.results.into_iter().next()),
        _ => Ok(None),
    });
    let ended = ended.await?;
    ensure!(logs == ["said before"], "before the result the log lines are {logs:?}");
    let last = ended.metadata_json.or(metadata).unwrap_or_default();
    ensure!(same(&last, r#"{"text": "said before"}"#), "the metadata is {last:?}");
    Ok(())
}

async fn the_last_metadata_outlives_a_lost_stream(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "progress", r#"{"steps": 1, "pause": 2}"#).await?;
    line.until("metadata is reported", |said| match said {
        Said::Progress(progress) => Ok(progress.metadata_json.map(drop)),
        _ => Ok(None),
    })
    .await?;
    // As far as the runner can tell it was never read.
    drop(line);
    let (mut line, _) = play.script.welcomed(welcome()).await?;
    let mut metadata = None;
    let ended = line.until("a result comes", |said| match said {
        Said::Progress(progress) => {
            metadata = progress.metadata_json.or(metadata.take());
            Ok(None)
        }
        Said::Results(results) => Ok(results.results.into_iter().next()),
        _ => Ok(None),
    });
    let last = ended.await?.metadata_json.or(metadata).unwrap_or_default();
    ensure!(same(&last, r#"{"step": 1, "of": 1}"#), "on the new stream the metadata is {last:?}");
    Ok(())
}

async fn a_hundred_assignments_in_one_message(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 100).await?;
    let payloads: Vec<String> = (1..=100).map(|number| json!({"index": number}).to_string()).collect();
    let jobs: Vec<_> =
        (1..=100).zip(&payloads).map(|(number, payload)| (lease(number), "many", payload.as_str())).collect();
    line.assign_all(&jobs).await?;
    let results = line.results(100).await?;
    let leases: Vec<Lease> = results.iter().filter_map(|result| result.lease.clone()).collect();
    let expected: Vec<Lease> = (1..=100).map(lease).collect();
    ensure!(sorted(&leases) == sorted(&expected), "there are results of {} leases", leases.len());
    let completed = results.iter().filter(|result| matches!(result.outcome, Some(Outcome::Completed(_)))).count();
    ensure!(completed == 100, "of 100 assignments {completed} completed");
    Ok(())
}

async fn a_lease_that_is_lost_in_welcome_is_given_up(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 2).await?;
    let jobs = [(lease(1), "sleep", r#"{"seconds": 2}"#), (lease(2), "sleep", r#"{"seconds": 3}"#)];
    line.assign_all(&jobs).await?;
    line.heartbeat_of(&[lease(1), lease(2)]).await?;
    drop(line);
    let (mut line, _) = play.script.welcomed(Welcome { lost: vec![lease(1)], ..welcome() }).await?;
    line.heartbeat_of(&[lease(2)]).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(2)), "a result of a lost lease came: {:?}", result.lease);
    Ok(())
}

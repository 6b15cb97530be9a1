//! How functions fail, and what becomes of it.

use std::time::{Duration, SystemTime};

use errand_client::JobEventKind;
use serde_json::json;

use crate::{
    json::same,
    kit::Kit,
    scenario::{Flaw, Verdict, ensure, scenarios},
    stage::{Stage, completed, failed},
};

scenarios! {
    fail_tells_its_text: "an error fails the job with its text",
    fail_keeps_unicode: "an error's text may be of any script",
    fail_keeps_a_long_text: "a text of 10 KB is kept",
    fail_is_retried: "an ordinary failure is retried as often as the job says",
    fail_for_good_is_not_retried: "a permanent failure is not retried",
    retry_after_is_heeded: "a function that names a time is retried then, and knows its attempt",
    an_unknown_function_fails_for_good: "a job for a function that is not offered fails for good and names it",
    the_runner_survives_failures: "after fifty failures the runner works on",
    a_crash_runs_the_job_again: "when the process dies, the job runs again on the next one",
}

/// Processes that may die before one has told that it took the job.
const CRASHES_MAX: usize = 5;

fn message(text: &str) -> String {
    json!({"message": text}).to_string()
}

async fn fails_with(kit: Kit, text: &str) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.run("fail", &message(text)).await?;
    let error = failed(&job)?;
    ensure!(error == text, "the error should be {text:?}, and is {error:?}");
    ensure!(job.attempt == 1, "without retries the job should run once, and ran {} times", job.attempt);
    Ok(())
}

async fn fail_tells_its_text(kit: Kit) -> Verdict {
    fails_with(kit, "the mail server said no").await
}

async fn fail_keeps_unicode(kit: Kit) -> Verdict {
    fails_with(kit, "Straße gesperrt: 東京 🚧 \"zitiert\" \\ e\u{301}").await
}

async fn fail_keeps_a_long_text(kit: Kit) -> Verdict {
    fails_with(kit, &"0123456789".repeat(1_000)).await
}

async fn fail_is_retried(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("fail", &message("again"))?.max_retries(2).backoff(0.0, Duration::ZERO);
    let job = stage.ended(&stage.client.publish(job).await?.job.id).await?;
    failed(&job)?;
    ensure!(job.attempt == 3, "with two retries the job should run three times, and ran {} times", job.attempt);
    Ok(())
}

async fn fail_for_good_is_not_retried(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("fail_for_good", &message("never"))?.max_retries(3).backoff(0.0, Duration::ZERO);
    let job = stage.ended(&stage.client.publish(job).await?.job.id).await?;
    let error = failed(&job)?;
    ensure!(error == "never", "the error should be \"never\", and is {error:?}");
    ensure!(job.attempt == 1, "the job should run once, and ran {} times", job.attempt);
    Ok(())
}

async fn retry_after_is_heeded(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("retry_after", r#"{"seconds": 2}"#)?.max_retries(1).backoff(0.0, Duration::ZERO);
    let job = stage.ended(&stage.client.publish(job).await?.job.id).await?;
    let result = completed(&job)?;
    ensure!(same(&result, r#"{"attempt": 2}"#), "the second attempt should return its number, and returned {result}");
    let events = stage.client.events(&job.id).await?;
    let retried = events.iter().find(|event| event.kind == JobEventKind::Retry).and_then(|event| event.at);
    let waited = job.started_at.zip(retried).and_then(|(start, retried)| since(start, retried)).unwrap_or_default();
    ensure!(waited >= Duration::from_millis(1_900), "the retry should come after 2 s, and came after {waited:?}");
    Ok(())
}

fn since(later: SystemTime, earlier: SystemTime) -> Option<Duration> {
    later.duration_since(earlier).ok()
}

async fn an_unknown_function_fails_for_good(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("no.such.function", "{}")?.max_retries(3).backoff(0.0, Duration::ZERO);
    let job = stage.ended(&stage.client.publish(job).await?.job.id).await?;
    let error = failed(&job)?;
    ensure!(error.contains("no.such.function"), "the error should name the function, and is {error:?}");
    ensure!(job.attempt == 1, "the job should run once, and ran {} times", job.attempt);
    Ok(())
}

async fn the_runner_survives_failures(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    stage.publish_many("fail", (0..50).map(|number| message(&number.to_string()))).await?;
    for job in stage.all_ended().await? {
        failed(&job)?;
    }
    stage.result("echo", r#"{"still": "here"}"#).await?;
    Ok(())
}

async fn a_crash_runs_the_job_again(kit: Kit) -> Verdict {
    let mut stage = Stage::usual(&kit).await?;
    let job = stage.job("crash", r#"{"attempts": 1}"#)?.max_retries(1).backoff(0.0, Duration::ZERO);
    let id = stage.client.publish(job).await?.job.id;
    // A process that dies before its heartbeat was out costs the job no attempt, and the next one dies as well.
    for _ in 0..CRASHES_MAX {
        let status = tokio::select! {
            job = stage.client.wait(&id) => {
                let result = completed(&job?)?;
                ensure!(same(&result, r#"{"attempt": 2}"#), "the second attempt should return its number: {result}");
                return Ok(());
            }
            status = stage.runner.exit() => status?,
        };
        ensure!(status.code() == Some(70), "crash should end the process with 70, and it ended with {status}");
        stage.start_runner()?;
    }
    Err(Flaw(format!("after {CRASHES_MAX} crashes the job still says that it is its first attempt")))
}

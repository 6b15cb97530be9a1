//! Many jobs, large jobs, and the capacity.

use serde_json::{Value, json};

use crate::{
    json::same,
    kit::Kit,
    scenario::{Verdict, ensure, scenarios},
    service::{PATIENT, QUICK},
    stage::{Setup, Stage, completed_at_once},
};

scenarios! {
    the_capacity_is_used_and_not_exceeded: "a runner of capacity 4 runs four functions at once, and never five",
    a_capacity_of_one_runs_one_at_a_time: "a runner of capacity 1 runs one function at a time",
    a_large_capacity_is_used: "a runner of capacity 50 runs fifty functions at once",
    a_flood_of_a_thousand: "a thousand jobs complete, each once, each with its own result",
    a_flood_of_large_payloads: "forty payloads of 200 KB come back whole",
    a_mixed_flood: "failures and successes at once do not mix up",
    functions_that_compute_keep_their_jobs: "functions that compute for longer than the lease lasts keep their jobs",
}

async fn peaks(kit: Kit, capacity: u32, jobs: usize, seconds: f64) -> Verdict<Vec<u64>> {
    let stage = Stage::set(&kit, Setup { capacity, timings: QUICK }).await?;
    let payload = json!({"seconds": seconds}).to_string();
    let ids = stage.publish_many("concurrency", std::iter::repeat_n(payload, jobs)).await?;
    let mut peaks = Vec::new();
    for id in ids {
        let result: Value = serde_json::from_str(&completed_at_once(&stage.ended(&id).await?)?)?;
        peaks.push(result["peak"].as_u64().unwrap_or_default());
    }
    Ok(peaks)
}

async fn peaks_at(kit: Kit, capacity: u32, jobs: usize, seconds: f64) -> Verdict {
    let peak = peaks(kit, capacity, jobs, seconds).await?.into_iter().max().unwrap_or_default();
    ensure!(peak == u64::from(capacity), "at a capacity of {capacity} up to {peak} functions ran at once");
    Ok(())
}

async fn the_capacity_is_used_and_not_exceeded(kit: Kit) -> Verdict {
    peaks_at(kit, 4, 40, 0.3).await
}

async fn a_capacity_of_one_runs_one_at_a_time(kit: Kit) -> Verdict {
    peaks_at(kit, 1, 10, 0.1).await
}

async fn a_large_capacity_is_used(kit: Kit) -> Verdict {
    peaks_at(kit, 50, 100, 3.0).await
}

async fn a_flood_of_a_thousand(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, Setup { capacity: 20, timings: PATIENT }).await?;
    stage.publish_many("many", (0..1_000).map(|index| json!({"index": index}).to_string())).await?;
    let jobs = stage.all_ended().await?;
    ensure!(jobs.len() == 1_000, "there should be 1000 jobs, and there are {}", jobs.len());
    for job in jobs {
        let result = completed_at_once(&job)?;
        ensure!(same(&result, &job.payload_json), "job {} returned {result}", job.payload_json);
    }
    Ok(())
}

async fn a_flood_of_large_payloads(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, Setup { capacity: 10, timings: PATIENT }).await?;
    let payload = |index: usize| json!({"index": index, "text": "y".repeat(200_000)}).to_string();
    let ids = stage.publish_many("echo", (0..40).map(payload)).await?;
    for (index, id) in ids.iter().enumerate() {
        let result = completed_at_once(&stage.ended(id).await?)?;
        ensure!(same(&result, &payload(index)), "payload {index} came back with {} bytes", result.len());
    }
    Ok(())
}

async fn a_mixed_flood(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let good = stage.publish_many("many", (0..100).map(|index| json!({"index": index}).to_string())).await?;
    let bad =
        stage.publish_many("fail", (0..100).map(|index| json!({"message": index.to_string()}).to_string())).await?;
    for (index, (good, bad)) in good.iter().zip(&bad).enumerate() {
        let result = completed_at_once(&stage.ended(good).await?)?;
        ensure!(same(&result, &json!({"index": index}).to_string()), "job {index} returned {result}");
        let error = stage.ended(bad).await?.last_error;
        ensure!(error.as_deref() == Some(&*index.to_string()), "failure {index} says {error:?}");
    }
    Ok(())
}

async fn functions_that_compute_keep_their_jobs(kit: Kit) -> Verdict {
    let stage = Stage::set(&kit, Setup { capacity: 2, timings: QUICK }).await?;
    let ids = stage.publish_many("busy", std::iter::repeat_n(r#"{"seconds": 8}"#.to_owned(), 2)).await?;
    for id in ids {
        let result = completed_at_once(&stage.ended(&id).await?)?;
        ensure!(same(&result, r#"{"busy": 8}"#), "the result should be {{\"busy\": 8}}, and is {result}");
    }
    Ok(())
}

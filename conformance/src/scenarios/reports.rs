//! What functions say while they run: metadata and log lines.

use errand_client::{JobStatus, LogKind};
use serde_json::{Value, json};

use crate::{
    json::same,
    kit::Kit,
    scenario::{Verdict, ensure, eventually, scenarios},
    stage::{Stage, completed, completed_at_once},
};

scenarios! {
    progress_is_seen_while_it_runs: "metadata can be read while the function runs",
    the_last_metadata_stays: "of many reports the last one stays",
    log_lines_keep_order_kind_and_meta: "log lines arrive in order, with kind and meta",
    many_log_lines_are_all_kept: "of 300 log lines none is lost",
    unicode_goes_everywhere: "log, metadata and result take text of every script",
}

async fn progress_is_seen_while_it_runs(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let id = stage.publish("progress", r#"{"steps": 3, "pause": 1}"#).await?;
    eventually("a running job shows its metadata", || async {
        let job = stage.client.get(&id).await?;
        ensure!(!job.status.is_terminal(), "the job ended before any metadata was seen");
        let step = job.metadata::<Value>()?["step"].as_u64();
        Ok((job.status == JobStatus::Running && step.is_some()).then_some(()))
    })
    .await?;
    let job = stage.ended(&id).await?;
    let result = completed_at_once(&job)?;
    ensure!(same(&result, r#"{"steps": 3}"#), "the result should be {{\"steps\": 3}}, and is {result}");
    Ok(())
}

async fn the_last_metadata_stays(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.run("progress", r#"{"steps": 200, "pause": 0}"#).await?;
    completed_at_once(&job)?;
    let metadata = &job.metadata_json;
    ensure!(same(metadata, r#"{"step": 200, "of": 200}"#), "the last report should stay, and there is {metadata}");
    Ok(())
}

async fn log_lines_keep_order_kind_and_meta(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let kinds =
        [("debug", LogKind::Debug), ("info", LogKind::Info), ("warn", LogKind::Warn), ("error", LogKind::Error)];
    let line = |(number, (kind, _)): (usize, &(&str, LogKind))| json!({"kind": kind, "message": format!("line {number}"), "meta": {"number": number}});
    let lines: Vec<Value> = kinds.iter().enumerate().map(line).collect();
    let id = stage.publish("log", &json!({"lines": lines}).to_string()).await?;
    let result = completed_at_once(&stage.ended(&id).await?)?;
    ensure!(same(&result, r#"{"lines": 4}"#), "the result should be {{\"lines\": 4}}, and is {result}");
    let logs = stage.client.logs(&id).await?;
    ensure!(logs.len() == 4, "there should be 4 lines, and there are {}", logs.len());
    for (number, (log, (_, kind))) in logs.iter().zip(kinds).enumerate() {
        let meta = json!({"number": number}).to_string();
        let fits = log.kind == kind && log.message == format!("line {number}") && same(&log.meta_json, &meta);
        ensure!(fits, "line {number} should be of kind {kind:?} with {meta}, and is {log:?}");
    }
    Ok(())
}

async fn many_log_lines_are_all_kept(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let line = |number: usize| json!({"kind": "info", "message": number.to_string(), "meta": {}});
    let lines: Vec<Value> = (0..300).map(line).collect();
    let id = stage.publish("log", &json!({"lines": lines}).to_string()).await?;
    completed_at_once(&stage.ended(&id).await?)?;
    let logs = stage.client.logs(&id).await?;
    let numbers: Vec<_> = logs.iter().map(|log| log.message.as_str()).collect();
    let expected: Vec<_> = (0..300).map(|number| number.to_string()).collect();
    ensure!(numbers == expected, "there should be lines 0 to 299 in order, and there are {} lines", numbers.len());
    Ok(())
}

async fn unicode_goes_everywhere(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let text = "Grüße, 東京 🚀 𝄞 e\u{301}";
    let id = stage.publish("unicode", &json!({"text": text}).to_string()).await?;
    let job = stage.ended(&id).await?;
    let result = completed(&job)?;
    let expected = json!({"text": text, "code_points": text.chars().count()}).to_string();
    ensure!(same(&result, &expected), "the result should be {expected}, and is {result}");
    let metadata = &job.metadata_json;
    ensure!(same(metadata, &json!({"text": text}).to_string()), "the metadata is {metadata}");
    let logs = stage.client.logs(&id).await?;
    ensure!(logs.iter().any(|log| log.message == text), "the log should have the text, and has {logs:?}");
    Ok(())
}

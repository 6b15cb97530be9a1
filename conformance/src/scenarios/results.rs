//! What functions get and return.

use serde_json::Value;

use crate::{
    json::same,
    kit::Kit,
    scenario::{Verdict, ensure, scenarios},
    stage::{Stage, completed, failed},
};

scenarios! {
    echo_returns_its_payload: "a payload of every JSON type comes back as the result",
    echo_keeps_large_numbers: "integers beyond 2^53 keep every digit",
    echo_keeps_fractions: "fractions and exponents keep their value",
    echo_keeps_unicode: "text of every script, and escapes, come back",
    echo_keeps_an_empty_object: "an empty payload comes back empty",
    echo_keeps_deep_nesting: "fifty levels of nesting come back",
    echo_of_a_large_payload: "a payload just under the limit of 1 MiB comes back",
    no_result_is_null: "a function that returns nothing completes with null",
    a_large_result_arrives: "a result just under the limit of 1 MiB arrives",
    a_result_over_the_limit_fails_and_no_more: "too large a result fails its job, and the runner goes on",
    describe_knows_its_job: "a function knows its job, channel, attempt and retries",
    traceparent_reaches_the_function: "the publisher's trace context reaches the function",
    a_time_limit_is_known: "a function knows how long it has left",
    a_broadcast_job_is_run: "a broadcast job, which comes over the runner's private channel, is run",
}

async fn echoes(kit: Kit, payload: &str) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let result = stage.result("echo", payload).await?;
    ensure!(same(payload, &result), "the payload {} came back as {}", cut(payload), cut(&result));
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}

async fn echo_returns_its_payload(kit: Kit) -> Verdict {
    echoes(kit, r#"{"z": 1, "a": [true, false, null, "text", {}, []], "m": {"n": -7}}"#).await
}

async fn echo_keeps_large_numbers(kit: Kit) -> Verdict {
    let numbers = "[9007199254740993, -9007199254740993, 18446744073709551615, 123456789012345678901234567890]";
    echoes(kit, &format!(r#"{{"id": 9007199254740993, "more": {numbers}}}"#)).await
}

async fn echo_keeps_fractions(kit: Kit) -> Verdict {
    echoes(kit, r#"{"a": 0.1, "b": 1.0, "c": -2.5e-3, "d": 1e10, "e": 0, "f": 3.141592653589793}"#).await
}

async fn echo_keeps_unicode(kit: Kit) -> Verdict {
    let text = "{\"grüße\": \"東京 🚀 𝄞 e\u{301} \u{202e}abc\", \"escapes\": \"\\u00e9 \\\" \\\\ \\n \\t \\u2028 \\ud83d\\ude80\"}";
    echoes(kit, text).await
}

async fn echo_keeps_an_empty_object(kit: Kit) -> Verdict {
    echoes(kit, "{}").await
}

async fn echo_keeps_deep_nesting(kit: Kit) -> Verdict {
    echoes(kit, &format!(r#"{{"deep": {}1{}}}"#, "[".repeat(50), "]".repeat(50))).await
}

async fn echo_of_a_large_payload(kit: Kit) -> Verdict {
    echoes(kit, &format!(r#"{{"text": "{}"}}"#, "x".repeat(1_000_000))).await
}

async fn no_result_is_null(kit: Kit) -> Verdict {
    let result = Stage::usual(&kit).await?.result("no_result", "{}").await?;
    ensure!(result == "null", "the result should be null, and is {result}");
    Ok(())
}

async fn a_large_result_arrives(kit: Kit) -> Verdict {
    let result = Stage::usual(&kit).await?.result("big_result", r#"{"bytes": 1000000}"#).await?;
    let expected = format!(r#"{{"text": "{}"}}"#, "x".repeat(1_000_000));
    ensure!(same(&expected, &result), "the result has {} bytes, and should have {}", result.len(), expected.len());
    Ok(())
}

async fn a_result_over_the_limit_fails_and_no_more(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.run("big_result", r#"{"bytes": 2000000}"#).await?;
    let error = failed(&job)?;
    ensure!(!error.is_empty(), "the failure has no text");
    stage.result("echo", r#"{"still": "here"}"#).await?;
    Ok(())
}

async fn describe_knows_its_job(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let id = stage.client.publish(stage.job("describe", "{}")?.max_retries(5)).await?.job.id;
    let told: Value = serde_json::from_str(&completed(&stage.ended(&id).await?)?)?;
    for (key, expected) in [
        ("job_id", Value::from(id)),
        ("func", Value::from("describe")),
        ("channel", Value::from(stage.part.channel.as_str())),
        ("attempt", Value::from(1)),
        ("max_retries", Value::from(5)),
        ("traceparent", Value::Null),
        ("deadline_ms", Value::Null),
    ] {
        ensure!(told.get(key) == Some(&expected), "{key} should be {expected}, and the function says {told}");
    }
    Ok(())
}

async fn traceparent_reaches_the_function(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let id = stage.client.publish(stage.job("describe", "{}")?.traceparent(context)).await?.job.id;
    let told: Value = serde_json::from_str(&completed(&stage.ended(&id).await?)?)?;
    ensure!(told["traceparent"] == context, "traceparent should be {context}, and the function says {told}");
    Ok(())
}

async fn a_time_limit_is_known(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let job = stage.job("describe", "{}")?.max_exec(std::time::Duration::from_secs(60));
    let id = stage.client.publish(job).await?.job.id;
    let told: Value = serde_json::from_str(&completed(&stage.ended(&id).await?)?)?;
    let left = told["deadline_ms"].as_f64().unwrap_or(-1.0);
    ensure!((1.0..=60_000.0).contains(&left), "deadline_ms should be up to 60000, and the function says {told}");
    Ok(())
}

async fn a_broadcast_job_is_run(kit: Kit) -> Verdict {
    let stage = Stage::usual(&kit).await?;
    let id = stage.client.publish(stage.job("many", r#"{"index": 7}"#)?.broadcast()).await?.job.id;
    completed(&stage.ended(&id).await?)?;
    Ok(())
}

//! A runner in twenty lines. `ERRAND_SERVER` and `ERRAND_TOKEN` say where; SIGTERM finishes what runs.

use std::time::Duration;

use errand_client::{Failure, LogKind, RunError, Runner, Servers};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    Runner::new(Servers::from_env())
        .channel("emails")
        .capacity(20)
        .function("send", |job| async move {
            let payload: Value = job.payload()?;
            let to = payload["to"].as_str().ok_or_else(|| Failure::for_good("nobody to send to"))?;
            job.add_log(format!("sending to {to}"), LogKind::Info, json!({"attempt": job.attempt()}));
            tokio::time::sleep(Duration::from_millis(100)).await;
            job.set_metadata(json!({"sent": 1}))?;
            Ok(json!({"to": to}))
        })
        .run()
        .await
}

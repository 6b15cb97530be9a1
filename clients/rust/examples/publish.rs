//! A publisher in three lines: connect, publish, wait. `ERRAND_SERVER` and `ERRAND_TOKEN` say where.

use errand_client::{Client, Error, NewJob, Servers};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect(Servers::from_env()).await?;
    let job = client.publish(NewJob::new("send", json!({"to": "ada@example.com"})).channel("emails")).await?.job;
    println!("{}", client.wait(&job.id).await?.result::<Value>()?);
    Ok(())
}

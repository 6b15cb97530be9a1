//! What this machine could do at all: the rates of the bare pieces that a service is made of.
//!
//! The pieces run in processes of their own, as `errand probe`; their client, where they have one, is this process, as it
//! is for the service.

use std::{
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use errand_proto::v1::PublishJobRequest;
use http::uri::PathAndQuery;
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    ClientError,
    load::Mould,
    service::{started, this_program},
};

/// As many calls as single publishes in flight.
const IN_FLIGHT: usize = 64;
/// Where the echo of `errand probe` listens: it answers with what it was sent.
const ECHO: &str = "/errand.probe.Echo/Echo";

/// Upper bounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Calls of a gRPC method that does nothing, 64 in flight.
    pub unary_echo_per_s: f64,
    /// Rows of one statement for each commit, 1,024 at a time.
    pub store_insert_per_s: f64,
    /// Appends of one page that are on the disk before the next.
    pub fsync_per_s: f64,
}

impl Limits {
    pub async fn measure(folder: &Path, mould: &Mould, duration: Duration) -> Result<Limits, ClientError> {
        Ok(Limits {
            unary_echo_per_s: echo(mould, duration).await?,
            store_insert_per_s: disk("store", folder, duration).await?,
            fsync_per_s: disk("fsync", folder, duration).await?,
        })
    }
}

/// The rate that `errand probe KIND` prints.
async fn disk(kind: &str, folder: &Path, duration: Duration) -> Result<f64, ClientError> {
    let mut command = this_program()?;
    command.args(["probe", kind, "--millis", &duration.as_millis().to_string(), "--folder"]).arg(folder);
    let output = command.output().await.map_err(|error| ClientError::Failed(format!("probe {kind}: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim()
        .parse()
        .map_err(|_| ClientError::Failed(format!("probe {kind}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

async fn echo(mould: &Mould, duration: Duration) -> Result<f64, ClientError> {
    let mut command = this_program()?;
    command.args(["probe", "echo"]);
    // Held until the end: dropping it ends the process.
    let (_server, address) = started(command).await?;
    let failed = |error: String| ClientError::Failed(format!("probe echo: {error}"));
    let endpoint = Endpoint::from_shared(format!("http://{}", address.trim()));
    let endpoint = endpoint.map_err(|error| failed(error.to_string()))?.tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(|error| failed(error.to_string()))?;
    let answered = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for number in 0..IN_FLIGHT {
        let request = PublishJobRequest { spec: Some(mould.spec(number)) };
        callers.spawn(caller(channel.clone(), request, begin + duration, answered.clone()));
    }
    while let Some(ended) = callers.join_next().await {
        ended.map_err(|error| failed(error.to_string()))?.map_err(|status| failed(status.message().to_owned()))?;
    }
    Ok(answered.load(Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

async fn caller(
    channel: Channel,
    request: PublishJobRequest,
    end: Instant,
    answered: Arc<AtomicU64>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    while Instant::now() < end {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<PublishJobRequest, PublishJobRequest>::default();
        client.unary(Request::new(request.clone()), PathAndQuery::from_static(ECHO), codec).await?;
        answered.fetch_add(1, Relaxed);
    }
    Ok(())
}

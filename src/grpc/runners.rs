//! The service `errand.v1.Runners`.

use std::{pin::Pin, time::Duration};

use errand_proto::v1::{self, attach_request, runners_server::Runners};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, door};
use crate::{
    drain::Drain,
    engine::{Engine, messages::FromRunner},
    model::Invalid,
};

/// A stream that has not said Hello by then is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

pub struct RunnersService {
    engine: Engine,
    drain: Drain,
}

impl RunnersService {
    pub fn new(engine: Engine, drain: Drain) -> RunnersService {
        RunnersService { engine, drain }
    }
}

#[tonic::async_trait]
impl Runners for RunnersService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::AttachResponse, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let door = door(&self.engine, &request)?;
        let mut incoming = request.into_inner();
        let hello = first_hello(&mut incoming).await?;
        let attachment = door.attach(convert::hello(hello)).await?;
        let result_max_bytes = self.engine.limits().payload_max_bytes;
        // A task of its own: a runner slow to read its assignments must not hold up its own heartbeats.
        let stop = self.drain.token();
        let intake = pump(incoming, attachment.inbox, result_max_bytes);
        self.drain.spawn("session intake", async move {
            stop.run_until_cancelled(intake).await;
        });
        let outgoing = ReceiverStream::new(attachment.outbox).map(|message| Ok(convert::to_runner(message)));
        Ok(Response::new(outgoing.boxed()))
    }

    async fn list_runners(
        &self,
        request: Request<v1::ListRunnersRequest>,
    ) -> Result<Response<v1::ListRunnersResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let runners = door.runners(convert::given(request.into_inner().channel)).await?;
        let runners = runners.into_iter().map(convert::presence_to_wire).collect();
        Ok(Response::new(v1::ListRunnersResponse { runners }))
    }

    async fn ping_runner(
        &self,
        request: Request<v1::PingRunnerRequest>,
    ) -> Result<Response<v1::PingRunnerResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let request = request.into_inner();
        let round_trip = door.ping(&request.runner_id, convert::timeout(request.timeout)?).await?;
        Ok(Response::new(convert::ping_to_wire(round_trip)))
    }

    async fn shutdown_runner(
        &self,
        request: Request<v1::ShutdownRunnerRequest>,
    ) -> Result<Response<v1::ShutdownRunnerResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let request = request.into_inner();
        door.shutdown(&request.runner_id, request.graceful).await?;
        Ok(Response::new(v1::ShutdownRunnerResponse {}))
    }

    async fn broadcast_command(
        &self,
        request: Request<v1::BroadcastCommandRequest>,
    ) -> Result<Response<v1::BroadcastCommandResponse>, Status> {
        let door = door(&self.engine, &request)?;
        let replies = door.broadcast(convert::order(request.into_inner())?).await?;
        let replies = replies.into_iter().map(convert::reply_to_wire).collect();
        Ok(Response::new(v1::BroadcastCommandResponse { replies }))
    }
}

async fn first_hello(incoming: &mut Streaming<v1::AttachRequest>) -> Result<v1::Hello, Status> {
    let first = match tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await {
        Ok(first) => first?.and_then(|first| first.message),
        Err(_) => None,
    };
    match first {
        Some(attach_request::Message::Hello(hello)) => Ok(hello),
        _ => Err(Invalid::new("message", "must be a hello, within 10 seconds").into()),
    }
}

/// Hands the runner's messages to its session until either side is done. Dropping the inbox tells the session.
async fn pump(mut incoming: Streaming<v1::AttachRequest>, inbox: mpsc::Sender<FromRunner>, result_max_bytes: usize) {
    loop {
        // A message lost to the other branch is lost to a session that is gone: it would have gone nowhere.
        let message = tokio::select! {
            () = inbox.closed() => return,
            message = incoming.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(code = ?status.code(), "a runner's stream broke");
                return;
            }
        };
        if let Some(message) = convert::from_runner(message, result_max_bytes)
            && inbox.send(message).await.is_err()
        {
            return;
        }
    }
}

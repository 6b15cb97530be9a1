//! The service `errand.v1.Health`.

use errand_proto::v1::{self, health_server::Health};
use tonic::{Request, Response, Status};

use super::{convert, door};
use crate::engine::Engine;

pub struct HealthService {
    engine: Engine,
}

impl HealthService {
    pub fn new(engine: Engine) -> HealthService {
        HealthService { engine }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn get_channel_health(
        &self,
        request: Request<v1::GetChannelHealthRequest>,
    ) -> Result<Response<v1::GetChannelHealthResponse>, Status> {
        let health = door(&self.engine, &request)?.channel_health(&request.get_ref().channel).await?;
        let health = Some(convert::channel_health_to_wire(health));
        Ok(Response::new(v1::GetChannelHealthResponse { health }))
    }

    async fn get_system_health(
        &self,
        request: Request<v1::GetSystemHealthRequest>,
    ) -> Result<Response<v1::GetSystemHealthResponse>, Status> {
        let health = door(&self.engine, &request)?.system_health().await?;
        Ok(Response::new(convert::system_health_to_wire(health)))
    }

    async fn get_stats(&self, request: Request<v1::GetStatsRequest>) -> Result<Response<v1::GetStatsResponse>, Status> {
        let stats = door(&self.engine, &request)?.stats().await?;
        Ok(Response::new(convert::stats_to_wire(stats)))
    }
}

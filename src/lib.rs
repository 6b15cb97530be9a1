//! Errand: takes background jobs from programs in any language and gets each of them done.
//!
//! `model <- clock, redis_link, store, queue, fleet <- engine <- grpc <- server <- main`: imports point to the left only,
//! and the test `tests/directions.rs` holds that.

pub mod clock;
pub mod config;
pub mod data_dir;
pub mod drain;
pub mod engine;
pub mod fleet;
pub mod grpc;
pub mod model;
pub mod probe;
pub mod queue;
pub mod redis_link;
pub mod server;
pub mod start_error;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod token;

//! The client commands of Errand, and `work`, the runner for commands in any language.
//!
//! [`commands`] is the command line; the runner's protocol and the connections are those of `errand-client`.
//! Everything goes over gRPC; nothing here touches a store or a queue.

pub mod commands;
pub mod server_args;

pub use commands::{ClientCommand, run};

//! The client side of Errand: the commands that publish, read and steer jobs, and the `work` runner.
//!
//! [`session`] speaks the runner protocol and knows nothing of commands; [`commands`] is the command line.
//! Everything goes over gRPC; nothing here touches a store or a queue.

pub mod commands;
pub mod endpoint;
pub mod session;

pub use commands::{ClientCommand, run};

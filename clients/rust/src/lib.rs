//! Errand for Rust programs: publish jobs, and run them.
//!
//! A publisher is a [`Client`]: it hands in [`NewJob`]s, waits for their results, lists, cancels and retries. A
//! [`Runner`] offers functions by name, takes jobs from channels and calls them; what a function gets is an
//! [`Execution`]. [`testing`] runs a function without a service.
//!
//! [`session`] is the protocol underneath, for runners that call no functions, like `errand work`.
//!
//! Everything goes over gRPC, with what `errand-proto` compiles from the contract. Deliberately absent: anything about
//! command lines, and any queue or store of its own.

pub mod endpoint;
pub mod runner;
pub mod session;
pub mod testing;

mod client;
mod error;
mod execution;
mod failure;
mod functions;
mod job;
mod new_job;

pub use self::{
    client::{Client, JobFilter, Published, Receipt, Watch},
    endpoint::{Dialer, EndpointError, Servers},
    error::Error,
    execution::Execution,
    failure::Failure,
    job::{Job, JobEvent, JobEventKind, JobLog, JobState, JobStatus, LogKind},
    new_job::NewJob,
    runner::{RunError, Runner, Stopper},
};

/// Holds what the README shows to what compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

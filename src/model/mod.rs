//! The pure core: what a job is, and how it may change.
//!
//! Nothing here reads a clock, draws a random number, waits, or does I/O: time and chance are arguments. That is what
//! lets property tests and whole-system simulations hold every rule in this folder.

pub mod access;
pub mod event;
pub mod health;
pub mod id;
pub mod job;
pub mod lifecycle;
pub mod limits;
pub mod log;
pub mod retry;
pub mod runner;
pub mod spec;
pub mod time;

pub use access::{Caller, Operation};
pub use event::{EventKind, JobEvent};
pub use id::{IdHasher, IdMap, JobId};
pub use job::{Expiry, Job, Lease, Parts, Status};
pub use lifecycle::{Hint, Input, Refusal, Step, create, step};
pub use spec::{Invalid, JobSpec, Start};
pub use time::Timestamp;

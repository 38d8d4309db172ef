//! How jobs come in and results come out: the client library ([`Client`]: submit, await, fetch, cancel), what an
//! operator does ([`operations`]: status, dead jobs) and the HTTP face over both ([`http`]).
//!
//! What this crate owns: that a job is checked before it is sent, that `Ok` from a submit means the broker has
//! it, that a result reaches whoever waits for it exactly once, and that a lost reply strands nobody. What it must
//! not do: place, retry or run a job.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod client;
pub mod http;
pub mod operations;
pub mod submission;

mod keys;
mod pending;

pub use client::{Client, Config, SubmitError, Ticket, WaitError};
pub use submission::{Identity, Submission};

/// Now, on this machine's clock.
fn now() -> schemas::UnixMillis {
    std::time::SystemTime::now().into()
}

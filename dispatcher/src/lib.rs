//! The dispatcher: takes jobs from their class, asks how often their model is wanted and what room the lanes have,
//! and publishes each to the lane that [`policy`] names.
//!
//! What it owns: placement, waiting and release, taking back the queue of a lane whose workers are gone, and the end
//! of jobs that never reach a worker. What it must not do: decode a payload, hold a job for long, run one.
//!
//! Shape: [`policy`] and [`desk`] decide, on plain values; `run` is the loop round them; [`feeds`] decides
//! which queues are consumed just now. Any number of dispatchers may run side by side: what they share is in
//! the broker and in shared state.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod beat;
pub mod config;
mod death;
pub mod desk;
pub mod dispatcher;
mod ending;
mod estimate;
pub mod feeds;
mod hop;
mod intake;
pub mod journal;
mod pace;
pub mod policy;
mod run;
mod sampler;
mod stopping;
pub mod turns;

pub use config::Config;
pub use dispatcher::Dispatcher;

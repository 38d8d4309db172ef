//! Workers: what takes a placed job and sees it to its end.
//!
//! - [`worker`]: the loop. Takes deliveries, runs them in its lane, records, replies, retries, buries, acknowledges.
//! - [`lane`]: the port of a lane, [`lane::Executor`]; [`mod@local`] is the lane in this process,
//!   [`docker`] the lane of containers, [`serverless`] the lane of functions. All use the same loop.
//! - [`catalog`], [`runtime`]: the models, and what runs them.
//! - [`serve`]: a lane behind HTTP, the model server of our containers.
//! - [`probe`]: what this machine has and uses; [`gpu`]: its GPUs.
//!
//! What this crate must not do: place jobs, keep them (the broker does), or depend on producers and dispatchers.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod catalog;
pub mod docker;
pub mod gpu;
pub mod lane;
pub mod local;
pub mod probe;
mod remote;
pub mod runtime;
pub mod serve;
pub mod serverless;
pub mod worker;

//! What crosses a wire in StraightLine: jobs, results, headers, heartbeats and their rules.
//!
//! Everything here is pure: values, validated constructors, encodings and decisions. Nothing here does
//! I/O, reads a clock or draws a random number; callers pass those in. Every other crate may use this one,
//! and this one uses none of them.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod body;
pub mod class;
pub mod control;
pub mod dead;
pub mod failure;
pub mod header;
pub mod heartbeat;
pub mod id;
pub mod lane;
pub mod lifecycle;
pub mod limits;
pub mod model;
pub mod names;
pub mod oip;
pub mod payload;
#[cfg(feature = "json-schema")]
pub mod published;
pub mod result;
pub mod retry;
pub mod tensor;
pub mod time;
pub mod wire;

pub use body::JobBody;
pub use class::Class;
pub use failure::{Attempt, Failure, FailureKind};
pub use header::JobHeader;
pub use id::JobId;
pub use lane::{Lane, LaneSet};
pub use model::ModelContract;
pub use names::{ClientName, ModelName, ReplyQueue};
pub use payload::{BlobRef, Opaque, Payload};
pub use result::{JobResult, Status};
pub use tensor::{Datatype, Tensor};
pub use time::UnixMillis;

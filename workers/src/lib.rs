//! Workers.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]
pub mod catalog;
pub mod lane;
pub mod local;
pub mod runtime;

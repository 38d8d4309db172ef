//! The client library, the operator's library and the HTTP face over the embedded adapters: real queues and real
//! state in a folder of each test's own. Dispatcher and workers are played by one small task ([`rig::Station`]) that
//! uses the ports alone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod client;
mod http;
mod http_jobs;
mod http_operations;
mod many;
mod operations;
mod rig;

//! What a scenario stands on: private services, the real binary, and bounded waiting.
//!
//! Every process a scenario starts is an [`owned::Owned`] one: it listens on loopback ports of its own, keeps
//! its data in the run's temporary folder, and dies with whoever owns it, the runner included. Nothing here
//! sleeps for a guess: whoever waits says for what and how long, through [`until::until`].
//!
//! - [`scenario`]: what a scenario is, what it needs, and the runner.
//! - [`stage`]: what one scenario holds, and what all share.
//! - [`services`]: RabbitMQ 3.10 and 4.0, Redis, and a Docker engine.
//! - [`process`]: the `straightline` binary and other programs under test.
//! - [`http`]: a plain HTTP client for their faces.
//! - [`layering`]: the dependency directions of the workspace.

pub mod http;
pub mod layering;
pub mod owned;
pub mod ports;
pub mod process;
pub mod scenario;
pub mod services;
pub mod stage;
pub mod until;

//! Private services: each instance has loopback ports, a data folder and a log of its own.
//!
//! An instance can be stopped, killed and started again on the same ports and data. One that is shared by all
//! scenarios of a run is told apart by a virtual host or a database per scenario; whoever wants to break a
//! service starts one of its own.

mod docker;
mod rabbit;
mod redis;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

pub use docker::Docker;
pub use rabbit::{QueueDepth, Rabbit, RabbitVersion, Vhost};
pub use redis::{Database, Redis};

/// How long a service may take to be ready; the machine may be busy building.
const START_BOUND: Duration = Duration::from_secs(90);
/// How long a service may take to stop, or a control command to end.
const STOP_BOUND: Duration = Duration::from_secs(60);

/// The folder, outside the checkout, where `tests/run` prepares what the tests need.
#[must_use]
pub fn cache() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("STRAIGHTLINE_TEST_CACHE").unwrap_or_else(|| {
        let home = set("HOME").unwrap_or_else(|| "/root".into());
        set("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("straightline-tests")
    })
}

/// Which Docker Compose is installed; an error that says what to do if none is.
pub fn compose_installed() -> Result<String> {
    let output = Command::new("docker-compose").args(["version", "--short"]).output();
    let output =
        output.context("Docker Compose is not installed (docker-compose); tests/run as root installs it")?;
    Ok(format!("Docker Compose {}", String::from_utf8_lossy(&output.stdout).trim()))
}

/// Sends what a command prints to the end of a log.
pub(crate) fn log_to(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("failed to open {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok(())
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

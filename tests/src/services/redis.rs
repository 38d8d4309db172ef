//! A private Redis server, with an append-only file so that it keeps its data over a kill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::sync::Mutex;

use super::{START_BOUND, STOP_BOUND, log_to, tail};
use crate::owned::{self, Owned, Signal};
use crate::ports;
use crate::until::until;

/// One for each scenario of a run, and plenty to spare.
const DATABASES: u16 = 1024;

/// One server with its port and data, running or stopped.
#[derive(Debug)]
pub struct Redis {
    data: PathBuf,
    port: u16,
    running: Mutex<Option<Owned>>,
    databases_used: AtomicU16,
}

impl Redis {
    /// The version that is installed; an error that says what to do if none is.
    pub fn installed() -> Result<String> {
        let output = Command::new("redis-server").arg("--version").output();
        let output =
            output.context("Redis is not installed (redis-server); tests/run as root installs it")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="));
        Ok(version.with_context(|| format!("no version in {text:?}"))?.to_owned())
    }

    /// Starts a server whose data live in `data`, which is made, and waits until it answers.
    pub async fn start(data: &Path) -> Result<Self> {
        Self::installed()?;
        fs::create_dir_all(data).with_context(|| format!("failed to make {}", data.display()))?;
        let server = Self {
            data: data.to_owned(),
            port: ports::free(),
            running: Mutex::default(),
            databases_used: AtomicU16::new(0),
        };
        server.resume().await?;
        Ok(server)
    }

    /// Starts the stopped or killed server again on the same port and data, and waits until it answers.
    pub async fn resume(&self) -> Result<()> {
        let mut running = self.running.lock().await;
        ensure!(running.is_none(), "Redis runs already");
        let mut server = Owned::start("Redis", self.server()?)?;
        let ready = until(START_BOUND, "Redis answers", async || {
            if let Err(gone) = server.still_runs() {
                return Ok(Err(gone));
            }
            let answer = self.cli(0, &["PING"]).await?;
            ensure!(answer.trim() == "PONG", "it answered {answer:?}");
            Ok(Ok(()))
        });
        ready
            .await
            .and_then(|alive| alive)
            .with_context(|| format!("Redis did not start; its last words:\n{}", tail(&self.log(), 20)))?;
        *running = Some(server);
        Ok(())
    }

    /// Stops the server as an operator would; its data stay.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM).await
    }

    /// Kills the server as a crash would; its data stay.
    pub async fn kill9(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await
    }

    /// Stops the server and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.resume().await
    }

    /// The port it listens on, at 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.data.join("redis.log")
    }

    /// Runs one command in a database and gives back what it printed.
    pub async fn cli(&self, database: u16, args: &[&str]) -> Result<String> {
        let mut command = owned::command("redis-cli");
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-n", &database.to_string()]);
        command.args(args);
        owned::printed(&format!("redis-cli {}", args.join(" ")), command, STOP_BOUND).await
    }

    /// A database that nobody else in this run uses.
    pub fn database(self: &Arc<Self>) -> Result<Database> {
        let number = self.databases_used.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(number < DATABASES, "all {DATABASES} databases are used up");
        Ok(Database { redis: Arc::clone(self), number })
    }

    fn server(&self) -> Result<Command> {
        let mut command = owned::command("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]).arg("--dir").arg(&self.data);
        command.args(["--appendonly", "yes", "--save", "", "--databases", &DATABASES.to_string()]);
        log_to(&mut command, &self.log())?;
        Ok(command)
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        let mut running = self.running.lock().await;
        let server = running.as_mut().context("Redis is stopped")?;
        server.signal(signal)?;
        server.ended(STOP_BOUND).await?;
        *running = None;
        Ok(())
    }
}

/// A numbered database of a server. Published messages are not told apart by it: they reach all of them.
#[derive(Clone, Debug)]
pub struct Database {
    redis: Arc<Redis>,
    number: u16,
}

impl Database {
    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/{}", self.redis.port, self.number)
    }

    /// The server it is on.
    #[must_use]
    pub fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    /// Runs one command in it and gives back what it printed.
    pub async fn cli(&self, args: &[&str]) -> Result<String> {
        self.redis.cli(self.number, args).await
    }
}

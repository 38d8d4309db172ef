//! A private Docker engine: `dockerd` with a socket, data and a bridge of its own, beside whatever else runs here.
//!
//! It changes no firewall rules; published ports are reached through Docker's own proxy on loopback. Its containers
//! end with it, also when it is dropped.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::Mutex;

use super::{START_BOUND, STOP_BOUND, log_to, tail};
use crate::owned::{self, Owned, Signal};
use crate::until::until;

/// How long a short command may take.
const COMMAND_BOUND: Duration = Duration::from_secs(60);

/// One engine with its data, running or stopped.
#[derive(Debug)]
pub struct Docker {
    folder: PathBuf,
    /// Sockets, in the run's own folder: the system bounds the length of their paths.
    sockets: PathBuf,
    bridge: Bridge,
    running: Mutex<Option<Owned>>,
}

impl Docker {
    /// The version that is installed; an error that says what to do if none is, or if it cannot be started.
    pub fn installed() -> Result<String> {
        let output = Command::new("dockerd").arg("--version").output();
        let output = output.context("Docker is not installed (dockerd); tests/run as root installs it")?;
        ensure!(fs::metadata("/proc/self")?.uid() == 0, "only root can start a private Docker engine");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        Ok(version.with_context(|| format!("no version in {text:?}"))?.trim_end_matches(',').to_owned())
    }

    /// Starts an engine whose data live in `folder`, which is made, and waits until it answers.
    pub async fn start(folder: &Path) -> Result<Self> {
        Self::installed()?;
        fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
        // So that the machine's own settings are not read.
        fs::write(folder.join("daemon.json"), "{}")?;
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let run = env::temp_dir().join("straightline-tests").join(process::id().to_string());
        let sockets = run.join(format!("d{number}"));
        fs::create_dir_all(&sockets).with_context(|| format!("failed to make {}", sockets.display()))?;
        let bridge = Bridge::make(number).await?;
        let engine = Self { folder: folder.to_owned(), sockets, bridge, running: Mutex::default() };
        engine.resume().await?;
        Ok(engine)
    }

    /// Starts the stopped engine again on the same data, and waits until it answers.
    pub async fn resume(&self) -> Result<()> {
        let mut running = self.running.lock().await;
        ensure!(running.is_none(), "Docker runs already");
        let mut engine = Owned::start("dockerd", self.engine()?)?;
        let ready = until(START_BOUND, "Docker answers", async || {
            if let Err(gone) = engine.still_runs() {
                return Ok(Err(gone));
            }
            self.cli(&["version"]).await?;
            Ok(Ok(()))
        });
        ready
            .await
            .and_then(|alive| alive)
            .with_context(|| format!("Docker did not start; its last words:\n{}", tail(&self.log(), 20)))?;
        *running = Some(engine);
        Ok(())
    }

    /// Stops the engine, and its containers with it; its data stay.
    pub async fn stop(&self) -> Result<()> {
        let mut running = self.running.lock().await;
        let engine = running.as_mut().context("Docker is stopped")?;
        engine.signal(Signal::SIGTERM)?;
        engine.ended(STOP_BOUND).await?;
        *running = None;
        Ok(())
    }

    /// Its address.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.sockets.join("docker.sock").display())
    }

    /// What the engine printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("dockerd.log")
    }

    /// Runs one `docker` command and gives back what it printed, without the white space around it.
    pub async fn cli(&self, args: &[&str]) -> Result<String> {
        let mut command = owned::command("docker");
        command.arg("--host").arg(self.host()).args(args);
        let printed = owned::printed(&format!("docker {}", args.join(" ")), command, COMMAND_BOUND).await?;
        Ok(printed.trim().to_owned())
    }

    fn engine(&self) -> Result<Command> {
        let at = |name: &str| self.folder.join(name);
        let mut command = owned::command("dockerd");
        command.arg("--config-file").arg(at("daemon.json")).arg("--host").arg(self.host());
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(&self.sockets);
        command.arg("--pidfile").arg(at("dockerd.pid")).arg("--bridge").arg(&self.bridge.name);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-masq=false", "--shutdown-timeout", "3"]);
        log_to(&mut command, &self.log())?;
        Ok(command)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some(mut engine) = self.running.get_mut().take() else { return };
        // Killed, it would leave its containers and mounts behind; so it is asked, on a thread that may wait.
        let stop = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            engine.signal(Signal::SIGTERM)?;
            runtime.block_on(engine.ended(STOP_BOUND))
        };
        match thread::spawn(stop).join() {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => eprintln!("a private Docker engine did not stop: {error:#}"),
            Err(_) => eprintln!("stopping a private Docker engine panicked"),
        }
    }
}

/// A network bridge, removed when dropped.
#[derive(Debug)]
struct Bridge {
    name: String,
}

impl Bridge {
    async fn make(number: u32) -> Result<Self> {
        let name = format!("sl{:x}n{number}", process::id());
        let taken = ip(&["-4", "-o", "address"]).await?;
        let first = process::id().wrapping_mul(7).wrapping_add(number * 31);
        let net = (0..250).map(|n| format!("10.214.{}.", first.wrapping_add(n) % 250));
        let Some(net) = net.into_iter().find(|net| !taken.contains(net.as_str())) else {
            bail!("all networks from 10.214.0.0 to 10.214.249.0 are taken")
        };
        ip(&["link", "add", "name", &name, "type", "bridge"]).await?;
        let bridge = Self { name };
        ip(&["address", "add", &format!("{net}1/24"), "dev", &bridge.name]).await?;
        ip(&["link", "set", &bridge.name, "up"]).await?;
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // One that is gone already is as good.
        let _ = Command::new("ip").args(["link", "delete", &self.name]).output();
    }
}

async fn ip(args: &[&str]) -> Result<String> {
    let mut command = owned::command("ip");
    command.args(args);
    owned::printed(&format!("ip {}", args.join(" ")), command, COMMAND_BOUND).await
}

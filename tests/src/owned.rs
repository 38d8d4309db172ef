//! A child process that cannot outlive whoever owns it.
//!
//! Invariants:
//! - dropping an [`Owned`] kills its process group and reaps the child;
//! - when the runner itself dies, by whatever signal, the kernel kills the child (`PR_SET_PDEATHSIG`).
//!
//! The kernel ties that last promise to the *thread* that started the child, and the threads of a test come and
//! go. So one thread, the keeper, starts them all and lives as long as the process.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::until::until;

pub use nix::sys::signal::Signal;

struct Order {
    command: Command,
    started: SyncSender<io::Result<Child>>,
}

static KEEPER: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = channel::<Order>();
    let keep = move || {
        for mut order in inbox {
            // Whoever gave the order waits for the answer, so sending it cannot fail.
            let _ = order.started.send(order.command.spawn());
        }
    };
    thread::Builder::new().name("keeper".into()).spawn(keep).expect("the system can start one more thread");
    orders
});

/// A command that dies with the runner and leads a process group of its own, with nothing on its input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.process_group(0).stdin(Stdio::null());
    command
}

/// A running or finished child, killed with its process group on drop.
#[derive(Debug)]
pub struct Owned {
    name: String,
    child: Child,
}

impl Owned {
    /// Starts a command made by [`command`].
    pub fn start(name: impl Into<String>, command: Command) -> Result<Self> {
        let name = name.into();
        let (started, answer) = sync_channel(1);
        KEEPER.send(Order { command, started }).expect("the keeper lives as long as the process");
        let child = answer.recv().expect("the keeper answers every order");
        let child = child.with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name, child })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("failed to look at {}", self.name))
    }

    /// An error that tells how it ended, if it did.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.exited()? {
            Some(status) => bail!("{} is gone: {status}", self.name),
            None => Ok(()),
        }
    }

    /// Sends a signal to this one process, not to its children. An error if it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.still_runs()?;
        kill(pid(self.child.id()), signal)
            .with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    /// Waits for its end.
    pub async fn ended(&mut self, bound: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        until(bound, &what, async || self.exited()?.context("it still runs")).await
    }

    /// Kills it as a crash would (`kill -9`) and reaps it; its children are left to themselves.
    pub async fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.ended(Duration::from_secs(10)).await?;
        Ok(())
    }
}

/// Sends a signal to a process that an owned one started.
pub fn signal_process(id: u32, signal: Signal) -> Result<()> {
    kill(pid(id), signal).with_context(|| format!("failed to send {signal} to process {id}"))
}

/// Runs a short command to its end and gives back what it printed; an error with its words if it fails.
pub async fn printed(name: &str, mut command: Command, bound: Duration) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut owned = Owned::start(name, command)?;
    let stdout = read_all(owned.child.stdout.take());
    let stderr = read_all(owned.child.stderr.take());
    let status = owned.ended(bound).await?;
    let (stdout, stderr) = (stdout.await??, stderr.await??);
    ensure!(status.success(), "{name}: {status}: {stdout}{stderr}");
    Ok(stdout)
}

/// Reads a pipe on a thread of its own, so that a child never blocks on a full one.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<io::Result<String>> {
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Also when the leader is gone: children it left behind are still in its group. No such group is fine.
        let _ = killpg(pid(self.child.id()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("process ids on Linux fit an i32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Owned {
        let mut command = command("sleep");
        command.arg("600");
        Owned::start("sleep", command).unwrap()
    }

    #[tokio::test]
    async fn outlives_the_thread_that_asked_for_it_and_ends_when_dropped() {
        let mut child = thread::spawn(sleeper).join().unwrap();
        child.still_runs().unwrap();
        let proc = format!("/proc/{}", child.id());
        drop(child);
        assert!(!std::path::Path::new(&proc).exists());
    }

    #[tokio::test]
    async fn tells_how_it_ended() {
        let mut child = sleeper();
        child.kill9().await.unwrap();
        let error = child.signal(Signal::SIGTERM).unwrap_err().to_string();
        assert_eq!(error, "sleep is gone: signal: 9 (SIGKILL)");
    }
}

//! The keeper: a small process between the host and an instance, so that no instance outlives its worker or its limits.
//!
//! The host starts the keeper as the leader of a new process group; the keeper limits itself and starts the function, which
//! inherits both. Its standard input is a pipe whose other end the host holds: when that closes, because the host let go or
//! died by whatever signal, the keeper kills the whole group, itself included. A function that wants to escape can leave its
//! group; functions are programs that the operator chose, not tenants.
//!
//! Both sides of its command line are here. Only plain, blocking code: it runs before there is a runtime.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg, raise};
use nix::unistd::getpgrp;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

/// What each process of an instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Private writable memory, in bytes. Address space that is only reserved does not count, so that runtimes
    /// which reserve much and use little are not hit.
    pub memory_bytes: u64,
    /// Processes and threads. The kernel counts all of the user's, and does not hold root to it.
    pub processes_max: u64,
    /// Open files.
    pub files_max: u64,
}

/// The exit code of a function that could not be started, as shells have it.
const NOT_STARTED: u8 = 127;

impl Limits {
    /// What to run so that `program` runs within these limits, `keeper` being how this very code is called.
    pub(super) fn command(&self, keeper: &[OsString], program: &[OsString]) -> Command {
        let mut command = Command::new(keeper.first().map_or(OsStr::new(""), OsString::as_os_str));
        command.args(keeper.iter().skip(1));
        command.args([self.memory_bytes, self.processes_max, self.files_max].map(|limit| limit.to_string()));
        command.args(program);
        command
    }

    fn apply(&self) -> Result<(), String> {
        let limits = [
            (Resource::RLIMIT_DATA, self.memory_bytes, "memory"),
            (Resource::RLIMIT_NPROC, self.processes_max, "processes"),
            (Resource::RLIMIT_NOFILE, self.files_max, "files"),
            (Resource::RLIMIT_CORE, 0, "core files"),
        ];
        for (resource, limit, what) in limits {
            setrlimit(resource, limit, limit)
                .map_err(|error| format!("limit of {what} to {limit}: {error}"))?;
        }
        Ok(())
    }
}

/// The keeper's whole life. `arguments` are what stands behind the way it is called: memory in bytes, processes, files,
/// then the program and its arguments.
pub fn keep(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match try_to(arguments.into_iter()) {
        Ok(status) => end_like(status),
        Err(problem) => {
            // The host reads it as the instance's last words.
            let _ = io::Write::write_all(&mut io::stderr(), format!("{problem}\n").as_bytes());
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn try_to(mut arguments: impl Iterator<Item = OsString>) -> Result<ExitStatus, String> {
    let mut number = |what| {
        let given = arguments.next().and_then(|given| given.to_str()?.parse::<u64>().ok());
        given.ok_or_else(|| format!("keeper is called without {what}: use MEMORY PROCESSES FILES PROGRAM…"))
    };
    let limits = Limits {
        memory_bytes: number("memory")?,
        processes_max: number("processes")?,
        files_max: number("files")?,
    };
    let program = arguments.next().ok_or("keeper is called without a program")?;
    let shown = program.to_string_lossy().into_owned();
    limits.apply()?;
    let watching = std::thread::Builder::new().name("pipe".to_owned()).spawn(watch);
    watching.map_err(|error| format!("keeper cannot start a thread: {error}"))?;
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
    let mut child = child.map_err(|error| format!("cannot start {shown}: {error}"))?;
    child.wait().map_err(|error| format!("cannot wait for {shown}: {error}"))
}

/// Nothing is ever sent; the end of the pipe is the message.
fn watch() {
    let mut byte = [0];
    while io::stdin().read(&mut byte).is_ok_and(|read| read > 0) {}
    let _ = killpg(getpgrp(), Signal::SIGKILL);
}

/// Ends as the function ended, so that the host sees its status and not the keeper's.
fn end_like(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal().and_then(|signal| Signal::try_from(signal).ok()) {
        let _ = raise(signal);
    }
    // Every code is 0 to 255; a signal that did not end the keeper (it ignores SIGPIPE) is told as shells tell it.
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_STARTED))
}

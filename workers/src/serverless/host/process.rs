//! The process of an instance: how it is started, heard and ended.
//!
//! It is given the environment of a Lambda function and nothing of the worker's own: what is in that, such as passwords of
//! brokers, is none of a function's business. It is the worker's user all the same and may read its files; see
//! [`super::conceal`]. What it prints is logged, and the last of its standard error kept for the case
//! that it dies.

use super::Config;
use super::config::PATH;
use super::pool::Id;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use schemas::ModelName;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How much of a function's standard error is kept, in bytes.
const LAST_WORDS_BYTES_MAX: usize = 300;
/// How long a killed process may take to be gone, and its pipes to be read.
const END_GRACE: Duration = Duration::from_secs(2);

pub(super) struct Process {
    /// The keeper.
    child: Child,
    /// Its standard input, which keeps the group alive. Held apart, since waiting for a child closes the one it has.
    _pipe: Option<ChildStdin>,
    group: Pid,
    words: Words,
    listening: Vec<JoinHandle<()>>,
}

impl Process {
    pub(super) fn start(config: &Config, name: &ModelName, id: Id, api: SocketAddr) -> Result<Self, String> {
        let function = config.functions.get(name).expect("only configured functions are taken on");
        let mut command = function.limits.command(&config.keeper, &function.command);
        command.env_clear().envs(environment(config, name, id, api)).current_dir(&function.task_root);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = Command::from(command).spawn().map_err(|error| {
            // The system's word is the same for both.
            let root = &function.task_root;
            let what = if root.is_dir() { Path::new(&config.keeper[0]) } else { root };
            format!("{}: {error}", what.display())
        })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let group = group.expect("a process that was just started has an id, and ids on Linux fit an i32");
        let words = Words::default();
        let (pipe, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let listening = [
            output.map(|pipe| tokio::spawn(listen(pipe, name.clone(), id, None))),
            errors.map(|pipe| tokio::spawn(listen(pipe, name.clone(), id, Some(words.clone())))),
        ];
        Ok(Self { child, _pipe: pipe, group, words, listening: listening.into_iter().flatten().collect() })
    }

    /// How the process ended, once it has. May be given up and called again.
    pub(super) async fn exited(&mut self) -> ExitStatus {
        // Waiting for a child of our own fails only where somebody else has reaped it.
        self.child.wait().await.unwrap_or_default()
    }

    /// Ends whatever is left of the group; its last words.
    pub(super) async fn end(mut self) -> Words {
        // Also where the leader is gone: its number stays taken as long as anyone is in its group, and an empty group
        // is an error that says so.
        let _ = killpg(self.group, Signal::SIGKILL);
        let gone = async {
            self.exited().await;
            for listening in &mut self.listening {
                let _ = listening.await;
            }
        };
        if timeout(END_GRACE, gone).await.is_err() {
            // Somebody outside the group holds the pipes.
            self.listening.iter().for_each(JoinHandle::abort);
        }
        self.words
    }
}

/// What a Lambda function finds in its environment, and what its configuration adds.
fn environment(
    config: &Config,
    name: &ModelName,
    id: Id,
    api: SocketAddr,
) -> impl Iterator<Item = (OsString, OsString)> {
    let function = config.functions.get(name).expect("only configured functions are taken on");
    let own = |(key, value): (&str, String)| (OsString::from(key), OsString::from(value));
    let standard = [
        ("AWS_LAMBDA_RUNTIME_API", api.to_string()),
        ("AWS_LAMBDA_FUNCTION_NAME", name.to_string()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (function.limits.memory_bytes >> 20).to_string()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", format!("instance-{id}")),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023".to_owned()),
        ("AWS_REGION", config.region.clone()),
        ("AWS_DEFAULT_REGION", config.region.clone()),
        ("_HANDLER", function.handler.clone()),
        ("LANG", "en_US.UTF-8".to_owned()),
        ("PATH", PATH.to_owned()),
        ("TZ", ":UTC".to_owned()),
    ];
    let root = function.task_root.clone().into_os_string();
    let configured = function.environment.iter().map(|(key, value)| (key.into(), value.into()));
    let all: Vec<_> = standard
        .map(own)
        .into_iter()
        .chain([(OsString::from("LAMBDA_TASK_ROOT"), root)])
        .chain(configured)
        .collect();
    all.into_iter()
}

/// The end of what a function wrote on its standard error.
#[derive(Clone, Default)]
pub(super) struct Words(Arc<Mutex<VecDeque<u8>>>);

impl Words {
    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES_MAX)..]);
        let over = kept.len().saturating_sub(LAST_WORDS_BYTES_MAX);
        kept.drain(..over);
    }

    /// To be put behind a sentence: nothing, or a colon and the words on one line.
    pub(super) fn last(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(kept.make_contiguous());
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() { line } else { format!(": {line}") }
    }
}

/// Reads one of its outputs to the end, so that it never blocks on a full pipe.
async fn listen(mut pipe: impl AsyncRead + Unpin, function: ModelName, instance: Id, words: Option<Words>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        if let Some(words) = &words {
            words.add(&buffer[..read]);
        }
        for line in String::from_utf8_lossy(&buffer[..read]).lines() {
            tracing::debug!(%function, instance, line, "function printed");
        }
    }
}

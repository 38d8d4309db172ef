//! The programs under test: the `straightline` binary, and others such as a Python client.
//!
//! Their standard output and error go to files in the scenario's folder, so that a failure can show them and a
//! test can read what a killed process had printed.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use serde_json::Value;

use crate::http;
use crate::owned::{self, Owned, Signal};
use crate::services::{cache, tail};
use crate::until::until;

/// A cold build on a busy machine of two cores.
const BUILD_BOUND: Duration = Duration::from_secs(20 * 60);

const PYTHON_VERSIONS: &str = "import platform, pika, msgpack; print('Python', platform.python_version(), \
    'with pika', pika.__version__, 'and msgpack', '.'.join(map(str, msgpack.version)))";

/// Builds the binary as it ships and gives back its path; quick where nothing changed.
///
/// Asked of cargo at run time, since a path known at compile time may name a stale build.
pub async fn build() -> Result<PathBuf> {
    let mut command = owned::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "-p", "straightline", "--message-format=json-render-diagnostics"]);
    command.current_dir(workspace());
    let printed = owned::printed("cargo build", command, BUILD_BOUND).await?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let binary = messages
        .filter(|message| message["target"]["name"] == "straightline")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    binary.context("cargo built no program named straightline")
}

/// The top folder of the checkout.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// The Python that `tests/run` prepares, with pika and msgpack.
#[must_use]
pub fn python() -> PathBuf {
    cache().join("python/bin/python")
}

/// Which Python is prepared; an error that says what to do if none is.
pub fn python_installed() -> Result<String> {
    let output = Command::new(python()).args(["-c", PYTHON_VERSIONS]).output();
    let output = output.context("Python with pika and msgpack is not prepared; tests/run prepares it")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = stderr.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "Python lacks pika or msgpack, tests/run prepares them: {reason}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A program about to be started.
#[derive(Debug)]
pub struct Program {
    name: String,
    folder: PathBuf,
    command: Command,
}

impl Program {
    /// A program whose output goes to `<name>.out` and `<name>.err` in a folder, its working directory.
    ///
    /// It sees none of the runner's own `STRAIGHTLINE_…` settings.
    #[must_use]
    pub fn new(name: &str, program: &Path, folder: &Path) -> Self {
        let mut command = owned::command(program);
        command.current_dir(folder).env("NO_COLOR", "1");
        for (setting, _) in env::vars_os() {
            if setting.to_string_lossy().starts_with("STRAIGHTLINE_") {
                command.env_remove(setting);
            }
        }
        Self { name: name.to_owned(), folder: folder.to_owned(), command }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it these bytes on its standard input, in place of nothing.
    pub fn input(mut self, bytes: &[u8]) -> Result<Self> {
        let path = self.folder.join(format!("{}.in", self.name));
        fs::write(&path, bytes).with_context(|| format!("failed to write {}", path.display()))?;
        self.command.stdin(File::open(&path)?);
        Ok(self)
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Process> {
        let stdout = self.folder.join(format!("{}.out", self.name));
        let stderr = self.folder.join(format!("{}.err", self.name));
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            let file = file.with_context(|| format!("failed to open {}", path.display()))?;
            anyhow::Ok((file.metadata()?.len(), file))
        };
        let (stdout_from, file) = open(&stdout)?;
        self.command.stdout(file);
        let (stderr_from, file) = open(&stderr)?;
        self.command.stderr(file);
        let owned = Owned::start(&self.name, self.command)?;
        Ok(Process { name: self.name, owned, stdout, stdout_from, stderr, stderr_from })
    }

    /// Runs it to its end, whatever that is.
    pub async fn run(self, bound: Duration) -> Result<Finished> {
        self.start()?.finish(bound).await
    }
}

/// A running program; killed with the processes it started when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    owned: Owned,
    stdout: PathBuf,
    stdout_from: u64,
    stderr: PathBuf,
    stderr_from: u64,
}

/// How a program ended and what it said.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Finished {
    /// This end if the exit code is the expected one, else an error that shows what was printed.
    pub fn expect(self, code: i32) -> Result<Self> {
        let (stdout, stderr) = (&self.stdout, &self.stderr);
        ensure!(self.status.code() == Some(code), "{} in place of {code}\n{stdout}\n{stderr}", self.status);
        Ok(self)
    }

    /// Standard output as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }

    /// Standard output as JSON values, one a line.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.owned.id()
    }

    /// Waits until `GET url` answers 200; an error with its last words if it ends before.
    pub async fn ready_http(&mut self, url: &str, bound: Duration) -> Result<()> {
        self.ready(&format!("{url} answers 200"), bound, async |_| {
            http::get(url).await?.expect(200)?;
            Ok(())
        })
        .await
    }

    /// Waits until this process, not an earlier one of its name, has printed `text` on either output.
    pub async fn ready_log(&mut self, text: &str, bound: Duration) -> Result<()> {
        self.ready(&format!("it prints {text:?}"), bound, async |process| {
            let said = process.stdout()?.contains(text) || process.stderr()?.contains(text);
            ensure!(said, "not printed yet");
            Ok(())
        })
        .await
    }

    /// Kills it as a crash would (`kill -9`); the processes it started are left to themselves until it is dropped.
    pub async fn kill9(&mut self) -> Result<()> {
        self.owned.kill9().await
    }

    /// Asks it to drain and stop (SIGTERM).
    pub fn term(&mut self) -> Result<()> {
        self.owned.signal(Signal::SIGTERM)
    }

    /// Sends any signal, such as SIGSTOP and SIGCONT for a process that hangs.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.owned.signal(signal)
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.owned.exited()
    }

    /// Waits for its end and gives back what it said.
    pub async fn finish(mut self, bound: Duration) -> Result<Finished> {
        let status = self.owned.ended(bound).await.map_err(|error| self.with_last_words(&error))?;
        Ok(Finished { status, stdout: self.stdout()?, stderr: self.stderr()? })
    }

    /// What it has printed on standard output so far.
    pub fn stdout(&self) -> Result<String> {
        read_from(&self.stdout, self.stdout_from)
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> Result<String> {
        read_from(&self.stderr, self.stderr_from)
    }

    async fn ready(
        &mut self,
        what: &str,
        bound: Duration,
        mut probe: impl AsyncFnMut(&Self) -> Result<()>,
    ) -> Result<()> {
        let waited = until(bound, what, async || {
            let probed = probe(self).await;
            if probed.is_err()
                && let Err(gone) = self.owned.still_runs()
            {
                // One that was ready and died at once was ready all the same: it may have said so since.
                return Ok(probe(self).await.map_err(|_| gone));
            }
            probed.map(Ok)
        });
        waited.await.and_then(|alive| alive).map_err(|error| self.with_last_words(&error))
    }

    fn with_last_words(&self, error: &Error) -> Error {
        let (stdout, stderr) = (tail(&self.stdout, 10), tail(&self.stderr, 20));
        anyhow!("{error:#}\n{} printed last:\n{stdout}\n{stderr}", self.name)
    }
}

fn read_from(path: &Path, offset: u64) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    fn shell(folder: &Path, script: &str) -> Program {
        Program::new("shell", Path::new("/bin/sh"), folder).args(["-c", script])
    }

    #[tokio::test]
    async fn reads_its_input_and_tells_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let program = shell(folder.path(), "cat; echo \"$GREETING\" >&2; exit 3");
        let program = program.env("GREETING", "hello").input(b"{\"id\": 1}\n{\"id\": 2}\n").unwrap();
        let finished = program.run(BOUND).await.unwrap().expect(3).unwrap();
        assert_eq!(finished.json_lines().unwrap()[1]["id"], 2);
        assert_eq!(finished.stderr, "hello\n");
    }

    #[tokio::test]
    async fn an_end_before_it_is_ready_shows_the_last_words_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "echo port in use >&2; exit 1").start().unwrap();
        let error = process.ready_log("listening", BOUND).await.unwrap_err().to_string();
        assert!(error.contains("shell is gone: exit status: 1"), "{error}");
        assert!(error.contains("port in use"), "{error}");
    }

    #[tokio::test]
    async fn what_an_earlier_process_of_the_name_printed_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = shell(folder.path(), "echo ready; exec sleep 600").start().unwrap();
        first.ready_log("ready", BOUND).await.unwrap();
        first.kill9().await.unwrap();
        let mut second = shell(folder.path(), "exec sleep 600").start().unwrap();
        let error = second.ready_log("ready", Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("waited 50ms in vain until it prints \"ready\": not printed yet"), "{error}");
    }

    #[tokio::test]
    async fn a_child_it_left_behind_goes_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "sleep 600 & echo child $!; wait").start().unwrap();
        process.ready_log("child", BOUND).await.unwrap();
        let child = process.stdout().unwrap().trim().replace("child ", "/proc/");
        process.kill9().await.unwrap();
        assert!(Path::new(&child).exists(), "kill -9 reaches one process, not its children");
        drop(process);
        let gone = until(BOUND, "the child is gone", async || {
            ensure!(!fs::read_to_string(format!("{child}/cmdline")).is_ok_and(|line| line.contains("sleep")));
            Ok(())
        });
        gone.await.unwrap();
    }
}

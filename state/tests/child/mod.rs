//! This test binary, started once more as a process that uses the state and may come to harm.

use bytes::Bytes;
use schemas::JobId;
use state::embedded::{Config, Embedded};
use state::{Finish, Record, State};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

const DIR: &str = "STATE_TEST_DIR";
const MODE: &str = "STATE_TEST_MODE";
const MARK: &str = "child> ";

/// The process, as the test sees it.
pub(crate) struct Child {
    process: std::process::Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a process that opens the state in `dir` and does what `mode` says.
    pub(crate) fn start(mode: &str, dir: &Path) -> Self {
        // A file over its limit is then an error in place of a signal.
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap "" XFSZ; exec "$@""#, "sh"]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "child_process", "--nocapture"]).env(DIR, dir).env(MODE, mode);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, orders, answers }
    }

    /// The next line it says.
    pub(crate) fn line(&mut self) -> String {
        let said = |line: std::io::Result<String>| {
            let line = line.expect("text");
            line.split_once(MARK).map(|(_, said)| said.to_owned())
        };
        self.answers.by_ref().find_map(said).expect("the child has ended early")
    }

    /// Gives it an order and takes its answer.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("it listens");
        self.line()
    }

    /// Lets its files grow up to `limit` (soft and hard, in bytes) from now on.
    pub(crate) fn limit_files(&self, limit: &str) {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.process.id().to_string(), &format!("--fsize={limit}")]);
        assert!(command.status().expect("prlimit is installed").success());
    }

    /// Ends it as kill -9 does.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").and_then(|()| out.flush()).expect("somebody listens");
}

/// What the process does.
pub(crate) async fn run() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let state = Embedded::open(Config::new(dir)).await.unwrap();
    match std::env::var(MODE).as_deref() {
        Ok("finish") => finish_for_ever(&*state).await,
        _ => answer_orders(&*state).await,
    }
}

/// Says each job it has recorded, and never stops.
async fn finish_for_ever(state: &dyn State) {
    loop {
        let keep = Duration::from_secs(600);
        let records: Vec<_> =
            (0..8).map(|_| Record { id: JobId::new(), result: Bytes::from_static(b"done"), keep }).collect();
        state.finish(&records).await.unwrap();
        records.iter().for_each(|record| say(record.id));
    }
}

/// `finish`: records a job of a megabyte; `all`: whether all it won are there.
async fn answer_orders(state: &dyn State) {
    let result = Bytes::from(vec![7; 1 << 20]);
    let mut won = Vec::new();
    for order in std::io::stdin().lock().lines() {
        if order.unwrap() == "all" {
            let there = state.fetch(&won).await.unwrap().iter().all(|found| found.as_ref() == Some(&result));
            say(if there { "all there" } else { "some are gone" });
            continue;
        }
        let id = JobId::new();
        let record = Record { id, result: result.clone(), keep: Duration::from_secs(600) };
        match state.finish(&[record]).await.map(|mut finished| finished.pop()) {
            Ok(Some(Finish::Won)) => {
                won.push(id);
                say("won");
            }
            Ok(other) => say(format!("{other:?}")),
            Err(error) => say(error),
        }
    }
}

//! A deployment of real processes, as scenarios start it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::ports;
use tests::process::{Process, Program, workspace};
use tests::services::{Database, RabbitVersion};
use tests::stage::Context;
use tests::until::until;

pub(crate) const START: Duration = Duration::from_secs(60);

/// Where broker and state of a production-shaped deployment are.
#[derive(Clone)]
pub(crate) struct Production {
    broker: String,
    state: String,
    data: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Production {
    /// On services that others use too.
    pub(crate) async fn shared(context: &Context, version: RabbitVersion) -> Result<Self> {
        let broker = context.rabbit(version).await?.url();
        let redis: Database = context.redis().await?;
        Ok(Self::on(context, broker, redis.url()))
    }

    /// On these services.
    pub(crate) fn on(context: &Context, broker: String, state: String) -> Self {
        Self { broker, state, data: context.folder().join("data"), settings: Vec::new() }
    }

    /// The same with one more setting, of every process started from here on.
    pub(crate) fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((variable, value.into()));
        self
    }

    pub(crate) fn broker_url(&self) -> &str {
        &self.broker
    }

    /// A command of the binary on this deployment.
    pub(crate) async fn command(&self, context: &Context, name: &str) -> Result<Program> {
        let program = context.straightline(name).await?;
        let program = self.settings.iter().fold(program, |program, (name, value)| program.env(name, value));
        Ok(program
            .env("STRAIGHTLINE_BROKER__URL", &self.broker)
            .env("STRAIGHTLINE_STATE__URL", &self.state)
            .env("STRAIGHTLINE_STORAGE__DIR", self.data.as_os_str())
            .env("STRAIGHTLINE_WORKER__DIAGNOSTICS", "true"))
    }

    /// A dispatcher; its placements go to `<name>.jsonl`.
    pub(crate) async fn dispatcher(&self, context: &Context, name: &str) -> Result<Process> {
        let program = self.command(context, name).await?;
        let program = program.env("STRAIGHTLINE_DISPATCHER__PLACEMENT_LOG", placement_log(context, name));
        let mut process = program.args(["dispatcher", "--name", name]).start()?;
        process.ready_log("ready", START).await?;
        Ok(process)
    }

    /// A worker of the local lane.
    pub(crate) async fn worker(&self, context: &Context, name: &str) -> Result<Process> {
        self.worker_of(context, "local", name).await
    }

    pub(crate) async fn worker_of(&self, context: &Context, lane: &str, name: &str) -> Result<Process> {
        let program = self.command(context, name).await?;
        let mut process = program.args(["worker", "--lane", lane, "--name", name]).start()?;
        process.ready_log("ready", START).await?;
        Ok(process)
    }

    /// Submits a file of jobs; their results go to another.
    pub(crate) async fn submit(&self, context: &Context, jobs: &Path, results: &Path) -> Result<Process> {
        let command = self.command(context, "submit").await?;
        let command = command.args([Path::new("submit"), jobs, Path::new("--output"), results]);
        command.args(["--wait", "--quiet"]).start()
    }

    /// How it stands.
    pub(crate) async fn status(&self, context: &Context) -> Result<Value> {
        let command = self.command(context, "status").await?.args(["status", "--json"]);
        command.run(START).await?.expect(0)?.json()
    }
}

/// Where the dispatcher of that name writes its placements.
pub(crate) fn placement_log(context: &Context, dispatcher: &str) -> PathBuf {
    context.folder().join(format!("{dispatcher}.jsonl"))
}

/// An `up` over a data folder.
pub(crate) struct Up {
    pub(crate) process: Process,
    pub(crate) url: String,
}

impl Up {
    pub(crate) async fn start(context: &Context, name: &str, data: &Path) -> Result<Self> {
        let address = format!("127.0.0.1:{}", ports::free());
        let program = context.straightline(name).await?;
        let program = program.env("STRAIGHTLINE_WORKER__DIAGNOSTICS", "true");
        let data = data.to_str().context("a folder with a plain name")?;
        let mut process = program.args(["up", "--listen", &address, "--data-dir", data]).start()?;
        let url = format!("http://{address}");
        process.ready_http(&format!("{url}/v2/health/ready"), START).await?;
        Ok(Self { process, url })
    }
}

/// Held-out images of handwritten digits: pixels and label.
pub(crate) fn digits() -> Result<Vec<(Vec<u8>, u64)>> {
    let text = fs::read_to_string(workspace().join("models/data/digits-heldout.csv"))?;
    let row = |line: &str| -> Result<(Vec<u8>, u64)> {
        let mut cells: Vec<u8> = line.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let label = cells.pop().context("a label")?;
        Ok((cells, label.into()))
    };
    text.lines().skip(1).map(row).collect()
}

/// A file of `count` jobs, a line each: mostly single digits, some batches, some for the heavier model.
pub(crate) fn jobs_file(path: &Path, count: usize) -> Result<BTreeMap<String, Vec<u64>>> {
    jobs_file_of(path, count, mixture)
}

/// What most scenarios send: the model and the number of images of a job.
pub(crate) fn mixture(job: usize) -> (&'static str, usize) {
    match job % 200 {
        7 => ("digits", 400),
        50 | 100 | 150 => ("digits-conv", 1),
        _ => ("digits", 1),
    }
}

/// A file of `count` jobs, a line each, in all classes, and the labels of each by its id. Every job has an id of its own.
pub(crate) fn jobs_file_of(
    path: &Path,
    count: usize,
    kind: impl Fn(usize) -> (&'static str, usize),
) -> Result<BTreeMap<String, Vec<u64>>> {
    let digits = digits()?;
    let mut lines = String::new();
    let mut labels = BTreeMap::new();
    for job in 0..count {
        let (model, images) = kind(job);
        let picked: Vec<_> = (0..images).map(|n| &digits[(job * 7 + n) % digits.len()]).collect();
        let id = format!("{:08x}-0000-7000-8000-{:012x}", 0x019a_a000 + job / 65_536, job);
        let class = ["normal", "high", "low"][job % 3];
        let line = json!({
            "id": id,
            "model": model,
            "class": class,
            "inputs": [{
                "name": "image", "datatype": "FP32", "shape": [images, 64],
                "data": picked.iter().flat_map(|(pixels, _)| pixels).collect::<Vec<_>>(),
            }],
        });
        lines += &format!("{line}\n");
        labels.insert(id, picked.iter().map(|(_, label)| *label).collect());
    }
    fs::write(path, lines)?;
    Ok(labels)
}

/// Waits until at least so many more results were written, or all: the jobs flow.
pub(crate) async fn more_results(submit: &mut Process, results: &Path, more: usize) -> Result<()> {
    let written = || fs::read(results).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
    let before = written();
    until(Duration::from_secs(180), "results come in", async || {
        ensure!(submit.exited()?.is_some() || written() >= before + more, "{} results", written());
        Ok(())
    })
    .await
}

/// The results in a file, a line each.
pub(crate) fn results_of(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Checks that `results` are exactly one per job of `labels`, all succeeded, with most digits right.
pub(crate) fn each_once(results: &[Value], labels: &BTreeMap<String, Vec<u64>>) -> Result<()> {
    let mut seen: BTreeMap<&str, &Value> = BTreeMap::new();
    for result in results {
        let id = result["id"].as_str().with_context(|| format!("a result without an id: {result}"))?;
        ensure!(labels.contains_key(id), "a result of a job that was never submitted: {result}");
        ensure!(seen.insert(id, result).is_none(), "two results of {id}");
        ensure!(result["status"] == "succeeded", "{result}");
    }
    ensure!(seen.len() == labels.len(), "{} results of {} jobs", seen.len(), labels.len());
    let (mut right, mut all) = (0, 0);
    for (id, expected) in labels {
        let output = &seen[id.as_str()]["output"];
        // Our own client prints tensors, the Python example a map of values.
        let of_tensors =
            output["tensors"].as_array().and_then(|tensors| tensors.iter().find(|t| t["name"] == "label"));
        let found = of_tensors.map_or(&output["label"], |tensor| &tensor["data"]);
        let found = found.as_array().with_context(|| format!("no labels in {output}"))?;
        ensure!(found.len() == expected.len(), "{} labels for {} images", found.len(), expected.len());
        right +=
            found.iter().zip(expected).filter(|(found, expected)| found.as_u64() == Some(**expected)).count();
        all += expected.len();
    }
    ensure!(right * 100 >= all * 95, "{right} of {all} digits recognised");
    Ok(())
}

//! Preparing what the runs need, and one run of one system on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tests::owned;
use tests::process::{Program, build, workspace};
use tests::services::{Rabbit, RabbitVersion, Redis, cache};

use crate::{Kind, Sample, System};

/// One run of one system, its start and end included.
const RUN_BOUND: Duration = Duration::from_secs(240);
const INSTALL_BOUND: Duration = Duration::from_secs(15 * 60);
/// Five seconds at the 200 jobs a second that latency is measured at.
const JOBS_AT_RATE: usize = 1000;

/// What all runs share: the services, and where programs are and leave their words.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    rabbit: Arc<Rabbit>,
    redis: Arc<Redis>,
    /// Ours, and what runs the peers' programs; each with why there is none.
    binary: Result<PathBuf>,
    python: Result<PathBuf>,
    node: Result<PathBuf>,
}

impl Stage {
    pub(crate) async fn prepare(systems: &[&System]) -> Result<Self> {
        let wants = |kind: fn(&Kind) -> bool| systems.iter().any(|system| kind(&system.kind));
        let unwanted = || Err(anyhow!("nobody needs it"));
        let binary = if wants(|kind| matches!(kind, Kind::Ours)) { build().await } else { unwanted() };
        let python = if wants(|kind| matches!(kind, Kind::Python(..))) { python().await } else { unwanted() };
        let node =
            if wants(|kind| matches!(kind, Kind::Node(..))) { node_modules().await } else { unwanted() };
        let folder = tempfile::tempdir()?;
        let rabbit = Arc::new(Rabbit::start(RabbitVersion::V3_10, &folder.path().join("rabbit")).await?);
        let redis = Arc::new(Redis::start(&folder.path().join("redis")).await?);
        Ok(Self { folder, rabbit, redis, binary, python, node })
    }

    /// Runs a system on a virtual host and a database of its own, which are gone afterwards.
    pub(crate) async fn run(&self, system: &System, jobs: usize) -> Result<(Sample, Value)> {
        let vhost = self.rabbit.vhost().await?;
        let database = self.redis.database()?;
        let urls = Urls { broker: vhost.url(), state: database.url() };
        let ran = match system.kind {
            Kind::Ours => self.ours(&urls, jobs).await,
            Kind::Python(script, setting) | Kind::Node(script, setting) => {
                // Redis writes each second what it was told; only who relies on it alone has to have it written at once.
                let alone = matches!(system.kind, Kind::Node(_, "durable"));
                self.fsync(if alone { "always" } else { "everysec" }).await?;
                let ran = self.peer(&system.kind, script, setting, &urls, jobs).await;
                self.fsync("everysec").await?;
                ran
            }
        };
        database.cli(&["FLUSHDB"]).await?;
        vhost.delete().await?;
        ran
    }

    async fn fsync(&self, when: &str) -> Result<()> {
        self.redis.cli(0, &["CONFIG", "SET", "appendfsync", when]).await?;
        Ok(())
    }

    /// Our own tool measures both loads in one run.
    async fn ours(&self, urls: &Urls, jobs: usize) -> Result<(Sample, Value)> {
        let jobs = jobs.to_string();
        let program = Program::new("straightline", usable(&self.binary)?, self.folder.path())
            .args(["bench", "--spawn", "--json", "--rounds", "1", "--jobs", &jobs])
            .env("STRAIGHTLINE_BROKER__URL", &urls.broker)
            .env("STRAIGHTLINE_STATE__URL", &urls.state);
        let finished = program.run(RUN_BOUND).await?;
        // It exits with an error where jobs were lost; its figures say how many.
        let found = finished.json().or_else(|_| finished.expect(0)?.json())?;
        let sample = Sample {
            jobs_per_s: number(&found, "/jobs_per_s")?,
            p50_ms: number(&found, "/p50_ms")?,
            p99_ms: number(&found, "/p99_ms")?,
            cpu_s_per_10k: number(&found, "/cpu_s_per_10k")?,
            lost: number(&found, "/lost")? + number(&found, "/failed").unwrap_or(0.0),
            others: 0.0,
            together_per_s: found.pointer("/envelopes/jobs_per_s").and_then(Value::as_f64),
        };
        let settings = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "its defaults: a dispatcher and a worker, quorum queues, confirms, late acknowledgement, results in Redis and sent back",
            "config": found["config"],
        });
        Ok((sample, settings))
    }

    /// A peer is started twice: one load, then the other.
    async fn peer(
        &self,
        kind: &Kind,
        script: &str,
        setting: &str,
        urls: &Urls,
        jobs: usize,
    ) -> Result<(Sample, Value)> {
        let run = async |mode: &str, jobs: usize| {
            let program = match kind {
                Kind::Node(..) => Program::new(script, Path::new("node"), self.folder.path())
                    .env("NODE_PATH", usable(&self.node)?),
                // What Python compiles is kept out of the checkout.
                _ => Program::new(script, usable(&self.python)?, self.folder.path())
                    .env("PYTHONPYCACHEPREFIX", cache().join("peers/pycache")),
            };
            let path = peers().join(script);
            program
                .args([path.as_os_str()])
                .args(["--setting", setting, "--mode", mode, "--jobs", &jobs.to_string()])
                .args(["--broker", &urls.broker, "--state", &urls.state])
                .run(RUN_BOUND)
                .await?
                .expect(0)?
                .json()
        };
        let saturated = run("saturate", jobs).await?;
        let at_rate = run("rate", JOBS_AT_RATE).await?;
        let sample = Sample {
            jobs_per_s: number(&saturated, "/jobs_per_s")?,
            p50_ms: number(&at_rate, "/p50_ms")?,
            p99_ms: number(&at_rate, "/p99_ms")?,
            cpu_s_per_10k: number(&saturated, "/cpu_s")? * 10_000.0 / number(&saturated, "/jobs")?,
            lost: number(&saturated, "/lost")? + number(&at_rate, "/lost")?,
            others: 0.0,
            together_per_s: None,
        };
        Ok((sample, saturated["settings"].clone()))
    }
}

struct Urls {
    broker: String,
    state: String,
}

/// The folder of the peers' programs.
fn peers() -> PathBuf {
    workspace().join("tests/peers")
}

fn usable(prepared: &Result<PathBuf>) -> Result<&Path> {
    prepared.as_deref().map_err(|error| anyhow!("{error:#}"))
}

/// A Python with what `requirements.txt` names.
async fn python() -> Result<PathBuf> {
    let home = cache().join("peers/python");
    let wanted = peers().join("requirements.txt");
    install(&home, &wanted, async || {
        let mut make = owned::command("/usr/bin/python3");
        make.args(["-m", "venv", "--clear"]).arg(&home);
        owned::printed("python3 -m venv", make, INSTALL_BOUND).await?;
        let mut fill = owned::command(home.join("bin/pip"));
        fill.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&wanted);
        owned::printed("pip install", fill, INSTALL_BOUND).await
    })
    .await?;
    Ok(home.join("bin/python"))
}

/// The folder of Node's modules with what `package.json` names.
async fn node_modules() -> Result<PathBuf> {
    let home = cache().join("peers/node");
    let wanted = peers().join("package.json");
    install(&home, &wanted, async || {
        fs::create_dir_all(&home)?;
        fs::copy(&wanted, home.join("package.json"))?;
        let mut fill = owned::command("npm");
        fill.current_dir(&home).args(["install", "--no-audit", "--no-fund", "--no-package-lock"]);
        // A prebuilt part that does not run is done without; nothing is compiled here.
        fill.args(["--ignore-scripts", "--loglevel", "error"]);
        owned::printed("npm install", fill, INSTALL_BOUND).await
    })
    .await?;
    Ok(home.join("node_modules"))
}

/// Fills a folder unless it was filled for the same list, of which it keeps a copy.
async fn install(home: &Path, wanted: &Path, fill: impl AsyncFnOnce() -> Result<String>) -> Result<()> {
    let (list, kept) = (fs::read(wanted)?, home.join("installed-for"));
    if fs::read(&kept).is_ok_and(|kept| kept == list) {
        return Ok(());
    }
    eprintln!("preparing {}", home.display());
    fill().await?;
    Ok(fs::write(kept, list)?)
}

fn number(found: &Value, at: &str) -> Result<f64> {
    found.pointer(at).and_then(Value::as_f64).with_context(|| format!("no number at {at} in {found}"))
}

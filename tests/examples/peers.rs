//! StraightLine and its peers side by side: Celery, Dramatiq, BullMQ and two HTTP model servers, against the same RabbitMQ and
//! Redis in interleaved rounds. Prints the table of `docs/PEERS.md`:
//!
//! ```sh
//! cargo run --release -p tests --example peers -- --rounds 3 --jobs 2000 --only straightline,celery --json peers.json
//! ```
//!
//! Each peer is a program in `tests/peers` that starts its own workers, measures itself and prints one JSON object. What they
//! need is installed into the tests' cache on first use. Who cannot be had or fails is left out by name, with the reason.

#![expect(clippy::print_stdout, reason = "a program that prints its measurements")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tests::owned;
use tests::process::{Program, build, workspace};
use tests::services::{Rabbit, RabbitVersion, Redis, cache};

/// One run of one system, its start and end included.
const RUN_BOUND: Duration = Duration::from_secs(240);
const INSTALL_BOUND: Duration = Duration::from_secs(15 * 60);
/// Five seconds at the 200 jobs a second that latency is measured at.
const JOBS_AT_RATE: usize = 1000;
const OURS: &str = "StraightLine";

/// A system under one of its settings.
struct System {
    name: &'static str,
    kind: Kind,
    /// How many jobs it gets, in percent of `--jobs`, so that all run for a few seconds.
    share: usize,
}

enum Kind {
    Ours,
    /// A program in `tests/peers` and which of its settings.
    Python(&'static str, &'static str),
    Node(&'static str, &'static str),
}

/// Ours first: all others are told as ratios to it.
const SYSTEMS: &[System] = &[
    System { name: OURS, kind: Kind::Ours, share: 1000 },
    System { name: "Celery, durable", kind: Kind::Python("celery_peer.py", "durable"), share: 100 },
    System { name: "Celery, defaults", kind: Kind::Python("celery_peer.py", "defaults"), share: 100 },
    System { name: "Dramatiq, durable", kind: Kind::Python("dramatiq_peer.py", "durable"), share: 100 },
    System { name: "Dramatiq, defaults", kind: Kind::Python("dramatiq_peer.py", "defaults"), share: 200 },
    System { name: "BullMQ, durable", kind: Kind::Node("bullmq.js", "durable"), share: 1000 },
    System { name: "BullMQ, defaults", kind: Kind::Node("bullmq.js", "defaults"), share: 1000 },
    System { name: "Mosec", kind: Kind::Python("mosec_peer.py", "single"), share: 1000 },
    System { name: "Mosec, batching", kind: Kind::Python("mosec_peer.py", "batching"), share: 2500 },
    System { name: "LitServe", kind: Kind::Python("litserve_peer.py", "best"), share: 150 },
    System { name: "LitServe, defaults", kind: Kind::Python("litserve_peer.py", "defaults"), share: 100 },
];

/// What one round found.
#[derive(Clone, Copy)]
struct Sample {
    jobs_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_s_per_10k: f64,
    lost: f64,
    /// Where small jobs travel together; ours alone.
    together_per_s: Option<f64>,
}

#[derive(Default)]
struct Measured {
    samples: Vec<Sample>,
    /// The system's version and settings, in its own words.
    settings: Value,
    left_out: Option<String>,
}

fn main() -> Result<()> {
    let options = Options::read(std::env::args().skip(1))?;
    tokio::runtime::Runtime::new()?.block_on(measure(&options))
}

struct Options {
    rounds: usize,
    jobs: usize,
    only: Vec<String>,
    json: Option<PathBuf>,
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self { rounds: 3, jobs: 2000, only: Vec::new(), json: None };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} takes a value"))?;
            match word.as_str() {
                "--rounds" => options.rounds = value.parse().context("--rounds takes a number")?,
                "--jobs" => options.jobs = value.parse().context("--jobs takes a number")?,
                "--only" => options.only = value.to_lowercase().split(',').map(str::to_owned).collect(),
                "--json" => options.json = Some(value.into()),
                _ => bail!("{word} is none of --rounds, --jobs, --only, --json"),
            }
        }
        Ok(options)
    }

    fn wants(&self, system: &System) -> bool {
        let name = system.name.to_lowercase();
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only))
    }
}

async fn measure(options: &Options) -> Result<()> {
    let systems: Vec<&System> = SYSTEMS.iter().filter(|system| options.wants(system)).collect();
    let stage = Stage::prepare(&systems).await?;
    let mut measured: BTreeMap<&str, Measured> = BTreeMap::new();
    for round in 0..options.rounds {
        // Whoever runs after a heavy one is not always the same.
        for at in 0..systems.len() {
            let system = systems[(at + round) % systems.len()];
            let found = measured.entry(system.name).or_default();
            if found.left_out.is_some() {
                continue;
            }
            eprintln!("round {} of {}: {}", round + 1, options.rounds, system.name);
            match stage.run(system, options.jobs * system.share / 100).await {
                Ok((sample, settings)) => {
                    found.samples.push(sample);
                    found.settings = settings;
                }
                Err(error) => found.left_out = Some(format!("{error:#}")),
            }
        }
    }
    let services = format!("RabbitMQ {}, Redis {}", RabbitVersion::V3_10.installed()?, Redis::installed()?);
    print_table(&systems, &measured, &services);
    if let Some(path) = &options.json {
        let systems: BTreeMap<_, _> = measured.iter().map(|(name, found)| (name, found.json())).collect();
        let whole = json!({"services": services, "rounds": options.rounds, "systems": systems});
        fs::write(path, format!("{whole:#}\n"))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// What all runs share: the services, and where programs are and leave their words.
struct Stage {
    folder: tempfile::TempDir,
    rabbit: Arc<Rabbit>,
    redis: Arc<Redis>,
    /// Ours, and what runs the peers' programs; each with why there is none.
    binary: Result<PathBuf>,
    python: Result<PathBuf>,
    node: Result<PathBuf>,
}

impl Stage {
    async fn prepare(systems: &[&System]) -> Result<Self> {
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
    async fn run(&self, system: &System, jobs: usize) -> Result<(Sample, Value)> {
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
        let found = program.run(RUN_BOUND).await?.expect(0)?.json()?;
        let sample = Sample {
            jobs_per_s: number(&found, "/jobs_per_s")?,
            p50_ms: number(&found, "/p50_ms")?,
            p99_ms: number(&found, "/p99_ms")?,
            cpu_s_per_10k: number(&found, "/cpu_s_per_10k")?,
            lost: number(&found, "/lost")?,
            together_per_s: found.pointer("/envelopes/jobs_per_s").and_then(Value::as_f64),
        };
        let settings = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "its defaults: quorum queues, confirms, late acknowledgement, results recorded in Redis and sent back",
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

impl Measured {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn jobs_per_s(&self) -> Option<f64> {
        self.median(|sample| sample.jobs_per_s)
    }

    fn json(&self) -> Value {
        let sample = |sample: &Sample| {
            json!({
                "jobs_per_s": sample.jobs_per_s,
                "p50_ms": sample.p50_ms,
                "p99_ms": sample.p99_ms,
                "cpu_s_per_10k": sample.cpu_s_per_10k,
                "lost": sample.lost,
                "together_per_s": sample.together_per_s,
            })
        };
        let samples: Vec<Value> = self.samples.iter().map(sample).collect();
        json!({"settings": self.settings, "samples": samples, "left_out": self.left_out})
    }
}

fn print_table(systems: &[&System], measured: &BTreeMap<&str, Measured>, services: &str) {
    let ours = measured.get(OURS).and_then(Measured::jobs_per_s);
    let ratio = |theirs: f64| {
        ours.map_or_else(|| "to be measured".to_owned(), |ours| format!("{:.2}", ours / theirs))
    };
    println!("{services}\n");
    println!(
        "| system | settings | jobs/s | StraightLine to it | p50 / p99 at 200 jobs/s | CPU s per 10,000 jobs |"
    );
    println!("|---|---|---|---|---|---|");
    let (kept, left_out): (Vec<_>, Vec<_>) = systems
        .iter()
        .map(|system| (system.name, &measured[system.name]))
        .partition(|(_, found)| found.left_out.is_none());
    for (name, found) in kept {
        let Some(jobs_per_s) = found.jobs_per_s() else { continue };
        let of = |field: fn(&Sample) -> f64| found.median(field).unwrap_or(f64::NAN);
        let lost: f64 = found.samples.iter().map(|sample| sample.lost).sum();
        let lost = if lost > 0.0 { format!(", **{lost} lost**") } else { String::new() };
        let settings = found.settings["summary"].as_str().unwrap_or_default();
        println!(
            "| {name} {} | {settings} | {jobs_per_s:.0}{lost} | {} | {:.1} / {:.1} ms | {:.1} |",
            found.settings["version"].as_str().unwrap_or_default(),
            ratio(jobs_per_s),
            of(|sample| sample.p50_ms),
            of(|sample| sample.p99_ms),
            of(|sample| sample.cpu_s_per_10k),
        );
        if let Some(together) =
            found.median(|sample| sample.together_per_s.unwrap_or(f64::NAN)).filter(|rate| rate.is_finite())
        {
            println!("| {name}, small jobs together | as above | {together:.0} | {} | | |", ratio(together));
        }
    }
    for (name, found) in left_out {
        println!("\nleft out: {name}: {}", found.left_out.as_deref().unwrap_or_default());
    }
}

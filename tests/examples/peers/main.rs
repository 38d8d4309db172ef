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

mod machine;
mod stage;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail};
use serde_json::{Value, json};
use tests::services::{RabbitVersion, Redis};

use stage::Stage;

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
    /// Cores that went to processes of others meanwhile.
    others: f64,
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
    let mut measured: Vec<Measured> = systems.iter().map(|_| Measured::default()).collect();
    for round in 0..options.rounds {
        // Whoever runs after a heavy one is not always the same.
        for turn in 0..systems.len() {
            let at = (turn + round) % systems.len();
            let (system, found) = (systems[at], &mut measured[at]);
            if found.left_out.is_some() {
                continue;
            }
            eprintln!("round {} of {}: {}", round + 1, options.rounds, system.name);
            let began = machine::Moment::now()?;
            match stage.run(system, options.jobs * system.share / 100).await {
                Ok((mut sample, settings)) => {
                    sample.others = began.others_since()?;
                    found.samples.push(sample);
                    found.settings = settings;
                }
                Err(error) => found.left_out = Some(in_short(&error)),
            }
        }
    }
    let services = format!("RabbitMQ {}, Redis {}", RabbitVersion::V3_10.installed()?, Redis::installed()?);
    let named: Vec<(&str, Measured)> = systems.iter().map(|system| system.name).zip(measured).collect();
    print_table(&named, &services);
    if let Some(path) = &options.json {
        let systems: Vec<Value> = named.iter().map(|(name, found)| found.json(name)).collect();
        let whole = json!({"services": services, "jobs": options.jobs, "systems": systems});
        fs::write(path, format!("{whole:#}\n"))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// What failed and its last words, in a line.
fn in_short(error: &Error) -> String {
    let text = format!("{error:#}");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    lines.next_back().map_or_else(|| first.clone(), |last| format!("{first}: {last}"))
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

    fn json(&self, name: &str) -> Value {
        let sample = |sample: &Sample| {
            json!({
                "jobs_per_s": sample.jobs_per_s,
                "p50_ms": sample.p50_ms,
                "p99_ms": sample.p99_ms,
                "cpu_s_per_10k": sample.cpu_s_per_10k,
                "lost": sample.lost,
                "others": sample.others,
                "together_per_s": sample.together_per_s,
            })
        };
        let samples: Vec<Value> = self.samples.iter().map(sample).collect();
        json!({"name": name, "settings": self.settings, "samples": samples, "left_out": self.left_out})
    }
}

fn print_table(systems: &[(&str, Measured)], services: &str) {
    let ours = systems.iter().find(|(name, _)| *name == OURS).and_then(|(_, found)| found.jobs_per_s());
    let ratio = |theirs: f64| {
        ours.map_or_else(|| "to be measured".to_owned(), |ours| format!("{:.2}", ours / theirs))
    };
    println!("{services}\n");
    println!(
        "| system | settings | jobs/s | StraightLine to it | p50 / p99 at 200 jobs/s | CPU s per 10,000 jobs | cores others had |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, found) in systems {
        let (Some(jobs_per_s), None) = (found.jobs_per_s(), &found.left_out) else { continue };
        let of = |field: fn(&Sample) -> f64| found.median(field).unwrap_or(f64::NAN);
        let lost: f64 = found.samples.iter().map(|sample| sample.lost).sum();
        let lost = if lost > 0.0 { format!(", **{lost} lost**") } else { String::new() };
        println!(
            "| {name} {} | {} | {jobs_per_s:.0}{lost} | {} | {:.1} / {:.1} ms | {:.1} | {:.2} |",
            found.settings["version"].as_str().unwrap_or_default(),
            found.settings["summary"].as_str().unwrap_or_default(),
            ratio(jobs_per_s),
            of(|sample| sample.p50_ms),
            of(|sample| sample.p99_ms),
            of(|sample| sample.cpu_s_per_10k),
            of(|sample| sample.others),
        );
        let together = of(|sample| sample.together_per_s.unwrap_or(f64::NAN));
        if together.is_finite() {
            println!(
                "| {name}, small jobs together | as above | {together:.0} | {} | | | |",
                ratio(together)
            );
        }
    }
    for (name, found) in systems {
        if let Some(reason) = &found.left_out {
            println!("\nleft out: {name}: {reason}");
        }
    }
}

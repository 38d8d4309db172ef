//! What each lane costs: its cold start, a warm run, and its overhead per job over the model itself, at 1 KiB and 1 MiB.
//! Prints the table of `docs/LANES.md`:
//!
//! ```sh
//! cargo run --release -p tests --example lanes
//! ```
//!
//! One job at a time, the lanes in turn within every round, medians over the rounds. Needs what `tests/run` installs,
//! and root for its private Docker engine; without one the docker lane is left out.

#![expect(clippy::print_stdout, reason = "a program that prints its measurements")]

use anyhow::{Result, ensure};
use schemas::{JobId, ModelName, Payload, Tensor};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::ports;
use tests::process::{Program, build, workspace};
use tests::services;
use tests::until::until;
use workers::catalog::Catalog;
use workers::docker::{self, Docker};
use workers::lane::{Executor, Task};
use workers::local::beside::{self, Beside};
use workers::local::{self, Local};
use workers::serverless::host::{self, Function, Host};
use workers::serverless::{self, Functions, Serverless};

const MODEL: &str = "digits";
const COLD_ROUNDS: usize = 7;
/// Bytes of input, images of it (64 FP32 each), and rounds.
const SIZES: [(&str, u64, usize); 2] = [("1 KiB", 4, 400), ("1 MiB", 4096, 60)];
const BOUND: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let binary = build().await?;
    let engine = match services::Docker::start(&folder.path().join("d")).await {
        Ok(engine) => Some(engine),
        Err(error) => {
            eprintln!("the docker lane is left out: {error:#}");
            None
        }
    };
    let server = format!("127.0.0.1:{}", ports::free());
    let mut serving = Program::new("serve", &binary, folder.path())
        .args(["serve", "--listen", &server, "--model", MODEL, "--slots", "1"])
        .start()?;
    serving.ready_http(&format!("http://{server}/v2/health/ready"), BOUND).await?;

    let mut lanes: Vec<(&str, Option<f64>, Arc<dyn Executor>)> = Vec::new();
    lanes.push(("local: in the worker", Some(cold_local().await?), Arc::new(local()?)));
    lanes.push(("local: a server beside it", None, beside(&server).await?));
    if let Some(engine) = &engine {
        let took = cold(async || docker(engine, &binary).await).await?;
        lanes.push(("docker: a container", Some(took), docker(engine, &binary).await?));
    }
    let took = cold(async || functions(&binary).await).await?;
    lanes.push(("serverless: the function host", Some(took), functions(&binary).await?));

    let mut rows = vec![String::new(); lanes.len()];
    for (_, images, rounds) in SIZES {
        for (row, cells) in rows.iter_mut().zip(warm(&lanes, images, rounds).await?) {
            *row += &cells;
        }
    }
    println!(
        "| lane | cold start | a warm job of 1 KiB | over the model | a warm job of 1 MiB | over the model |"
    );
    println!("|---|---|---|---|---|---|");
    for ((name, cold, _), row) in lanes.iter().zip(rows) {
        let cold = cold.map_or_else(|| "its own".to_owned(), |ms| format!("{ms:.0} ms"));
        println!("| {name} | {cold} |{row}");
    }
    for (_, _, lane) in &lanes {
        lane.stop().await;
    }
    serving.term()?;
    serving.finish(BOUND).await?.expect(0)?;
    Ok(())
}

/// For each lane two cells: a job's time as its caller sees it, and what of it is not the model's.
async fn warm(
    lanes: &[(&str, Option<f64>, Arc<dyn Executor>)],
    images: u64,
    rounds: usize,
) -> Result<Vec<String>> {
    let input = digits(images)?;
    let mut took = vec![(Vec::new(), Vec::new()); lanes.len()];
    for round in 0..=rounds {
        for ((_, _, lane), (whole, over)) in lanes.iter().zip(&mut took) {
            let task = task(input.clone())?;
            let began = Instant::now();
            let ran = lane.run(task).await?;
            let all = began.elapsed();
            // The first finds nothing warm.
            if round > 0 {
                whole.push(micros(all));
                over.push(micros(all.saturating_sub(ran.run_time)));
            }
        }
    }
    let cells = took.iter_mut().map(|(whole, over)| {
        let mut cells = String::new();
        for times in [whole, over] {
            write!(cells, " {} |", shown(median(times))).expect("writing to a String cannot fail");
        }
        cells
    });
    Ok(cells.collect())
}

/// From a lane that has nothing running to the answer to its first job, less a warm one: milliseconds.
async fn cold(start: impl AsyncFn() -> Result<Arc<dyn Executor>>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..COLD_ROUNDS {
        let lane = start().await?;
        let mut took = Vec::new();
        for _ in 0..2 {
            let task = task(digits(1)?)?;
            let began = Instant::now();
            lane.run(task).await?;
            took.push(micros(began.elapsed()));
        }
        times.push((took[0] - took[1]) / 1000.0);
        lane.stop().await;
    }
    Ok(median(&mut times))
}

/// The worker's own models are loaded when it starts: that is their cold start.
async fn cold_local() -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..COLD_ROUNDS {
        let began = Instant::now();
        let lane = local()?;
        times.push(micros(began.elapsed()) / 1000.0);
        lane.stop().await;
    }
    Ok(median(&mut times))
}

fn local() -> Result<Local> {
    let catalog = Catalog::new().with_folder(&workspace().join("models"))?.only(&[name()?])?;
    Ok(Local::start(local::Config { slots: 1, abandoned_max: 0 }, &catalog)?)
}

async fn ready(lane: Arc<dyn Executor>) -> Result<Arc<dyn Executor>> {
    until(BOUND, "the lane takes jobs", async || {
        ensure!(lane.capacity().borrow().slots > 0, "it has no slots");
        Ok(())
    })
    .await?;
    Ok(lane)
}

async fn beside(server: &str) -> Result<Arc<dyn Executor>> {
    let config = beside::Config {
        url: format!("http://{server}"),
        slots: 1,
        models: vec![name()?],
        binary: true,
        answer_bytes_max: 64 << 20,
    };
    ready(Arc::new(Beside::start(config)?)).await
}

async fn docker(engine: &services::Docker, binary: &Path) -> Result<Arc<dyn Executor>> {
    let config = docker::Config {
        host: engine.host(),
        worker: "measured".to_owned(),
        models: vec![name()?],
        program: Some(binary.to_owned()),
        ..docker::Config::default()
    };
    let lane = ready(Arc::new(Docker::start(config)?)).await?;
    until(BOUND, "the image is made", async || {
        let images = engine.cli(&["image", "ls", "--quiet"]).await?;
        ensure!(!images.is_empty(), "there is none");
        Ok(())
    })
    .await?;
    Ok(lane)
}

async fn functions(binary: &Path) -> Result<Arc<dyn Executor>> {
    let command = vec![binary.into(), "function".into(), "--model".into(), MODEL.into()];
    let config = host::Config {
        functions: BTreeMap::from([(name()?, Function::new(command))]),
        keeper: vec![binary.into(), "keep".into()],
        ..host::Config::default()
    };
    let host = Arc::new(Host::start(config).await?) as Arc<dyn Functions>;
    Ok(Arc::new(Serverless::new(&serverless::Config::default(), host, vec![name()?])?))
}

fn name() -> Result<ModelName> {
    Ok(ModelName::new(MODEL)?)
}

fn digits(images: u64) -> Result<Payload> {
    let pixels: Vec<f32> = (0..images * 64).map(|at| f32::from(u8::try_from(at % 17).unwrap_or(0))).collect();
    Ok(Payload::Tensors(vec![Tensor::fp32("image", [images, 64], &pixels)?]))
}

fn task(input: Payload) -> Result<Task> {
    Ok(Task {
        id: JobId::new(),
        model: name()?,
        attempt: 1,
        input,
        // Ten numbers and a label an image would be as much again on the way back.
        outputs: vec!["label".to_owned()],
        parameters: BTreeMap::new(),
        limit: BOUND,
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn shown(micros: f64) -> String {
    if micros < 1000.0 { format!("{micros:.0} µs") } else { format!("{:.1} ms", micros / 1000.0) }
}

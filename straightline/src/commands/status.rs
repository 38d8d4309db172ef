//! `status`: queues, lanes, workers, rates.

use crate::access::{self, Http};
use crate::config::Settings;
use crate::station::Parts;
use crate::{cli, print};
use anyhow::Result;
use producer::operations::{LaneStatus, Service, Status};
use schemas::heartbeat::{Gpu, Instances, WorkerReport};
use schemas::{Lane, ModelName, UnixMillis};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);
/// So many of a lane's models are named.
const MODELS_SHOWN: usize = 12;
/// Clears the terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Runs it; true if broker and state answer.
pub async fn run(settings: Settings, options: &cli::Status) -> Result<bool> {
    let mut way = match access::http(&settings, &options.server)? {
        Some(http) => Way::Http(http),
        None => Way::Direct(Box::new(Parts::open(settings).await?)),
    };
    let shown = show(&mut way, options).await;
    if let Way::Direct(parts) = way {
        parts.close().await;
    }
    shown
}

/// How it is learnt.
enum Way {
    Direct(Box<Parts>),
    Http(Http),
}

async fn show(way: &mut Way, options: &cli::Status) -> Result<bool> {
    loop {
        let status: Status = match way {
            Way::Direct(parts) => parts.status().await?,
            Way::Http(http) => http.get("/v1/status").await?,
        };
        let text = if options.json { serde_json::to_string(&status)? + "\n" } else { table(&status) };
        print::text(&if options.watch && !options.json { format!("{CLEAR}{text}") } else { text })?;
        if !options.watch {
            return Ok(status.broker.healthy && status.state.healthy);
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = tokio::signal::ctrl_c() => return Ok(true),
        }
    }
}

fn table(status: &Status) -> String {
    let mut out = String::new();
    let mut line =
        |text: String| writeln!(out, "{}", text.trim_end()).expect("writing to a String cannot fail");
    line(format!("broker  {}", service(&status.broker)));
    line(format!("state   {}", service(&status.state)));
    if let Some(problem) = &status.dispatching.problem {
        line(format!("jobs    {problem}"));
    }
    line(format!("\n{:<24} {:>10} {:>10} {:>10}", "queue", "ready", "unacked", "consumers"));
    for queue in &status.queues {
        // Retry and wait queues are many and mostly empty; a queue that should be there and is not is news.
        let quiet = queue.ready == 0 && queue.unacked.unwrap_or(0) == 0;
        let minor = queue.name.starts_with("retry.") || queue.name.starts_with("wait.");
        if quiet && minor && queue.exists {
            continue;
        }
        let unacked = queue.unacked.map_or_else(|| "-".to_owned(), |unacked| unacked.to_string());
        let missing = if queue.exists { "" } else { "  missing!" };
        line(format!(
            "{:<24} {:>10} {unacked:>10} {:>10}{missing}",
            queue.name, queue.ready, queue.consumers
        ));
    }
    line(format!("in dispatchers' hands: {}", status.intake.unacked));
    line(format!(
        "\n{:<11} {:>7} {:>5} {:>7} {:>10} {:>5} {:>7}",
        "lane", "workers", "slots", "running", "prefetched", "room", "jobs/s"
    ));
    for lane in &status.lanes {
        line(lane_row(lane, status.at));
        let models = models_of(lane.lane, &status.workers);
        if !models.is_empty() {
            line(format!("{:<11} runs {models}", ""));
        }
    }
    line(format!("\n{:<32} {:<11} {:>8} {:>6} {:>10}", "worker", "lane", "running", "cpu", "memory"));
    for worker in &status.workers {
        let cpu =
            worker.resources.cpu_used.map_or_else(|| "-".to_owned(), |used| format!("{:.0}%", used * 100.0));
        let memory = worker.resources.process_memory_bytes;
        let memory = memory.map_or_else(|| "-".to_owned(), |bytes| bytesize::ByteSize(bytes).to_string());
        let draining = if worker.draining { "  draining" } else { "" };
        line(format!(
            "{:<32} {:<11} {:>3} of {:<3} {cpu:>4} {memory:>10}{draining}",
            worker.worker,
            worker.lane.as_str(),
            worker.running,
            worker.slots
        ));
        let lane = status.lanes.iter().find(|lane| lane.lane == worker.lane);
        for text in backend_rows(worker, lane.and_then(|lane| lane.note.as_deref()).unwrap_or_default()) {
            line(format!("  {text}"));
        }
    }
    line(format!("\n{:<32} {:<14} {:>8} {:>9}", "dispatcher", "policy", "held", "placed/s"));
    for dispatcher in &status.dispatchers {
        line(format!(
            "{:<32} {:<14} {:>8} {:>9.1}",
            dispatcher.dispatcher, dispatcher.policy, dispatcher.held, dispatcher.placed_per_s
        ));
    }
    let dead = status.dead.map_or_else(|| "unknown".to_owned(), |dead| dead.to_string());
    line(format!("\ndead jobs: {dead}"));
    out
}

fn service(service: &Service) -> String {
    match &service.problem {
        None if service.healthy => "up".to_owned(),
        None => "away".to_owned(),
        Some(problem) => problem.clone(),
    }
}

/// The models that jobs can be run of in `lane`.
fn models_of(lane: Lane, workers: &[WorkerReport]) -> String {
    let taking = workers.iter().filter(|worker| worker.lane == lane && !worker.draining);
    let models: BTreeSet<_> = taking.flat_map(|worker| &worker.models).map(ModelName::as_str).collect();
    let more = models.len().saturating_sub(MODELS_SHOWN);
    let shown = models.into_iter().take(MODELS_SHOWN).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more (--json has all)") }
}

/// Who runs a worker's jobs, and what that one has started. Why it runs none is left out where the lane's note has `told`
/// it.
fn backend_rows(worker: &WorkerReport, told: &str) -> Vec<String> {
    let gpus = worker.resources.gpus.iter().flatten().map(gpu_row);
    let Some(backend) = &worker.backend else { return gpus.collect() };
    let waiting = if backend.waiting == 0 { String::new() } else { format!(", {} waiting", backend.waiting) };
    let problem = backend.problem.as_ref().filter(|problem| !told.contains(*problem));
    let problem = problem.map(|problem| format!(": {problem}")).unwrap_or_default();
    let instances = backend.instances.iter().map(instances_row);
    std::iter::once(format!("{}{waiting}{problem}", backend.name)).chain(instances).chain(gpus).collect()
}

fn instances_row(of: &Instances) -> String {
    let counts = [(of.starting, "starting"), (of.idle, "idle"), (of.busy, "busy"), (of.leaving, "leaving")];
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let counts: Vec<_> = counts.collect();
    let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
    let ids = if of.ids.is_empty() { String::new() } else { format!("  {}", of.ids.join(" ")) };
    let problem = of.problem.as_ref().map(|problem| format!("  {problem}")).unwrap_or_default();
    format!("  {:<20} {counts}{ids}{problem}", of.model.as_str())
}

fn gpu_row(gpu: &Gpu) -> String {
    let unknown = || "unknown".to_owned();
    let bytes =
        |bytes: Option<u64>| bytes.map_or_else(unknown, |bytes| bytesize::ByteSize(bytes).to_string());
    format!(
        "GPU {} {}: memory {} of {} in use, load {}",
        gpu.index,
        gpu.name.as_deref().unwrap_or("unknown"),
        bytes(gpu.memory_used_bytes),
        bytes(gpu.memory_bytes),
        gpu.used.map_or_else(unknown, |used| format!("{:.0}%", used * 100.0))
    )
}

fn lane_row(lane: &LaneStatus, now: UnixMillis) -> String {
    let room = lane.room.map_or_else(|| "-".to_owned(), |room| room.to_string());
    let note = lane.note.as_deref().map_or_else(String::new, |note| format!("  {note}"));
    let failure = lane.last_failure.as_ref().map(|last| {
        format!(
            "\n{:<11} last failed attempt, {} s ago, of {} ({} so far): {}",
            "",
            now.since(last.at).as_secs(),
            last.model,
            last.total,
            last.failure
        )
    });
    let failure = failure.unwrap_or_default();
    format!(
        "{:<11} {:>7} {:>5} {:>7} {:>10} {room:>5} {:>7.1}{note}{failure}",
        lane.lane.as_str(),
        lane.workers,
        lane.slots,
        lane.running,
        lane.prefetched,
        lane.completed_per_s
    )
}

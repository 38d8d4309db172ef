//! `demo`: real handwritten digits, recognised by real models, over durable queues in one process.

use crate::builtin::{self, Digit, PIXELS};
use crate::cli;
use crate::config::{Services, Settings};
use crate::roles;
use crate::station::Station;
use anyhow::Result;
use futures_util::{Stream, StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use producer::Submission;
use producer::operations::{self, LaneStatus};
use report::Report;
use schemas::{Class, JobResult, Lane, ModelName, Payload, Tensor};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use workers::worker::Worker;

mod report;

/// Jobs that arrive per second, on average: far above what counts as frequent for one model, and below what two
/// cores can do.
const ARRIVALS_PER_S: f64 = 400.0;
/// Of a hundred jobs, so many are large (a batch of images), and so many ask for the heavier model.
const LARGE_PERCENT: u32 = 2;
const HEAVY_PERCENT: u32 = 3;
/// Images in a large job: enough to be over the size threshold.
const BATCH: usize = 400;
/// A fixed seed: every run sends the same jobs.
const SEED: u64 = 1898;
/// How long the demo waits for any one job.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a lane may take to be there, and how often it is looked for.
const LANES_PATIENCE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);
/// Functions and containers at once: enough to show them, on a machine of a few cores.
const SLOTS: u32 = 2;

/// A job of the demo: what to submit, and the labels to compare the answer with.
struct Job {
    model: &'static str,
    class: Class,
    images: Vec<usize>,
}

/// Runs the demo; true if every job came back.
pub async fn run(mut settings: Settings, options: &cli::Demo) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    settings.broker.url = None;
    settings.state.url = None;
    settings.storage.dir = folder.path().to_owned();
    settings.storage.blobs = None;
    settings.serverless.concurrency_max = SLOTS;
    settings.docker.containers_max = SLOTS;
    settings.check(Services::Together)?;
    let station = Station::open(settings).await?;
    let workers = workers(&station).await?;
    let dispatcher = roles::dispatch(&station, None)?;
    let client = station.client().await?;

    let digits = builtin::held_out();
    let jobs = jobs(options.jobs, digits.len());
    let progress = progress(jobs.len(), options.json);
    let submitted = Arc::new(Mutex::new(vec![None; jobs.len()]));
    let arrivals = arrivals(submissions(&jobs, &digits)?, Arc::clone(&submitted));
    let mut report = Report::new(jobs.len());
    let mut results = Box::pin(client.run_many(arrivals));
    while let Some(done) = results.next().await {
        let sent = submitted.lock().unwrap_or_else(PoisonError::into_inner)[done.index];
        let took = sent.map_or(Duration::ZERO, |sent: Instant| sent.elapsed());
        let job = &jobs[done.index];
        match done.outcome {
            Ok(result) => {
                report.add(done.index, &result, took, recognised(&result, job, &digits), job.images.len())
            }
            Err(error) => report.missing(done.index, &error.to_string()),
        }
        progress.inc(1);
    }
    drop(results);
    progress.finish_and_clear();
    let lanes = operations::status(station.broker.as_ref(), station.state.as_ref()).await.lanes;
    client.close(Duration::ZERO).await;
    dispatcher.drain().await?;
    for worker in &workers {
        worker.drain();
        worker.join().await?;
    }
    station.close().await;
    print(&report, &lanes, options.json)?;
    Ok(report.complete())
}

/// A worker of every lane. Docker has a moment to answer; where it does not, its lane takes no jobs, and the report says so.
async fn workers(station: &Station) -> Result<Vec<Worker>> {
    let mut workers = Vec::new();
    for lane in Lane::ALL {
        let name = roles::process_name(lane.as_str());
        workers.push(roles::work(station, lane, roles::catalog(&station.settings)?, Some(name)).await?);
    }
    let all_there = async {
        loop {
            let status = operations::status(station.broker.as_ref(), station.state.as_ref()).await;
            if status.lanes.iter().all(|lane| lane.available) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(LANES_PATIENCE, all_there).await;
    Ok(workers)
}

/// The same mixture in every run: mostly single images, some batches, some for the heavier model.
fn jobs(count: u32, images: usize) -> Vec<Job> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut job = |_| {
        let kind = random.u32(0..100);
        let (model, length) = match kind {
            _ if kind < LARGE_PERCENT => ("digits", BATCH),
            _ if kind < LARGE_PERCENT + HEAVY_PERCENT => ("digits-conv", 1),
            _ => ("digits", 1),
        };
        let class = [Class::Normal, Class::Normal, Class::High, Class::Low][random.usize(0..4)];
        Job { model, class, images: (0..length).map(|_| random.usize(0..images)).collect() }
    };
    (0..count).map(&mut job).collect()
}

fn submissions(jobs: &[Job], digits: &[Digit]) -> Result<Vec<Submission>> {
    let submission = |job: &Job| {
        let pixels: Vec<f32> = job.images.iter().flat_map(|at| digits[*at].pixels).collect();
        let image = Tensor::fp32("image", [job.images.len() as u64, PIXELS as u64], &pixels)?;
        let mut submission = Submission::new(ModelName::new(job.model)?, Payload::Tensors(vec![image]));
        submission.class = job.class;
        submission.deadline = PATIENCE;
        Ok(submission)
    };
    jobs.iter().map(submission).collect()
}

/// Submissions that arrive at random (exponential gaps), noting when each one does.
fn arrivals(
    submissions: Vec<Submission>,
    submitted: Arc<Mutex<Vec<Option<Instant>>>>,
) -> Pin<Box<dyn Stream<Item = Submission> + Send>> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut due = tokio::time::Instant::now();
    let timed = submissions.into_iter().enumerate().map(move |(at, submission)| {
        due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / ARRIVALS_PER_S);
        (at, due, submission)
    });
    Box::pin(stream::iter(timed.collect::<Vec<_>>()).then(move |(at, due, submission)| {
        let submitted = Arc::clone(&submitted);
        async move {
            tokio::time::sleep_until(due).await;
            submitted.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(Instant::now());
            submission
        }
    }))
}

/// How many of the job's images got their right label.
fn recognised(result: &JobResult, job: &Job, digits: &[Digit]) -> usize {
    let labels = result.output.as_ref().and_then(|output| output.tensor("label")).and_then(Tensor::as_int64);
    let Some(labels) = labels else { return 0 };
    job.images.iter().zip(labels).filter(|(image, label)| digits[**image].label == *label).count()
}

fn progress(jobs: usize, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {bar:40} {pos}/{len} jobs, {per_sec}, {elapsed}");
    ProgressBar::new(jobs as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn print(report: &Report, lanes: &[LaneStatus], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(&report.json(lanes))?);
    } else {
        print!("{}", report.table(lanes));
    }
    Ok(())
}

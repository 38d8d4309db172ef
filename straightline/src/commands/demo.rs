//! `demo`: real handwritten digits, recognised by real models, over durable queues in one process.

use crate::builtin::{self, Digit, PIXELS};
use crate::cli;
use crate::config::{Services, Settings};
use crate::station::Station;
use crate::stopping::{self, Interrupted, Stop};
use crate::{print, roles};
use anyhow::Result;
use dispatcher::Dispatcher;
use futures_util::{Stream, StreamExt, stream};
use indicatif::ProgressBar;
use producer::operations;
use producer::{Client, Submission};
use report::Report;
use schemas::{Class, JobResult, Lane, ModelName, Payload, Tensor};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
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

/// Runs the demo; true if every job came back. A signal ends it in order: nothing is left running, and its folder goes.
pub async fn run(mut settings: Settings, options: &cli::Demo) -> Result<bool> {
    let mut stop = stopping::watch_quietly()?;
    let folder = tempfile::tempdir()?;
    settings.broker.url = None;
    settings.state.url = None;
    settings.storage.dir = folder.path().to_owned();
    settings.storage.blobs = None;
    settings.serverless.concurrency_max = SLOTS;
    settings.docker.containers_max = SLOTS;
    settings.check(Services::Together)?;
    let station = Station::open(settings).await?;
    let workers = workers(&station, &mut stop).await?;
    let dispatcher = roles::dispatch(&station, None)?;
    let client = station.client().await?;
    let report = watch_jobs(&client, options, &mut stop).await?;
    let lanes = operations::status(Ok(station.broker.as_ref()), station.state.as_ref()).await.lanes;
    client.close(Duration::ZERO).await;
    let interrupted = *stop.borrow() != Stop::No;
    end(&dispatcher, &workers, interrupted).await?;
    station.close().await;
    print::text(&if options.json { format!("{}\n", report.json(&lanes)) } else { report.table(&lanes) })?;
    if interrupted { Err(Interrupted.into()) } else { Ok(report.complete()) }
}

/// Sends the jobs and counts what comes back, until all have or a signal comes.
async fn watch_jobs(
    client: &Client,
    options: &cli::Demo,
    stop: &mut watch::Receiver<Stop>,
) -> Result<Report> {
    let digits = builtin::held_out();
    let jobs = jobs(options.jobs, digits.len());
    let progress =
        if options.json { ProgressBar::hidden() } else { print::progress(Some(jobs.len() as u64)) };
    let submitted = Arc::new(Mutex::new(vec![None; jobs.len()]));
    let arrivals = arrivals(submissions(&jobs, &digits)?, Arc::clone(&submitted));
    let mut report = Report::new(jobs.len());
    let mut results = Box::pin(client.run_many(arrivals));
    let begun = Instant::now();
    loop {
        let done = tokio::select! {
            done = results.next() => done,
            () = stopping::until(stop, Stop::Drain) => {
                let sent = submitted.lock().unwrap_or_else(PoisonError::into_inner);
                report.interrupted(sent.iter().flatten().count());
                break;
            }
        };
        let Some(done) = done else { break };
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
    progress.finish_and_clear();
    report.took(begun.elapsed());
    Ok(report)
}

/// Ends what was started, functions and containers with it. Nobody waits for jobs that a signal left in hand.
async fn end(dispatcher: &Dispatcher, workers: &[Worker], interrupted: bool) -> Result<()> {
    if !interrupted {
        return roles::drain(dispatcher, workers).await;
    }
    dispatcher.halt();
    workers.iter().for_each(Worker::halt);
    dispatcher.join().await?;
    for worker in workers {
        worker.join().await?;
    }
    Ok(())
}

/// A worker of every lane. Docker has a moment to answer; where it does not, its lane takes no jobs, and the report says so.
async fn workers(station: &Station, stop: &mut watch::Receiver<Stop>) -> Result<Vec<Worker>> {
    let mut workers = Vec::new();
    for lane in Lane::ALL {
        let name = roles::process_name(lane.as_str());
        workers.push(roles::work(station, lane, roles::catalog(&station.settings)?, Some(name)).await?);
    }
    let all_there = async {
        loop {
            let status = operations::status(Ok(station.broker.as_ref()), station.state.as_ref()).await;
            if status.lanes.iter().all(|lane| lane.available) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(LANES_PATIENCE, all_there) => {}
        () = stopping::until(stop, Stop::Drain) => {}
    }
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

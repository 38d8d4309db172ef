//! Offering jobs and timing what comes back: the same for the system and for the pumps it is compared with.
//!
//! Offered in a window (so many outstanding, the next as soon as one is back) the figure is throughput; offered at a rate,
//! whatever comes back, it is latency. Latency counts from when a job was due, not from when it could be sent: a system
//! that stalls is charged for all who waited meanwhile (otherwise known as coordinated omission, avoided).

use crate::figures::percentile;
use anyhow::{Result, anyhow, bail};
use broker::amqp::pump::Feed;
use futures_util::{StreamExt, stream};
use producer::{Client, Submission};
use schemas::Status;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long nothing may come back before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// How jobs are offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Offer {
    /// So many outstanding.
    Window(usize),
    /// So many a second, evenly spaced.
    Rate(f64),
}

/// So many jobs, offered so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub jobs: usize,
    pub offer: Offer,
}

/// What became of a load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Jobs that came back as they should, one latency each, ascending.
    pub latencies: Vec<Duration>,
    /// Jobs that came back as failures.
    pub failed: usize,
    /// Jobs that did not come back.
    pub lost: usize,
    /// From the first job offered to the last that came back.
    pub took: Duration,
}

impl Measured {
    /// Jobs that came back as they should, per second.
    pub fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let jobs = self.latencies.len() as f64;
        jobs / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// In milliseconds; 100 is the longest.
    pub fn percentile_ms(&self, percent: usize) -> Option<f64> {
        percentile(&self.latencies, percent).map(|latency| latency.as_secs_f64() * 1e3)
    }
}

/// When jobs are due.
enum Due {
    Now,
    Paced(mpsc::UnboundedReceiver<Instant>),
}

impl Due {
    fn of(load: Load) -> Self {
        let Offer::Rate(rate) = load.offer else { return Self::Now };
        let (tick, ticks) = mpsc::unbounded_channel();
        std::thread::spawn(move || pace(load.jobs, rate, &tick));
        Self::Paced(ticks)
    }

    /// Cancel-safe.
    async fn next(&mut self) -> Instant {
        match self {
            Self::Now => Instant::now(),
            Self::Paced(ticks) => ticks.recv().await.unwrap_or_else(Instant::now),
        }
    }
}

/// Ticks when a job is due, on a thread of its own: the runtime's timers are a millisecond coarse.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing else waits on this thread, and the time is what is wanted"
)]
fn pace(jobs: usize, rate: f64, tick: &mpsc::UnboundedSender<Instant>) {
    let begun = Instant::now();
    for job in 0..u32::try_from(jobs).unwrap_or(u32::MAX) {
        let due = begun + Duration::from_secs_f64(f64::from(job) / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if tick.send(due).is_err() {
            return;
        }
    }
}

/// Offers copies of `job` through `client`, whose own limit of pending jobs must be the window.
pub async fn through_client(client: &Client, job: &Submission, load: Load) -> Measured {
    let due_at = Arc::new(Mutex::new(Vec::with_capacity(load.jobs)));
    let noting = Arc::clone(&due_at);
    let submissions = stream::unfold((Due::of(load), 0), |(mut due, sent)| {
        let noting = Arc::clone(&noting);
        async move {
            if sent == load.jobs {
                return None;
            }
            let due_now = due.next().await;
            noting.lock().unwrap_or_else(PoisonError::into_inner).push(due_now);
            Some((job.clone(), (due, sent + 1)))
        }
    });
    let mut measured = Measured::default();
    let begun = Instant::now();
    let mut last = begun;
    let mut done = Box::pin(client.run_many(submissions));
    while let Ok(Some(done)) = timeout(PATIENCE, done.next()).await {
        last = Instant::now();
        match done.outcome {
            Ok(result) if result.status == Status::Succeeded => {
                let due = due_at.lock().unwrap_or_else(PoisonError::into_inner)[done.index];
                measured.latencies.push(last - due);
            }
            Ok(result) => {
                measured.failed += 1;
                tracing::warn!(job.id = %result.id, status = %result.status, error = ?result.error, "a job failed");
            }
            Err(error) => tracing::warn!(%error, "a job has no result"),
        }
    }
    finish(measured, load, last - begun)
}

/// Sends messages of so many bytes through a pump.
pub async fn through_pump(feed: &mut Feed, bytes: usize, load: Load) -> Result<Measured> {
    let window = match load.offer {
        Offer::Window(window) => window,
        Offer::Rate(_) => load.jobs,
    };
    let mut due = Due::of(load);
    let (mut due_at, mut first) = (Vec::with_capacity(load.jobs), None);
    let mut measured = Measured::default();
    let begun = Instant::now();
    let mut last = begun;
    while measured.latencies.len() < load.jobs {
        let may_send = due_at.len() < load.jobs && due_at.len() - measured.latencies.len() < window;
        tokio::select! {
            biased;
            due_now = due.next(), if may_send => {
                let sent = feed.send(bytes).await;
                let number = sent.map_err(|why| anyhow!("a pump broke: {why}"))?;
                first.get_or_insert(number);
                due_at.push(due_now);
            }
            back = timeout(PATIENCE, feed.next()) => match back {
                Ok(Ok(number)) => {
                    last = Instant::now();
                    let nth = first.and_then(|first| usize::try_from(number.checked_sub(first)?).ok());
                    let Some(due) = nth.and_then(|nth| due_at.get(nth)) else {
                        bail!("a pump gave back message {number}, which was not sent to be measured");
                    };
                    measured.latencies.push(last - *due);
                }
                Ok(Err(why)) => bail!("a pump broke: {why}"),
                Err(_) => bail!("a pump lost {} messages", due_at.len() - measured.latencies.len()),
            },
        }
    }
    Ok(finish(measured, load, last - begun))
}

fn finish(mut measured: Measured, load: Load, took: Duration) -> Measured {
    measured.latencies.sort_unstable();
    measured.lost = load.jobs.saturating_sub(measured.latencies.len() + measured.failed);
    measured.took = took;
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_due_evenly() {
        let mut due = Due::of(Load { jobs: 5, offer: Offer::Rate(1_000.0) });
        let first = due.next().await;
        for job in 1..5 {
            assert_eq!(due.next().await - first, Duration::from_millis(job));
        }
    }

    #[test]
    fn what_is_missing_is_lost() {
        let mut measured = Measured { failed: 1, ..Measured::default() };
        measured.latencies = (1..=200).rev().map(Duration::from_millis).collect();
        let load = Load { jobs: 205, offer: Offer::Window(1) };
        let measured = finish(measured, load, Duration::from_secs(2));
        assert_eq!((measured.lost, measured.failed), (4, 1));
        assert_eq!(measured.per_second(), 100.0);
        assert_eq!([50, 99, 100].map(|p| measured.percentile_ms(p)), [100.0, 198.0, 200.0].map(Some));
        assert_eq!(Measured::default().percentile_ms(50), None);
    }
}

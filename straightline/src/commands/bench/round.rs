//! One system, measured once: throughput with what it cost, then latency.

use super::accounts;
use super::hops::{Measures, Sums};
use super::load::{self, Load, Measured, Offer};
use crate::cli;
use anyhow::Result;
use broker::amqp::pump::Feed;
use producer::{Client, Submission};
use std::collections::BTreeMap;
use std::time::Duration;

/// Jobs that go through before anything is measured: rates and prefetches find their level meanwhile.
const WARM_UP: usize = 4_000;

/// What was seen in one round.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// With a window of jobs outstanding.
    pub saturated: Measured,
    /// At a rate; none if that was left out.
    pub paced: Option<Measured>,
    /// Processor time while saturated, by role.
    pub processor: BTreeMap<&'static str, Duration>,
    /// Most memory held so far, by role, in bytes: the largest of its processes.
    pub memory: BTreeMap<&'static str, u64>,
    /// Mean milliseconds that a job spends in each hop, saturated and at the rate.
    pub hops: [Vec<(&'static str, f64)>; 2],
    /// From the start of the processes to the first result.
    pub first_job: Option<Duration>,
}

/// What jobs are sent through.
pub enum Through<'a> {
    /// The system: a client whose limit is the window, one without a limit worth the name, the job, and what its parts
    /// measure themselves.
    System { windowed: &'a Client, open: &'a Client, job: &'a Submission, measures: Measures<'a> },
    /// A pump, with the length of its messages.
    Pump { feed: &'a mut Feed, bytes: usize },
}

impl Through<'_> {
    async fn offer(&mut self, load: Load) -> Result<Measured> {
        match self {
            Self::System { windowed, open, job, .. } => {
                let client = if matches!(load.offer, Offer::Window(_)) { windowed } else { open };
                Ok(load::through_client(client, job, load).await)
            }
            Self::Pump { feed, bytes } => load::through_pump(feed, *bytes, load).await,
        }
    }

    async fn sums(&self) -> Result<Sums> {
        match self {
            Self::System { measures, .. } => measures.read().await,
            Self::Pump { .. } => Ok(Sums::default()),
        }
    }
}

/// Measures what is there, with the processes that take part in it.
pub async fn measure(
    through: &mut Through<'_>,
    options: &cli::Bench,
    processes: &[(&'static str, u32)],
) -> Result<Seen> {
    let window = Offer::Window(options.window as usize);
    let jobs = options.jobs as usize;
    let warmed_up = through.offer(Load { jobs: WARM_UP.min(jobs), offer: window }).await?;
    let begun = through.sums().await?;
    let before = spent(processes);
    let mut saturated = through.offer(Load { jobs, offer: window }).await?;
    saturated.lost += warmed_up.lost;
    saturated.failed += warmed_up.failed;
    let mut processor = spent(processes);
    for (role, spent) in &mut processor {
        *spent = spent.saturating_sub(before.get(role).copied().unwrap_or_default());
    }
    let between = through.sums().await?;
    let paced = match options.rate {
        0 => None,
        rate => {
            let rate = f64::from(rate);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
            let jobs = (rate * options.rate_for.as_secs_f64()).ceil() as usize;
            Some(through.offer(Load { jobs, offer: Offer::Rate(rate) }).await?)
        }
    };
    let hops = [between.since(&begun), through.sums().await?.since(&between)];
    let mut memory = BTreeMap::new();
    for (role, pid) in processes {
        let most: &mut u64 = memory.entry(*role).or_default();
        *most = (*most).max(accounts::peak_memory(*pid).unwrap_or(0));
    }
    Ok(Seen { saturated, paced, processor, memory, hops, first_job: None })
}

fn spent(processes: &[(&'static str, u32)]) -> BTreeMap<&'static str, Duration> {
    let mut spent = BTreeMap::new();
    for (role, pid) in processes {
        *spent.entry(*role).or_default() += accounts::processor_time(*pid).unwrap_or_default();
    }
    spent
}

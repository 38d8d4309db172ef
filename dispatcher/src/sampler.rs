//! Looks at the lanes' queues now and then, off the path of jobs. One dispatcher at a time looks, for all.

use crate::config::Config;
use crate::estimate::Look;
use broker::{Broker, Queue};
use schemas::Lane;
use state::{Sample, State};
use std::sync::Arc;
use tokio::sync::watch;

/// The chore's name in shared state.
const ROLE: &str = "sampler";

/// How many looks at the lanes' queues go by between two looks at all the others, which only people read.
const GAUGE_EVERY: u32 = 20;

/// Runs until dropped. `looks` carries what this dispatcher last saw itself, for when shared state is away.
pub(crate) async fn run(
    config: Arc<Config>,
    broker: Arc<dyn Broker>,
    state: Arc<dyn State>,
    looks: watch::Sender<Look>,
) {
    let mut ticks = tokio::time::interval(config.sample_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    loop {
        ticks.tick().await;
        // Without shared state nobody leads, and everybody looks for itself.
        let lease = config.sample_interval * 3;
        let leads = state.lead(ROLE, &config.name, lease).await;
        if matches!(leads, Ok(false)) {
            continue;
        }
        let Some(seen) = look(broker.as_ref()).await else { continue };
        looks.send_modify(|look| *look = Look { number: look.number + 1, ready: seen });
        if leads.is_ok() {
            let sample =
                Sample { ready: seen, interval: config.sample_interval, target_max: config.lane_queue_max };
            if let Err(error) = state.sample(&sample).await {
                tracing::debug!(error = %error, "failed to store a sample");
            }
            if round.is_multiple_of(GAUGE_EVERY) {
                gauge(broker.as_ref()).await;
            }
            round = round.wrapping_add(1);
        }
    }
}

async fn look(broker: &dyn Broker) -> Option<[u64; 3]> {
    match broker.depths(&Lane::ALL.map(Queue::Lane)).await {
        Ok(depths) => {
            let mut ready = [0; 3];
            for (ready, depth) in ready.iter_mut().zip(depths) {
                *ready = depth.map_or(0, |depth| depth.ready);
            }
            Some(ready)
        }
        Err(error) => {
            tracing::debug!(error = %error, "failed to look at the lanes' queues");
            None
        }
    }
}

/// Depths of every fixed queue, as metrics: what an autoscaler or an alert reads.
async fn gauge(broker: &dyn Broker) {
    let queues: Vec<_> = Queue::fixed().collect();
    let Ok(depths) = broker.depths(&queues).await else { return };
    for (queue, depth) in queues.iter().zip(depths) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let ready = depth.map_or(0.0, |depth| depth.ready as f64);
        metrics::gauge!("straightline_queue_ready_jobs", "queue" => queue.to_string()).set(ready);
    }
}

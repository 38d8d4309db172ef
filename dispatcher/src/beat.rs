//! The dispatcher's heartbeat.

use crate::config::Config;
use crate::stopping::{Stop, Stopping};
use schemas::UnixMillis;
use schemas::heartbeat::DispatcherReport;
use schemas::wire::WIRE_VERSION;
use state::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often a dispatcher says that it lives, and how long that counts.
const BEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Says that this dispatcher lives, until it does not.
pub(crate) async fn beat(
    config: Arc<Config>,
    policy: &'static str,
    state: Arc<dyn State>,
    in_hand: Arc<AtomicU32>,
    placed: Arc<AtomicU64>,
    mut stop: Stopping,
) {
    let started = UnixMillis::from(SystemTime::now());
    let mut ticks = tokio::time::interval(BEAT.0);
    let mut before = (Instant::now(), 0u64);
    while stop.now() == Stop::No {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.changed() => continue,
        }
        let now = (Instant::now(), placed.load(Ordering::Relaxed));
        let seconds = now.0.duration_since(before.0).as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let placed_per_s = (now.1 - before.1) as f64 / seconds;
        before = now;
        let report = DispatcherReport {
            version: WIRE_VERSION,
            dispatcher: config.name.clone(),
            held: in_hand.load(Ordering::Relaxed),
            placed_per_s,
            policy: policy.to_owned(),
            draining: false,
            started,
            build: config.build.clone(),
        };
        if let Err(error) = state.report_dispatcher(&report, BEAT.1).await {
            tracing::debug!(error = %error, "failed to report");
        }
    }
    if let Err(error) = state.forget_dispatcher(&config.name).await {
        tracing::debug!(error = %error, "failed to sign off");
    }
}

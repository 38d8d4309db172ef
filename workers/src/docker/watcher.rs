//! Watching the engine: whether it is there, which containers of ours die, and what dead workers left behind.

use super::engine::{Engine, EngineError, Found};
use super::keeper::Event;
use super::owner;
use super::plan::{LABEL_MODEL, LABEL_WORKER, Owner};
use futures_util::StreamExt;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Time between two looks at an engine that says nothing.
const LOOK: Duration = Duration::from_secs(5);
/// Time between two looks for what dead workers left, besides the one on arrival.
const SWEEP: Duration = Duration::from_secs(30);
/// How long removing what a dead worker left may take before the lane goes on without.
const ORPHAN: Duration = Duration::from_secs(10);
/// First pause before it is looked for again; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Watches until the keeper is gone.
pub(super) async fn watch(
    engine: Arc<dyn Engine>,
    owner: Owner,
    worker: String,
    events: UnboundedSender<Event>,
) {
    let mut pause = PAUSE_MIN;
    while !events.is_closed() {
        // Before anything is listed: what dies from here on is told by the stream.
        let since = SystemTime::now();
        match arrive(&*engine, &owner, &worker).await {
            Ok(Arrival { version, ours, left }) => {
                pause = PAUSE_MIN;
                let _ = events.send(Event::Up { version, found: ours });
                let reason = tokio::select! {
                    reason = attend(&*engine, &owner, since, &events) => reason,
                    never = sweep(&*engine, &owner, &left) => match never {},
                };
                let _ = events.send(Event::Away(reason));
            }
            Err(error) => {
                let _ = events.send(Event::Away(error));
            }
        }
        // Spread, so that many workers do not come at once to an engine that has just come back.
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What was found when the engine was met.
struct Arrival {
    version: String,
    ours: Vec<Found>,
    /// Orphans that could not be removed.
    left: BTreeSet<String>,
}

/// Greets the engine, removes what dead workers left there, and lists what is ours.
async fn arrive(engine: &dyn Engine, owner: &Owner, worker: &str) -> Result<Arrival, EngineError> {
    let version = engine.hello().await?;
    let left = remove(engine, |found| owner::is_orphan(&found.labels, worker, owner)).await?;
    Ok(Arrival { version, ours: engine.list(&owner.label()).await?, left })
}

/// Removes what workers leave that die while this one lives, and what could not be removed on arrival. Not by name: a
/// worker of ours may have come since, and the one that drains must let it be.
async fn sweep(engine: &dyn Engine, owner: &Owner, left: &BTreeSet<String>) -> Infallible {
    loop {
        sleep(SWEEP).await;
        let is_left = |found: &Found| left.contains(&found.id) || owner::is_outlived(&found.labels, owner);
        if let Err(error) = remove(engine, is_left).await {
            tracing::debug!(%error, "containers of dead workers cannot be looked for");
        }
    }
}

/// Removes the containers that are orphans; those that it could not.
async fn remove(
    engine: &dyn Engine,
    is_orphan: impl Fn(&Found) -> bool,
) -> Result<BTreeSet<String>, EngineError> {
    let listed = engine.list(LABEL_WORKER).await?;
    let orphans = listed.iter().filter(|found| is_orphan(found));
    let removed = join_all(orphans.map(async |found| (found, remove_orphan(engine, found).await))).await;
    Ok(removed.into_iter().filter(|(_, gone)| !gone).map(|(found, _)| found.id.clone()).collect())
}

/// Whether it is gone. One that cannot be removed is left until the next look: it must not keep the lane from an engine
/// that is well.
async fn remove_orphan(engine: &dyn Engine, found: &Found) -> bool {
    let label = |name: &str| found.labels.get(name).cloned().unwrap_or_default();
    let (model, worker) = (label(LABEL_MODEL), label(LABEL_WORKER));
    let problem = match timeout(ORPHAN, engine.remove(&found.id)).await {
        Ok(Ok(())) => {
            tracing::warn!(container.id = %found.id, model, worker, "removed a container of a worker that is dead");
            metrics::counter!("straightline_container_orphans_total").increment(1);
            return true;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} ms", ORPHAN.as_millis()),
    };
    tracing::warn!(
        container.id = %found.id, model, worker, problem, "container of a dead worker cannot be removed, and is left"
    );
    metrics::counter!("straightline_container_removal_failures_total").increment(1);
    false
}

/// Tells of deaths until the engine is gone; why it is.
async fn attend(
    engine: &dyn Engine,
    owner: &Owner,
    since: SystemTime,
    events: &UnboundedSender<Event>,
) -> EngineError {
    let mut deaths = engine.deaths(&owner.label(), since);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.reset();
    loop {
        tokio::select! {
            death = deaths.next() => match death {
                Some(Ok(id)) => {
                    let _ = events.send(Event::Died { id });
                }
                Some(Err(error)) => return error,
                None => match engine.hello().await {
                    Ok(_) => deaths = engine.deaths(&owner.label(), SystemTime::now()),
                    Err(error) => return error,
                },
            },
            _ = look.tick() => if let Err(error) = engine.hello().await {
                return error;
            },
        }
    }
}

//! Watching the engine: whether it is there, which containers of ours die, and what dead workers left behind.

use super::engine::{Engine, EngineError, Found};
use super::keeper::Event;
use super::owner;
use super::plan::{LABEL_MODEL, LABEL_WORKER, Owner};
use futures_util::StreamExt;
use futures_util::future::join_all;
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
            Ok((version, found)) => {
                pause = PAUSE_MIN;
                let _ = events.send(Event::Up { version, found });
                let reason = tokio::select! {
                    reason = attend(&*engine, &owner, since, &events) => reason,
                    never = sweep(&*engine, &owner, &worker) => match never {},
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

/// Greets the engine, removes what dead workers left there, and lists what is ours.
async fn arrive(
    engine: &dyn Engine,
    owner: &Owner,
    worker: &str,
) -> Result<(String, Vec<Found>), EngineError> {
    let version = engine.hello().await?;
    remove_orphans(engine, owner, worker).await?;
    Ok((version, engine.list(&owner.label()).await?))
}

/// Removes what workers leave that die while this one lives, and what could not be removed before.
async fn sweep(engine: &dyn Engine, owner: &Owner, worker: &str) -> Infallible {
    loop {
        sleep(SWEEP).await;
        if let Err(error) = remove_orphans(engine, owner, worker).await {
            tracing::debug!(%error, "containers of dead workers cannot be looked for");
        }
    }
}

async fn remove_orphans(engine: &dyn Engine, owner: &Owner, worker: &str) -> Result<(), EngineError> {
    let listed = engine.list(LABEL_WORKER).await?;
    let orphans = listed.iter().filter(|found| owner::is_orphan(&found.labels, worker, owner));
    join_all(orphans.map(|found| remove_orphan(engine, found))).await;
    Ok(())
}

/// One that cannot be removed is left until the next look: it must not keep the lane from an engine that is well.
async fn remove_orphan(engine: &dyn Engine, found: &Found) {
    let label = |name: &str| found.labels.get(name).cloned().unwrap_or_default();
    let (model, worker) = (label(LABEL_MODEL), label(LABEL_WORKER));
    let problem = match timeout(ORPHAN, engine.remove(&found.id)).await {
        Ok(Ok(())) => {
            tracing::warn!(container.id = %found.id, model, worker, "removed a container of a worker that is dead");
            metrics::counter!("straightline_container_orphans_total").increment(1);
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} ms", ORPHAN.as_millis()),
    };
    tracing::warn!(
        container.id = %found.id, model, worker, problem, "container of a dead worker cannot be removed, and is left"
    );
    metrics::counter!("straightline_container_removal_failures_total").increment(1);
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

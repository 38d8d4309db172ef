//! `up`: everything in one process.

use crate::config::{ConfigError, Services, Settings};
use crate::station::Station;
use crate::stopping::{self, Stop};
use crate::{roles, sweeping, telemetry};
use anyhow::{Context, Result};
use dispatcher::Dispatcher;
use metrics_exporter_prometheus::PrometheusHandle;
use producer::http;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use workers::worker::{Worker, WorkerError};

/// How long requests under way may take to end once the process is to end: well within the 30 seconds that an
/// orchestrator gives it for all.
const HTTP_DRAIN_MAX: Duration = Duration::from_secs(15);

/// Runs until asked to stop.
pub async fn run(settings: Settings, metrics: PrometheusHandle) -> Result<()> {
    settings.check(Services::Together)?;
    if settings.up.lanes.is_empty() {
        return Err(ConfigError::Value("up.lanes is empty: name a lane, such as local".to_owned()).into());
    }
    for lane in &settings.up.lanes {
        roles::worker_config(&settings, *lane, None)?;
    }
    roles::dispatcher_config(&settings, None)?;
    let mut stop = stopping::watch_signals()?;
    // The address first: a port in use is said at once, before anything is opened.
    let listen = settings.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("http.listen {listen} cannot be used: choose another with --listen"))?;
    let address = listener.local_addr()?;
    let station = Station::open(settings).await?;
    let catalog = roles::catalog(&station.settings)?;
    let remote = catalog.remote().map(|contract| contract.as_ref().clone());
    let contracts: Vec<_> = catalog.contracts().into_iter().chain(remote).collect();
    let mut workers = Vec::new();
    for lane in &station.settings.up.lanes {
        workers.push(roles::work(&station, *lane, catalog.clone(), None).await?);
    }
    let workers: Arc<[Worker]> = workers.into();
    let dispatcher = Arc::new(roles::dispatch(&station, None)?);
    let client = station.client().await?;
    let _upkeep = telemetry::upkeep(metrics.clone());
    let sweeping = sweeping::start(&station, roles::process_name("up"));

    let face = http::Face {
        client: client.clone(),
        broker: Arc::clone(&station.broker),
        state: Arc::clone(&station.state),
        models: contracts,
        limits: http::Limits {
            body_bytes_max: usize::try_from(station.settings.http.body_max.as_u64()).unwrap_or(usize::MAX),
            wait_max: station.settings.http.wait_max,
            record_keep: station.settings.records.keep,
            ..http::Limits::default()
        },
        metrics_text: Arc::new(move || metrics.render()),
        obstacle: obstacle(&workers, &dispatcher),
    };
    let mut until_drain = stop.clone();
    let mut server = tokio::spawn(async move {
        let drain = Box::pin(async move { stopping::until(&mut until_drain, Stop::Drain).await });
        http::serve(listener, http::router(face), HTTP_DRAIN_MAX, drain).await;
    });
    tracing::info!(address = %address, data = %station.settings.storage.dir.display(), "ready: http://{address}");

    let work = async {
        tokio::select! {
            ended = first_to_end(&workers) => ended.map_err(anyhow::Error::from),
            ended = dispatcher.join() => ended.map_err(anyhow::Error::from),
            ended = &mut server => ended.context("the HTTP face ended badly"),
        }
    };
    stopping::until_drain(&mut stop, work).await?;
    let drain = async {
        // Intake first (HTTP, then dispatching), then what runs, then what is on its way out.
        server.await.context("the HTTP face ended badly")?;
        dispatcher.drain().await?;
        workers.iter().for_each(Worker::drain);
        anyhow::Ok(all_ended(&workers).await?)
    };
    tokio::select! {
        drained = drain => drained?,
        () = stopping::until(&mut stop, Stop::Now) => {
            dispatcher.halt();
            workers.iter().for_each(Worker::halt);
            dispatcher.join().await?;
            all_ended(&workers).await?;
        }
    }
    client.close(Duration::ZERO).await;
    sweeping.abort();
    station.close().await;
    tracing::info!("ended");
    Ok(())
}

/// How the first worker to end has ended.
async fn first_to_end(workers: &[Worker]) -> Result<(), WorkerError> {
    let ends = workers.iter().map(|worker| Box::pin(worker.join()));
    futures_util::future::select_all(ends).await.0
}

/// Waits for every worker, and says which ended badly if one did.
async fn all_ended(workers: &[Worker]) -> Result<(), WorkerError> {
    futures_util::future::join_all(workers.iter().map(Worker::join)).await.into_iter().collect()
}

/// What of this process keeps jobs from being done.
fn obstacle(workers: &Arc<[Worker]>, dispatcher: &Arc<Dispatcher>) -> http::Obstacle {
    let (workers, dispatcher) = (Arc::clone(workers), Arc::clone(dispatcher));
    // One lane is enough: that of an engine that is away is passed over.
    let takes_jobs = move || workers.iter().any(roles::takes_jobs);
    Arc::new(move || match (takes_jobs(), roles::places_jobs(&dispatcher)) {
        (false, _) => Some("no worker of this process takes jobs"),
        (_, false) => Some("this process's dispatcher has ended"),
        _ => None,
    })
}

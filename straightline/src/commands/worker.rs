//! `worker`: one worker of one lane over the configured broker and state.

use crate::config::{Services, Settings};
use crate::station::Station;
use crate::stopping::{self, Stop};
use crate::{cli, observing, roles, sweeping};
use anyhow::{Context, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::Lane;
use std::sync::Arc;
use workers::serverless::host;

/// Runs until asked to stop.
pub async fn run(settings: Settings, options: &cli::Worker, metrics: PrometheusHandle) -> Result<()> {
    settings.check(Services::Shared)?;
    roles::worker_config(&settings, options.lane, None)?;
    if options.lane == Lane::Serverless {
        host::conceal().context("failed to hide this process's environment from its functions")?;
    }
    let mut stop = stopping::watch_signals()?;
    let observer = observing::Observer::bind(options.metrics.or(settings.metrics.listen)).await?;
    // Models before connections: a broken one is said before any job could be taken.
    let catalog = roles::catalog(&settings)?;
    let station = Station::open(settings).await?;
    let worker = Arc::new(roles::work(&station, options.lane, catalog, options.name.clone()).await?);
    let (watched, asked) = (Arc::clone(&worker), stop.clone());
    let works = move || *asked.borrow() == Stop::No && roles::takes_jobs(&watched);
    let observer = observer.serve(metrics, station.broker.as_ref(), works);
    let sweeping = sweeping::start(&station, roles::process_name("worker"));
    tracing::info!(lane = %options.lane, "ready");
    stopping::until_drain(&mut stop, worker.join()).await?;
    worker.drain();
    let drained = tokio::select! {
        drained = worker.join() => drained,
        () = stopping::until(&mut stop, Stop::Now) => {
            worker.halt();
            worker.join().await
        }
    };
    drained?;
    observer.abort();
    sweeping.abort();
    station.close().await;
    Ok(())
}

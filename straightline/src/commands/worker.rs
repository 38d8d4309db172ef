//! `worker`: one worker of one lane over the configured broker and state.

use crate::config::Settings;
use crate::station::Station;
use crate::stopping::{self, Stop};
use crate::{cli, observing, roles};
use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;

/// Runs until asked to stop.
pub async fn run(settings: Settings, options: &cli::Worker, metrics: PrometheusHandle) -> Result<()> {
    let mut stop = stopping::watch_signals()?;
    let observer = observing::Observer::bind(options.metrics.or(settings.metrics.listen)).await?;
    // Models before connections: a broken one is said before any job could be taken.
    let catalog = roles::catalog(&settings)?;
    let station = Station::open(settings).await?;
    let worker = roles::work(&station, options.lane, &catalog, options.name.clone()).await?;
    let observer = observer.serve(metrics, Arc::clone(&station.broker));
    tracing::info!(lane = %options.lane, "ready");
    stopping::until(&mut stop, Stop::Drain).await;
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
    station.close().await;
    Ok(())
}

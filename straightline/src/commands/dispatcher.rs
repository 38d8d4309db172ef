//! `dispatcher`: one dispatcher over the configured broker and state.

use crate::config::Settings;
use crate::station::Station;
use crate::stopping::{self, Stop};
use crate::{cli, observing, roles};
use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;

/// Runs until asked to stop.
pub async fn run(settings: Settings, options: &cli::Dispatcher, metrics: PrometheusHandle) -> Result<()> {
    let mut stop = stopping::watch_signals()?;
    let observer = observing::Observer::bind(options.metrics.or(settings.metrics.listen)).await?;
    let station = Station::open(settings).await?;
    let dispatcher = roles::dispatch(&station, options.name.clone())?;
    let observer = observer.serve(metrics, std::sync::Arc::clone(&station.broker));
    tracing::info!("ready");
    stopping::until(&mut stop, Stop::Drain).await;
    // What a dispatcher has in hand is settled within moments; a second signal has nothing to hurry.
    dispatcher.drain().await;
    observer.abort();
    station.close().await;
    Ok(())
}

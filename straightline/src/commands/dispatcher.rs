//! `dispatcher`: one dispatcher over the configured broker and state.

use crate::config::{Services, Settings};
use crate::station::Station;
use crate::stopping::{self, Stop};
use crate::{cli, observing, roles, sweeping};
use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;

/// Runs until asked to stop.
pub async fn run(settings: Settings, options: &cli::Dispatcher, metrics: PrometheusHandle) -> Result<()> {
    settings.check(Services::Shared)?;
    roles::dispatcher_config(&settings, None)?;
    let mut stop = stopping::watch_signals()?;
    let observer = observing::Observer::bind(options.metrics.or(settings.metrics.listen)).await?;
    let station = Station::open(settings).await?;
    let dispatcher = Arc::new(roles::dispatch(&station, options.name.clone())?);
    let (watched, asked) = (Arc::clone(&dispatcher), stop.clone());
    let works = move || *asked.borrow() == Stop::No && roles::places_jobs(&watched);
    let observer = observer.serve(metrics, station.broker.as_ref(), works);
    let sweeping = sweeping::start(&station, roles::process_name("dispatcher"));
    tracing::info!("ready");
    stopping::until_drain(&mut stop, dispatcher.join()).await?;
    let drained = tokio::select! {
        drained = dispatcher.drain() => drained,
        () = stopping::until(&mut stop, Stop::Now) => {
            dispatcher.halt();
            dispatcher.join().await
        }
    };
    drained?;
    observer.abort();
    sweeping.abort();
    station.close().await;
    Ok(())
}

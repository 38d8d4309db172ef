//! Dispatcher and worker as configured: what `up`, `demo`, `dispatcher` and `worker` start.

use crate::builtin;
use crate::config::{ConfigError, Settings};
use crate::lanes;
use crate::station::{Station, inline_bytes};
use anyhow::{Context, Result};
use dispatcher::Dispatcher;
use futures_util::FutureExt;
use schemas::Lane;
use schemas::retry::RetryPolicy;
use std::sync::Arc;
use workers::catalog::Catalog;
use workers::local::Local;
use workers::worker::Worker;

/// Starts a dispatcher.
pub fn dispatch(station: &Station, name: Option<String>) -> Result<Dispatcher> {
    let config = dispatcher_config(&station.settings, name)?;
    Ok(Dispatcher::start(config, Arc::clone(&station.broker), Arc::clone(&station.state))?)
}

/// The dispatcher's settings, checked.
pub fn dispatcher_config(settings: &Settings, name: Option<String>) -> Result<dispatcher::Config> {
    let ours = &settings.dispatcher;
    let config = dispatcher::Config {
        name: name.unwrap_or_else(|| process_name("dispatcher")),
        policy: ours.policy.parse().map_err(|error| invalid("dispatcher.policy", &error))?,
        frequency_threshold: ours.frequency_threshold,
        size_threshold: ours.size_threshold.as_u64(),
        window: ours.window,
        hold_max: ours.hold_max,
        prefetch: ours.prefetch,
        sample_interval: ours.sample_interval,
        lane_queue_max: ours.lane_queue_max,
        payload_max: Lane::ALL.map(|lane| ours.payload_max.get(&lane).map(|max| max.as_u64())),
        record_keep: settings.records.keep,
        inline_bytes_max: inline_bytes(settings),
        memory_budget: usize::try_from(ours.memory_budget.as_u64()).unwrap_or(usize::MAX),
        placement_log: ours.placement_log.clone(),
        ..dispatcher::Config::default()
    };
    config.check()?;
    Ok(config)
}

fn invalid(setting: &str, error: &dyn std::fmt::Display) -> ConfigError {
    ConfigError::Value(format!("{setting}: {error}"))
}

/// The models in the binary and those in the configured folder.
pub fn catalog(settings: &Settings) -> Result<Catalog> {
    let mut catalog = Catalog::builtin(&builtin::MODELS)?;
    if let Some(dir) = &settings.worker.models {
        catalog = catalog.with_folder(dir)?;
    }
    if settings.worker.diagnostics {
        catalog = catalog.with_diagnostics();
    }
    Ok(catalog)
}

/// Loads every model of `catalog`, ready to run in the local lane.
pub async fn load(settings: &Settings, catalog: Catalog) -> Result<Local> {
    let config = local_config(settings);
    // Loading takes the processor a while.
    let loaded = tokio::task::spawn_blocking(move || Local::start(config, &catalog)).await;
    Ok(loaded.context("failed to load the models")??)
}

fn local_config(settings: &Settings) -> workers::local::Config {
    let defaults = workers::local::Config::default();
    workers::local::Config {
        slots: settings.worker.slots.unwrap_or(defaults.slots),
        abandoned_max: settings.worker.abandoned_max,
    }
}

/// The settings of a worker of `lane`, checked.
pub fn worker_config(
    settings: &Settings,
    lane: Lane,
    name: Option<String>,
) -> Result<workers::worker::Config> {
    let config = workers::worker::Config {
        name: name.unwrap_or_else(|| process_name(lane.as_str())),
        retry: retry(settings),
        run_timeout: settings.worker.run_timeout,
        record_keep: settings.records.keep,
        inline_bytes_max: inline_bytes(settings),
        memory_budget: usize::try_from(settings.worker.memory_budget.as_u64()).unwrap_or(usize::MAX),
        data_dir: Some(settings.storage.dir.clone()),
        ..workers::worker::Config::default()
    };
    let slots = match lane {
        Lane::Local => local_config(settings).slots,
        Lane::Docker => settings.docker.slots(),
        Lane::Serverless => settings.serverless.concurrency_max,
    };
    config.check(slots)?;
    Ok(config)
}

/// Starts a worker of `lane`.
pub async fn work(station: &Station, lane: Lane, catalog: Catalog, name: Option<String>) -> Result<Worker> {
    let config = worker_config(&station.settings, lane, name)?;
    let executor = lanes::start(&station.settings, lane, catalog, &config.name).await?;
    let (broker, state) = (Arc::clone(&station.broker), Arc::clone(&station.state));
    Ok(Worker::start(config, broker, state, Some(Arc::clone(&station.blobs)), executor).await?)
}

/// Has them finish what they have in hand, and end.
pub async fn drain(dispatcher: &Dispatcher, workers: &[Worker]) -> Result<()> {
    dispatcher.drain().await?;
    workers.iter().for_each(Worker::drain);
    for worker in workers {
        worker.join().await?;
    }
    Ok(())
}

/// Whether `worker` takes jobs: the broker knows it, and it has not ended.
pub fn takes_jobs(worker: &Worker) -> bool {
    worker.registered() && worker.join().now_or_never().is_none()
}

/// Whether `dispatcher` has not ended.
pub fn places_jobs(dispatcher: &Dispatcher) -> bool {
    dispatcher.join().now_or_never().is_none()
}

fn retry(settings: &Settings) -> RetryPolicy {
    RetryPolicy {
        attempts_max: settings.retry.attempts_max,
        backoff_base: settings.retry.backoff_base,
        backoff_cap: settings.retry.backoff_cap,
    }
}

/// A name that no other process on any host has: role, host, process id.
pub fn process_name(role: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().split('.').next().filter(|host| !host.is_empty()).unwrap_or("host").to_owned();
    format!("{role}-{host}-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stopping::{Stop, until_drain};
    use tokio::sync::watch;

    #[tokio::test]
    async fn a_worker_that_ends_by_itself_is_a_failure_and_not_ready() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.storage.dir = dir.path().to_owned();
        let station = Station::open(settings).await.unwrap();
        let catalog = catalog(&station.settings).unwrap();
        let worker = work(&station, Lane::Local, catalog, None).await.unwrap();
        assert!(takes_jobs(&worker));
        station.broker.close().await;
        let (_asked, mut stop) = watch::channel(Stop::No);
        let ended = until_drain(&mut stop, worker.join()).await.unwrap_err();
        assert!(ended.to_string().contains("broker was closed"), "{ended}");
        assert!(!takes_jobs(&worker));

        let (_asked, mut stop) = watch::channel(Stop::Drain);
        until_drain(&mut stop, worker.join()).await.unwrap();
    }
}

//! Dispatcher and worker as configured: what `up`, `demo`, `dispatcher` and `worker` start.

use crate::builtin;
use crate::config::Settings;
use crate::station::{Station, inline_bytes};
use anyhow::{Context, Result, bail};
use schemas::Lane;
use schemas::retry::RetryPolicy;
use std::sync::Arc;
use workers::catalog::Catalog;
use workers::worker::Worker;

/// Starts a dispatcher.
pub fn dispatch(station: &Station, name: Option<String>) -> Result<dispatcher::Dispatcher> {
    let config = dispatcher_config(&station.settings, name)?;
    Ok(dispatcher::Dispatcher::start(config, Arc::clone(&station.broker), Arc::clone(&station.state))?)
}

/// The dispatcher's settings, checked.
pub fn dispatcher_config(settings: &Settings, name: Option<String>) -> Result<dispatcher::Config> {
    let ours = &settings.dispatcher;
    let config = dispatcher::Config {
        name: name.unwrap_or_else(|| process_name("dispatcher")),
        policy: ours.policy.parse().context("dispatcher.policy")?,
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
        ..dispatcher::Config::default()
    };
    config.check()?;
    Ok(config)
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

/// Starts a worker of the local lane.
pub async fn work(station: &Station, lane: Lane, catalog: &Catalog, name: Option<String>) -> Result<Worker> {
    if lane != Lane::Local {
        bail!("lane {lane} has no worker yet: this version runs the local lane only");
    }
    let settings = &station.settings;
    let defaults = workers::local::Config::default();
    let local = workers::local::Config {
        slots: settings.worker.slots.unwrap_or(defaults.slots),
        abandoned_max: settings.worker.abandoned_max,
    };
    let executor = workers::local::Local::start(local, catalog)?;
    let config = workers::worker::Config {
        name: name.unwrap_or_else(|| process_name("worker")),
        retry: retry(settings),
        run_timeout: settings.worker.run_timeout,
        record_keep: settings.records.keep,
        inline_bytes_max: inline_bytes(settings),
        memory_budget: usize::try_from(settings.worker.memory_budget.as_u64()).unwrap_or(usize::MAX),
        data_dir: Some(settings.storage.dir.clone()),
        ..workers::worker::Config::default()
    };
    let (broker, state) = (Arc::clone(&station.broker), Arc::clone(&station.state));
    Ok(Worker::start(config, broker, state, Some(Arc::clone(&station.blobs)), Arc::new(executor)).await?)
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

//! `serve`: models over HTTP and nothing else, which is what runs in a model container.

use crate::config::Settings;
use crate::stopping::{self, Stop};
use crate::{cli, roles};
use anyhow::{Context, Result};
use std::sync::Arc;
use tokio::net::TcpListener;
use workers::local::Local;
use workers::serve;

/// Runs until asked to stop. As the first process of a container it gets no signal it does not ask for, so it asks
/// before anything else.
pub async fn run(settings: Settings, options: &cli::Serve) -> Result<()> {
    let mut stop = stopping::watch_signals()?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("{} cannot be used: choose another with --listen", options.listen))?;
    let mut catalog = roles::catalog(&settings)?;
    if !options.only.is_empty() {
        catalog = catalog.only(&options.only)?;
    }
    let defaults = workers::local::Config::default();
    let local = workers::local::Config {
        slots: settings.worker.slots.unwrap_or(defaults.slots),
        abandoned_max: settings.worker.abandoned_max,
    };
    let contracts = catalog.contracts();
    let lane = tokio::task::block_in_place(|| Local::start(local, &catalog))?;
    let body_bytes_max = usize::try_from(options.body_max.as_u64()).unwrap_or(usize::MAX);
    let config = serve::Config {
        slots: local.slots,
        queue: options.queue,
        body_bytes_max,
        json_bytes_max: serve::Config::default().json_bytes_max.min(body_bytes_max),
        ..serve::Config::default()
    };
    let address = listener.local_addr()?;
    tracing::info!(%address, models = contracts.len(), slots = local.slots, "ready: http://{address}");
    let mut until_drain = stop.clone();
    let drain = Box::pin(async move { stopping::until(&mut until_drain, Stop::Drain).await });
    tokio::select! {
        () = serve::serve(config, listener, Arc::new(lane), contracts, drain) => {}
        () = stopping::until(&mut stop, Stop::Now) => {}
    }
    tracing::info!("ended");
    Ok(())
}

//! `up`: everything in one process.

use crate::config::Settings;
use crate::station::Station;
use crate::stopping::{self, Stop};
use crate::{roles, telemetry};
use anyhow::{Context, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use producer::http;
use schemas::Lane;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Runs until asked to stop.
pub async fn run(settings: Settings, metrics: PrometheusHandle) -> Result<()> {
    let mut stop = stopping::watch_signals()?;
    // The address first: a port in use is said at once, before anything is opened.
    let listen = settings.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("http.listen {listen} cannot be used: choose another with --listen"))?;
    let address = listener.local_addr()?;
    let station = Station::open(settings).await?;
    let catalog = roles::catalog(&station.settings)?;
    let contracts = catalog.contracts();
    let worker = roles::work(&station, Lane::Local, &catalog, None).await?;
    let dispatcher = roles::dispatch(&station, None)?;
    let client = station.client().await?;
    let _upkeep = telemetry::upkeep(metrics.clone());
    let sweeping = crate::sweeping::start(&station);

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
    };
    let mut until_drain = stop.clone();
    let server = tokio::spawn(async move {
        let drain = async { stopping::until(&mut until_drain, Stop::Drain).await };
        http::serve(listener, http::router(face), drain).await;
    });
    tracing::info!(address = %address, data = %station.settings.storage.dir.display(), "ready: http://{address}");

    stopping::until(&mut stop, Stop::Drain).await;
    let drain = async {
        // Intake first (HTTP, then dispatching), then what runs, then what is on its way out.
        if let Err(error) = server.await {
            tracing::error!(error = %error, "the HTTP face ended badly");
        }
        dispatcher.drain().await;
        worker.drain();
        worker.join().await
    };
    let drained = tokio::select! {
        drained = drain => drained,
        () = stopping::until(&mut stop, Stop::Now) => {
            worker.halt();
            worker.join().await
        }
    };
    drained?;
    client.close(Duration::ZERO).await;
    sweeping.abort();
    station.close().await;
    tracing::info!("ended");
    Ok(())
}

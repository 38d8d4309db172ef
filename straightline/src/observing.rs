//! The metrics port of a process without an HTTP face: `/metrics`, `/health/live`, `/health/ready`.

use crate::telemetry;
use anyhow::{Context, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use broker::{Broker, Health};
use metrics_exporter_prometheus::PrometheusHandle;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A bound port, not yet served.
pub struct Observer(TcpListener);

impl Observer {
    /// Binds `listen`, or a free port of the loopback interface.
    pub async fn bind(listen: Option<SocketAddr>) -> Result<Self> {
        let listen = listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(listen).await;
        Ok(Self(listener.with_context(|| format!("metrics.listen {listen} cannot be used: choose another"))?))
    }

    /// Serves until aborted.
    pub fn serve(self, metrics: PrometheusHandle, broker: Arc<dyn Broker>) -> JoinHandle<()> {
        let health = broker.health();
        let ready = move || {
            let connected = *health.borrow() == Health::Connected;
            async move { if connected { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
        };
        let render = metrics.clone();
        let router = Router::new()
            .route("/metrics", get(move || async move { render.render() }))
            .route("/health/live", get(async || StatusCode::OK))
            .route("/health/ready", get(ready));
        if let Ok(address) = self.0.local_addr() {
            tracing::info!(address = %address, "metrics: http://{address}/metrics");
        }
        tokio::spawn(async move {
            let _upkeep = telemetry::upkeep(metrics);
            if let Err(error) = axum::serve(self.0, router).await {
                tracing::error!(error = %error, "the metrics port ended badly");
            }
        })
    }
}

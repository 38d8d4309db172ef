//! The metrics port of a process without an HTTP face: `/metrics`, `/health/live`, `/health/ready`.

use crate::telemetry;
use anyhow::{Context, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use broker::{Broker, Health};
use metrics_exporter_prometheus::PrometheusHandle;
use serving::Limits;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Its callers are a scraper or two, and whoever watches over processes. It ends with its process.
const LIMITS: Limits =
    Limits { connections_max: 64, head_timeout: Some(Duration::from_secs(30)), grace: Duration::ZERO };

/// A bound port, not yet served.
pub struct Observer(TcpListener);

impl Observer {
    /// Binds `listen`, or a free port of the loopback interface.
    pub async fn bind(listen: Option<SocketAddr>) -> Result<Self> {
        let listen = listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(listen).await;
        Ok(Self(listener.with_context(|| format!("metrics.listen {listen} cannot be used: choose another"))?))
    }

    /// Serves until aborted. Ready is a process whose broker is there and which `works`.
    pub fn serve(
        self,
        metrics: PrometheusHandle,
        broker: &dyn Broker,
        works: impl Fn() -> bool + Clone + Send + Sync + 'static,
    ) -> JoinHandle<()> {
        let health = broker.health();
        let ready = move || {
            let is_ready = *health.borrow() == Health::Connected && works();
            async move { if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
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
            serving::serve(self.0, router, LIMITS, Box::pin(std::future::pending())).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn a_process_that_does_not_work_is_alive_and_not_ready() {
        let dir = tempfile::tempdir().unwrap();
        let limits = broker::Limits::default();
        let config = broker::embedded::Config { dir: dir.path().to_owned(), limits };
        let broker = broker::embedded::Embedded::open(config).await.unwrap();
        let works = Arc::new(AtomicBool::new(false));
        let observer = Observer::bind(None).await.unwrap();
        let address = observer.0.local_addr().unwrap();
        let told = Arc::clone(&works);
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let serving = observer.serve(metrics, broker.as_ref(), move || told.load(Ordering::Relaxed));
        let status = async |path: &str| {
            let mut caller = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n");
            caller.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            caller.read_to_string(&mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap().to_owned()
        };
        assert_eq!(
            (status("/health/live").await, status("/health/ready").await),
            ("200".into(), "503".into())
        );
        works.store(true, Ordering::Relaxed);
        assert_eq!(status("/health/ready").await, "200");
        broker.close().await;
        assert_eq!(status("/health/ready").await, "503");
        serving.abort();
    }
}

//! Logs and metrics of a process.

use crate::config::{ConfigError, Log, LogFormat};
use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Buckets of every histogram of seconds: from a tenth of a millisecond to ten minutes.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0,
];

/// Sends logs to standard error, where they never mix with results.
pub fn logs(log: &Log) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| {
        ConfigError::Value(format!("log.filter {:?} is not a filter: {error}", log.filter))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(BoxMakeWriter::new(std::io::stderr))
        .with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Human => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Starts collecting metrics; the handle renders them as Prometheus text.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()
        .context("failed to install the metrics recorder")
}

/// Between two clean-ups of what histograms have gathered.
const UPKEEP: Duration = Duration::from_secs(5);

/// Keeps the recorder's memory bounded while nobody scrapes; ends with the handle.
pub fn upkeep(metrics: PrometheusHandle) -> Upkeep {
    Upkeep(tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            metrics.run_upkeep();
        }
    }))
}

/// Stops the upkeep when dropped.
pub struct Upkeep(JoinHandle<()>);

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

//! Logs and metrics of a process.

use crate::config::{ConfigError, Log, LogFormat};
use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The AMQP client tells every failure it meets before it returns it, and several times; ours is the word on it. Whoever
/// names it in the filter sees it all the same.
const UNLESS_NAMED: &str = "lapin=off";

/// What no filter may show: there the AMQP client logs messages that a broker returned, bodies and all.
const NEVER: &str = "lapin::returned_messages=off";

/// Buckets of every histogram of seconds: from a tenth of a millisecond to ten minutes.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0,
];

/// Sends logs to standard error, where they never mix with results.
pub fn logs(log: &Log) -> Result<(), ConfigError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.filter)?)
        .with_writer(BoxMakeWriter::new(std::io::stderr))
        .with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Human => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

fn filter(text: &str) -> Result<EnvFilter, ConfigError> {
    let never: Directive = NEVER.parse().expect("a directive");
    let filter = EnvFilter::try_new(text)
        .map_err(|error| ConfigError::Value(format!("log.filter {text:?} is not a filter: {error}")))?;
    let quiet = (!text.contains("lapin")).then(|| UNLESS_NAMED.parse::<Directive>().expect("a directive"));
    let filter = quiet.into_iter().fold(filter, EnvFilter::add_directive);
    // The last word on its target, and more specific than any word on the crate.
    Ok(filter.add_directive(never))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_filter_shows_the_bodies_of_returned_messages() {
        for text in ["", "info", "trace", "lapin=trace", "warn,lapin::returned_messages=warn", "off"] {
            let shown = filter(text).unwrap().to_string();
            assert!(shown.split(',').any(|directive| directive == NEVER), "{text}: {shown}");
            assert!(!shown.contains("lapin::returned_messages=warn"), "{text}: {shown}");
        }
        assert!(filter("info").unwrap().to_string().contains("lapin=off"));
        assert!(filter("lapin=debug").unwrap().to_string().contains("lapin=debug"));
        assert!(filter("workers=loudly").unwrap_err().to_string().contains("log.filter"));
    }
}

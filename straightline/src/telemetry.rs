//! Logs and metrics of a process.

use crate::config::{ConfigError, Log, LogFormat};
use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// The AMQP client tells every failure it meets before it returns it, and several times; ours is the word on it. Whoever
/// names it in the filter sees it all the same.
const UNLESS_NAMED: &str = "lapin";

/// What no filter may show: there the AMQP client logs messages that a broker returned, bodies and all.
const NEVER: &str = "lapin::returned_messages";

/// Buckets of every histogram of seconds: from a tenth of a millisecond to ten minutes.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0,
];

/// Sends logs to standard error, where they never mix with results.
pub fn logs(log: &Log) -> Result<(), ConfigError> {
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match log.format {
        LogFormat::Human => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter(&log.filter)?)).init();
    Ok(())
}

/// What is shown: a level for all, and levels of their own for targets.
fn filter(text: &str) -> Result<Targets, ConfigError> {
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let refused = |problem: &dyn std::fmt::Display| {
        ConfigError::Value(format!(
            "log.filter {text:?} is not a filter: {problem}; use a level (off, error, warn, info, debug, trace), or targets \
             with theirs, such as warn,workers=debug"
        ))
    };
    // The library would take it for a target, and show nothing else.
    if let Some(odd) = parts.iter().find(|part| !part.contains('=') && part.parse::<LevelFilter>().is_err()) {
        return Err(refused(&format!("{odd:?} is no level")));
    }
    if let Some(odd) = parts.iter().find(|part| part.contains(|letter| " ;[]{}".contains(letter))) {
        return Err(refused(&format!("{odd:?} is no target with a level")));
    }
    let asked: Targets = parts.join(",").parse().map_err(|error| refused(&error))?;
    // Whatever is asked for, errors of all others are shown.
    let all = parts.iter().any(|part| !part.contains('='));
    let asked = if all { asked } else { asked.with_default(LevelFilter::ERROR) };
    let asked =
        if text.contains("lapin") { asked } else { asked.with_target(UNLESS_NAMED, LevelFilter::OFF) };
    // The last word on its target, and more specific than any word on the crate.
    Ok(asked.with_target(NEVER, LevelFilter::OFF))
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
    use tracing::Level;

    #[test]
    fn no_filter_shows_the_bodies_of_returned_messages() {
        for text in ["", "info", "trace", "lapin=trace", "warn,lapin::returned_messages=warn", "off"] {
            let filter = filter(text).unwrap();
            assert!(!filter.would_enable(NEVER, &Level::ERROR), "{text}: {filter}");
            assert_eq!(
                filter.would_enable("workers", &Level::WARN),
                text.starts_with(['i', 't', 'w']),
                "{text}"
            );
        }
    }

    #[test]
    fn the_amqp_client_is_silent_unless_it_is_named() {
        let shows = |text: &str| filter(text).unwrap().would_enable("lapin::channels", &Level::ERROR);
        assert!(!shows("info") && !shows("trace") && shows("info,lapin=error"));
        let levels = |text: &str| {
            let filter = filter(text).unwrap();
            [Level::ERROR, Level::WARN, Level::INFO].map(|level| filter.would_enable("workers", &level))
        };
        assert_eq!(levels(" "), [true, false, false], "errors are shown whatever is asked for");
        assert_eq!(levels("info,"), [true, true, true]);
        assert_eq!(levels("broker=debug"), [true, false, false]);
        for odd in ["verbose", "wrokers", "debug info", "info;workers=debug", "workers[run]=debug"] {
            assert!(filter(odd).unwrap_err().to_string().contains("such as warn,workers=debug"), "{odd}");
        }
        let error = filter("workers=loudly").unwrap_err().to_string();
        assert!(error.contains("log.filter") && error.contains("such as warn"), "{error}");
    }
}

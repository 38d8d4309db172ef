//! What commands show: results and answers on standard output, progress on standard error. Logs are elsewhere.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt;
use std::io::{self, Write};

/// Whoever read the output reads no more (`| head`): nothing is wrong, and there is nobody left to tell.
#[derive(Debug, thiserror::Error)]
#[error("output was closed")]
pub struct Closed;

/// One line. An output that was closed is an error like any other, not a panic.
pub fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").map_err(failed)
}

/// Text as it is.
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(failed)
}

/// What became of an output that could not be written.
pub fn failed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Closed.into(),
        _ => anyhow::Error::from(error).context("failed to write the output"),
    }
}

/// So many things, in words: `1 job`, `2 jobs`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A progress bar over jobs; without an end if their number is not known.
pub fn progress(jobs: Option<u64>) -> ProgressBar {
    let (bar, template) = match jobs {
        Some(jobs) => (ProgressBar::new(jobs), "{spinner} {bar:40} {pos}/{len} jobs, {rate}/s, {seconds} s"),
        None => (ProgressBar::no_length(), "{spinner} {pos} jobs, {rate}/s, {seconds} s"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    // A bar that cannot be drawn stops nobody.
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{:.0}", state.per_sec());
    };
    let seconds = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{}", state.elapsed().as_secs());
    };
    bar.with_style(style.with_key("rate", rate).with_key("seconds", seconds))
}

/// A progress bar over the steps of a long measurement.
pub fn steps(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {bar:40} {pos}/{len} {msg}");
    ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_was_closed_is_told_from_one_that_failed() {
        assert!(failed(io::ErrorKind::BrokenPipe.into()).is::<Closed>());
        assert!(!failed(io::ErrorKind::StorageFull.into()).is::<Closed>());
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([count(0, "job"), count(1, "job"), count(2, "job")], ["0 jobs", "1 job", "2 jobs"]);
    }
}

//! Standard output: results and answers only, never logs.

use anyhow::{Context, Result};
use std::io::Write;

/// One line. An output that was closed (`| head`) is an error like any other, not a panic.
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").context("failed to write to standard output")
}

/// Text as it is.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("failed to write to standard output")
}

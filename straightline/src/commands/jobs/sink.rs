//! Where ids and results go: JSON Lines, and a progress bar on standard error.

use crate::cli;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use schemas::{JobId, JobResult, Status};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{LineWriter, Write};

/// Takes what comes back and counts it.
pub struct Sink {
    out: Box<dyn Write + Send>,
    progress: ProgressBar,
    wanted: bool,
    succeeded: u64,
    otherwise: u64,
}

impl Sink {
    /// A sink for what `options` ask for.
    pub fn new(options: &cli::Submit, expected: Option<u64>) -> Result<Self> {
        let out: Box<dyn Write + Send> = match &options.output {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("output {}", path.display()))?;
                // Each result as it comes: whoever reads along waits for it, and a crash loses none.
                Box::new(LineWriter::new(file))
            }
            None => Box::new(std::io::stdout()),
        };
        let progress = match expected {
            Some(jobs) => ProgressBar::new(jobs),
            None => ProgressBar::no_length(),
        };
        let template = match expected {
            Some(_) => "{spinner} {bar:40} {pos}/{len} jobs, {per_sec}, {elapsed}",
            None => "{spinner} {pos} jobs, {per_sec}, {elapsed}",
        };
        if options.quiet {
            progress.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Ok(Self {
            out,
            progress: progress.with_style(style),
            wanted: options.wait,
            succeeded: 0,
            otherwise: 0,
        })
    }

    /// A job was submitted; its id is all there is to say when nobody waits.
    pub fn submitted(&mut self, index: usize, id: JobId) -> Result<()> {
        self.succeeded += 1;
        self.write(&json!({ "index": index, "id": id }))
    }

    /// A job has ended.
    pub fn ended(&mut self, index: usize, result: &JobResult) -> Result<()> {
        if result.status == Status::Succeeded {
            self.succeeded += 1;
        } else {
            self.otherwise += 1;
        }
        let mut line = serde_json::to_value(result).context("failed to write a result as JSON")?;
        if let Value::Object(fields) = &mut line {
            fields.insert("index".to_owned(), index.into());
        }
        self.write(&line)
    }

    /// A job was not submitted, or its result did not come.
    pub fn failed(&mut self, index: usize, id: Option<JobId>, error: &dyn std::fmt::Display) -> Result<()> {
        self.otherwise += 1;
        self.write(&match id {
            Some(id) => json!({ "index": index, "id": id, "error": error.to_string() }),
            None => json!({ "index": index, "error": error.to_string() }),
        })
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        self.progress.inc(1);
        writeln!(self.out, "{line}").context("failed to write the output")
    }

    /// Says how it went; true if everything succeeded.
    pub fn finish(mut self) -> Result<bool> {
        self.out.flush().context("failed to write the output")?;
        self.progress.finish_and_clear();
        if !self.progress.is_hidden() || self.otherwise > 0 {
            let what = if self.wanted { "succeeded" } else { "submitted" };
            eprintln!("{} jobs {what}, {} did not", self.succeeded, self.otherwise);
        }
        Ok(self.otherwise == 0)
    }
}

//! Where ids and results go: JSON Lines, and a progress bar on standard error.

use crate::{cli, print};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget};
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
    /// Submitted, and not waited for any longer.
    pending: u64,
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
        let progress = print::progress(expected);
        if options.quiet {
            progress.set_draw_target(ProgressDrawTarget::hidden());
        }
        Ok(Self { out, progress, wanted: options.wait, succeeded: 0, otherwise: 0, pending: 0 })
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

    /// A job was submitted, and nobody waits for it any longer.
    pub fn pending(&mut self, index: usize, id: JobId) -> Result<()> {
        self.pending += 1;
        self.write(&json!({ "index": index, "id": id, "status": "pending" }))
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        self.progress.inc(1);
        writeln!(self.out, "{line}").map_err(print::failed)
    }

    /// Says how it went; true if everything succeeded.
    pub fn finish(mut self) -> Result<bool> {
        self.out.flush().map_err(print::failed)?;
        self.progress.finish_and_clear();
        let all = self.succeeded + self.otherwise + self.pending;
        if !self.progress.is_hidden() || self.otherwise + self.pending > 0 || all == 0 {
            eprintln!("{}", self.summary());
        }
        Ok(self.otherwise == 0)
    }

    fn summary(&self) -> String {
        if self.succeeded + self.otherwise + self.pending == 0 {
            return "no jobs: the input is empty".to_owned();
        }
        let what = if self.wanted { "succeeded" } else { "submitted" };
        let ended = format!("{} {what}, {} did not", print::count(self.succeeded, "job"), self.otherwise);
        match self.pending {
            0 => ended,
            1 => format!("{ended}, 1 runs on: get its result with `straightline result ID`"),
            on => format!("{ended}, {on} run on: get their results with `straightline result ID…`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn what_there_was_is_summed_up() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        let arguments = ["straightline", "submit", "-", "--wait", "--output", output.to_str().unwrap()];
        let cli::Command::Submit(options) = cli::Cli::parse_from(arguments).command else { unreachable!() };
        let mut sink = Sink::new(&options, None).unwrap();
        assert_eq!(sink.summary(), "no jobs: the input is empty");
        sink.failed(0, None, &"x").unwrap();
        assert_eq!(sink.summary(), "0 jobs succeeded, 1 did not");
        let id = JobId::new();
        sink.pending(1, id).unwrap();
        assert!(sink.summary().contains("1 runs on") && sink.summary().contains("straightline result"));
        assert!(!sink.finish().unwrap());
        let text = std::fs::read_to_string(&output).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last, json!({ "index": 1, "id": id, "status": "pending" }));
    }
}

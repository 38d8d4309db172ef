//! Where jobs come from: files, folders, standard input. Read as they are needed, never all at once.

use crate::cli;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use schemas::{Class, ModelName};
use serde_json::{Map, Value};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// One job, not yet submitted.
#[derive(Debug)]
pub struct Job {
    /// Its place among all, from 0.
    pub index: usize,
    /// Where it was read.
    pub place: Place,
    /// What it is; or why it is none.
    pub content: Result<Content, String>,
}

/// A file, and its line if it has one job on each.
#[derive(Clone, Debug)]
pub struct Place {
    file: Arc<str>,
    line: Option<usize>,
}

impl Place {
    /// What is wrong with the job here. What a reader says of the line and column it was at is left out: jobs are
    /// written anew before they are read there.
    pub fn blame(&self, error: &str) -> String {
        let known = error.rsplit_once(" at line ").filter(|(_, at)| {
            let numbers = at.split_once(" column ");
            numbers.is_some_and(|(line, column)| [line, column].iter().all(|n| n.parse::<usize>().is_ok()))
        });
        format!("{self}: {}", known.map_or(error, |(error, _)| error))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(to, "{}, line {line}", self.file),
            None => to.write_str(&self.file),
        }
    }
}

/// What a job is.
#[derive(Debug)]
pub enum Content {
    /// A JSON object, as `POST /v1/jobs` takes it.
    Json(Map<String, Value>),
    /// Bytes that only the model understands.
    Opaque(Opaque),
}

/// An opaque input, with what was said of it on the command line.
#[derive(Debug)]
pub struct Opaque {
    pub model: ModelName,
    pub class: Class,
    pub deadline: Option<Duration>,
    pub content_type: &'static str,
    pub bytes: Bytes,
}

/// Jobs as they are read.
pub struct Inputs {
    pub jobs: mpsc::Receiver<Job>,
    /// How many there will be, if that is known without reading.
    pub expected: Option<u64>,
}

/// Jobs read ahead of whoever submits them.
const AHEAD: usize = 256;

/// What jobs get that do not say for themselves.
#[derive(Clone)]
struct Defaults {
    model: Option<ModelName>,
    class: Class,
    deadline: Option<Duration>,
}

/// Checks that every input is there, then reads them on a thread of their own.
pub fn open(options: &cli::Submit) -> Result<Inputs> {
    let files = files(&options.inputs)?;
    let defaults =
        Defaults { model: options.model.clone(), class: options.class, deadline: options.deadline };
    if let Some(file) = files.iter().find(|file| kind(file) == Kind::Opaque)
        && defaults.model.is_none()
    {
        bail!("{} is an opaque input: say which model it is for with --model", file.display());
    }
    let single = files.iter().all(|file| kind(file) != Kind::Lines);
    let expected = single.then_some(files.len() as u64);
    let (sender, jobs) = mpsc::channel(AHEAD);
    std::thread::Builder::new()
        .name("read-jobs".to_owned())
        .spawn(move || {
            let mut reader = Reader { sender, defaults, index: 0 };
            // An error here means that nobody wants more.
            let _ = files.iter().try_for_each(|file| reader.read(file));
        })
        .context("failed to start a thread")?;
    Ok(Inputs { jobs, expected })
}

/// The files meant by `inputs`: folders give their `.json` and `.jsonl` files by name.
fn files(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for input in inputs {
        if input == Path::new("-") {
            files.push(input.clone());
            continue;
        }
        let about = std::fs::metadata(input).with_context(|| format!("input {}", input.display()))?;
        if !about.is_dir() {
            files.push(input.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(input).with_context(|| format!("input {}", input.display()))? {
            let path = entry.with_context(|| format!("input {}", input.display()))?.path();
            if path.is_file() && kind(&path) != Kind::Opaque {
                found.push(path);
            }
        }
        if found.is_empty() {
            bail!("input {} is a folder without .json or .jsonl files", input.display());
        }
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lines,
    Json,
    Opaque,
}

fn kind(path: &Path) -> Kind {
    match path.extension().and_then(|extension| extension.to_str()) {
        _ if path == Path::new("-") => Kind::Lines,
        Some("jsonl" | "ndjson") => Kind::Lines,
        Some("json") => Kind::Json,
        _ => Kind::Opaque,
    }
}

/// Nobody takes jobs any more.
struct Enough;

struct Reader {
    sender: mpsc::Sender<Job>,
    defaults: Defaults,
    index: usize,
}

impl Reader {
    fn read(&mut self, path: &Path) -> Result<(), Enough> {
        if path == Path::new("-") {
            return self.lines(std::io::stdin().lock(), "standard input");
        }
        let name = path.display().to_string();
        let whole = Place { file: name.as_str().into(), line: None };
        let job = match kind(path) {
            Kind::Lines => match File::open(path) {
                Ok(opened) => return self.lines(BufReader::new(opened), &name),
                Err(error) => Err(error.to_string()),
            },
            Kind::Json => match std::fs::read(path) {
                // An error here says where in the file it is.
                Ok(bytes) => self.object(&bytes),
                Err(error) => Err(error.to_string()),
            },
            Kind::Opaque => self.opaque(path),
        };
        self.send(whole, job)
    }

    fn lines(&mut self, mut from: impl BufRead, name: &str) -> Result<(), Enough> {
        let file: Arc<str> = name.into();
        let mut line = Vec::new();
        for number in 1.. {
            let place = Place { file: Arc::clone(&file), line: Some(number) };
            line.clear();
            match from.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => {
                    let job = self.object(&line);
                    self.send(place, job)?;
                }
                Err(error) => return self.send(place, Err(error.to_string())),
            }
        }
        Ok(())
    }

    fn opaque(&self, path: &Path) -> Result<Content, String> {
        let model = self.defaults.model.clone().ok_or("say which model it is for with --model")?;
        Ok(Content::Opaque(Opaque {
            model,
            class: self.defaults.class,
            deadline: self.defaults.deadline,
            content_type: media_type(path),
            bytes: std::fs::read(path).map_err(|error| error.to_string())?.into(),
        }))
    }

    /// A job's JSON object, with the defaults filled in.
    fn object(&self, json: &[u8]) -> Result<Content, String> {
        let mut object: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| format!("not a JSON object: {error}"))?;
        let mut default = |key: &str, value: Option<Value>| {
            if let Some(value) = value
                && !object.contains_key(key)
            {
                object.insert(key.to_owned(), value);
            }
        };
        default("model", self.defaults.model.as_ref().map(|model| model.as_str().into()));
        default("class", Some(self.defaults.class.as_str().into()));
        let deadline_ms =
            self.defaults.deadline.and_then(|deadline| u64::try_from(deadline.as_millis()).ok());
        default("deadline_ms", deadline_ms.map(Value::from));
        if !object.contains_key("model") {
            return Err("no model is named: add \"model\", or name one for all with --model NAME".to_owned());
        }
        Ok(Content::Json(object))
    }

    fn send(&mut self, place: Place, content: Result<Content, String>) -> Result<(), Enough> {
        let job = Job { index: self.index, place, content };
        self.index += 1;
        self.sender.blocking_send(job).map_err(|_| Enough)
    }
}

fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("txt") => "text/plain",
        Some("csv") => "text/csv",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    async fn read(arguments: &[&str]) -> Result<Vec<Job>> {
        let cli = cli::Cli::parse_from([&["straightline", "submit"], arguments].concat());
        let cli::Command::Submit(options) = cli.command else { panic!("submit was parsed") };
        let mut inputs = open(&options)?;
        let mut jobs = Vec::new();
        while let Some(job) = inputs.jobs.recv().await {
            jobs.push(job);
        }
        Ok(jobs)
    }

    #[tokio::test]
    async fn a_folder_gives_its_jobs_in_order_with_defaults_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.json"), r#"{"model":"other","inputs":[]}"#).unwrap();
        std::fs::write(dir.path().join("a.jsonl"), "{\"inputs\":[]}\n\nnot json\n{\"class\":\"low\"}")
            .unwrap();
        std::fs::write(dir.path().join("ignored.png"), "x").unwrap();
        let jobs =
            read(&[dir.path().to_str().unwrap(), "--model", "digits", "--deadline", "30s"]).await.unwrap();
        assert_eq!(jobs.iter().map(|job| job.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let object = |at: usize| match &jobs[at].content {
            Ok(Content::Json(object)) => object.clone(),
            other => panic!("job {at} is {other:?}"),
        };
        assert_eq!(object(0)["model"], "digits");
        assert_eq!(object(0)["deadline_ms"], 30_000);
        assert!(jobs[1].content.as_ref().unwrap_err().contains("not a JSON object"));
        assert!(jobs[1].place.to_string().ends_with("a.jsonl, line 3"), "{}", jobs[1].place);
        assert_eq!((&object(2)["class"], &object(3)["model"]), (&"low".into(), &"other".into()));
    }

    #[tokio::test]
    async fn a_job_without_a_model_is_told_of_the_flag_and_an_error_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("one.json");
        std::fs::write(&file, r#"{"inputs":[]}"#).unwrap();
        let job = read(&[file.to_str().unwrap()]).await.unwrap().remove(0);
        let blamed = job.place.blame(&job.content.unwrap_err());
        assert!(blamed.contains("one.json: ") && blamed.contains("--model NAME"), "{blamed}");
        let blamed = job.place.blame("unknown field `x` at line 1 column 231");
        assert!(blamed.ends_with("one.json: unknown field `x`"), "{blamed}");
        let blamed = job.place.blame("nobody is at line 7");
        assert!(blamed.ends_with("one.json: nobody is at line 7"), "{blamed}");
    }

    #[tokio::test]
    async fn what_is_missing_is_said_before_anything_is_submitted() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("x.png");
        std::fs::write(&image, "x").unwrap();
        let error = read(&["/nonexistent.jsonl"]).await.unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent.jsonl"));
        assert!(read(&[image.to_str().unwrap()]).await.unwrap_err().to_string().contains("--model"));
        assert!(
            read(&[dir.path().to_str().unwrap()]).await.unwrap_err().to_string().contains("without .json")
        );
        let jobs = read(&[image.to_str().unwrap(), "--model", "m"]).await.unwrap();
        assert!(
            matches!(&jobs[0].content, Ok(Content::Opaque(opaque)) if opaque.content_type == "image/png")
        );
    }
}

//! The placement log: one line of JSON per placement, with everything the policy looked at, so that any choice can be
//! explained, and recomputed, long after.
//!
//! Lines are written by a thread of their own. When the disk does not keep up, lines are left out and counted
//! (`straightline_placement_log_dropped_total`): placing never waits for its log.

use crate::policy::{Job, LaneView, Lanes, Reason};
use schemas::{Class, JobHeader, JobId, Lane, ModelName, UnixMillis};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// Lines on their way to the disk, at most.
const LINES_MAX: usize = 16 * 1024;

/// One placement: what was known, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// When.
    pub at: UnixMillis,
    /// The dispatcher that decided.
    pub dispatcher: String,
    /// The job.
    pub job: JobId,
    /// The model it asks for.
    pub model: ModelName,
    /// How urgent it is.
    pub class: Class,
    /// Which attempt this is for.
    pub attempt: u8,
    /// r_d: bytes of its input.
    pub size: u64,
    /// f_t: how often its model was asked for, per second.
    pub per_second: f64,
    /// Lanes that had failed it.
    pub failed: Vec<Lane>,
    /// Every lane, as the policy saw it.
    pub lanes: Vec<Seen>,
    /// The lane it went to.
    pub lane: Lane,
    /// Why.
    pub reason: String,
}

/// A lane, as the policy saw it for one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Which.
    pub lane: Lane,
    /// Whether a worker of it lived.
    pub live: bool,
    /// Whether one of them ran the model.
    pub serves: bool,
    /// S: places free.
    pub room: u32,
    /// Largest input it takes, in bytes.
    pub payload_max: Option<u64>,
}

impl Entry {
    /// The line for `header`, placed in `lane` for `reason`, `seen` being what the policy saw.
    pub(crate) fn of(
        dispatcher: &str,
        header: &JobHeader,
        (facts, lanes): &(Job, Lanes),
        (lane, reason): (Lane, Reason),
        at: UnixMillis,
    ) -> Self {
        let seen = |lane: Lane| {
            let LaneView { live, serves, room, payload_max } = lanes[lane.index()];
            Seen { lane, live, serves, room, payload_max }
        };
        Self {
            at,
            dispatcher: dispatcher.to_owned(),
            job: header.id,
            model: header.model.clone(),
            class: header.class,
            attempt: header.attempt,
            size: facts.size,
            per_second: facts.per_second,
            failed: Lane::ALL.into_iter().filter(|lane| facts.failed.contains(*lane)).collect(),
            lanes: Lane::ALL.map(seen).to_vec(),
            lane,
            reason: reason.to_string(),
        }
    }
}

/// The log, open. Dropping it writes what is left.
pub(crate) struct Journal {
    lines: Option<SyncSender<Entry>>,
    writing: Option<JoinHandle<()>>,
}

impl Journal {
    /// Opens the file at `path`, to write behind what it holds.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        metrics::describe_counter!(
            "straightline_placement_log_dropped_total",
            "placements left out of the log: the disk did not keep up, or failed"
        );
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (lines, received) = sync_channel(LINES_MAX);
        let writing = thread::Builder::new().name("placement-log".to_owned());
        let writing = writing.spawn(move || write(file, &received))?;
        Ok(Self { lines: Some(lines), writing: Some(writing) })
    }

    /// Hands a line over; never waits.
    pub(crate) fn note(&self, entry: Entry) {
        let taken = self.lines.as_ref().is_some_and(|lines| lines.try_send(entry).is_ok());
        if !taken {
            dropped();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writing) = self.writing.take() {
            // A thread that panicked has said so.
            let _ = writing.join();
        }
    }
}

fn dropped() {
    metrics::counter!("straightline_placement_log_dropped_total").increment(1);
}

fn write(file: File, lines: &Receiver<Entry>) {
    let mut file = BufWriter::new(file);
    let mut failing = false;
    while let Ok(first) = lines.recv() {
        // What has piled up goes out together, and nothing rests in memory while nothing arrives.
        let burst = std::iter::once(first).chain(lines.try_iter());
        let outcome =
            burst.take(LINES_MAX).try_for_each(|entry| line(&mut file, &entry)).and_then(|()| file.flush());
        if let Err(error) = outcome {
            dropped();
            if !failing {
                tracing::error!(%error, "failed to write the placement log; lines are missing");
            }
            failing = true;
        } else {
            failing = false;
        }
    }
}

fn line(file: &mut impl Write, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut *file, entry)?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Obstacle, Row};
    use schemas::{ClientName, LaneSet};

    #[test]
    fn a_line_says_what_the_policy_saw_and_files_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("placements.jsonl");
        let (model, client) = (ModelName::new("digits").unwrap(), ClientName::new("c").unwrap());
        let header = JobHeader::new(JobId::new(), model, client, UnixMillis(0));
        let facts = Job { per_second: 2.5, size: 70_000, failed: LaneSet::EMPTY.with(Lane::Docker) };
        let open = LaneView { live: true, serves: true, room: 3, payload_max: None };
        let lanes = [LaneView { payload_max: Some(9), ..open }, LaneView::default(), open];
        let reason = Reason::passed(Row::Large, Lane::Docker, Obstacle::Down);
        for at in [7, 8] {
            let journal = Journal::open(&path).unwrap();
            let entry = Entry::of("d", &header, &(facts, lanes), (Lane::Local, reason), UnixMillis(at));
            journal.note(entry);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "written behind what was there: {text}");
        let expected = serde_json::json!({
            "at": 7, "dispatcher": "d", "job": header.id.to_string(), "model": "digits", "class": "normal",
            "attempt": 1, "size": 70_000, "per_second": 2.5, "failed": ["docker"],
            "lanes": [
                {"lane": "serverless", "live": true, "serves": true, "room": 3, "payload_max": 9},
                {"lane": "docker", "live": false, "serves": false, "room": 0, "payload_max": null},
                {"lane": "local", "live": true, "serves": true, "room": 3, "payload_max": null},
            ],
            "lane": "local", "reason": "large/docker_down",
        });
        assert_eq!(lines[0], expected);
        assert_eq!(lines[1]["at"], 8);
    }
}

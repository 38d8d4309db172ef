//! What the demo saw, counted. Pure.

use crate::figures::{percentile, to_3_decimals};
use crate::print;
use producer::operations::LaneStatus;
use schemas::{JobResult, Status};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// Results so far.
pub(super) struct Report {
    submitted: usize,
    seen: BTreeSet<usize>,
    succeeded: usize,
    failed: usize,
    duplicates: usize,
    images: usize,
    recognised: usize,
    /// By lane and reason.
    groups: BTreeMap<(String, String), Group>,
    errors: BTreeMap<String, usize>,
    took: Duration,
    is_partial: bool,
}

#[derive(Default)]
struct Group {
    took_ms: Vec<f64>,
    failed: usize,
    images: usize,
    recognised: usize,
}

impl Report {
    pub(super) fn new(submitted: usize) -> Self {
        Self {
            submitted,
            seen: BTreeSet::new(),
            succeeded: 0,
            failed: 0,
            duplicates: 0,
            images: 0,
            recognised: 0,
            groups: BTreeMap::new(),
            errors: BTreeMap::new(),
            took: Duration::ZERO,
            is_partial: false,
        }
    }

    /// How long all of it took.
    pub(super) fn took(&mut self, took: Duration) {
        self.took = took;
    }

    /// It was broken off when so many jobs had been submitted: what has not come back by then is not lost.
    pub(super) fn interrupted(&mut self, submitted: usize) {
        self.submitted = submitted;
        self.is_partial = true;
    }

    /// A result came, `took` after its job was submitted.
    pub(super) fn add(
        &mut self,
        job: usize,
        result: &JobResult,
        took: Duration,
        recognised: usize,
        images: usize,
    ) {
        if !self.seen.insert(job) {
            self.duplicates += 1;
            return;
        }
        let lane = result.lane.map_or_else(|| "none".to_owned(), |lane| lane.to_string());
        let reason = result.reason.clone().unwrap_or_else(|| "none".to_owned());
        let group = self.groups.entry((lane, reason)).or_default();
        group.took_ms.push(took.as_secs_f64() * 1000.0);
        if result.status == Status::Succeeded {
            self.succeeded += 1;
            self.images += images;
            self.recognised += recognised;
            group.images += images;
            group.recognised += recognised;
        } else {
            self.failed += 1;
            group.failed += 1;
            let error = result.error.as_ref().map_or_else(|| result.status.to_string(), ToString::to_string);
            *self.errors.entry(error).or_default() += 1;
        }
    }

    /// No result came.
    pub(super) fn missing(&mut self, _job: usize, error: &str) {
        *self.errors.entry(error.to_owned()).or_default() += 1;
    }

    /// Whether every job came back once, with an answer.
    pub(super) fn complete(&self) -> bool {
        self.lost() == 0 && self.failed == 0 && self.duplicates == 0
    }

    fn lost(&self) -> usize {
        if self.is_partial { 0 } else { self.missing_results() }
    }

    fn unfinished(&self) -> usize {
        if self.is_partial { self.missing_results() } else { 0 }
    }

    fn missing_results(&self) -> usize {
        self.submitted.saturating_sub(self.seen.len())
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn rate(&self) -> f64 {
        self.seen.len() as f64 / self.took.as_secs_f64().max(0.001)
    }

    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    fn accuracy(recognised: usize, images: usize) -> f64 {
        if images == 0 { 0.0 } else { recognised as f64 / images as f64 }
    }

    pub(super) fn json(&self, lanes: &[LaneStatus]) -> Value {
        let lane = |status: &LaneStatus| {
            let name = status.lane.to_string();
            let of_lane = self.groups.iter().filter(|((lane, _), _)| *lane == name);
            let took: Vec<f64> = of_lane.flat_map(|(_, group)| group.took_ms.iter().copied()).collect();
            let [p50, p95, p99] = percentiles(&took).map(|ms| ms.map(to_3_decimals));
            let mut entry = json!({
                "available": status.available, "jobs": took.len(), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            });
            if !status.available {
                entry["note"] = note(status).into();
            }
            (name, entry)
        };
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for ((_, reason), group) in &self.groups {
            *reasons.entry(reason).or_default() += group.took_ms.len();
        }
        json!({
            "submitted": self.submitted,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "lost": self.lost(),
            "unfinished": self.unfinished(),
            "duplicates": self.duplicates,
            "accuracy": Self::accuracy(self.recognised, self.images),
            "images": self.images,
            "duration_s": to_3_decimals(self.took.as_secs_f64()),
            "lanes": lanes.iter().map(lane).collect::<BTreeMap<_, _>>(),
            "reasons": reasons,
            "errors": self.errors,
        })
    }

    pub(super) fn table(&self, lanes: &[LaneStatus]) -> String {
        let mut out = String::new();
        let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
        line(format!(
            "{:<11} {:<32} {:>6} {:>8} {:>8} {:>8} {:>7} {:>9}",
            "lane", "reason", "jobs", "p50 ms", "p95 ms", "p99 ms", "failed", "accuracy"
        ));
        for ((lane, reason), group) in &self.groups {
            let [p50, p95, p99] = percentiles(&group.took_ms).map(|p| p.unwrap_or(0.0));
            line(format!(
                "{lane:<11} {reason:<32} {:>6} {p50:>8.1} {p95:>8.1} {p99:>8.1} {:>7} {:>8.1}%",
                group.took_ms.len(),
                group.failed,
                100.0 * Self::accuracy(group.recognised, group.images)
            ));
        }
        line("Times are from submission to result, waiting included.".to_owned());
        line(format!(
            "\n{} submitted: {} succeeded, {} failed, {} lost, {} twice. {}, {:.1}% recognised as labelled.",
            print::count(self.submitted as u64, "job"),
            self.succeeded,
            self.failed,
            self.lost(),
            self.duplicates,
            print::count(self.images as u64, "image"),
            100.0 * Self::accuracy(self.recognised, self.images)
        ));
        if self.is_partial {
            let left = print::count(self.unfinished() as u64, "job");
            line(format!("Interrupted: {left} had no result yet."));
        }
        line(format!("It took {:.1} s: {:.0} jobs/s.", self.took.as_secs_f64(), self.rate()));
        for lane in lanes.iter().filter(|lane| !lane.available) {
            line(format!("Lane {} was not there: {}", lane.lane, note(lane)));
        }
        for (error, count) in &self.errors {
            line(format!("{count} × {error}"));
        }
        out
    }
}

/// Why a lane takes no jobs.
fn note(lane: &LaneStatus) -> &str {
    lane.note.as_deref().unwrap_or("it has no worker")
}

/// The 50th, 95th and 99th percentile; none of nothing.
fn percentiles(values: &[f64]) -> [Option<f64>; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [50, 95, 99].map(|percent| percentile(&sorted, percent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{ClientName, JobHeader, JobId, Lane, ModelName, UnixMillis};

    /// Two jobs of three submitted came back, in a time with more decimals than anybody wants.
    fn report() -> Report {
        let mut report = Report::new(3);
        let header = JobHeader::new(
            JobId::new(),
            ModelName::new("digits").unwrap(),
            ClientName::new("demo").unwrap(),
            UnixMillis(0),
        );
        let mut result = JobResult::of(&header, Status::Succeeded, UnixMillis(1));
        result.lane = Some(Lane::Local);
        for job in 0..2 {
            report.add(job, &result, Duration::from_nanos(1_234_567), 1, 1);
        }
        report.took(Duration::from_micros(2_000_400));
        report
    }

    fn lane(lane: Lane, note: Option<&str>) -> LaneStatus {
        LaneStatus {
            lane,
            available: note.is_none(),
            note: note.map(str::to_owned),
            last_failure: None,
            workers: 0,
            draining: 0,
            slots: 0,
            running: 0,
            prefetched: 0,
            room: None,
            completed_per_s: 0.0,
        }
    }

    #[test]
    fn what_is_missing_is_lost_unless_it_was_broken_off() {
        let mut report = report();
        let table = report.table(&[]);
        assert!(table.contains("3 jobs submitted: 2 succeeded, 0 failed, 1 lost"), "{table}");
        let json = report.json(&[]);
        assert_eq!((&json["lost"], &json["unfinished"]), (&json!(1), &json!(0)));
        report.interrupted(3);
        let table = report.table(&[]);
        assert!(table.contains("Interrupted: 1 job had no result yet."), "{table}");
        let json = report.json(&[]);
        assert_eq!((&json["lost"], &json["unfinished"]), (&json!(0), &json!(1)));
    }

    #[test]
    fn figures_are_rounded_and_a_lane_that_is_away_says_why() {
        let report = report();
        let lanes = [lane(Lane::Local, None), lane(Lane::Docker, Some("its engine is away"))];
        let table = report.table(&lanes);
        for part in
            ["waiting included", "It took 2.0 s: 1 jobs/s.", "docker was not there: its engine is away"]
        {
            assert!(table.contains(part), "{table}");
        }
        let json = report.json(&lanes);
        assert_eq!(json["duration_s"], 2.0);
        let (local, docker) = (&json["lanes"]["local"], &json["lanes"]["docker"]);
        assert_eq!((&local["p50_ms"], local.get("note")), (&json!(1.235), None));
        assert_eq!(docker["note"], "its engine is away");
    }

    #[test]
    fn percentiles_need_no_order() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentiles(&values), [Some(50.0), Some(95.0), Some(99.0)]);
        assert_eq!(percentiles(&[7.0]), [Some(7.0); 3]);
        assert_eq!(percentiles(&[]), [None; 3]);
    }
}

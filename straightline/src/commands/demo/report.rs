//! What the demo saw, counted. Pure.

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
        }
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
        self.submitted - self.seen.len()
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
            let [p50, p95, p99] = percentiles(&took);
            let entry = json!({
                "available": status.available, "jobs": took.len(), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            });
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
            "duplicates": self.duplicates,
            "accuracy": Self::accuracy(self.recognised, self.images),
            "images": self.images,
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
        line(format!(
            "\n{} jobs submitted: {} succeeded, {} failed, {} lost, {} twice. {} images, {:.1}% recognised as labelled.",
            self.submitted,
            self.succeeded,
            self.failed,
            self.lost(),
            self.duplicates,
            self.images,
            100.0 * Self::accuracy(self.recognised, self.images)
        ));
        for lane in lanes.iter().filter(|lane| !lane.available) {
            let note = lane.note.as_deref().unwrap_or("it has no worker");
            line(format!("Lane {} was not there: {note}", lane.lane));
        }
        for (error, count) in &self.errors {
            line(format!("{count} × {error}"));
        }
        out
    }
}

/// The 50th, 95th and 99th percentile, nearest rank; none of nothing.
fn percentiles(values: &[f64]) -> [Option<f64>; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [50, 95, 99].map(|percent| {
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).copied()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentiles(&values), [Some(50.0), Some(95.0), Some(99.0)]);
        assert_eq!(percentiles(&[7.0]), [Some(7.0); 3]);
        assert_eq!(percentiles(&[]), [None; 3]);
    }
}

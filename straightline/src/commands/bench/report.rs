//! What a bench tells.

use super::load::Measured;
use super::round::Seen;
use crate::cli;
use crate::config::Settings;
use crate::figures;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// StraightLine.
    System,
    /// The pump that carries what the system carries.
    Equal,
    /// The pump that carries bytes.
    Bare,
}

impl Subject {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "straightline",
            Self::Equal => "equal pump",
            Self::Bare => "bare pump",
        }
    }

    /// Its key in JSON; none for the system, whose figures stand at the top.
    fn key(self) -> Option<&'static str> {
        match self {
            Self::System => None,
            Self::Equal => Some("ceiling"),
            Self::Bare => Some("bare"),
        }
    }
}

/// All rounds.
pub struct Report {
    config: Value,
    rate: u32,
    jobs: u32,
    answer_bytes: Option<usize>,
    seen: BTreeMap<Subject, Vec<Seen>>,
}

impl Report {
    /// Nothing seen yet.
    pub fn new(options: &cli::Bench, settings: &Settings) -> Self {
        Self {
            config: config(options, settings),
            rate: options.rate,
            jobs: options.jobs,
            answer_bytes: None,
            seen: BTreeMap::new(),
        }
    }

    /// An answer was so long.
    pub fn answered(&mut self, bytes: usize) {
        self.answer_bytes = Some(bytes);
    }

    /// How long an answer is.
    pub fn answer_bytes(&self) -> Option<usize> {
        self.answer_bytes
    }

    /// One more measurement.
    pub fn add(&mut self, subject: Subject, seen: Seen) {
        self.seen.entry(subject).or_default().push(seen);
    }

    /// Whether every job came back as it should.
    pub fn complete(&self) -> bool {
        self.sum(|measured| measured.lost + measured.failed) == 0
    }

    /// One object for machines.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        for (subject, seen) in &self.seen {
            let mut figures = self.figures(seen);
            let Some(key) = subject.key() else {
                object.append(&mut figures);
                continue;
            };
            figures.insert("ratio".to_owned(), number(self.ratio(*subject)));
            for percent in [50, 99] {
                let added = self.paced(Subject::System, percent) - self.paced(*subject, percent);
                figures.insert(format!("added_p{percent}_ms"), number(added));
            }
            object.insert(key.to_owned(), figures.into());
        }
        object.insert("lost".to_owned(), self.sum(|measured| measured.lost).into());
        object.insert("failed".to_owned(), self.sum(|measured| measured.failed).into());
        object.insert("config".to_owned(), self.config.clone());
        object.into()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let at_rate = format!("at {} jobs/s: p50", self.rate);
        let _ = writeln!(
            text,
            "{:14} {:>9} {:>8} {:>8} {:>8} {:>8}   {at_rate:>18} {:>8} {:>8} {:>8}   CPU s per 10,000 jobs",
            "", "jobs/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "p95 ms", "p99 ms", "max ms"
        );
        for (subject, seen) in &self.seen {
            let saturated =
                |percent| median(seen.iter().filter_map(|seen| seen.saturated.percentile_ms(percent)));
            let _ = write!(text, "{:14} {:>9.0}", subject.name(), self.per_second(*subject));
            for percent in PERCENTILES {
                let _ = write!(text, " {:>8.2}", saturated(percent));
            }
            let _ = write!(text, "   {:>18.2}", self.paced(*subject, 50));
            for percent in &PERCENTILES[1..] {
                let _ = write!(text, " {:>8.2}", self.paced(*subject, *percent));
            }
            let processor = self.processor(seen);
            let parts: Vec<_> = processor.iter().map(|(role, spent)| format!("{role} {spent:.2}")).collect();
            let _ = writeln!(text, "   {}", parts.join(", "));
        }
        for subject in self.seen.keys().filter(|subject| **subject != Subject::System) {
            let added = self.paced(Subject::System, 50) - self.paced(*subject, 50);
            let _ = writeln!(
                text,
                "{:.2} × the {}'s throughput; {added:+.2} ms in the median at {} jobs/s",
                self.ratio(*subject),
                subject.name(),
                self.rate
            );
        }
        if let Some(system) = self.seen.get(&Subject::System) {
            for (at, when) in ["saturated", "at the rate"].into_iter().enumerate() {
                let parts: Vec<_> = hops(system, at).map(|(hop, ms)| format!("{hop} {ms:.2} ms")).collect();
                if !parts.is_empty() {
                    let _ = writeln!(text, "a job's mean time in each hop, {when}: {}", parts.join(", "));
                }
            }
            let memory = memory(system);
            let parts: Vec<_> =
                memory.iter().map(|(role, bytes)| format!("{role} {} MiB", bytes >> 20)).collect();
            let _ = writeln!(text, "peak memory: {}", parts.join(", "));
            if let Some(first) = first_job(system) {
                let _ = writeln!(text, "from start to the first result: {first:.0} ms");
            }
        }
        let (lost, failed) = (self.sum(|measured| measured.lost), self.sum(|measured| measured.failed));
        let _ = writeln!(text, "{lost} lost, {failed} failed");
        text
    }

    fn figures(&self, seen: &[Seen]) -> Map<String, Value> {
        let mut figures = Map::new();
        figures.insert(
            "jobs_per_s".to_owned(),
            number(median(seen.iter().map(|seen| seen.saturated.per_second()))),
        );
        let mut saturated = Map::new();
        for percent in PERCENTILES {
            let at_rate = |seen: &Seen| seen.paced.as_ref()?.percentile_ms(percent);
            figures.insert(percentile(percent), number(median(seen.iter().filter_map(at_rate))));
            let at_window = seen.iter().filter_map(|seen| seen.saturated.percentile_ms(percent));
            saturated.insert(percentile(percent), number(median(at_window)));
        }
        for (at, figures) in [&mut saturated, &mut figures].into_iter().enumerate() {
            let hops: Map<_, _> = hops(seen, at).map(|(hop, ms)| (hop.to_owned(), number(ms))).collect();
            if !hops.is_empty() {
                figures.insert("hops_mean_ms".to_owned(), hops.into());
            }
        }
        figures.insert("saturated".to_owned(), saturated.into());
        let processor = self.processor(seen);
        let own = processor.iter().filter(|(role, _)| !SERVICES.contains(role)).map(|(_, spent)| spent).sum();
        figures.insert("cpu_s_per_10k".to_owned(), number(own));
        let by_role = processor.into_iter().map(|(role, spent)| (role.to_owned(), number(spent)));
        figures.insert("cpu_s_per_10k_by_process".to_owned(), Value::Object(by_role.collect()));
        let memory = memory(seen).into_iter().map(|(role, bytes)| (role.to_owned(), bytes.into()));
        figures.insert("peak_memory_bytes".to_owned(), Value::Object(memory.collect()));
        if let Some(first) = first_job(seen) {
            figures.insert("first_job_ms".to_owned(), number(first));
        }
        figures
    }

    /// Median processor seconds per 10,000 jobs, by role.
    fn processor(&self, seen: &[Seen]) -> BTreeMap<&'static str, f64> {
        let roles: BTreeSet<_> = seen.iter().flat_map(|seen| seen.processor.keys().copied()).collect();
        let per_10k = |spent: &Duration| spent.as_secs_f64() * 10_000.0 / f64::from(self.jobs);
        let of = |role| median(seen.iter().filter_map(|seen| seen.processor.get(role).map(per_10k)));
        roles.into_iter().map(|role| (role, of(role))).collect()
    }

    fn per_second(&self, subject: Subject) -> f64 {
        median(self.seen.get(&subject).into_iter().flatten().map(|seen| seen.saturated.per_second()))
    }

    fn ratio(&self, subject: Subject) -> f64 {
        self.per_second(Subject::System) / self.per_second(subject)
    }

    /// Milliseconds at the rate.
    fn paced(&self, subject: Subject, percent: usize) -> f64 {
        let paced = self.seen.get(&subject).into_iter().flatten().filter_map(|seen| seen.paced.as_ref());
        median(paced.filter_map(|paced| paced.percentile_ms(percent)))
    }

    /// Over all that the system was asked to do.
    fn sum(&self, of: impl Fn(&Measured) -> usize) -> usize {
        let seen = self.seen.get(&Subject::System).into_iter().flatten();
        seen.flat_map(|seen| [Some(&seen.saturated), seen.paced.as_ref()]).flatten().map(of).sum()
    }
}

/// 100 is the longest.
const PERCENTILES: [usize; 4] = [50, 95, 99, 100];
/// Roles that are not ours.
const SERVICES: [&str; 2] = ["broker", "state"];

fn percentile(percent: usize) -> String {
    if percent == 100 { "max_ms".to_owned() } else { format!("p{percent}_ms") }
}

fn memory(seen: &[Seen]) -> BTreeMap<&'static str, u64> {
    let mut most = BTreeMap::new();
    for (role, bytes) in seen.iter().flat_map(|seen| &seen.memory) {
        let found: &mut u64 = most.entry(*role).or_default();
        *found = (*found).max(*bytes);
    }
    most
}

fn first_job(seen: &[Seen]) -> Option<f64> {
    let first: Vec<_> = seen.iter().filter_map(|seen| Some(seen.first_job?.as_secs_f64() * 1e3)).collect();
    (!first.is_empty()).then(|| median(first))
}

/// Median of the means in each hop, saturated (0) or at the rate (1).
fn hops(seen: &[Seen], at: usize) -> impl Iterator<Item = (&'static str, f64)> {
    let all = seen.iter().flat_map(move |seen| &seen.hops[at]);
    let names: BTreeSet<_> = all.clone().map(|(hop, _)| *hop).collect();
    names
        .into_iter()
        .map(move |name| (name, median(all.clone().filter(|(hop, _)| *hop == name).map(|(_, ms)| *ms))))
}

/// Not a number where there is nothing.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    figures::median(values).unwrap_or(f64::NAN)
}

/// To three decimals; nothing where it is not a number.
fn number(value: f64) -> Value {
    json!(value.is_finite().then(|| figures::to_3_decimals(value)))
}

/// All that shapes the figures.
fn config(options: &cli::Bench, settings: &Settings) -> Value {
    let lanes: Vec<_> = options.lanes.iter().map(|lane| lane.as_str()).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "broker": if settings.broker.url.is_some() { "amqp" } else { "embedded" },
        "spawn": options.spawn,
        "rounds": options.rounds,
        "jobs": options.jobs,
        "window": options.window,
        "rate": options.rate,
        "rate_for_s": options.rate_for.as_secs_f64(),
        "size_bytes": options.size.as_u64(),
        "model": options.model,
        "dispatchers": options.dispatchers,
        "workers_per_lane": options.workers,
        "lanes": lanes,
        "settings": settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn seen(per_second: u64, millis: u64) -> Seen {
        let latencies = vec![Duration::from_millis(millis); 1_000];
        let took = Duration::from_secs_f64(1_000.0 / per_second as f64);
        let saturated = Measured { latencies: latencies.clone(), took, ..Measured::default() };
        let paced = Some(Measured { latencies, ..Measured::default() });
        let processor =
            BTreeMap::from([("client", Duration::from_secs(1)), ("broker", Duration::from_secs(2))]);
        Seen { saturated, paced, processor, ..Seen::default() }
    }

    fn report() -> Report {
        let cli = cli::Cli::parse_from(["straightline", "bench", "--spawn", "--jobs", "5000"]);
        let cli::Command::Bench(options) = cli.command else { panic!("another command") };
        let mut settings = Settings::default();
        settings.broker.url = Some("amqp://u:secret@h".into());
        Report::new(&options, &settings)
    }

    #[test]
    fn medians_and_ratios_are_told() {
        let mut report = report();
        for per_second in [900, 700, 800] {
            report.add(Subject::System, seen(per_second, 4));
            report.add(Subject::Bare, seen(1_000, 3));
        }
        let json = report.json();
        assert_eq!((&json["jobs_per_s"], &json["bare"]["ratio"]), (&json!(800.0), &json!(0.8)));
        assert_eq!((&json["p50_ms"], &json["bare"]["added_p99_ms"]), (&json!(4.0), &json!(1.0)));
        assert_eq!((&json["cpu_s_per_10k"], &json["ceiling"]), (&json!(2.0), &Value::Null), "{json}");
        assert!(report.complete());
        let table = report.table();
        assert!(table.contains("0.80 × the bare pump's throughput; +1.00 ms"), "{table}");
        assert!(!json.to_string().contains("secret"));
    }

    #[test]
    fn a_lost_job_is_told_and_a_figure_that_is_not_there_is_null() {
        let mut report = report();
        let mut lossy = seen(100, 1);
        lossy.saturated.lost = 2;
        lossy.paced = None;
        report.add(Subject::System, lossy);
        let json = report.json();
        assert_eq!((&json["lost"], &json["p50_ms"]), (&json!(2), &Value::Null));
        assert!(!report.complete() && report.table().contains("2 lost"));
    }
}

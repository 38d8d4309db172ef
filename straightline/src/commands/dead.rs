//! `dead`: jobs that failed for good.

use crate::access::Access;
use crate::cli::{self, Server};
use crate::config::Settings;
use crate::print;
use anyhow::Result;
use humantime_serde::re::humantime::format_rfc3339_seconds;
use producer::operations::Which;
use schemas::UnixMillis;
use schemas::dead::DeadEntry;
use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};

/// Longest reason in a line of the list, in characters.
const REASON_MAX: usize = 48;
/// The last second that a year of four digits has.
const LAST_S: u64 = 253_402_300_799;

/// Runs it; true if everything asked for was found.
pub async fn run(settings: Settings, command: cli::Dead) -> Result<bool> {
    let access = Access::open(settings, server(&command)).await?;
    let found = act(&access, &command).await;
    access.close().await;
    found
}

fn server(command: &cli::Dead) -> &Server {
    match command {
        cli::Dead::List { server, .. } | cli::Dead::Show { server, .. } => server,
        cli::Dead::Requeue(which) | cli::Dead::Drop(which) => &which.server,
    }
}

async fn act(access: &Access, command: &cli::Dead) -> Result<bool> {
    match command {
        cli::Dead::List { limit, offset, json, .. } => {
            let page = access.dead_list(*offset, *limit).await?;
            if !json && !page.entries.is_empty() {
                print::line(&heading())?;
            }
            for entry in &page.entries {
                print::line(&if *json { serde_json::to_string(entry)? } else { row(entry) })?;
            }
            if !json {
                let shown = page.entries.len();
                let total = print::count(page.total, "dead job");
                print::line(&format!("{shown} of {total}; `dead show ID` tells more"))?;
            }
            Ok(true)
        }
        cli::Dead::Show { id, .. } => {
            let mut details = serde_json::to_value(access.dead_show(*id).await?)?;
            add_times(&mut details);
            print::line(&serde_json::to_string_pretty(&details)?)?;
            Ok(true)
        }
        cli::Dead::Requeue(which) => {
            let requeued = access.dead_requeue(&which_of(which)).await?;
            for job in &requeued.jobs {
                print::line(&format!("{} requeued as {}", job.origin, job.id))?;
            }
            for id in &requeued.not_found {
                print::line(&format!("{id} is not among the dead"))?;
            }
            if requeued.unreadable > 0 {
                print::line(&format!("{} cannot be read: they can only be dropped", requeued.unreadable))?;
            }
            print::line(&format!("{} requeued", print::count(requeued.jobs.len() as u64, "job")))?;
            Ok(requeued.not_found.is_empty())
        }
        cli::Dead::Drop(which) => {
            let dropped = access.dead_drop(&which_of(which)).await?;
            for id in &dropped.not_found {
                print::line(&format!("{id} is not among the dead"))?;
            }
            print::line(&format!("{} dropped", print::count(dropped.jobs, "job")))?;
            Ok(dropped.not_found.is_empty())
        }
    }
}

fn which_of(which: &cli::Which) -> Which {
    if which.all { Which::All } else { Which::These(which.ids.clone()) }
}

fn heading() -> String {
    format!("{:<36}  {:<20}  {:<10}  {:<16}  {:<11}  reason", "id", "died", "last lane", "model", "attempts")
}

fn row(entry: &DeadEntry) -> String {
    let lane = entry.history.last().and_then(|attempt| attempt.lane).map_or("-", |lane| lane.as_str());
    let model = entry.model.as_ref().map_or("-", |model| model.as_str());
    let attempts = print::count(entry.attempts.into(), "attempt");
    let reason = short(&entry.failure.to_string());
    format!("{}  {}  {lane:<10}  {model:<16}  {attempts:<11}  {reason}", entry.id, utc(entry.died))
}

/// The first line of a reason, as far as a line of the list has room for it.
fn short(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.char_indices().nth(REASON_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn utc(time: UnixMillis) -> String {
    // What comes over the wire may be beyond any calendar.
    let seconds = Duration::from_secs((time.0 / 1000).min(LAST_S));
    format_rfc3339_seconds(UNIX_EPOCH + seconds).to_string()
}

/// Says in UTC, beside their milliseconds, when the job died and when its attempts failed.
fn add_times(details: &mut Value) {
    fn add(of: &mut Value, field: &str) {
        if let Some(at) = of[field].as_u64() {
            of[format!("{field}_utc")] = utc(UnixMillis(at)).into();
        }
    }
    let entry = &mut details["entry"];
    add(entry, "died");
    for attempt in entry["history"].as_array_mut().into_iter().flatten() {
        add(attempt, "at");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::failure::{Attempt, Failure, FailureKind};
    use schemas::{ClientName, JobHeader, JobId, Lane, ModelName};

    fn entry(message: &str) -> DeadEntry {
        let client = ClientName::new("c").unwrap();
        let mut header = JobHeader::new(JobId::new(), ModelName::new("m").unwrap(), client, UnixMillis(0));
        header.attempt = 2;
        header.history.push(Attempt {
            number: 1,
            lane: Some(Lane::Docker),
            worker: "w".into(),
            at: UnixMillis(1_700_000_000_123),
            failure: Failure::new(FailureKind::ModelError, message),
        });
        let failure = Failure::new(FailureKind::ModelError, message);
        DeadEntry::of(&header, failure, "lane.docker", UnixMillis(1_700_000_001_000))
    }

    #[test]
    fn a_row_says_when_where_and_how_often_and_is_short() {
        let row = row(&entry(&format!("{}\nand more", "long ".repeat(50))));
        for part in ["2023-11-14T22:13:21Z", "docker", "1 attempt ", "…"] {
            assert!(row.contains(part), "{row}");
        }
        assert!(!row.contains("and more") && row.chars().count() < 170, "{row}");
        let at = |text: &str, part| text.find(part).unwrap();
        assert_eq!(at(&heading(), "last lane"), at(&row, "docker"));
        assert_eq!(at(&heading(), "attempts"), at(&row, "1 attempt"));
    }

    #[test]
    fn times_are_shown_in_utc_beside_their_milliseconds() {
        let mut details = serde_json::json!({ "entry": entry("x") });
        add_times(&mut details);
        let entry = &details["entry"];
        assert_eq!(
            (&entry["died"], &entry["died_utc"]),
            (&1_700_000_001_000_u64.into(), &"2023-11-14T22:13:21Z".into())
        );
        assert_eq!(entry["history"][0]["at_utc"], "2023-11-14T22:13:20Z");
        assert_eq!(utc(UnixMillis(u64::MAX)), "9999-12-31T23:59:59Z");
    }
}

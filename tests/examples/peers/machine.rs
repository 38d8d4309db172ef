//! How much of the machine went to others while a run was measured: whoever shares it, slows all of its runs.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

/// A tick of /proc is a hundredth of a second on every Linux.
const TICKS_PER_S: f64 = 100.0;

/// A moment, to be compared with a later one.
pub(crate) struct Moment {
    at: Instant,
    busy: u64,
    ours: u64,
}

impl Moment {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self { at: Instant::now(), busy: busy()?, ours: ours()? })
    }

    /// How many cores processes had, on average, that this one did not start.
    pub(crate) fn others_since(&self) -> Result<f64> {
        let now = Self::now()?;
        let others = (now.busy - self.busy).saturating_sub(now.ours.saturating_sub(self.ours));
        #[expect(clippy::cast_precision_loss, reason = "ticks of a run are few")]
        let others_s = others as f64 / TICKS_PER_S;
        Ok(others_s / (now.at - self.at).as_secs_f64())
    }
}

/// Ticks that all cores together were not idle.
fn busy() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    // user, nice, system, idle, iowait, irq, softirq; guests are part of user, and stolen time is nobody's here.
    let ticks = line.split_whitespace().skip(1).take(7).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    Ok(ticks.iter().sum::<u64>() - ticks[3] - ticks[4])
}

/// Ticks of this process and all it started, those that have ended included.
fn ours() -> Result<u64> {
    let mut children: HashMap<u32, Vec<(u32, u64)>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some((parent, ticks)) = stat(id) {
            children.entry(parent).or_default().push((id, ticks));
        }
    }
    let own = std::process::id();
    let (_, mut sum) = stat(own).context("/proc does not show this process")?;
    let mut parents = vec![own];
    while let Some(parent) = parents.pop() {
        for (id, ticks) in children.remove(&parent).into_iter().flatten() {
            sum += ticks;
            parents.push(id);
        }
    }
    Ok(sum)
}

/// A process' parent and its ticks, with those of its children that it has waited for; none if it has just ended.
fn stat(id: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<u64>().unwrap_or(0)).sum();
    Some((fields.get(1)?.parse().ok()?, ticks))
}

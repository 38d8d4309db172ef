//! What this machine has and uses, as far as it can be told. What cannot be told is `None`, never zero.
//!
//! Sampling reads files and may wait for a disk or a driver: call it off the async runtime.

use crate::gpu::{self, Gpus, NoGpu};
use schemas::heartbeat::{Gpu, Resources};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use sysinfo::{
    DiskRefreshKind, Disks, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid,
};
use tokio::sync::watch;

/// Least time between two samples of the processors: the kernel's own counters are no finer.
const CPU_INTERVAL_MIN: Duration = sysinfo::MINIMUM_CPU_UPDATE_INTERVAL;

/// Takes samples. Rates and shares are since the sample before, so the first has none.
pub struct Probe {
    data_dir: Option<PathBuf>,
    host: Option<String>,
    cpus: Option<u32>,
    pid: Option<Pid>,
    system: Option<System>,
    networks: Option<Networks>,
    disks: Option<Disks>,
    /// Opened by the first sample: a driver may take its time.
    gpus: Option<Result<Gpus, NoGpu>>,
    gpus_shown: gpu::Shown,
    /// When the processors were last looked at.
    cpu_seen: Option<Instant>,
    traffic: Option<(Instant, Traffic)>,
}

/// Bytes over all interfaces but loopback since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traffic {
    received: u64,
    sent: u64,
}

impl Probe {
    /// A probe that also tells the free space of the disk that holds `data_dir`.
    pub fn new(data_dir: Option<PathBuf>) -> Self {
        Self {
            data_dir,
            host: System::host_name().ok(),
            cpus: std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok()),
            pid: get_current_pid().ok(),
            system: System::new().ok(),
            networks: Networks::new().ok(),
            disks: Disks::new().ok(),
            gpus: None,
            gpus_shown: gpu::Shown::default(),
            cpu_seen: None,
            traffic: None,
        }
    }

    /// Samples over and over, on a thread of its own that ends when nobody looks any more: a disk or a driver may be waited
    /// for without end, which must stop neither a heartbeat nor the process's end.
    pub fn watch(mut self, period: Duration) -> watch::Receiver<Resources> {
        let (samples, latest) = watch::channel(Resources::default());
        #[expect(clippy::disallowed_methods, reason = "it blocks its own thread, which does nothing else")]
        let sample = move || {
            while !samples.is_closed() {
                samples.send_replace(self.sample());
                thread::sleep(period);
            }
        };
        if let Err(error) = thread::Builder::new().name("probe".to_owned()).spawn(sample) {
            tracing::error!(%error, "no thread for the probe; resources are unknown");
        }
        latest
    }

    /// Looks.
    pub fn sample(&mut self) -> Resources {
        let now = Instant::now();
        let (received, sent) = self.network(now).unzip();
        let (memory, available) = self.memory().unzip();
        Resources {
            host: self.host.clone(),
            cpus: self.cpus,
            cpu_used: self.cpu(now),
            memory_bytes: memory,
            memory_available_bytes: available,
            process_memory_bytes: self.process_memory(),
            disk_free_bytes: self.disk_free(),
            network_received_bytes_per_s: received,
            network_sent_bytes_per_s: sent,
            gpus: self.gpus(),
        }
    }

    /// `None` without a driver, which is looked for once.
    fn gpus(&mut self) -> Option<Vec<Gpu>> {
        let opened =
            self.gpus.get_or_insert_with(|| Gpus::open(None).inspect_err(|error| tracing::info!("{error}")));
        let gpus = opened.as_ref().ok()?.sample();
        gpu::publish(&gpus, &mut self.gpus_shown);
        Some(gpus)
    }

    fn cpu(&mut self, now: Instant) -> Option<f64> {
        if self.cpu_seen.is_some_and(|seen| now - seen < CPU_INTERVAL_MIN) {
            return None;
        }
        let system = self.system.as_mut()?;
        system.refresh_cpu_usage();
        // A share needs two looks.
        self.cpu_seen.replace(now)?;
        (!system.cpus().is_empty()).then(|| f64::from(system.global_cpu_usage() / 100.0).clamp(0.0, 1.0))
    }

    /// Memory there is and memory that is available, within what a container may have.
    fn memory(&mut self) -> Option<(u64, u64)> {
        let system = self.system.as_mut()?;
        system.refresh_memory();
        let whole = (system.total_memory(), system.available_memory());
        let bounded = match system.cgroup_limits() {
            Some(limits) if limits.total_memory < whole.0 => {
                (limits.total_memory, limits.free_memory.min(whole.1))
            }
            _ => whole,
        };
        (whole.0 > 0).then_some(bounded)
    }

    fn process_memory(&mut self) -> Option<u64> {
        let (pid, system) = (self.pid?, self.system.as_mut()?);
        let what = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
        system.process(pid).map(sysinfo::Process::memory)
    }

    fn disk_free(&mut self) -> Option<u64> {
        let dir = self.data_dir.as_ref()?.canonicalize().ok()?;
        let disks = self.disks.as_mut()?;
        disks.refresh_specifics(true, DiskRefreshKind::nothing().with_storage());
        let mounts = disks.iter().map(|disk| (disk.mount_point(), disk.available_space()));
        holding(&dir, mounts)
    }

    fn network(&mut self, now: Instant) -> Option<(f64, f64)> {
        let networks = self.networks.as_mut()?;
        networks.refresh(true);
        let outward = networks.iter().filter(|(name, _)| name.to_str().is_none_or(|name| !is_loopback(name)));
        let traffic = outward.fold(Traffic::default(), |sum, (_, data)| Traffic {
            received: sum.received.saturating_add(data.total_received()),
            sent: sum.sent.saturating_add(data.total_transmitted()),
        });
        let (seen, before) = self.traffic.replace((now, traffic))?;
        rates(before, traffic, now - seen)
    }
}

fn is_loopback(interface: &str) -> bool {
    interface == "lo" || interface == "lo0"
}

/// The free space of the disk that holds `dir`: the one mounted nearest above it.
fn holding<'a>(dir: &Path, mounts: impl Iterator<Item = (&'a Path, u64)>) -> Option<u64> {
    let above = mounts.filter(|(mount, _)| dir.starts_with(mount));
    above.max_by_key(|(mount, _)| mount.components().count()).map(|(_, free)| free)
}

/// Bytes per second in and out; none when no time passed, or an interface left and took its count with it.
fn rates(before: Traffic, after: Traffic, elapsed: Duration) -> Option<(f64, f64)> {
    let received = after.received.checked_sub(before.received)?;
    let sent = after.sent.checked_sub(before.sent)?;
    let seconds = elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let per_second = |bytes: u64| bytes as f64 / seconds;
    (seconds > 0.0).then(|| (per_second(received), per_second(sent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut probe = Probe::new(Some(dir.path().to_owned()));
        let first = probe.sample();
        assert_eq!(
            (first.cpu_used, first.network_sent_bytes_per_s),
            (None, None),
            "nothing to compare with yet"
        );
        assert!(first.cpus.unwrap() > 0);
        let (memory, available) = (first.memory_bytes.unwrap(), first.memory_available_bytes.unwrap());
        assert!(available <= memory && first.process_memory_bytes.unwrap() < memory);
        assert!(first.process_memory_bytes.unwrap() > 100_000);
        let second = probe.sample();
        assert!(second.network_received_bytes_per_s.unwrap() >= 0.0);
        assert!(second.cpu_used.is_none_or(|used| (0.0..=1.0).contains(&used)));
    }

    #[test]
    fn the_nearest_mount_holds_a_folder() {
        let mounts =
            [("/", 1), ("/var", 2), ("/var/lib", 3), ("/va", 4)].map(|(m, free)| (Path::new(m), free));
        let free = |dir: &str| holding(Path::new(dir), mounts.into_iter());
        assert_eq!(
            (free("/var/lib/x"), free("/var/x"), free("/vary"), free("x")),
            (Some(3), Some(2), Some(1), None)
        );
    }

    #[test]
    fn rates_need_time_and_counters_that_only_rise() {
        let traffic = |received, sent| Traffic { received, sent };
        let second = Duration::from_secs(1);
        assert_eq!(rates(traffic(10, 20), traffic(30, 20), second), Some((20.0, 0.0)));
        assert_eq!(rates(traffic(10, 20), traffic(5, 30), second), None);
        assert_eq!(rates(traffic(1, 1), traffic(2, 2), Duration::ZERO), None);
    }
}

//! The system under measure: processes of its own, everything in this process, or what is configured and runs already.

use super::hops::Measures;
use crate::access::Http;
use crate::cli;
use crate::config::{ConfigError, Settings};
use crate::roles;
use crate::station::Station;
use anyhow::{Context, Result, bail};
use broker::{Broker, Queue};
use dispatcher::Dispatcher;
use metrics_exporter_prometheus::PrometheusHandle;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::{ExposeSecret, SecretString};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use workers::worker::Worker;

/// How long a process may take to drain, a server to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether a server answers.
const LOOK: Duration = Duration::from_millis(20);

/// A process that was started, and ends with this value.
pub struct Started {
    /// What it is: `dispatcher`, `worker`, …
    pub role: &'static str,
    child: Child,
}

impl Started {
    /// Starts it. It says what there is to say on our standard error.
    pub fn start(role: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("failed to start a {role}"))?;
        Ok(Self { role, child })
    }

    /// Its process id; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("a {} ended: {status}; it said why above", self.role),
        }
    }

    /// Has it end in order.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let ended = ended.with_context(|| format!("a {} did not end within {PATIENCE:?}", self.role))??;
        if !ended.success() {
            bail!("a {} ended badly: {ended}", self.role);
        }
        Ok(())
    }
}

/// A command of this very binary, with the configuration file of this process, over the broker and state of `settings`.
pub fn own(settings: &Settings, config: Option<&Path>, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("failed to find this binary")?);
    command.args(arguments);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    for (name, url) in [("BROKER", &settings.broker.url), ("STATE", &settings.state.url)] {
        if let Some(url) = url {
            command.env(format!("STRAIGHTLINE_{name}__URL"), url.expose_secret());
        }
    }
    command.env("STRAIGHTLINE_STATE__PREFIX", &settings.state.prefix);
    command.env("STRAIGHTLINE_STORAGE__DIR", &settings.storage.dir);
    if let Some(blobs) = &settings.storage.blobs {
        command.env("STRAIGHTLINE_STORAGE__BLOBS", blobs);
    }
    command.env("STRAIGHTLINE_WORKER__DIAGNOSTICS", "true");
    command.env("STRAIGHTLINE_LOG__FILTER", &settings.log.filter);
    Ok(command)
}

/// Starts a Redis of its own at a free port, its data in `folder`; gives its address. It syncs as Redis does unless told
/// otherwise, once a second, and so keeps what a real one would keep.
pub async fn private_redis(folder: &Path) -> Result<(Started, SecretString)> {
    let address = free_port()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]).arg("--dir").arg(folder);
    command.args(["--appendonly", "yes", "--save", "", "--logfile", "redis.log"]);
    let started = Started::start("redis-server", command);
    let mut server = started.context("state.url is not set and Redis is not installed: do one of the two")?;
    let answers = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            server.still_runs()?;
            tokio::time::sleep(LOOK).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, answers).await.context("the private Redis does not answer")??;
    Ok((server, format!("redis://{address}").into()))
}

/// A port of the loopback interface that nobody listens at just now.
fn free_port() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// What runs the jobs.
pub enum System {
    /// Somebody else's, as configured.
    Configured,
    /// Processes, with the ports of their metrics.
    Processes(Vec<(Started, Http)>),
    /// In this process.
    Together { dispatcher: Dispatcher, workers: Vec<Worker> },
}

impl System {
    /// Starts it as `options` say. `station` is this process's way in.
    pub async fn start(station: &Station, config: Option<&Path>, options: &cli::Bench) -> Result<Self> {
        let settings = &station.settings;
        if !options.spawn {
            return Ok(Self::Configured);
        }
        if settings.broker.url.is_none() {
            let mut workers = Vec::new();
            for lane in &options.lanes {
                workers.push(roles::work(station, *lane, roles::catalog(settings)?, None).await?);
            }
            return Ok(Self::Together { dispatcher: roles::dispatch(station, None)?, workers });
        }
        let mut processes = Vec::new();
        let mut start = |role, arguments: &[&str]| -> Result<()> {
            let metrics = free_port()?.to_string();
            let mut command = own(settings, config, arguments)?;
            command.args(["--metrics", &metrics]);
            processes.push((Started::start(role, command)?, Http::new(&metrics)?));
            Ok(())
        };
        for _ in 0..options.dispatchers {
            start("dispatcher", &["dispatcher"])?;
        }
        for lane in &options.lanes {
            for _ in 0..options.workers {
                start("worker", &["worker", "--lane", lane.as_str()])?;
            }
        }
        Ok(Self::Processes(processes))
    }

    /// What its parts measure themselves; `own` is this process's.
    pub fn measures<'s>(&'s self, own: Option<&'s PrometheusHandle>) -> Measures<'s> {
        match (self, own) {
            (Self::Processes(processes), _) => {
                Measures::Ports(processes.iter().map(|(_, port)| port).collect())
            }
            (Self::Together { .. }, Some(own)) => Measures::Own(own),
            _ => Measures::None,
        }
    }

    /// Its processes that are not this one.
    pub fn processes(&self) -> impl Iterator<Item = &Started> {
        let processes = if let Self::Processes(processes) = self { processes.as_slice() } else { &[] };
        processes.iter().map(|(process, _)| process)
    }

    /// Has it finish what it has and end.
    pub async fn stop(self) -> Result<()> {
        match self {
            Self::Configured => Ok(()),
            Self::Processes(processes) => {
                for (process, _) in processes {
                    process.stop().await?;
                }
                Ok(())
            }
            Self::Together { dispatcher, workers } => roles::drain(&dispatcher, &workers).await,
        }
    }
}

/// Refuses a virtual host that others use: their jobs would be run here, and ours there.
pub async fn ensure_unused(broker: &dyn Broker) -> Result<()> {
    let queues: Vec<_> = Queue::fixed().collect();
    let depths = broker.depths(&queues).await?;
    let used = queues.iter().zip(depths).find_map(|(queue, depth)| {
        let depth = depth.filter(|depth| depth.ready > 0 || depth.consumers > 0)?;
        let kept = matches!(queue, Queue::Dead) && depth.consumers == 0;
        (!kept).then(|| format!("{queue} has {} messages and {} consumers", depth.ready, depth.consumers))
    });
    let Some(used) = used else { return Ok(()) };
    Err(ConfigError::Value(format!(
        "the virtual host of broker.url is in use ({used}): name one of its own for bench --spawn, or leave out --spawn to \
         measure what runs there; what an earlier bench left can be purged with it (rabbitmqctl delete_vhost)"
    ))
    .into())
}

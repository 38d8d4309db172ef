//! `bench`: how many jobs a deployment carries, how long one takes, what that costs, and how near it comes to what the
//! broker could carry if nothing were in between.
//!
//! Each round measures every system in turn, in an order that rotates, each alone: what the machine does besides falls on
//! all alike. Medians over the rounds are what is told.

use crate::cli;
use crate::config::{ConfigError, Services, Settings};
use crate::station::{self, Station};
use crate::stopping::{self, Interrupted, Stop};
use crate::{commands, print, telemetry};
use anyhow::{Context, Result, bail};
use broker::amqp::pump::{Dress, Hop, Pump, Way};
use bytes::Bytes;
use bytesize::ByteSize;
use metrics_exporter_prometheus::PrometheusHandle;
use producer::{Client, Submission};
use report::{Report, Subject};
use round::{Seen, Through};
use schemas::limits::PAYLOAD_BYTES_MAX;
use schemas::payload::Opaque;
use schemas::{JobBody, Payload};
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;
use std::time::{Duration, Instant};
use system::System;
use tokio::time::timeout;

mod accounts;
mod hops;
mod load;
mod report;
mod round;
mod system;

/// How long one job may take before it counts as lost.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long the broker may take to delete the pumps' queues.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pumps, in the names of their queues.
const EQUAL: &str = "equal";
const BARE: &str = "bare";
/// Jobs that may be pending while they come at a rate: no limit worth the name.
const PENDING_MAX: usize = 100_000;

/// Measures; true if nothing was lost and nothing failed.
pub async fn run(mut settings: Settings, options: &cli::Bench, config: Option<&Path>) -> Result<bool> {
    let mut stop = stopping::watch_quietly()?;
    let folder = tempfile::tempdir()?;
    let embedded = settings.broker.url.is_none();
    check(&settings, options)?;
    let mut redis = None;
    // Process ids are not unique over containers.
    let run = format!("{:016x}", fastrand::u64(..));
    if options.spawn {
        settings.storage.dir = folder.path().to_owned();
        settings.storage.blobs = Some(folder.path().join("blobs"));
        settings.worker.diagnostics = true;
        if !embedded && settings.state.url.is_none() {
            let (server, url) = system::private_redis(folder.path()).await?;
            redis = Some(server);
            settings.state.url = Some(url);
        }
        // What is left of a bench that was killed is nothing that another, or the system, would take for its own.
        settings.state.prefix = format!("bench.{run}");
    }
    settings.check(if embedded { Services::Together } else { Services::Shared })?;
    let metrics = embedded.then(telemetry::metrics).transpose()?;
    let bench = Bench { settings, metrics, config, run, options };
    let report = tokio::select! {
        report = bench.rounds() => report,
        () = stopping::until(&mut stop, Stop::Drain) => Err(Interrupted.into()),
    };
    if report.is_err() {
        bench.remove_pumps().await;
    }
    let report = report?;
    print::text(&if options.json { format!("{}\n", report.json()) } else { report.table() })?;
    if let Some(redis) = redis {
        redis.stop().await?;
    }
    Ok(report.complete())
}

fn check(settings: &Settings, options: &cli::Bench) -> Result<(), ConfigError> {
    let refuse = |problem: &str| Err(ConfigError::Value(problem.to_owned()));
    let inline = if options.ceiling { settings.limits.inline } else { ByteSize(PAYLOAD_BYTES_MAX as u64) };
    match settings.broker.url {
        None if options.ceiling => refuse(
            "--ceiling compares with what RabbitMQ carries: set broker.url, with a virtual host of its own",
        ),
        None if !options.spawn => {
            refuse("there is no deployment to measure: set broker.url and state.url, or use --spawn")
        }
        None if settings.state.url.is_some() => {
            refuse("state.url is set and broker.url is not: set both, or none")
        }
        _ if options.size > inline => refuse(&format!(
            "--size is {}: use at most {inline}{}",
            options.size,
            if options.ceiling { ", the inline limit, with --ceiling" } else { "" }
        )),
        _ => Ok(()),
    }
}

struct Bench<'a> {
    settings: Settings,
    /// Where everything runs in this process.
    metrics: Option<PrometheusHandle>,
    /// The configuration file.
    config: Option<&'a Path>,
    /// Tells what this bench leaves at broker and state from what others do.
    run: String,
    options: &'a cli::Bench,
}

impl Bench<'_> {
    async fn rounds(&self) -> Result<Report> {
        let mut report = Report::new(self.options, &self.settings);
        let mut subjects = vec![Subject::System];
        if self.options.ceiling {
            subjects.extend([Subject::Equal, Subject::Bare]);
        }
        let progress = if self.options.json {
            indicatif::ProgressBar::hidden()
        } else {
            print::steps(u64::from(self.options.rounds) * subjects.len() as u64)
        };
        for _ in 0..self.options.rounds {
            for subject in &subjects {
                progress.set_message(subject.name());
                let seen = match subject {
                    Subject::System => self.system(&mut report).await,
                    Subject::Equal => self.equal(report.answer_bytes()).await,
                    Subject::Bare => self.bare().await,
                };
                report.add(*subject, seen.with_context(|| format!("failed to measure {}", subject.name()))?);
                progress.inc(1);
            }
            subjects.rotate_left(1);
        }
        progress.finish_and_clear();
        Ok(report)
    }

    /// The system itself.
    async fn system(&self, report: &mut Report) -> Result<Seen> {
        let station = Station::open(self.settings.clone()).await?;
        if self.options.spawn && self.settings.broker.url.is_some() {
            system::ensure_unused(station.broker.as_ref()).await?;
        }
        let windowed = client(&station, self.options.window as usize).await?;
        let open = client(&station, PENDING_MAX).await?;
        let begun = Instant::now();
        let system = System::start(&station, self.config, self.options).await?;
        let result = windowed.submit(self.job()).await?.await?;
        let first_job = self.options.spawn.then(|| begun.elapsed());
        report.answered(result.encode().len());
        let job = self.job();
        let measures = system.measures(self.metrics.as_ref());
        let mut through = Through::System { windowed: &windowed, open: &open, job: &job, measures };
        let processes = self.processes(system.processes());
        let mut seen = round::measure(&mut through, self.options, &processes).await?;
        seen.first_job = first_job;
        system.stop().await?;
        windowed.close(Duration::ZERO).await;
        open.close(Duration::ZERO).await;
        station.close().await;
        Ok(seen)
    }

    /// The pump that carries what the system carries, in processes as the system has them.
    async fn equal(&self, answer_bytes: Option<usize>) -> Result<Seen> {
        let answer_bytes = answer_bytes.context("no answer was seen yet")?.to_string();
        let run = self.pump_name(EQUAL);
        let pump = self.pump(&run)?;
        pump.declare().await?;
        let mut relays = Vec::new();
        for (role, hop) in [("dispatcher", "place"), ("worker", "answer")] {
            let model = self.options.model.as_str();
            let arguments =
                ["relay", "--hop", hop, "--run", &run, "--model", model, "--answer-bytes", &answer_bytes];
            relays.push(system::Started::start(role, system::own(&self.settings, self.config, &arguments)?)?);
        }
        let client = match pump.login() {
            Some(login) => login,
            None => station::configured_client(&self.settings)?,
        };
        let dress = commands::relay::submitted(&self.options.model, &client, pump.login());
        let mut feed = pump.feed(dress).await?;
        let bytes = JobBody::new(self.job().input).encode().len();
        let mut through = Through::Pump { feed: &mut feed, bytes };
        let processes = self.processes(relays.iter());
        let seen = round::measure(&mut through, self.options, &processes).await?;
        for relay in relays {
            relay.stop().await?;
        }
        // The next round is to find nothing of this one.
        drop(feed);
        pump.remove().await?;
        Ok(seen)
    }

    /// The pump that carries nothing but bytes, all in this process.
    async fn bare(&self) -> Result<Seen> {
        let pump = self.pump(&self.pump_name(BARE))?;
        pump.declare().await?;
        let mut place = pump.relay(Hop::Place, Dress::default(), None).await?;
        let mut answer = pump.relay(Hop::Answer, Dress::default(), None).await?;
        let mut feed = pump.feed(Dress::default()).await?;
        let bytes = usize::try_from(self.options.size.as_u64())?;
        let mut through = Through::Pump { feed: &mut feed, bytes };
        let processes = self.processes([]);
        let seen = tokio::select! {
            seen = round::measure(&mut through, self.options, &processes) => seen?,
            why = place.ended() => bail!("the bare pump broke: {why}"),
            why = answer.ended() => bail!("the bare pump broke: {why}"),
        };
        drop((feed, place, answer));
        pump.remove().await?;
        Ok(seen)
    }

    /// Deletes the pumps' queues after a round that was broken off: nobody else ever would.
    async fn remove_pumps(&self) {
        for kind in [EQUAL, BARE].into_iter().filter(|_| self.options.ceiling) {
            let removed =
                async { self.pump(&self.pump_name(kind))?.remove().await.map_err(anyhow::Error::from) };
            match timeout(PATIENCE, removed).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "queues of the {kind} pump may be left at the broker")
                }
                Err(_) => {
                    tracing::warn!("queues of the {kind} pump may be left at the broker: it does not answer")
                }
            }
        }
    }

    fn pump_name(&self, kind: &str) -> String {
        format!("{kind}-{}", self.run)
    }

    fn pump(&self, run: &str) -> Result<Pump> {
        let config = station::amqp_config(&self.settings).context("the pump needs broker.url")?;
        Ok(Pump::new(config, Way::new(run))?)
    }

    fn job(&self) -> Submission {
        let bytes = usize::try_from(self.options.size.as_u64()).unwrap_or(usize::MAX);
        let input = Opaque {
            content_type: "application/octet-stream".to_owned(),
            data: Bytes::from(vec![b'x'; bytes]),
        };
        let mut job = Submission::new(self.options.model.clone(), Payload::Opaque(input));
        job.deadline = DEADLINE;
        job
    }

    /// Whom a measurement is charged to: this process, those that were started, and broker and state if they are here.
    fn processes<'s>(
        &self,
        started: impl IntoIterator<Item = &'s system::Started>,
    ) -> Vec<(&'static str, u32)> {
        let mut processes = vec![("client", std::process::id())];
        processes.extend(started.into_iter().filter_map(|started| Some((started.role, started.pid()?))));
        let local = |url: &Option<SecretString>, port, name| {
            let uri: hyper::Uri = url.as_ref()?.expose_secret().parse().ok()?;
            matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
                .then(|| accounts::listener(uri.port_u16().unwrap_or(port), name))?
        };
        processes.extend(local(&self.settings.broker.url, 5672, "beam").map(|pid| ("broker", pid)));
        processes.extend(local(&self.settings.state.url, 6379, "redis").map(|pid| ("state", pid)));
        processes
    }
}

async fn client(station: &Station, pending_max: usize) -> Result<Client> {
    let config = producer::Config {
        pending_max,
        in_flight_max: pending_max.min(producer::Config::new(station.client_name()?).in_flight_max),
        ..station.client_config()?
    };
    station.client_with(config).await
}

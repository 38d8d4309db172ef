//! What a scenario is, what it needs, and the runner.
//!
//! Scenarios run side by side, each in a [`Context`] with a folder of its own. Services start when the first
//! scenario asks for them, are shared from then on, and stop when the run ends. A scenario whose needs are not
//! there is left out by name; where `CI=true` it fails.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::time::timeout;

use crate::process;
use crate::services::{self, Docker, RabbitVersion, Redis};
use crate::stage::{Context, Stage};
use crate::until::cut_off_waiting;

/// A scenario that says nothing else is cut off after this.
const DEFAULT_BOUND: Duration = Duration::from_secs(180);

/// Something outside the scenario that it cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The `straightline` binary, built before the scenario's time runs.
    Binary,
    /// RabbitMQ 3.10.
    Rabbit310,
    /// RabbitMQ 4.0.
    Rabbit40,
    /// Redis.
    Redis,
    /// A Docker engine that can be started privately.
    Docker,
    /// Docker Compose, as `docker-compose`.
    Compose,
    /// Python with pika and msgpack.
    Python,
}

impl Need {
    /// What is installed, with its version; an error that says what to do if nothing is.
    pub fn installed(self) -> Result<String> {
        match self {
            Self::Binary => Ok(format!("straightline {}", env!("CARGO_PKG_VERSION"))),
            Self::Rabbit310 => Ok(format!("RabbitMQ {}", RabbitVersion::V3_10.installed()?)),
            Self::Rabbit40 => Ok(format!("RabbitMQ {}", RabbitVersion::V4_0.installed()?)),
            Self::Docker => Ok(format!("Docker {}", Docker::installed()?)),
            Self::Compose => services::compose_installed(),
            Self::Redis => Ok(format!("Redis {}", Redis::installed()?)),
            Self::Python => process::python_installed(),
        }
    }
}

impl From<RabbitVersion> for Need {
    fn from(version: RabbitVersion) -> Self {
        match version {
            RabbitVersion::V3_10 => Self::Rabbit310,
            RabbitVersion::V4_0 => Self::Rabbit40,
        }
    }
}

type Body = Box<dyn FnOnce(&Context, Duration) -> Result<()> + Send>;

/// A named test against real services.
pub struct Scenario {
    name: String,
    needs: Vec<Need>,
    bound: Duration,
    alone: bool,
    body: Body,
}

impl Scenario {
    /// A scenario by name, what it needs, and what it does.
    pub fn new<F>(name: impl Into<String>, needs: &[Need], body: F) -> Self
    where
        F: AsyncFn(&Context) -> Result<()> + Send + 'static,
    {
        let body = move |context: &Context, bound| {
            let outcome = context.stage.runtime.block_on(async { timeout(bound, body(context)).await });
            outcome.map_err(|_| anyhow!("not done within {bound:?}; {}", cut_off_waiting()))?
        };
        Self {
            name: name.into(),
            needs: needs.to_vec(),
            bound: DEFAULT_BOUND,
            alone: false,
            body: Box::new(body),
        }
    }

    /// The same scenario on every RabbitMQ the project supports.
    pub fn on_each_rabbit<F>(name: &str, also: &[Need], body: F) -> Vec<Self>
    where
        F: AsyncFn(&Context, RabbitVersion) -> Result<()> + Copy + Send + 'static,
    {
        let scenario = |version: RabbitVersion| {
            let needs = [&[version.into()], also].concat();
            let name = format!("{name}/rabbitmq_{}", version.name());
            Self::new(name, &needs, async move |context: &Context| body(context, version).await)
        };
        RabbitVersion::ALL.into_iter().map(scenario).collect()
    }

    /// Cut off after this long, in place of three minutes.
    #[must_use]
    pub fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Runs while no other scenario does: for figures that a busy machine would spoil.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

/// Runs the scenarios that the command line asks for, as `cargo test` would, and stops all services.
pub fn run(scenarios: Vec<Scenario>) -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let stage = Arc::new(Stage::set()?);
    let trials = scenarios.into_iter().map(|scenario| trial(scenario, Arc::clone(&stage))).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let stage = Arc::into_inner(stage).context("a scenario outlived the run")?;
    stage.strike(conclusion.has_failed());
    Ok(conclusion.exit_code())
}

fn trial(scenario: Scenario, stage: Arc<Stage>) -> Trial {
    let name = scenario.name.clone();
    Trial::ignorable_test(name, move || {
        match scenario.needs.iter().map(|need| need.installed()).collect::<Result<Vec<_>>>() {
            Ok(versions) => stage.note_versions(versions),
            Err(missing) if in_ci() => return Err(Failed::from(format!("{missing:#}"))),
            Err(missing) => {
                stage.note_left_out(format!("{}: {missing:#}", scenario.name));
                return Ok(Completion::ignored_with(missing));
            }
        }
        perform(scenario, &stage)?;
        Ok(Completion::Completed)
    })
}

fn perform(scenario: Scenario, stage: &Arc<Stage>) -> Result<(), Failed> {
    let failed = |error| Failed::from(format!("{error:#}"));
    if scenario.needs.contains(&Need::Binary) {
        stage.runtime.block_on(stage.binary()).map_err(failed)?;
    }
    let _turn = stage.turn(scenario.alone);
    let context = Context::new(stage, &scenario.name).map_err(failed)?;
    // Caught here and not by the runner, so that a failed assertion shows the logs too.
    let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.body)(&context, scenario.bound)))
        .unwrap_or_else(|_| Err(anyhow!("it panicked, its message is above; {}", cut_off_waiting())))
        .and_then(|()| context.leave());
    outcome.map_err(|error| Failed::from(format!("{error:#}\n{}", context.logs())))
}

fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}

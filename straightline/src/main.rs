//! `straightline`: one binary, every role.
//!
//! Exit codes: 0 done; 1 something failed, or not everything asked for succeeded; 64 bad usage or configuration; 130
//! interrupted while waiting; 141 whoever read the output reads no more.

#![expect(unreachable_pub, reason = "nothing outside a binary can reach anything in it")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod access;
mod builtin;
mod cli;
mod commands;
mod config;
mod figures;
mod lanes;
mod observing;
mod print;
mod roles;
mod station;
mod stopping;
mod sweeping;
mod telemetry;

use clap::Parser;
use cli::{Cli, Command};
use config::{ConfigError, Settings};
use std::path::Path;
use std::process::ExitCode;

/// As in BSD's sysexits: the command was used wrongly.
const USAGE: u8 = 64;
/// As shells say of what SIGINT or SIGPIPE has ended.
const INTERRUPTED: u8 = 130;
const CLOSED: u8 = 141;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if let Command::Keep(options) = cli.command {
        return commands::function::keep(options);
    }
    let settings = match settings(&cli) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, USAGE),
    };
    if let Err(error) = telemetry::logs(&settings.log) {
        return complain(&error, USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, 1),
    };
    let ran = runtime.block_on(run(cli.command, settings, cli.global.config.as_deref()));
    // A thread that a model never gave back must not keep the process alive.
    runtime.shutdown_background();
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<stopping::Interrupted>() => ExitCode::from(INTERRUPTED),
        Err(error) if error.is::<print::Closed>() => ExitCode::from(CLOSED),
        Err(error) => complain(&format!("{error:#}"), if config::is_to_blame(&error) { USAGE } else { 1 }),
    }
}

fn complain(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("straightline: {error}");
    ExitCode::from(code)
}

fn settings(cli: &Cli) -> Result<Settings, ConfigError> {
    let mut flags = Vec::new();
    let global = &cli.global;
    let quoted = |value: &dyn std::fmt::Display| toml::Value::String(value.to_string()).to_string();
    if let Some(dir) = &global.data_dir {
        flags.push(("storage.dir", quoted(&dir.display())));
    }
    if let Some(format) = global.log_format {
        let format = match format {
            config::LogFormat::Human => "human",
            config::LogFormat::Json => "json",
        };
        flags.push(("log.format", quoted(&format)));
    }
    if let Some(filter) = &global.log {
        flags.push(("log.filter", quoted(filter)));
    } else if matches!(cli.command, Command::Demo(_) | Command::Bench(_) | Command::Relay(_))
        && std::env::var_os("STRAIGHTLINE_LOG__FILTER").is_none()
    {
        // Their own output is what there is to see.
        flags.push(("log.filter", quoted(&"warn")));
    }
    match &cli.command {
        Command::Up(up) => {
            let lanes = up.lanes.iter().map(|lane| toml::Value::from(lane.as_str())).collect::<Vec<_>>();
            flags.extend((!lanes.is_empty()).then(|| ("up.lanes", toml::Value::from(lanes).to_string())));
            flags.extend(up.listen.map(|listen| ("http.listen", quoted(&listen))));
            flags.extend(up.models.as_ref().map(|dir| ("worker.models", quoted(&dir.display()))));
        }
        Command::Worker(worker) => {
            flags.extend(worker.slots.map(|slots| ("worker.slots", slots.to_string())));
            flags.extend(worker.models.as_ref().map(|dir| ("worker.models", quoted(&dir.display()))));
        }
        Command::Serve(serve) => {
            flags.extend(serve.slots.map(|slots| ("worker.slots", slots.to_string())));
            flags.extend(serve.models.as_ref().map(|dir| ("worker.models", quoted(&dir.display()))));
            flags.extend(serve.diagnostics.then(|| ("worker.diagnostics", true.to_string())));
        }
        Command::Function(function) => {
            flags.extend(function.models.as_ref().map(|dir| ("worker.models", quoted(&dir.display()))));
        }
        _ => {}
    }
    // A variable that is not Unicode is none of ours: ours are named and written in ASCII.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config::load(global.config.as_deref(), environment, &flags)
}

async fn run(command: Command, settings: Settings, config: Option<&Path>) -> anyhow::Result<bool> {
    match command {
        Command::Demo(options) => commands::demo::run(settings, &options).await,
        Command::Up(_) => commands::up::run(settings, telemetry::metrics()?).await.map(|()| true),
        Command::Dispatcher(options) => {
            commands::dispatcher::run(settings, &options, telemetry::metrics()?).await.map(|()| true)
        }
        Command::Worker(options) => {
            commands::worker::run(settings, &options, telemetry::metrics()?).await.map(|()| true)
        }
        Command::Serve(options) => commands::serve::run(settings, &options).await.map(|()| true),
        Command::Function(options) => commands::function::run(settings, &options).await.map(|()| true),
        Command::Keep(_) => unreachable!("kept before there was a runtime"),
        Command::Submit(options) => commands::jobs::submit(settings, &options).await,
        Command::Result(options) => commands::jobs::results(settings, &options).await,
        Command::Cancel(options) => commands::jobs::cancel(settings, &options).await,
        Command::Status(options) => commands::status::run(settings, &options).await,
        Command::Dead(command) => commands::dead::run(settings, command).await,
        Command::Bench(options) => commands::bench::run(settings, &options, config).await,
        Command::Relay(options) => commands::relay::run(settings, &options).await.map(|()| true),
        Command::Config(cli::Config::Show) => commands::config::show(&settings).map(|()| true),
        Command::Config(cli::Config::Check(options)) => {
            commands::config::check(settings, &options).await.map(|()| true)
        }
    }
}

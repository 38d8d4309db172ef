//! `function`: the models as a Lambda-style function, and `keep`, which holds such functions to their limits.

use crate::config::Settings;
use crate::{cli, roles};
use anyhow::{Context, Result};
use std::process::ExitCode;
use std::sync::Arc;
use workers::local::{Config, Local};
use workers::serverless::function::{Loaded, serve};
use workers::serverless::host::keeper;

/// Runs until its host ends it, which is the only end there is.
pub async fn run(settings: Settings, options: &cli::Function) -> Result<()> {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").context(
        "AWS_LAMBDA_RUNTIME_API is not set: a function is started by a host that speaks the Lambda Runtime API",
    )?;
    let loaded = load(&settings, options).map_err(|error| format!("{error:#}"));
    Err(serve(api, loaded).await.into())
}

fn load(settings: &Settings, options: &cli::Function) -> Result<Loaded> {
    let mut catalog = roles::catalog(settings)?;
    if !options.only.is_empty() {
        catalog = catalog.only(&options.only)?;
    }
    // One event at a time. A run that hangs ends with all of this process, once that is told.
    let config = Config { slots: 1, abandoned_max: 1 };
    let contracts = catalog.contracts();
    let lane = tokio::task::block_in_place(|| Local::start(config, &catalog))?;
    Ok((Arc::new(lane), contracts))
}

/// Needs no settings, logs or runtime: it is there to be small.
pub fn keep(options: cli::Keep) -> ExitCode {
    keeper::keep(options.arguments)
}

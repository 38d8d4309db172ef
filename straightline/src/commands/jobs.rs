//! `submit`, `result`, `cancel`.

mod direct;
mod over_http;
mod sink;
mod source;

use crate::access::Access;
use crate::cli;
use crate::config::Settings;
use crate::print;
use crate::stopping::{self, Interrupted, Stop};
use anyhow::Result;
use schemas::{JobId, Status};
use sink::Sink;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long the broker may take, once nothing more is submitted, to confirm what is on its way to it.
const CONFIRM_MAX: Duration = Duration::from_secs(5);

/// Submits; true if everything that was asked for succeeded.
pub async fn submit(settings: Settings, options: &cli::Submit) -> Result<bool> {
    let inputs = source::open(options)?;
    let mut sink = Sink::new(options, inputs.expected)?;
    // Where nobody waits, the ids are out as soon as they are known, and a signal may end it at once.
    let mut stop = if options.wait { stopping::watch_quietly()? } else { watch::channel(Stop::No).1 };
    let access = tokio::select! {
        access = Access::open(settings, &options.server) => access?,
        () = stopping::until(&mut stop, Stop::Drain) => return Err(Interrupted.into()),
    };
    let (wait, asked) = (options.wait, stop.clone());
    let submitted = match &access {
        Access::Direct(station) => direct::submit(station, inputs.jobs, wait, &mut sink, asked).await,
        Access::Http(http) => over_http::submit(http, inputs.jobs, wait, &mut sink, asked).await,
    };
    access.close().await;
    submitted?;
    let succeeded = sink.finish()?;
    if *stop.borrow() == Stop::No { Ok(succeeded) } else { Err(Interrupted.into()) }
}

/// Resolves when a submission that was told to stop has had its time: a while after the first signal, or at the second.
async fn given_up(mut stop: watch::Receiver<Stop>) {
    stopping::until(&mut stop, Stop::Drain).await;
    let _ = timeout(CONFIRM_MAX, stopping::until(&mut stop, Stop::Now)).await;
}

/// Fetches results; true if every one is there and says succeeded.
pub async fn results(settings: Settings, options: &cli::ResultOf) -> Result<bool> {
    let access = Access::open(settings, &options.server).await?;
    let wait = options.wait.unwrap_or(Duration::ZERO);
    let mut missing: Vec<JobId> = options.ids.clone();
    let mut succeeded = true;
    let fetched = match &access {
        Access::Direct(station) => direct::results(station, &options.ids, wait).await,
        Access::Http(http) => over_http::results(http, &options.ids, wait).await,
    };
    access.close().await;
    for result in fetched? {
        missing.retain(|id| *id != result.id);
        succeeded &= result.status == Status::Succeeded;
        print::line(&serde_json::to_string(&result)?)?;
    }
    for id in &missing {
        print::line(&serde_json::json!({ "id": id, "status": "pending" }).to_string())?;
    }
    Ok(succeeded && missing.is_empty())
}

/// Takes jobs back; true if every one is cancelled now.
pub async fn cancel(settings: Settings, options: &cli::Cancel) -> Result<bool> {
    let access = Access::open(settings, &options.server).await?;
    let mut all = true;
    for id in &options.ids {
        let (now, result) = access.cancel(*id).await?;
        all &= now || result.status == Status::Cancelled;
        let how = if now { "cancelled".to_owned() } else { format!("had ended before: {}", result.status) };
        print::line(&format!("{id} {how}"))?;
    }
    access.close().await;
    Ok(all)
}

//! `submit`, `result`, `cancel`.

mod direct;
mod over_http;
mod sink;
mod source;

use crate::access::Access;
use crate::cli;
use crate::config::Settings;
use crate::print;
use anyhow::Result;
use schemas::{JobId, Status};
use sink::Sink;
use std::time::Duration;

/// Submits; true if everything that was asked for succeeded.
pub async fn submit(settings: Settings, options: &cli::Submit) -> Result<bool> {
    let inputs = source::open(options)?;
    let mut sink = Sink::new(options, inputs.expected)?;
    let access = Access::open(settings, &options.server).await?;
    let submitted = match &access {
        Access::Direct(station) => direct::submit(station, inputs.jobs, options.wait, &mut sink).await,
        Access::Http(http) => over_http::submit(http, inputs.jobs, options.wait, &mut sink).await,
    };
    access.close().await;
    submitted?;
    sink.finish()
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

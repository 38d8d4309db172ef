//! Removing blobs that are too old for anybody to want them.

use crate::station::Station;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;

/// Between two sweeps.
const PERIOD: Duration = Duration::from_secs(3600);

/// Sweeps now and then until aborted.
pub fn start(station: &Station) -> JoinHandle<()> {
    let blobs = Arc::clone(&station.blobs);
    let keep = station.settings.records.blobs_keep;
    tokio::spawn(async move {
        loop {
            match blobs.sweep(keep, SystemTime::now().into()).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(blobs = removed, "removed old blobs"),
                Err(error) => tracing::warn!(error = %error, "failed to remove old blobs"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    })
}

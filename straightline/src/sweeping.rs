//! Removing blobs that are too old for anybody to want them.
//!
//! Every long-running process sweeps. Where all hosts share one folder, one process at a time does it for all; a folder
//! of this host alone is swept by whoever uses it, since no other may see it.

use crate::station::Station;
use schemas::UnixMillis;
use state::State;
use state::blobs::{BlobError, Blobs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;

/// The chore's name in shared state.
const ROLE: &str = "sweeper";
/// Between two sweeps, and how long whoever swept has the chore to itself.
const PERIOD: Duration = Duration::from_secs(3600);

/// Sweeps now and then until aborted. `name` is this process's.
pub fn start(station: &Station, name: String) -> JoinHandle<()> {
    let (state, blobs) = (Arc::clone(&station.state), Arc::clone(&station.blobs));
    let keep = station.settings.records.blobs_keep;
    tokio::spawn(async move {
        loop {
            match sweep(state.as_ref(), &blobs, &name, keep, SystemTime::now().into()).await {
                Ok(None | Some(0)) => {}
                Ok(Some(removed)) => tracing::info!(blobs = removed, "removed old blobs"),
                Err(error) => tracing::warn!(error = %error, "failed to remove old blobs"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    })
}

/// Removes what is older than `keep`, unless another process does it; says how much that was.
async fn sweep(
    state: &dyn State,
    blobs: &Blobs,
    name: &str,
    keep: Duration,
    now: UnixMillis,
) -> Result<Option<u64>, BlobError> {
    // Without shared state nobody leads, and everybody sweeps: twice does no harm.
    if blobs.shared() && matches!(state.lead(ROLE, name, PERIOD).await, Ok(false)) {
        return Ok(None);
    }
    blobs.sweep(keep, now).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{Opaque, Payload};

    #[tokio::test]
    async fn one_process_sweeps_a_shared_folder_and_each_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let state = state::embedded::Embedded::open(state::embedded::Config::new(dir.path())).await.unwrap();
        let open = |folder: &str, shared| {
            Blobs::open(state::blobs::Config { shared, ..state::blobs::Config::new(dir.path().join(folder)) })
        };
        let input = Payload::Opaque(Opaque { content_type: "text/plain".to_owned(), data: "x".into() });
        let keep = Duration::from_secs(3600);
        let young = UnixMillis::from(SystemTime::now());
        let old = young.plus(2 * keep);
        for (shared, others) in [(true, None), (false, Some(0))] {
            let blobs = open(if shared { "shared" } else { "own" }, shared).await.unwrap();
            let blob = blobs.put(&input).await.unwrap();
            let swept = async |name, now| sweep(state.as_ref(), &blobs, name, keep, now).await.unwrap();
            assert_eq!(swept("one", young).await, Some(0));
            assert_eq!(swept("other", young).await, others);
            assert_eq!(swept("one", old).await, Some(1));
            assert!(matches!(blobs.get(&blob).await, Err(BlobError::NotFound { .. })));
        }
    }
}

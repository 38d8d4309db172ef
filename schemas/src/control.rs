//! What is broadcast to every dispatcher and worker on `sl.control`.

use crate::id::JobId;
use serde::{Deserialize, Serialize};

/// A broadcast. A reader ignores one it does not know. Broadcasts speed things up; none is needed for
/// correctness, since each stands in shared state as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Control {
    /// The job's record says cancelled: stop working on it.
    Cancelled {
        /// The job.
        id: JobId,
    },
}

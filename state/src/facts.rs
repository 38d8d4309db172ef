//! What a dispatcher tells shared state about a batch of jobs, and what it gets back.

use bytes::Bytes;
use schemas::{JobId, Lane, LaneSet, ModelName};
use std::time::Duration;

/// A batch of jobs, as far as shared state cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Every model in the batch, once, with the number of jobs to count for it: first attempts that were neither
    /// redelivered nor waiting. May be zero.
    pub models: Vec<(ModelName, u32)>,
    /// Jobs whose end is asked for.
    pub ids: Vec<JobId>,
    /// Places to claim in each lane, at most (by [`Lane::index`]).
    pub claim: [u32; 3],
    /// Places claimed earlier and not used, with the stamp of the sample they were claimed under; given back
    /// unless a newer sample has voided the claim.
    pub unused: Option<Unused>,
    /// How far back the frequency looks. What is counted under one window is not seen through another: all who
    /// count the same jobs must use the same.
    pub window: Duration,
}

/// Claimed places not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unused {
    /// [`Facts::stamp`] of the claim.
    pub stamp: u64,
    /// Places, by [`Lane::index`].
    pub places: [u32; 3],
}

/// What is known now.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// In the order of [`Batch::models`].
    pub models: Vec<ModelFacts>,
    /// In the order of [`Batch::ids`]: the encoded result of each job that has ended.
    pub ended: Vec<Option<Bytes>>,
    /// By [`Lane::index`].
    pub lanes: [LaneFacts; 3],
    /// Changes with every sample.
    pub stamp: u64,
}

/// What is known of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelFacts {
    /// f_t: jobs counted per second over the window, this batch included.
    pub per_second: f64,
    /// Lanes with a live worker that runs this model.
    pub lanes: LaneSet,
    /// Whether any worker said within [`MODEL_MEMORY`] that it runs this model.
    pub known: bool,
}

/// What is known of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneFacts {
    /// Workers alive and taking jobs.
    pub workers: u32,
    /// Their slots.
    pub slots: u32,
    /// Places that this batch has claimed: at most what it asked for, and at most the lane's room.
    pub granted: u32,
    /// Room that is left after the claim.
    pub left: u32,
}

/// How long a model that no live worker runs any more still counts as known: long enough for a deployment
/// to replace its workers, short enough that a mistyped name is soon called that.
pub const MODEL_MEMORY: Duration = Duration::from_secs(600);

/// What the lanes' queues were seen to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Messages ready in each lane's queue, by [`Lane::index`].
    pub ready: [u64; 3],
    /// Time between samples: what the lane-queue target is made for.
    pub interval: Duration,
    /// Highest lane-queue target.
    pub target_max: u32,
}

impl Facts {
    /// The facts of one lane.
    pub fn lane(&self, lane: Lane) -> &LaneFacts {
        &self.lanes[lane.index()]
    }
}

//! Placement: which lane a job should go to. Pure: values in, a verdict out; no clock, no I/O, no memory. The
//! simulator runs these very objects.

mod one_lane;
mod rule;

pub use one_lane::OneLane;
pub use rule::Straightline;

use schemas::{Lane, LaneSet};
use std::fmt;

/// Chooses lanes.
pub trait Policy: Send + Sync {
    /// Its name in configuration, status and metrics.
    fn name(&self) -> &'static str;

    /// Where `job` should go, the lanes being as in `lanes`. Total and deterministic; never places a job in a lane that
    /// has an [`Obstacle`].
    fn place(&self, job: &Job, lanes: &Lanes) -> Verdict;
}

/// A job, as far as placement cares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Job {
    /// f_t: how often its model is asked for just now, per second.
    pub per_second: f64,
    /// r_d: bytes of its input.
    pub size: u64,
    /// Lanes that already failed it.
    pub failed: LaneSet,
}

/// A lane, as far as placing one job cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneView {
    /// Whether a worker of it lives and takes jobs.
    pub live: bool,
    /// Whether one of them runs the job's model.
    pub serves: bool,
    /// S: places free.
    pub room: u32,
    /// Largest input it takes, in bytes; none where there is no limit of its own.
    pub payload_max: Option<u64>,
}

/// Every lane, by [`Lane::index`].
pub type Lanes = [LaneView; 3];

/// What to do with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Put it into this lane now.
    Place(Lane, Reason),
    /// No lane that may take it has room: let it wait for this one.
    Wait(Lane, Reason),
    /// No lane can ever take it.
    Never(Reason),
}

/// Why a lane was chosen: the first row of the rule that matched, and why its lane was passed over if it was. The
/// text form, `large` or `large/docker_down`, is a metric label and stands in the job's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reason {
    /// The row.
    pub row: Row,
    /// The lane that row names, and what kept the job out of it.
    pub passed_over: Option<(Lane, Obstacle)>,
}

/// The rows of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// Asked for often, and small.
    FrequentSmall,
    /// Large.
    Large,
    /// Neither, and there is room here.
    Moderate,
    /// Neither, and there is no room here.
    LocalFull,
    /// Neither, and there is no room anywhere else.
    Overflow,
    /// The deployment uses one lane for everything.
    OnlyLane,
}

/// What keeps a job out of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// Its input is over the lane's own limit: for ever.
    Payload,
    /// No worker lives.
    Down,
    /// No live worker runs the model.
    NoModel,
    /// It already failed there.
    Failed,
    /// No room.
    Full,
}

impl LaneView {
    /// What keeps `job` out of this lane, the lasting obstacles first.
    pub fn obstacle(&self, lane: Lane, job: &Job) -> Option<Obstacle> {
        if self.payload_max.is_some_and(|max| job.size > max) {
            Some(Obstacle::Payload)
        } else if !self.live {
            Some(Obstacle::Down)
        } else if !self.serves {
            Some(Obstacle::NoModel)
        } else if job.failed.contains(lane) {
            Some(Obstacle::Failed)
        } else if self.room == 0 {
            Some(Obstacle::Full)
        } else {
            None
        }
    }
}

impl Reason {
    /// A row whose lane was taken.
    pub const fn row(row: Row) -> Self {
        Self { row, passed_over: None }
    }

    /// A row whose lane was passed over.
    pub const fn passed(row: Row, lane: Lane, obstacle: Obstacle) -> Self {
        Self { row, passed_over: Some((lane, obstacle)) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = match self.row {
            Row::FrequentSmall => "frequent_small",
            Row::Large => "large",
            Row::Moderate => "moderate",
            Row::LocalFull => "local_full",
            Row::Overflow => "overflow",
            Row::OnlyLane => "only_lane",
        };
        f.write_str(row)?;
        let Some((lane, obstacle)) = self.passed_over else { return Ok(()) };
        let obstacle = match obstacle {
            Obstacle::Payload => "payload",
            Obstacle::Down => "down",
            Obstacle::NoModel => "no_model",
            Obstacle::Failed => "failed",
            Obstacle::Full => "full",
        };
        write!(f, "/{lane}_{obstacle}")
    }
}

/// The policies a deployment can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The rule of the paper.
    Straightline,
    /// Everything in one lane: what the rule is compared with.
    OneLane(Lane),
}

/// Not a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy {0:?} is not known: use straightline, local, docker or serverless")]
pub struct UnknownPolicy(String);

impl std::str::FromStr for Choice {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "straightline" => Ok(Self::Straightline),
            lane => {
                lane.parse().map(Self::OneLane).map_err(|_| UnknownPolicy(text.chars().take(80).collect()))
            }
        }
    }
}

impl Choice {
    /// The policy, with the thresholds F (per second) and D (bytes).
    pub fn build(self, frequency: f64, size: u64) -> Box<dyn Policy> {
        match self {
            Self::Straightline => Box::new(Straightline { frequency, size }),
            Self::OneLane(lane) => Box::new(OneLane(lane)),
        }
    }
}

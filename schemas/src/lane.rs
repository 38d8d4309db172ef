//! Lanes: the kinds of place that run jobs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of place that runs jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Lane {
    /// Functions: started on demand, one job each at a time.
    Serverless = 0,
    /// Model containers on a Docker engine.
    Docker = 1,
    /// The worker's own process.
    Local = 2,
}

/// Not a lane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lane {0:?} is not known: use serverless, docker or local")]
pub struct UnknownLane(String);

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 3] = [Self::Serverless, Self::Docker, Self::Local];

    /// The word used in queue names, headers and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serverless => "serverless",
            Self::Docker => "docker",
            Self::Local => "local",
        }
    }

    /// The lane with this number on the wire.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// Its number: an index into arrays that hold one entry per lane.
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Lane {
    type Err = UnknownLane;
    fn from_str(text: &str) -> Result<Self, UnknownLane> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.as_str() == text)
            .ok_or_else(|| UnknownLane(text.chars().take(80).collect()))
    }
}

/// A set of lanes, one bit each. Bits of lanes that this build does not know are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LaneSet(u8);

impl LaneSet {
    /// No lane.
    pub const EMPTY: Self = Self(0);

    /// The set with these bits.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The bits, as they cross the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// This set and `lane`.
    #[must_use]
    pub const fn with(self, lane: Lane) -> Self {
        Self(self.0 | 1 << lane as u8)
    }

    /// Whether `lane` is in it.
    pub const fn contains(self, lane: Lane) -> bool {
        self.0 & 1 << lane as u8 != 0
    }

    /// The known lanes in it.
    pub fn iter(self) -> impl Iterator<Item = Lane> {
        Lane::ALL.into_iter().filter(move |lane| self.contains(*lane))
    }

    /// Whether it has none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Lane> for LaneSet {
    fn from_iter<I: IntoIterator<Item = Lane>>(lanes: I) -> Self {
        lanes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

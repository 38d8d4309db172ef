//! Priority classes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How urgent a job is. Each class has queues of its own; they are consumed with [`Class::weight`]s, so that a
/// flood of urgent jobs slows the others and starves none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Class {
    /// Someone is waiting.
    High = 0,
    /// The default.
    #[default]
    Normal = 1,
    /// Whenever there is time.
    Low = 2,
}

/// Not a class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("class {0:?} is not known: use high, normal or low")]
pub struct UnknownClass(String);

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its share of each turn while every class has jobs: 8 : 4 : 1.
    pub const fn weight(self) -> u32 {
        match self {
            Self::High => 8,
            Self::Normal => 4,
            Self::Low => 1,
        }
    }

    /// The word used in queue names, headers and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The class with this number on the wire.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Class {
    type Err = UnknownClass;
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownClass(text.chars().take(80).collect()))
    }
}

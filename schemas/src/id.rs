//! Job ids.

use crate::names::ClientName;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// A job's id, made by its client: a UUID of version 7 (time-ordered), or of version 5 when it is made from an
/// idempotency key. Submitting the same id again is the same job. In every body it is text, so that any language
/// can compare it with a correlation id; only the packed header has its 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "json-schema", schemars(with = "String"))]
pub struct JobId(Uuid);

/// Not a job id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "job id {0:?} is not a UUID: send the id that submit returned, such as 019aa0f2-5d0e-7cc1-9f5e-7a1b0c2d3e4f"
)]
pub struct InvalidJobId(String);

/// Namespace of the ids that are made from idempotency keys. Fixed for ever: changing it would make every
/// repeated key a new job.
const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_2b7e_94c3_4a58_b0e6_3d9a_71c5_e824);

impl JobId {
    /// A fresh, time-ordered id.
    #[expect(clippy::new_without_default, reason = "a default would hide that every call differs")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id that `client`'s idempotency key stands for.
    pub fn from_key(client: &ClientName, key: &str) -> Self {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        let name = format!("{}:{client}:{key}", client.as_str().len());
        Self(Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes()))
    }

    /// The id's 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id of these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for JobId {
    type Err = InvalidJobId;
    fn from_str(text: &str) -> Result<Self, InvalidJobId> {
        Uuid::parse_str(text).map(Self).map_err(|_| InvalidJobId(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidJobId;
    fn try_from(text: String) -> Result<Self, InvalidJobId> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_clients_never_meet() {
        let ab = ClientName::new("ab").unwrap();
        let a = ClientName::new("a").unwrap();
        assert_eq!(JobId::from_key(&a, "k"), JobId::from_key(&a, "k"));
        assert_ne!(JobId::from_key(&ab, "c"), JobId::from_key(&a, "bc"));
        assert_ne!(JobId::from_key(&ab, "c"), JobId::from_key(&a, "b:c"));
    }

    #[test]
    fn an_id_survives_text_and_refuses_rubbish() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert!("job-7".parse::<JobId>().unwrap_err().to_string().contains("job-7"));
    }
}

//! Reading back what some build of this system stored.

use crate::StateError;
use schemas::wire;
use serde::de::DeserializeOwned;

/// What is stored under `key`.
pub(crate) fn exactly<T: DeserializeOwned>(key: &str, stored: &[u8]) -> Result<T, StateError> {
    wire::check_version(stored)
        .and_then(|()| wire::decode(stored))
        .map_err(|error| StateError::Corrupt { key: key.to_owned(), reason: error.to_string() })
}

/// An entry of a list. One that cannot be read (a newer build may have written it) must not hide the others.
pub(crate) fn or_skip<T: DeserializeOwned>(key: &str, stored: &[u8]) -> Option<T> {
    exactly(key, stored).inspect_err(|error| tracing::warn!(error = %error, "an entry is left out")).ok()
}

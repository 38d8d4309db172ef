//! The encoding: MessagePack with named fields, so that any language can write a message and an old reader can
//! skip what a new writer added.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Major version of everything that crosses a wire. A reader refuses a newer one and says so; what is added
/// within a version is a field or header that older readers ignore.
pub const WIRE_VERSION: u8 = 1;

/// Content type of our bodies.
pub const CONTENT_TYPE: &str = "application/msgpack";

/// Why bytes from a wire were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written for a later major version.
    #[error(
        "message has wire version {found}, this build reads up to {WIRE_VERSION}: upgrade it, or send version {WIRE_VERSION}"
    )]
    Version {
        /// The version found.
        found: u64,
    },
    /// Not what the schema says.
    #[error("message is not valid MessagePack for its schema: {0}")]
    Malformed(String),
}

/// Encodes `value`. Infallible for the types of this crate: none has a map with odd keys or a length unknown.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    rmp_serde::to_vec_named(value).expect("types of this crate always encode").into()
}

/// Decodes a `T`. Nesting is bounded, so that hostile bytes cannot exhaust the stack.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(64);
    T::deserialize(&mut reader).map_err(|error| DecodeError::Malformed(bounded(&error.to_string())))
}

/// Refuses a message whose `version` is newer than ours, before anything else in it is looked at: a newer
/// schema may not decode as ours at all, and the reason must then be the version.
pub fn check_version(bytes: &[u8]) -> Result<(), DecodeError> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: Option<u64>,
    }
    match rmp_serde::from_slice::<VersionOnly>(bytes) {
        Ok(VersionOnly { version: Some(found) }) if found > u64::from(WIRE_VERSION) => {
            Err(DecodeError::Version { found })
        }
        // Malformed in some other way: the full decode says how.
        _ => Ok(()),
    }
}

/// `text` cut to the length that errors may have on the wire.
pub fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(crate::limits::ERROR_BYTES_MAX);
    text[..end].to_owned()
}

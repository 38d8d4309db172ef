//! The encoding: MessagePack with named fields, so that any language can write a message and an old reader can
//! skip what a new writer added.

use crate::limits::PAYLOAD_BYTES_MAX;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Major version of everything that crosses a wire. A reader refuses a newer one and says so; what is added
/// within a version is a field or header that older readers ignore.
pub const WIRE_VERSION: u8 = 1;

/// What most values take besides their data, in bytes.
const ABOUT_BYTES: usize = 512;

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
    encode_with(value, 0)
}

/// [`encode`] for a value with about so many bytes of data in it: its buffer need not grow.
pub(crate) fn encode_with<T: Serialize>(value: &T, data_bytes: u64) -> Bytes {
    let data_bytes = usize::try_from(data_bytes).unwrap_or(0).min(PAYLOAD_BYTES_MAX);
    let mut encoded = Vec::with_capacity(ABOUT_BYTES + data_bytes);
    rmp_serde::encode::write_named(&mut encoded, value).expect("types of this crate always encode");
    encoded.into()
}

/// Decodes a `T`. Nesting is bounded, so that hostile bytes cannot exhaust the stack.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(64);
    T::deserialize(&mut reader).map_err(|error| DecodeError::Malformed(bounded(&error.to_string())))
}

/// Decodes a `T` that has a version, and refuses a newer one. A newer schema may not decode as ours at all, and the reason
/// must then be the version.
pub(crate) fn decode_version<T: DeserializeOwned>(
    bytes: &[u8],
    version: fn(&T) -> u8,
) -> Result<T, DecodeError> {
    match decode::<T>(bytes) {
        Ok(value) if version(&value) > WIRE_VERSION => {
            Err(DecodeError::Version { found: version(&value).into() })
        }
        Ok(value) => Ok(value),
        Err(error) => check_version(bytes).and(Err(error)),
    }
}

/// Refuses a value whose `version` is newer than ours, whatever else it holds.
pub fn check_version(bytes: &[u8]) -> Result<(), DecodeError> {
    let found = found_version(bytes);
    if found > u64::from(WIRE_VERSION) { Err(DecodeError::Version { found }) } else { Ok(()) }
}

/// The version that these bytes name; 0 if they name none, or cannot be read.
fn found_version(bytes: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: Option<u64>,
    }
    rmp_serde::from_slice::<VersionOnly>(bytes).ok().and_then(|found| found.version).unwrap_or(0)
}

/// `text` cut to the length that errors may have on the wire.
pub fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(crate::limits::ERROR_BYTES_MAX);
    text[..end].to_owned()
}

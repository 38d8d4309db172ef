//! What a job carries in and a result carries out.

use crate::limits::{PAYLOAD_BYTES_MAX, TENSORS_MAX};
use crate::tensor::Tensor;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// An input or an output. (Another job's result as an input has its place here later.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// Named tensors.
    Tensors(Vec<Tensor>),
    /// Bytes that only the model understands.
    Opaque(Opaque),
    /// A claim check: the payload, encoded as this very type, rests in the blob store.
    Blob(BlobRef),
}

/// Bytes with a content type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Opaque {
    /// A media type, such as `image/png`.
    pub content_type: String,
    /// The bytes.
    #[serde(with = "binary")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<u8>"))]
    pub data: Bytes,
}

/// Points into the blob store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct BlobRef {
    /// The store's own id: opaque, never a path.
    pub id: String,
    /// Length of what is stored, in bytes.
    pub size: u64,
}

/// A payload over a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPayload {
    /// Too many tensors.
    #[error("payload has {0} tensors: at most {TENSORS_MAX}")]
    Tensors(usize),
    /// Too many bytes.
    #[error("payload has {0} bytes: at most {PAYLOAD_BYTES_MAX}; split it into several jobs")]
    Bytes(u64),
    /// Two tensors of one name.
    #[error("payload has two tensors named {0:?}: names must differ")]
    Duplicate(String),
}

impl Payload {
    /// Bytes of data it carries or points to, its encoding's own few bytes left out.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Tensors(tensors) => tensors.iter().map(|tensor| tensor.data().len() as u64).sum(),
            Self::Opaque(opaque) => opaque.data.len() as u64,
            Self::Blob(blob) => blob.size,
        }
    }

    /// Bytes of data that are encoded with it: a blob's are elsewhere.
    pub(crate) fn inline_bytes(&self) -> u64 {
        if let Self::Blob(_) = self { 0 } else { self.data_bytes() }
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self {
            Self::Tensors(tensors) => tensors.iter().find(|tensor| tensor.name() == name),
            _ => None,
        }
    }

    /// Checks the limits that hold for every payload.
    pub fn check(&self) -> Result<(), InvalidPayload> {
        if self.data_bytes() > PAYLOAD_BYTES_MAX as u64 {
            return Err(InvalidPayload::Bytes(self.data_bytes()));
        }
        let Self::Tensors(tensors) = self else { return Ok(()) };
        if tensors.len() > TENSORS_MAX {
            return Err(InvalidPayload::Tensors(tensors.len()));
        }
        for (at, tensor) in tensors.iter().enumerate() {
            if tensors[..at].iter().any(|earlier| earlier.name() == tensor.name()) {
                return Err(InvalidPayload::Duplicate(tensor.name().to_owned()));
            }
        }
        Ok(())
    }
}

/// Bytes as MessagePack `bin`; in JSON as an array of numbers, and read from text as well.
mod binary {
    use bytes::Bytes;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&data[..], serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        serde_bytes::deserialize::<Vec<u8>, D>(deserializer).map(Bytes::from)
    }
}

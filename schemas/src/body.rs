//! The body of a job message: what only the worker needs. Everything a hop needs stands in the header.

use crate::payload::{InvalidPayload, Payload};
use crate::wire::{self, DecodeError, WIRE_VERSION};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The body of a job: a MessagePack map with named fields. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct JobBody {
    /// Major version of the wire. Absent means 1.
    #[serde(default = "first_version")]
    pub version: u8,
    /// What the model is to work on.
    pub input: Payload,
    /// The outputs wanted, by name; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Free parameters, as in the Open Inference Protocol; their meaning is the model's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, Parameter>,
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Parameter {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any number.
    Number(f64),
    /// Text.
    Text(String),
}

// A parameter is compared in tests and conflict checks only, where NaN never equals itself and need not.
impl Eq for Parameter {}

const fn first_version() -> u8 {
    1
}

impl JobBody {
    /// A body with this input, all outputs wanted and no parameters.
    pub fn new(input: Payload) -> Self {
        Self { version: WIRE_VERSION, input, outputs: Vec::new(), parameters: BTreeMap::new() }
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Bytes {
        wire::encode_with(self, self.input.inline_bytes())
    }

    /// Reads a body, checking version and limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidBody> {
        let body: Self = wire::decode_version(bytes, |body: &Self| body.version)?;
        body.input.check()?;
        Ok(body)
    }
}

/// Why a body was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBody {
    /// It cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It is over a limit.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
}

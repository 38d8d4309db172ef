//! The Open Inference Protocol, version 2, as bytes: inference requests and responses in JSON, and its binary tensor
//! extension, in which raw data stands behind a JSON head, in the order of the tensors that say how long theirs is.
//! [`HEAD_LENGTH`] tells where the head ends. Pure; HTTP is whoever uses it.
//!
//! Both sides of a conversation are here: a server reads [`Request`] and writes [`respond`], a client writes [`ask`]
//! and reads [`answer`].

use crate::limits::TENSORS_MAX;
use crate::tensor::{Data, Datatype, Tensor};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

mod request;
mod response;

pub use request::{Input, Output, Request, Selection, ask, event};
pub use response::{About, Answer, answer, respond};

/// The HTTP header that says how long the JSON head is; without it the whole body is JSON.
pub const HEAD_LENGTH: &str = "inference-header-content-length";

/// Parameters, as they come.
pub type Parameters = BTreeMap<String, Value>;

/// Bytes that are not what the protocol says; the message names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// A body, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The JSON, or the JSON head.
    pub head: Bytes,
    /// Data behind the head; empty where all is JSON, and [`HEAD_LENGTH`] is then left out.
    pub data: Vec<Bytes>,
}

impl Encoded {
    /// Bytes of the whole body.
    pub fn len(&self) -> usize {
        self.head.len() + self.data.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether there is nothing in it, which there always is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Splits a body into its JSON head and the binary data behind it, by the value of [`HEAD_LENGTH`].
pub fn split(head_length: Option<&[u8]>, mut body: Bytes) -> Result<(Bytes, Bytes), Malformed> {
    let Some(length) = head_length else { return Ok((body, Bytes::new())) };
    let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<usize>().ok());
    let length = length.ok_or_else(|| {
        Malformed("header Inference-Header-Content-Length is not a whole number".to_owned())
    })?;
    if length > body.len() {
        return Err(Malformed(format!(
            "header Inference-Header-Content-Length is {length}, but the body has {} bytes",
            body.len()
        )));
    }
    let head = body.split_to(length);
    Ok((head, body))
}

/// A tensor as it is written: its data in JSON, or behind the head.
#[derive(Serialize)]
#[serde(untagged)]
enum Written<'a> {
    Json(&'a Tensor),
    Binary { name: &'a str, datatype: Datatype, shape: &'a [u64], parameters: Size },
}

#[derive(Serialize)]
struct Size {
    binary_data_size: usize,
}

impl<'a> Written<'a> {
    /// Writes the data here, or puts it with what stands behind the head.
    fn of(tensor: &'a Tensor, binary: bool, data: &mut Vec<Bytes>) -> Self {
        if !binary {
            return Self::Json(tensor);
        }
        data.push(tensor.data().clone());
        Self::Binary {
            name: tensor.name(),
            datatype: tensor.datatype(),
            shape: tensor.shape(),
            parameters: Size { binary_data_size: tensor.data().len() },
        }
    }
}

/// A tensor as it is read. Its data stands here, or behind the head if its parameters say so.
#[derive(Deserialize)]
struct Read {
    name: String,
    datatype: Datatype,
    shape: Vec<u64>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(default)]
    data: Option<Data>,
}

impl Read {
    /// The tensor, its data taken from here or from the front of `binary`. `what` it is, for errors.
    fn tensor(mut self, what: &str, binary: &mut Bytes) -> Result<Tensor, Malformed> {
        let wrong = |problem: String| Malformed(format!("{what} {:?}{problem}", short(&self.name)));
        let size = take_number(&mut self.parameters, "binary_data_size")
            .map_err(|()| wrong(": parameters.binary_data_size is not a whole number".to_owned()))?;
        let tensor = match (size, self.data) {
            (None, Some(data)) => Tensor::of(self.name, self.datatype, self.shape, data),
            (Some(size), None) => {
                let (size, left) = (usize::try_from(size).unwrap_or(usize::MAX), binary.len());
                if size > left {
                    return Err(wrong(format!(
                        ": parameters.binary_data_size is {size}, but {left} bytes are left behind the JSON"
                    )));
                }
                Tensor::new(self.name, self.datatype, self.shape, binary.split_to(size))
            }
            (None, None) => {
                return Err(wrong(" has neither data nor parameters.binary_data_size".to_owned()));
            }
            (Some(_), Some(_)) => {
                return Err(wrong(" has both data and parameters.binary_data_size".to_owned()));
            }
        };
        tensor.map_err(|error| Malformed(error.to_string()))
    }
}

/// The tensors of `read`; every byte of `binary` must be claimed.
fn tensors(what: &str, read: Vec<Read>, mut binary: Bytes) -> Result<Vec<Tensor>, Malformed> {
    if read.len() > TENSORS_MAX {
        return Err(Malformed(format!("{what}s has {} tensors: at most {TENSORS_MAX}", read.len())));
    }
    let tensors = read.into_iter().map(|one| one.tensor(what, &mut binary)).collect::<Result<_, _>>()?;
    match binary.len() {
        0 => Ok(tensors),
        left => {
            Err(Malformed(format!("{left} bytes behind the JSON belong to no {what}'s binary_data_size")))
        }
    }
}

fn take_number(parameters: &mut Parameters, name: &str) -> Result<Option<u64>, ()> {
    parameters.remove(name).map(|value| value.as_u64().ok_or(())).transpose()
}

fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

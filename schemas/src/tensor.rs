//! Tensors as in the Open Inference Protocol, version 2: name, datatype, shape and row-major data.
//!
//! In memory and in MessagePack the data is raw little-endian bytes (element type `BYTES`: each element behind its
//! length as a little-endian `u32`, as in the protocol's binary extension). In JSON it is an array of values. A
//! reader takes either form from either encoding, nested arrays included, so that a client may write
//! whichever its language makes easy.

use crate::limits::{TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX};
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};
use std::fmt;

mod values;
use values::DataRepr;

/// The element type of a tensor, by its name in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are the protocol's and say it all")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// Bytes per element; none for [`Datatype::Bytes`], whose elements differ in length.
    pub const fn width(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_uppercase())
    }
}

/// Why a tensor was refused. Every message names the tensor and what would have been right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor {name:?}: {reason}")]
pub struct InvalidTensor {
    /// The tensor's name, shortened.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One named tensor whose data agrees with its datatype and shape.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(try_from = "RawTensor")]
#[cfg_attr(feature = "json-schema", schemars(with = "RawTensor"))]
pub struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<u64>,
    data: Bytes,
}

impl Tensor {
    /// Takes raw little-endian `data`, checked against `datatype` and `shape`.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: impl Into<Vec<u64>>,
        data: impl Into<Bytes>,
    ) -> Result<Self, InvalidTensor> {
        let tensor = Self { name: name.into(), datatype, shape: shape.into(), data: data.into() };
        match tensor.problem() {
            None => Ok(tensor),
            Some(reason) => Err(InvalidTensor { name: tensor.name.chars().take(80).collect(), reason }),
        }
    }

    /// Takes `data` as it was read, raw or as values, packs it and checks it like [`Tensor::new`].
    pub fn of(
        name: impl Into<String>,
        datatype: Datatype,
        shape: impl Into<Vec<u64>>,
        data: Data,
    ) -> Result<Self, InvalidTensor> {
        let name = name.into();
        let packed = match data.0 {
            DataRepr::Raw(bytes) => Ok(bytes),
            DataRepr::Values(values) => values::pack(datatype, &values),
        };
        match packed {
            Ok(data) => Self::new(name, datatype, shape, data),
            Err(reason) => Err(InvalidTensor { name: name.chars().take(80).collect(), reason }),
        }
    }

    /// A tensor of 32-bit floats.
    pub fn fp32(name: &str, shape: impl Into<Vec<u64>>, values: &[f32]) -> Result<Self, InvalidTensor> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, Datatype::Fp32, shape, data)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Its data: row-major, little-endian.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// How many elements it has: the product of its shape.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Its values as 32-bit floats, if that is its datatype.
    pub fn as_fp32(&self) -> Option<Vec<f32>> {
        (self.datatype == Datatype::Fp32)
            .then(|| self.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Its values as 64-bit integers, if that is its datatype.
    pub fn as_int64(&self) -> Option<Vec<i64>> {
        (self.datatype == Datatype::Int64)
            .then(|| self.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    fn problem(&self) -> Option<String> {
        if self.name.is_empty() || self.name.len() > TENSOR_NAME_BYTES_MAX {
            return Some(format!("name has {} bytes: use 1 to {TENSOR_NAME_BYTES_MAX}", self.name.len()));
        }
        if self.shape.len() > TENSOR_RANK_MAX {
            return Some(format!("shape has {} dimensions: at most {TENSOR_RANK_MAX}", self.shape.len()));
        }
        let Some(elements) = self.shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n)) else {
            return Some(format!("shape {:?} has more elements than can be counted", self.shape));
        };
        match self.datatype.width() {
            Some(width) => {
                let expected = elements.checked_mul(width as u64);
                (expected != Some(self.data.len() as u64)).then(|| {
                    format!(
                        "data has {} bytes, but shape {:?} of {} takes {} elements of {width} bytes each",
                        self.data.len(),
                        self.shape,
                        self.datatype,
                        elements
                    )
                })
            }
            None => {
                let found = values::count_prefixed(&self.data);
                (found != Ok(elements)).then(|| match found {
                    Ok(found) => {
                        format!("data has {found} elements, but shape {:?} takes {elements}", self.shape)
                    }
                    Err(reason) => reason.to_owned(),
                })
            }
        }
    }
}

impl Serialize for Tensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let human_readable = serializer.is_human_readable();
        let mut out = serializer.serialize_struct("Tensor", 4)?;
        out.serialize_field("name", &self.name)?;
        out.serialize_field("datatype", &self.datatype)?;
        out.serialize_field("shape", &self.shape)?;
        if human_readable {
            out.serialize_field("data", &values::AsArray(self))?;
        } else {
            out.serialize_field("data", serde_bytes::Bytes::new(&self.data))?;
        }
        out.end()
    }
}

/// A tensor's data as it was read: raw little-endian bytes, or an array of values, nested or flat. It has neither
/// datatype nor shape yet; [`Tensor::of`] gives it both.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Data(DataRepr);

/// A tensor as it is read, before its parts are known to agree.
#[derive(Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "json-schema", schemars(rename = "Tensor"))]
struct RawTensor {
    /// The name the model knows it by.
    name: String,
    /// The element type.
    datatype: Datatype,
    /// Dimensions, outermost first.
    shape: Vec<u64>,
    /// Row-major data: raw little-endian bytes, or an array of values, nested or flat.
    #[cfg_attr(feature = "json-schema", schemars(with = "values::DataSchema"))]
    data: Data,
}

impl TryFrom<RawTensor> for Tensor {
    type Error = InvalidTensor;
    fn try_from(raw: RawTensor) -> Result<Self, InvalidTensor> {
        Self::of(raw.name, raw.datatype, raw.shape, raw.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn json_values_and_raw_bytes_are_the_same_tensor() {
        let tensor = Tensor::fp32("x", [2, 2], &[1.0, 2.5, -3.0, 0.0]).unwrap();
        let nested: Tensor =
            serde_json::from_str(r#"{"name":"x","datatype":"FP32","shape":[2,2],"data":[[1,2.5],[-3,0]]}"#)
                .unwrap();
        assert_eq!(nested, tensor);
        let packed = wire::encode(&tensor);
        assert_eq!(wire::decode::<Tensor>(&packed).unwrap(), tensor);
        let json = serde_json::to_string(&tensor).unwrap();
        assert_eq!(serde_json::from_str::<Tensor>(&json).unwrap(), tensor);
    }

    #[test]
    fn strings_travel_behind_their_length() {
        let json = r#"{"name":"s","datatype":"BYTES","shape":[2],"data":["ab",""]}"#;
        let tensor: Tensor = serde_json::from_str(json).unwrap();
        assert_eq!(&tensor.data()[..], b"\x02\0\0\0ab\0\0\0\0");
        assert!(serde_json::to_string(&tensor).unwrap().contains(r#"["ab",""]"#));
    }

    #[test]
    fn what_does_not_agree_is_refused_by_name() {
        let cases = [
            (r#"{"name":"x","datatype":"FP32","shape":[3],"data":[1,2]}"#, "3 elements"),
            (r#"{"name":"x","datatype":"INT8","shape":[1],"data":[300]}"#, "300"),
            (r#"{"name":"x","datatype":"INT64","shape":[1],"data":["a"]}"#, "INT64"),
            (r#"{"name":"x","datatype":"INT64","shape":[1],"data":[1.5]}"#, "1.5"),
            (r#"{"name":"","datatype":"FP32","shape":[0],"data":[]}"#, "name"),
            (r#"{"name":"x","datatype":"FP32","shape":[1,1,1,1,1,1,1,1,1],"data":[1]}"#, "dimensions"),
            (r#"{"name":"x","datatype":"FP32","shape":[9000000000000000000,9],"data":[1]}"#, "more elements"),
        ];
        for (json, expected) in cases {
            let error = serde_json::from_str::<Tensor>(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
        let cut = Tensor::new("s", Datatype::Bytes, [1], &b"\x09\0\0\0ab"[..]).unwrap_err();
        assert!(cut.to_string().contains("length"), "{cut}");
    }
}

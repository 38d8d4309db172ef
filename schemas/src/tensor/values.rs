//! Tensor data as arrays of values: reading them, and packing them into little-endian bytes and back.

use super::{Datatype, Tensor};
use bytes::Bytes;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// What stands in a tensor's `data` field, as read.
pub(super) enum DataRepr {
    Raw(Bytes),
    Values(Vec<Scalar>),
}

/// One value of an array, before it is known to fit its datatype.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Vec<u8>),
}

/// For the JSON Schema only.
#[cfg(feature = "json-schema")]
#[derive(schemars::JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "describes the wire, never built")]
pub(super) enum DataSchema {
    /// Values, in row-major order; nested arrays are read as if they were flat.
    Values(Vec<serde_json::Value>),
    /// MessagePack only: raw little-endian bytes.
    Raw(Vec<u8>),
}

impl<'de> Deserialize<'de> for DataRepr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DataVisitor;
        impl<'de> Visitor<'de> for DataVisitor {
            type Value = DataRepr;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("raw bytes or an array of values")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<DataRepr, E> {
                Ok(DataRepr::Raw(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<DataRepr, E> {
                Ok(DataRepr::Raw(bytes.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<DataRepr, A::Error> {
                let mut values = Vec::new();
                while let Some(mut item) = seq.next_element::<Item>()? {
                    values.append(&mut item.0);
                }
                Ok(DataRepr::Values(values))
            }
        }
        deserializer.deserialize_any(DataVisitor)
    }
}

/// A value, or an array of them to any depth that the format's own recursion limit allows.
struct Item(Vec<Scalar>);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a boolean, a string or an array of them")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Item, E> {
                Ok(Item(vec![Scalar::Bool(value)]))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Item, E> {
                Ok(Item(vec![Scalar::Unsigned(value)]))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Item, E> {
                Ok(Item(vec![Scalar::Signed(value)]))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Item, E> {
                Ok(Item(vec![Scalar::Float(value)]))
            }
            fn visit_str<E>(self, value: &str) -> Result<Item, E> {
                Ok(Item(vec![Scalar::Text(value.as_bytes().to_vec())]))
            }
            fn visit_bytes<E>(self, value: &[u8]) -> Result<Item, E> {
                Ok(Item(vec![Scalar::Text(value.to_vec())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut values = Vec::new();
                while let Some(mut item) = seq.next_element::<Item>()? {
                    values.append(&mut item.0);
                }
                Ok(Item(values))
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<Item, E> {
                Err(E::custom("null is not a value of any datatype"))
            }
        }
        deserializer.deserialize_any(ItemVisitor).map_err(D::Error::custom)
    }
}

/// Packs `values` as `datatype`, little-endian, or says which value does not fit.
pub(super) fn pack(datatype: Datatype, values: &[Scalar]) -> Result<Bytes, String> {
    let mut out = Vec::with_capacity(values.len() * datatype.width().unwrap_or(8));
    for value in values {
        pack_one(datatype, value, &mut out)
            .ok_or_else(|| format!("value {} does not fit datatype {datatype}", show(value)))?;
    }
    Ok(out.into())
}

fn pack_one(datatype: Datatype, value: &Scalar, out: &mut Vec<u8>) -> Option<()> {
    macro_rules! integer {
        ($type:ty) => {
            out.extend_from_slice(&<$type>::try_from(integer(value)?).ok()?.to_le_bytes())
        };
    }
    match datatype {
        Datatype::Bool => match value {
            Scalar::Bool(value) => out.push(u8::from(*value)),
            _ => return None,
        },
        Datatype::Uint8 => integer!(u8),
        Datatype::Uint16 => integer!(u16),
        Datatype::Uint32 => integer!(u32),
        Datatype::Uint64 => integer!(u64),
        Datatype::Int8 => integer!(i8),
        Datatype::Int16 => integer!(i16),
        Datatype::Int32 => integer!(i32),
        Datatype::Int64 => integer!(i64),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "JSON has one kind of number; FP32 is what was asked for"
        )]
        Datatype::Fp32 => out.extend_from_slice(&(float(value)? as f32).to_le_bytes()),
        Datatype::Fp64 => out.extend_from_slice(&float(value)?.to_le_bytes()),
        // As in the protocol: half precision travels as raw bytes only.
        Datatype::Fp16 | Datatype::Bf16 => return None,
        Datatype::Bytes => match value {
            Scalar::Text(text) => {
                out.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
                out.extend_from_slice(text);
            }
            _ => return None,
        },
    }
    Some(())
}

fn integer(value: &Scalar) -> Option<i128> {
    match value {
        Scalar::Unsigned(value) => Some(i128::from(*value)),
        Scalar::Signed(value) => Some(i128::from(*value)),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a float was asked for")]
fn float(value: &Scalar) -> Option<f64> {
    match value {
        Scalar::Unsigned(value) => Some(*value as f64),
        Scalar::Signed(value) => Some(*value as f64),
        Scalar::Float(value) => Some(*value),
        _ => None,
    }
}

fn show(value: &Scalar) -> String {
    match value {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Unsigned(value) => value.to_string(),
        Scalar::Signed(value) => value.to_string(),
        Scalar::Float(value) => value.to_string(),
        Scalar::Text(text) => format!("{:?}", String::from_utf8_lossy(&text[..text.len().min(40)])),
    }
}

/// How many length-prefixed elements `data` holds.
pub(super) fn count_prefixed(data: &Bytes) -> Result<u64, &'static str> {
    prefixed(data).try_fold(0u64, |count, element| element.map(|_| count + 1))
}

/// The elements of a `BYTES` tensor.
fn prefixed(data: &Bytes) -> impl Iterator<Item = Result<&[u8], &'static str>> {
    let mut rest = &data[..];
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((length, tail)) = rest.split_first_chunk::<4>() else {
            rest = &[];
            return Some(Err("data ends inside an element's length"));
        };
        match tail.split_at_checked(u32::from_le_bytes(*length) as usize) {
            Some((element, tail)) => {
                rest = tail;
                Some(Ok(element))
            }
            None => {
                rest = &[];
                Some(Err("an element's length runs past the end of data"))
            }
        }
    })
}

/// Writes a tensor's data as one flat array of values.
pub(super) struct AsArray<'a>(pub(super) &'a Tensor);

impl Serialize for AsArray<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data = self.0.data();
        macro_rules! numbers {
            ($type:ty) => {
                serializer.collect_seq(
                    data.as_chunks::<{ size_of::<$type>() }>().0.iter().map(|b| <$type>::from_le_bytes(*b)),
                )
            };
        }
        match self.0.datatype() {
            Datatype::Bool => serializer.collect_seq(data.iter().map(|b| *b != 0)),
            Datatype::Uint8 => numbers!(u8),
            Datatype::Uint16 => numbers!(u16),
            Datatype::Uint32 => numbers!(u32),
            Datatype::Uint64 => numbers!(u64),
            Datatype::Int8 => numbers!(i8),
            Datatype::Int16 => numbers!(i16),
            Datatype::Int32 => numbers!(i32),
            Datatype::Int64 => numbers!(i64),
            Datatype::Fp32 => numbers!(f32),
            Datatype::Fp64 => numbers!(f64),
            Datatype::Fp16 | Datatype::Bf16 => Err(S::Error::custom(format!(
                "tensor {:?} is {}, which JSON cannot carry: ask for binary data",
                self.0.name(),
                self.0.datatype()
            ))),
            Datatype::Bytes => {
                let mut seq = serializer.serialize_seq(None)?;
                for element in prefixed(data) {
                    let element = element.map_err(S::Error::custom)?;
                    seq.serialize_element(&String::from_utf8_lossy(element))?;
                }
                seq.end()
            }
        }
    }
}

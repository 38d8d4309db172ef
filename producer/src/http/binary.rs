//! The protocol's binary tensor extension: a JSON head, and behind it the raw data of the tensors that say how long
//! theirs is, in their order. `Inference-Header-Content-Length` tells where the head ends. Pure.

use super::errors::Error;
use super::protocol::Selection;
use axum::http::HeaderMap;
use bytes::Bytes;
use schemas::{Datatype, Tensor};
use serde::Serialize;
use serde_json::Value;

/// The header that says how long the JSON head is; without it the whole body is JSON.
pub(super) const HEAD_LENGTH: &str = "inference-header-content-length";

/// Splits a body into its JSON head and the binary data behind it.
pub(super) fn split(headers: &HeaderMap, mut body: Bytes) -> Result<(Bytes, Bytes), Error> {
    let Some(length) = headers.get(HEAD_LENGTH) else { return Ok((body, Bytes::new())) };
    let length = length.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    let length =
        length.ok_or_else(|| Error::bad("header Inference-Header-Content-Length is not a whole number"))?;
    if length > body.len() {
        return Err(Error::bad(format!(
            "header Inference-Header-Content-Length is {length}, but the body has {} bytes",
            body.len()
        )));
    }
    let head = body.split_to(length);
    Ok((head, body))
}

/// A response, encoded.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The JSON, or the JSON head.
    pub(super) head: Bytes,
    /// Data behind the head; empty where all is JSON.
    pub(super) data: Vec<Bytes>,
}

/// What a response says beside its outputs.
#[derive(Debug, Serialize)]
pub(super) struct About {
    pub(super) model_name: String,
    pub(super) model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) parameters: serde_json::Map<String, Value>,
}

#[derive(Serialize)]
struct Response<'a> {
    #[serde(flatten)]
    about: &'a About,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Output<'a> {
    Json(&'a Tensor),
    Binary { name: &'a str, datatype: Datatype, shape: &'a [u64], parameters: Size },
}

#[derive(Serialize)]
struct Size {
    binary_data_size: usize,
}

/// Encodes the selected outputs, each in the form it is wanted in.
pub(super) fn encode(about: &About, outputs: &[Tensor], selection: &Selection) -> Result<Encoded, Error> {
    let wanted = outputs.iter().filter(|tensor| selection.wants(tensor.name()));
    let mut data = Vec::new();
    let outputs = wanted.map(|tensor| {
        if !selection.binary(tensor.name()) {
            return Output::Json(tensor);
        }
        data.push(tensor.data().clone());
        Output::Binary {
            name: tensor.name(),
            datatype: tensor.datatype(),
            shape: tensor.shape(),
            parameters: Size { binary_data_size: tensor.data().len() },
        }
    });
    let response = Response { about, outputs: outputs.collect() };
    // Fails only for what JSON cannot carry: half-precision values.
    let head = serde_json::to_vec(&response).map_err(|error| Error::bad(format!("outputs: {error}")))?;
    Ok(Encoded { head: head.into(), data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::protocol::{InferRequest, Output as Wanted, tensors};
    use serde_json::json;

    fn headers(length: &str) -> HeaderMap {
        HeaderMap::from_iter([(HEAD_LENGTH.parse().unwrap(), length.parse().unwrap())])
    }

    fn decode(head: &Value, data: &[u8]) -> Result<Vec<Tensor>, Error> {
        let head = head.to_string();
        let body = Bytes::from([head.as_bytes(), data].concat());
        let (head, data) = split(&headers(&head.len().to_string()), body)?;
        tensors(serde_json::from_slice::<InferRequest>(&head).unwrap().inputs, data)
    }

    fn binary_input(name: &str, size: Value) -> Value {
        json!({"name": name, "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": size}})
    }

    #[test]
    fn json_and_binary_inputs_mix_in_one_request() {
        let list = json!({"name": "b", "datatype": "FP32", "shape": [1], "data": [0.5]});
        let head = json!({"inputs": [binary_input("a", json!(8)), list, binary_input("c", json!(8))]});
        let data: Vec<u8> = [1i32, 2, 3, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
        let tensors = decode(&head, &data).unwrap();
        assert_eq!(tensors[0].data()[..], data[..8]);
        assert_eq!(tensors[1].as_fp32(), Some(vec![0.5]));
        assert_eq!(tensors[2].data()[..], data[8..]);
    }

    #[test]
    fn bytes_that_do_not_add_up_are_refused_with_the_numbers() {
        let one = |size: Value| json!({"inputs": [binary_input("a", size)]});
        let both = json!({"inputs": [{"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2],
            "parameters": {"binary_data_size": 8}}]});
        let neither = json!({"inputs": [{"name": "a", "datatype": "INT32", "shape": [2]}]});
        for (head, data, expected) in [
            (one(json!(8)), 4, "binary_data_size is 8, but 4 bytes are left"),
            (one(json!(4)), 4, "data has 4 bytes, but shape [2] of INT32 takes 2 elements"),
            (one(json!(8)), 12, "4 bytes behind the JSON belong to no input"),
            (one(json!("8")), 8, "binary_data_size is not a whole number"),
            (one(json!(-8)), 8, "binary_data_size is not a whole number"),
            (one(json!(u64::MAX)), 8, "but 8 bytes are left"),
            (both, 8, "both data and"),
            (neither, 0, "neither data nor"),
        ] {
            let error = decode(&head, &vec![0; data]).unwrap_err();
            assert!(error.message().contains(expected), "{}", error.message());
        }
        for length in ["x", "-1", "9"] {
            let error = split(&headers(length), Bytes::from_static(b"{}")).unwrap_err();
            assert!(error.message().contains("Inference-Header-Content-Length"), "{}", error.message());
        }
    }

    #[test]
    fn outputs_come_in_the_form_asked_for_and_read_back_as_the_same() {
        let outputs = [
            Tensor::fp32("p", [1, 2], &[0.25, 0.75]).unwrap(),
            Tensor::new("label", Datatype::Int64, [1], 1i64.to_le_bytes().to_vec()).unwrap(),
            Tensor::new("half", Datatype::Fp16, [1], vec![0, 0x3c]).unwrap(),
        ];
        let about = About {
            model_name: "m".into(),
            model_version: "1".into(),
            id: Some("mine".into()),
            parameters: serde_json::Map::new(),
        };
        let wanted: Vec<Wanted> = serde_json::from_value(json!([
            {"name": "p", "parameters": {"binary_data": true}}, {"name": "label"}]))
        .unwrap();
        let encoded = encode(&about, &outputs, &Selection::of(wanted, false).unwrap()).unwrap();
        let head: Value = serde_json::from_slice(&encoded.head).unwrap();
        assert_eq!((&head["model_name"], &head["id"]), (&json!("m"), &json!("mine")));
        assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert!(head["outputs"][0].get("data").is_none());
        assert_eq!(head["outputs"][1]["data"], json!([1]));
        assert_eq!(head["outputs"].as_array().unwrap().len(), 2, "only what was asked for");
        assert_eq!(encoded.data, [outputs[0].data().clone()]);

        let error = encode(&about, &outputs, &Selection::default()).unwrap_err();
        assert!(error.message().contains("ask for binary data"), "{}", error.message());
        let all = encode(&about, &outputs, &Selection::of(Vec::new(), true).unwrap()).unwrap();
        assert_eq!(all.data.iter().map(Bytes::len).collect::<Vec<_>>(), [8, 8, 2]);
    }
}

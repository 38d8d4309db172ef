//! Requests, read by a server and written by a client.

use super::{Encoded, Malformed, Parameters, Read, Written, tensors};
use crate::body::Parameter;
use crate::names::ModelName;
use crate::tensor::Tensor;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The body of an inference request, or its JSON head.
#[derive(Deserialize)]
pub struct Request {
    /// The model, where the request does not go to an address that names it: see [`event`].
    #[serde(default)]
    pub model_name: Option<String>,
    /// The caller's name for it, given back.
    #[serde(default)]
    pub id: Option<String>,
    /// What it asks beside the inputs.
    #[serde(default)]
    pub parameters: Parameters,
    /// What the model is given.
    pub inputs: Vec<Input>,
    /// What is wanted of its outputs; empty means all.
    #[serde(default)]
    pub outputs: Vec<Output>,
}

/// One input, before its data is found.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Input(Read);

impl Input {
    /// The tensors of `inputs`; every byte of `binary` must be claimed.
    pub fn tensors(inputs: Vec<Self>, binary: Bytes) -> Result<Vec<Tensor>, Malformed> {
        tensors("input", inputs.into_iter().map(|input| input.0).collect(), binary)
    }
}

/// One output that is asked for.
#[derive(Clone, Debug, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// How it is wanted.
    #[serde(default)]
    pub parameters: Parameters,
}

/// Which outputs are wanted, and in what form.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// By name; empty means all.
    pub names: Vec<String>,
    /// Those wanted in the other form than `binary` says.
    exceptions: BTreeMap<String, bool>,
    /// The form of every other output.
    binary: bool,
}

impl Selection {
    /// What `outputs` select, each binary if it says so or else if `binary` does.
    pub fn of(outputs: Vec<Output>, binary: bool) -> Result<Self, Malformed> {
        let mut selection = Self { binary, ..Self::default() };
        for mut output in outputs {
            let place = format!("outputs {:?} parameters", output.name);
            if let Some(own) = output.parameters.remove("binary_data") {
                let wrong = || Malformed(format!("{place}.binary_data must be true or false"));
                selection.exceptions.insert(output.name.clone(), own.as_bool().ok_or_else(wrong)?);
            }
            if output.parameters.contains_key("classification") {
                return Err(Malformed(format!(
                    "{place}.classification is not supported: ask for the output itself"
                )));
            }
            selection.names.push(output.name);
        }
        Ok(selection)
    }

    /// Whether `output` is wanted.
    pub fn wants(&self, output: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == output)
    }

    /// Whether `output` is wanted as binary data.
    pub fn binary(&self, output: &str) -> bool {
        self.exceptions.get(output).copied().unwrap_or(self.binary)
    }
}

#[derive(Serialize)]
struct Asked<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    model_name: Option<&'a str>,
    id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'a str, Value>,
    inputs: Vec<Written<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<Value>,
}

/// A request for `outputs` (empty means all), its tensors and the answer's as `binary` data or as JSON.
pub fn ask(
    id: &str,
    inputs: &[Tensor],
    outputs: &[String],
    parameters: &BTreeMap<String, Parameter>,
    binary: bool,
) -> Result<Encoded, Malformed> {
    let mut data = Vec::new();
    let mut parameters: BTreeMap<&str, Value> =
        parameters.iter().map(|(name, value)| (name.as_str(), json!(value))).collect();
    if binary {
        parameters.insert("binary_data_output", Value::Bool(true));
    }
    let wanted = |name: &String| match binary {
        true => json!({ "name": name, "parameters": { "binary_data": true } }),
        false => json!({ "name": name }),
    };
    let inputs = inputs.iter().map(|tensor| Written::of(tensor, binary, &mut data)).collect();
    let asked =
        Asked { model_name: None, id, parameters, inputs, outputs: outputs.iter().map(wanted).collect() };
    Ok(Encoded { head: encode(&asked)?, data })
}

/// The same request as an event for a function: all of it JSON, and the model named in it, since a function is
/// reached at no address that names one. The answer to it is a response, as JSON.
pub fn event(
    model: &ModelName,
    id: &str,
    inputs: &[Tensor],
    outputs: &[String],
    parameters: &BTreeMap<String, Parameter>,
) -> Result<Bytes, Malformed> {
    let asked = Asked {
        model_name: Some(model.as_str()),
        id,
        parameters: parameters.iter().map(|(name, value)| (name.as_str(), json!(value))).collect(),
        inputs: inputs.iter().map(Written::Json).collect(),
        outputs: outputs.iter().map(|name| json!({ "name": name })).collect(),
    };
    encode(&asked)
}

/// Fails only for what JSON cannot carry: half-precision values.
fn encode(asked: &Asked<'_>) -> Result<Bytes, Malformed> {
    let bytes = serde_json::to_vec(asked).map_err(|error| Malformed(format!("inputs: {error}")))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oip::split;
    use crate::tensor::Datatype;

    fn decode(head: &Value, data: &[u8]) -> Result<Vec<Tensor>, Malformed> {
        let head = head.to_string();
        let body = Bytes::from([head.as_bytes(), data].concat());
        let (head, data) = split(Some(head.len().to_string().as_bytes()), body)?;
        Input::tensors(serde_json::from_slice::<Request>(&head).unwrap().inputs, data)
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
            let error = decode(&head, &vec![0; data]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for length in ["x", "-1", "9"] {
            let error = split(Some(length.as_bytes()), Bytes::from_static(b"{}")).unwrap_err().to_string();
            assert!(error.contains("Inference-Header-Content-Length"), "{error}");
        }
    }

    #[test]
    fn an_output_s_own_wish_goes_before_the_request_s() {
        let outputs = json!([{"name": "a"}, {"name": "b", "parameters": {"binary_data": false}}]);
        let selection = Selection::of(serde_json::from_value(outputs).unwrap(), true).unwrap();
        assert!(selection.binary("a") && !selection.binary("b"));
        assert!(selection.wants("a") && !selection.wants("c"));
        assert!(Selection::default().wants("c"));
        let classes: Vec<Output> =
            serde_json::from_value(json!([{"name": "a", "parameters": {"classification": 3}}])).unwrap();
        assert!(Selection::of(classes, false).unwrap_err().to_string().contains("classification"));
    }

    #[test]
    fn an_event_is_a_request_that_names_its_model() {
        let image = Tensor::fp32("image", [1, 2], &[0.5, 2.0]).unwrap();
        let parameters = BTreeMap::from([("top".to_owned(), Parameter::Integer(3))]);
        let model = ModelName::new("digits").unwrap();
        let event = event(&model, "7", &[image], &["label".to_owned()], &parameters).unwrap();
        let expected = json!({"model_name": "digits", "id": "7", "parameters": {"top": 3},
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}],
            "outputs": [{"name": "label"}]});
        assert_eq!(serde_json::from_slice::<Value>(&event).unwrap(), expected);
        let request: Request = serde_json::from_slice(&event).unwrap();
        assert_eq!(request.model_name.as_deref(), Some("digits"));
    }

    #[test]
    fn what_a_client_asks_a_server_reads() {
        let image = Tensor::fp32("image", [1, 2], &[0.5, 2.0]).unwrap();
        let parameters = BTreeMap::from([("top".to_owned(), Parameter::Integer(3))]);
        for binary in [false, true] {
            let asked =
                ask("7", std::slice::from_ref(&image), &["p".to_owned()], &parameters, binary).unwrap();
            assert_eq!(asked.data.len(), usize::from(binary));
            let request: Request = serde_json::from_slice(&asked.head).unwrap();
            assert_eq!((request.id.as_deref(), &request.parameters["top"]), (Some("7"), &json!(3)));
            let selection = Selection::of(request.outputs, false).unwrap();
            assert!(selection.wants("p") && !selection.wants("q") && selection.binary("p") == binary);
            let data = asked.data.concat().into();
            assert_eq!(Input::tensors(request.inputs, data).unwrap(), std::slice::from_ref(&image));
        }
        let half = Tensor::new("half", Datatype::Fp16, [1], vec![0, 0x3c]).unwrap();
        let model = ModelName::new("m").unwrap();
        assert!(event(&model, "7", std::slice::from_ref(&half), &[], &BTreeMap::new()).is_err());
        assert!(ask("7", std::slice::from_ref(&half), &[], &BTreeMap::new(), false).is_err());
        assert!(ask("7", &[half], &[], &BTreeMap::new(), true).is_ok());
    }
}

//! Responses, written by a server and read by a client.

use super::{Encoded, Malformed, Parameters, Read, Selection, Written, split, tensors};
use crate::tensor::Tensor;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a response says beside its outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct About {
    /// The model.
    pub model_name: String,
    /// Its version.
    pub model_version: String,
    /// The caller's name for the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whatever else there is to say.
    pub parameters: Parameters,
}

#[derive(Serialize)]
struct Response<'a> {
    #[serde(flatten)]
    about: &'a About,
    outputs: Vec<Written<'a>>,
}

/// Encodes the selected outputs, each in the form it is wanted in.
pub fn respond(about: &About, outputs: &[Tensor], selection: &Selection) -> Result<Encoded, Malformed> {
    let wanted = outputs.iter().filter(|tensor| selection.wants(tensor.name()));
    let mut data = Vec::new();
    let outputs =
        wanted.map(|tensor| Written::of(tensor, selection.binary(tensor.name()), &mut data)).collect();
    // Fails only for what JSON cannot carry: half-precision values.
    let head = serde_json::to_vec(&Response { about, outputs })
        .map_err(|error| Malformed(format!("outputs: {error}")))?;
    Ok(Encoded { head: head.into(), data })
}

/// What a client learns from a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The outputs.
    pub outputs: Vec<Tensor>,
    /// What else the server said.
    pub parameters: Parameters,
}

#[derive(Deserialize)]
struct Answered {
    outputs: Vec<Read>,
    #[serde(default)]
    parameters: Option<Parameters>,
}

/// Reads a response by the value of its header [`super::HEAD_LENGTH`].
pub fn answer(head_length: Option<&[u8]>, body: Bytes) -> Result<Answer, Malformed> {
    let (head, data) = split(head_length, body)?;
    let answered: Answered =
        serde_json::from_slice(&head).map_err(|error| Malformed(format!("response: {error}")))?;
    let outputs = tensors("output", answered.outputs, data)?;
    Ok(Answer { outputs, parameters: answered.parameters.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oip::Output;
    use crate::tensor::Datatype;
    use serde_json::{Value, json};

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
            parameters: Parameters::from([("run_us".to_owned(), json!(7))]),
        };
        let wanted: Vec<Output> = serde_json::from_value(json!([
            {"name": "p", "parameters": {"binary_data": true}}, {"name": "label"}]))
        .unwrap();
        let encoded = respond(&about, &outputs, &Selection::of(wanted, false).unwrap()).unwrap();
        let head: Value = serde_json::from_slice(&encoded.head).unwrap();
        assert_eq!((&head["model_name"], &head["id"]), (&json!("m"), &json!("mine")));
        assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert!(head["outputs"][0].get("data").is_none());
        assert_eq!(head["outputs"][1]["data"], json!([1]));
        assert_eq!(encoded.data, [outputs[0].data().clone()]);
        let whole: Bytes = [&encoded.head[..], &encoded.data.concat()].concat().into();
        let read = answer(Some(encoded.head.len().to_string().as_bytes()), whole).unwrap();
        assert_eq!((&read.outputs[..], &read.parameters["run_us"]), (&outputs[..2], &json!(7)));

        let error = respond(&about, &outputs, &Selection::default()).unwrap_err().to_string();
        assert!(error.contains("ask for binary data"), "{error}");
        let all = respond(&about, &outputs, &Selection::of(Vec::new(), true).unwrap()).unwrap();
        assert_eq!(all.data.iter().map(Bytes::len).collect::<Vec<_>>(), [8, 8, 2]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_says_where() {
        for (body, expected) in [
            ("rubbish", "response: "),
            (r#"{"error": "no"}"#, "missing field `outputs`"),
            (r#"{"outputs": [{"name": "p", "datatype": "FP32", "shape": [2], "data": [1]}]}"#, "\"p\""),
            (r#"{"outputs": [{"name": "p", "datatype": "FP32", "shape": [2]}]}"#, "output \"p\" has neither"),
        ] {
            let error = answer(None, Bytes::from_static(body.as_bytes())).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

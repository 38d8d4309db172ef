//! A model's contract: what `model.toml` says, and whether an input keeps to it.

use crate::failure::{Failure, FailureKind};
use crate::names::ModelName;
use crate::payload::Payload;
use crate::tensor::{Datatype, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The contract of one model. Unknown keys in `model.toml` are errors: a misspelt one must not pass for a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelContract {
    /// The name jobs ask for; also the name of its folder.
    pub name: ModelName,
    /// Its version, for people.
    pub version: String,
    /// What it does, for people.
    #[serde(default)]
    pub description: String,
    /// What runs it: `onnx`.
    pub platform: String,
    /// Its file, in its folder.
    #[serde(default = "default_file")]
    pub file: String,
    /// Whether the first dimension of inputs and outputs counts examples.
    #[serde(default)]
    pub batch: bool,
    /// Tensors it takes.
    pub inputs: Vec<TensorSpec>,
    /// Tensors it gives.
    pub outputs: Vec<OutputSpec>,
}

fn default_file() -> String {
    "model.onnx".to_owned()
}

/// A tensor that a model takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub datatype: Datatype,
    /// Its dimensions; -1 where any length will do.
    pub shape: Vec<i64>,
}

/// A tensor that a model gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub datatype: Datatype,
    /// Its dimensions; -1 where the length depends on the input.
    pub shape: Vec<i64>,
    /// The worker computes it from this output of the model: the index of the greatest value along the last axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argmax_of: Option<String>,
}

impl ModelContract {
    /// The input's tensors in the contract's order, or what is wrong with them: the failure names the tensor, what was
    /// sent and what the model takes.
    pub fn check<'a>(&self, input: &'a Payload) -> Result<Vec<&'a Tensor>, Failure> {
        let Payload::Tensors(tensors) = input else {
            return Err(self.invalid(format!("takes tensors ({}), not opaque bytes", self.takes())));
        };
        if let Some(stray) = tensors.iter().find(|t| self.inputs.iter().all(|spec| spec.name != t.name())) {
            return Err(self.invalid(format!(
                "takes no tensor {:?}: it takes {}",
                short(stray.name()),
                self.takes()
            )));
        }
        let found = self.inputs.iter().map(|spec| {
            let tensor = tensors.iter().find(|tensor| tensor.name() == spec.name);
            let tensor = tensor.ok_or_else(|| {
                self.invalid(format!("misses tensor {:?}: it takes {}", spec.name, self.takes()))
            })?;
            if tensor.datatype() != spec.datatype {
                return Err(self.invalid(format!(
                    "takes tensor {:?} as {}, not {}",
                    spec.name,
                    spec.datatype,
                    tensor.datatype()
                )));
            }
            if !spec.fits(tensor.shape()) {
                return Err(self.invalid(format!(
                    "takes tensor {:?} of shape {:?}, not {:?}",
                    spec.name,
                    spec.shape,
                    tensor.shape()
                )));
            }
            Ok(tensor)
        });
        found.collect()
    }

    /// Whether every wanted output exists.
    pub fn check_outputs(&self, wanted: &[String]) -> Result<(), Failure> {
        match wanted.iter().find(|name| self.outputs.iter().all(|output| output.name != **name)) {
            None => Ok(()),
            Some(stray) => {
                let names: Vec<_> = self.outputs.iter().map(|output| output.name.as_str()).collect();
                Err(self.invalid(format!(
                    "gives no output {:?}: it gives {}",
                    short(stray),
                    names.join(", ")
                )))
            }
        }
    }

    fn invalid(&self, problem: String) -> Failure {
        Failure::new(FailureKind::InvalidInput, format!("model {} {problem}", self.name))
    }

    fn takes(&self) -> String {
        let specs = self.inputs.iter().map(|s| format!("{:?} {} {:?}", s.name, s.datatype, s.shape));
        specs.collect::<Vec<_>>().join(", ")
    }
}

impl TensorSpec {
    fn fits(&self, shape: &[u64]) -> bool {
        let same = |(spec, found): (&i64, &u64)| *spec == -1 || u64::try_from(*spec) == Ok(*found);
        self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(same)
    }
}

fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract() -> ModelContract {
        let json = r#"{"name":"digits","version":"1","platform":"onnx","batch":true,
            "inputs":[{"name":"image","datatype":"FP32","shape":[-1,4]}],
            "outputs":[{"name":"probabilities","datatype":"FP32","shape":[-1,10]},
                       {"name":"label","datatype":"INT64","shape":[-1],"argmax_of":"probabilities"}]}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_input_that_breaks_the_contract_is_told_how() {
        let image = |shape: [u64; 2]| Tensor::fp32("image", shape, &[0.0; 8]).unwrap();
        assert!(contract().check(&Payload::Tensors(vec![image([2, 4])])).is_ok());
        let int = Tensor::new("image", Datatype::Int8, [1, 4], vec![0; 4]).unwrap();
        let other = Tensor::fp32("picture", [0, 4], &[]).unwrap();
        for (tensors, expected) in [
            (vec![image([4, 2])], "not [4, 2]"),
            (vec![int], "not INT8"),
            (vec![], "misses tensor \"image\""),
            (vec![image([2, 4]), other], "no tensor \"picture\""),
        ] {
            let failure = contract().check(&Payload::Tensors(tensors)).unwrap_err();
            assert_eq!(failure.kind, FailureKind::InvalidInput);
            assert!(failure.message.contains(expected), "{failure}");
        }
        assert!(contract().check_outputs(&["label".into()]).is_ok());
        assert!(contract().check_outputs(&["lable".into()]).unwrap_err().message.contains("label"));
    }
}

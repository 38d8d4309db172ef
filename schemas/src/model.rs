//! A model's contract: what `model.toml` says, and whether an input keeps to it.

use crate::failure::{Failure, FailureKind};
use crate::names::ModelName;
use crate::payload::Payload;
use crate::tensor::{Datatype, Tensor};
use serde::{Deserialize, Serialize};

/// The platform of a model that others run: an image, a function or a server beside the worker has it.
pub const REMOTE: &str = "remote";

/// The contract of one model. Unknown keys in `model.toml` are errors: a misspelt one must not pass for a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ModelContract {
    /// The name jobs ask for; also the name of its folder.
    pub name: ModelName,
    /// Its version, for people.
    pub version: String,
    /// What it does, for people.
    #[serde(default)]
    pub description: String,
    /// What runs it: `onnx`, or `remote` where others do.
    pub platform: String,
    /// Its file, in its folder. A remote model has none.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
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
            if !fits(&spec.shape, tensor.shape()) {
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

    /// How many examples a batch of these inputs has; none for a model without batches.
    pub fn examples(&self, inputs: &[&Tensor]) -> Result<Option<u64>, Failure> {
        if !self.batch {
            return Ok(None);
        }
        let count = |tensor: &Tensor| tensor.shape().first().copied();
        let first = inputs.first().and_then(|tensor| count(tensor));
        if first == Some(0) {
            return Err(self.invalid("takes a batch of at least one example, not of none".to_owned()));
        }
        match inputs.iter().find(|tensor| count(tensor) != first) {
            None => Ok(first),
            Some(odd) => Err(self.invalid(format!(
                "takes as many examples of each tensor: {:?} has shape {:?}, {:?} has {:?}",
                inputs[0].name(),
                inputs[0].shape(),
                odd.name(),
                odd.shape()
            ))),
        }
    }

    /// Whether the model kept its own promise about an output, for so many examples.
    pub fn check_output(
        &self,
        spec: &OutputSpec,
        tensor: &Tensor,
        examples: Option<u64>,
    ) -> Result<(), Failure> {
        let fits = fits(&spec.shape, tensor.shape())
            && examples.is_none_or(|examples| tensor.shape().first() == Some(&examples));
        if tensor.name() == spec.name && tensor.datatype() == spec.datatype && fits {
            return Ok(());
        }
        Err(self.broken(&format!(
            "gave output {:?} as {} {:?}: its contract says {} {:?}",
            spec.name,
            tensor.datatype(),
            tensor.shape(),
            spec.datatype,
            spec.shape
        )))
    }

    /// The same for a whole answer, of which the `wanted` outputs count, all if none is named.
    pub fn check_answer(
        &self,
        answer: &[Tensor],
        wanted: &[String],
        examples: Option<u64>,
    ) -> Result<(), Failure> {
        let wanted = self.outputs.iter().filter(|spec| wanted.is_empty() || wanted.contains(&spec.name));
        for spec in wanted {
            match answer.iter().find(|tensor| tensor.name() == spec.name) {
                Some(tensor) => self.check_output(spec, tensor, examples)?,
                None => {
                    return Err(
                        self.broken(&format!("gave no output {:?}, which its contract promises", spec.name))
                    );
                }
            }
        }
        Ok(())
    }

    /// The failure of a model that broke its contract, or its word in some other way.
    pub fn broken(&self, problem: &str) -> Failure {
        Failure::new(FailureKind::ModelError, format!("model {} {problem}", self.name))
    }

    fn invalid(&self, problem: String) -> Failure {
        Failure::new(FailureKind::InvalidInput, format!("model {} {problem}", self.name))
    }

    fn takes(&self) -> String {
        let specs = self.inputs.iter().map(|s| format!("{:?} {} {:?}", s.name, s.datatype, s.shape));
        specs.collect::<Vec<_>>().join(", ")
    }
}

fn fits(spec: &[i64], shape: &[u64]) -> bool {
    let same = |(spec, found): (&i64, &u64)| *spec == -1 || u64::try_from(*spec) == Ok(*found);
    spec.len() == shape.len() && spec.iter().zip(shape).all(same)
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

    #[test]
    fn an_answer_that_breaks_the_contract_is_told_how() {
        let rows =
            |name: &str, rows: u64| Tensor::fp32(name, [rows, 10], &vec![0.5; 10 * rows as usize]).unwrap();
        let label = |datatype, bytes| Tensor::new("label", datatype, [2], vec![0; bytes]).unwrap();
        let good = || vec![label(Datatype::Int64, 16), rows("more", 1), rows("probabilities", 2)];
        assert_eq!(contract().check_answer(&good(), &[], Some(2)), Ok(()));
        let label_only = ["label".to_owned()];
        assert_eq!(contract().check_answer(&good()[..1], &label_only, Some(2)), Ok(()));
        for (answer, examples, expected) in [
            (good()[..1].to_vec(), 2, "gave no output \"probabilities\""),
            (good(), 3, "gave output \"probabilities\" as FP32 [2, 10]: its contract says FP32 [-1, 10]"),
            (vec![label(Datatype::Int32, 8), rows("probabilities", 2)], 2, "gave output \"label\" as INT32"),
        ] {
            let failure = contract().check_answer(&answer, &[], Some(examples)).unwrap_err();
            assert_eq!(failure.kind, FailureKind::ModelError);
            assert!(failure.message.contains(expected), "{failure}");
        }
    }
}

//! The model runtime: what turns a model's file into something that runs, and one run into checked tensors.
//!
//! [`Runtime`] and [`Graph`] are the port; [`rten`] is the adapter every worker has. The port keeps room for
//! others: one over `ort` (ONNX Runtime, loaded at run time where an operator asks for it or a GPU is there) would be
//! a module beside it behind a feature of this crate, chosen where the lane is started; nothing else would change.
//!
//! What this module owns: that an input keeps the contract before the model sees it, and that an output keeps it
//! before anyone else does; outputs that are derived (`argmax_of`). What it must not do: threads, time limits, I/O.
//! Everything here is CPU work and belongs on a model thread.

pub(crate) mod argmax;
pub(crate) mod diagnose;
pub mod rten;

use crate::catalog::Entry;
use schemas::model::OutputSpec;
use schemas::{Failure, ModelContract, Payload, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// Loads models. One runtime serves all model threads of a lane.
pub trait Runtime: Send + Sync {
    /// Its name, for logs.
    fn name(&self) -> &'static str;

    /// Loads `file`. The graph must have the contract's inputs and its own outputs (those that are not derived), by
    /// name and element type; if not, the reason names the tensor.
    fn load(&self, contract: &ModelContract, file: Cow<'static, [u8]>) -> Result<Box<dyn Graph>, String>;

    /// Runs `life`, the whole life of a model thread, where a graph's run stays on one thread: lanes get their
    /// parallelism from slots, and a run that spreads over the cores by itself would take those of its neighbours.
    fn on_one_thread(&self, life: Box<dyn FnOnce() + Send>);
}

/// A loaded model. May be run by several threads at once.
pub trait Graph: Send + Sync {
    /// Runs once. `inputs` keep the contract and stand in its order; `wanted` are positions in the contract's
    /// outputs, none derived; the answer is in their order.
    fn run(&self, inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>, Failure>;
}

/// A model that would not load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {runtime} cannot load {file}: {reason}")]
pub struct LoadError {
    /// The model's folder, or that it is built in.
    pub origin: String,
    /// The runtime.
    pub runtime: &'static str,
    /// The model's file.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// A model ready to run: its graph, held to its contract.
pub(crate) struct Model {
    contract: Arc<ModelContract>,
    graph: Box<dyn Graph>,
}

impl Model {
    pub(crate) fn load(runtime: &dyn Runtime, entry: &Entry) -> Result<Self, LoadError> {
        let graph = runtime.load(&entry.contract, entry.file.clone()).map_err(|reason| LoadError {
            origin: entry.origin.clone(),
            runtime: runtime.name(),
            file: entry.contract.file.clone(),
            reason,
        })?;
        Ok(Self { contract: Arc::clone(&entry.contract), graph })
    }

    /// Runs once and gives back the `wanted` outputs, all if none is named.
    pub(crate) fn infer(&self, input: &Payload, wanted: &[String]) -> Result<Payload, Failure> {
        let inputs = self.contract.check(input)?;
        self.contract.check_outputs(wanted)?;
        let examples = self.contract.examples(&inputs)?;
        let outputs = &self.contract.outputs;
        let wanted: Vec<&OutputSpec> =
            outputs.iter().filter(|spec| wanted.is_empty() || wanted.contains(&spec.name)).collect();
        let native: Vec<usize> = (0..outputs.len())
            .filter(|at| outputs[*at].argmax_of.is_none() && needs(&wanted, &outputs[*at].name))
            .collect();
        let computed = self.graph.run(&inputs, &native)?;
        if computed.len() != native.len() {
            let problem = format!("gave {} outputs, not {}", computed.len(), native.len());
            return Err(self.contract.broken(&problem));
        }
        for (at, tensor) in native.iter().zip(&computed) {
            self.contract.check_output(&outputs[*at], tensor, examples)?;
        }
        let find = |name: &str| computed.iter().find(|tensor| tensor.name() == name);
        let answer = wanted.into_iter().map(|spec| {
            let source = find(spec.argmax_of.as_ref().unwrap_or(&spec.name));
            let source = source.expect("what is wanted was computed, under the name its contract gives it");
            match &spec.argmax_of {
                None => Ok(source.clone()),
                Some(_) => {
                    argmax::argmax(&spec.name, source).map_err(|problem| self.contract.broken(&problem))
                }
            }
        });
        answer.collect::<Result<_, _>>().map(Payload::Tensors)
    }
}

/// Whether any of the `wanted` outputs is, or is derived from, the output `name`.
fn needs(wanted: &[&OutputSpec], name: &str) -> bool {
    wanted.iter().any(|spec| spec.argmax_of.as_deref().unwrap_or(&spec.name) == name)
}

#[cfg(test)]
mod tests;

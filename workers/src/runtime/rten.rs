//! ONNX on the CPU through rten: written in Rust, nothing to install.
//!
//! rten computes with 32-bit floats and integers and with 8-bit ones. INT64 and BOOL travel through it as 32-bit
//! integers and FP64 as 32-bit floats; a value that does not fit is refused, never wrapped.

use super::{Graph, Runtime};
use ::rten::{DataType, Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueType};
use rten_tensor::prelude::*;
use schemas::model::OutputSpec;
use schemas::{Datatype, Failure, FailureKind, ModelContract, Tensor};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

thread_local! {
    /// The pool of one thread that runs started on this thread use. On a model thread it is the very pool that
    /// the thread belongs to, so that a run needs no hop; see [`Rten::on_one_thread`].
    static POOL: OnceCell<Arc<ThreadPool>> = const { OnceCell::new() };
}

/// The runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rten;

impl Runtime for Rten {
    fn name(&self) -> &'static str {
        "rten"
    }

    fn load(&self, contract: &ModelContract, file: Cow<'static, [u8]>) -> Result<Box<dyn Graph>, String> {
        // Weights packed ahead took as long on the models measured, and a second copy of them in memory.
        let options = ModelOptions::with_all_ops();
        let model = match file {
            Cow::Borrowed(bytes) => options.load_static_slice(bytes),
            Cow::Owned(bytes) => options.load(bytes),
        };
        let model = model.map_err(|error| error.to_string())?;
        let inputs = contract.inputs.iter().map(|spec| {
            let node = find(&model, model.input_ids(), "input", &spec.name, spec.datatype)?;
            agree(&model, node, "input", &spec.name, &spec.shape)?;
            Ok((node, spec.datatype))
        });
        let inputs = inputs.collect::<Result<Vec<_>, String>>()?;
        if inputs.len() != model.input_ids().len() {
            let found = model.input_ids();
            let names = names(&model, found);
            return Err(format!("it has {} inputs ({names}), its contract {}", found.len(), inputs.len()));
        }
        let outputs = contract.outputs.iter().map(|spec| {
            if spec.argmax_of.is_some() {
                return Ok(None);
            }
            let node = find(&model, model.output_ids(), "output", &spec.name, spec.datatype)?;
            agree(&model, node, "output", &spec.name, &spec.shape)?;
            Ok(Some(node))
        });
        let outputs = outputs.collect::<Result<Vec<_>, String>>()?;
        let specs = contract.outputs.clone();
        Ok(Box::new(RtenGraph { name: contract.name.to_string(), model, inputs, outputs, specs }))
    }

    fn on_one_thread(&self, life: Box<dyn FnOnce() + Send>) {
        let pool = Arc::new(ThreadPool::with_num_threads(1));
        let own = Arc::clone(&pool);
        pool.run(move || {
            POOL.with(|cell| cell.set(own).expect("a fresh thread has no pool yet"));
            life();
        });
    }
}

struct RtenGraph {
    name: String,
    model: Model,
    /// Where each input of the contract goes, and what it is.
    inputs: Vec<(NodeId, Datatype)>,
    /// Where each output of the contract comes from; none for derived ones.
    outputs: Vec<Option<NodeId>>,
    specs: Vec<OutputSpec>,
}

impl Graph for RtenGraph {
    fn run(&self, inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>, Failure> {
        let values = self.inputs.iter().zip(inputs).map(|((node, datatype), tensor)| {
            let value = take(*datatype, tensor)
                .map_err(|problem| self.failed(FailureKind::InvalidInput, &problem))?;
            Ok((*node, value.into()))
        });
        let values = values.collect::<Result<Vec<_>, Failure>>()?;
        let nodes: Vec<NodeId> = wanted.iter().filter_map(|at| self.outputs[*at]).collect();
        let pool =
            POOL.with(|cell| Arc::clone(cell.get_or_init(|| Arc::new(ThreadPool::with_num_threads(1)))));
        let options = RunOptions::default().with_thread_pool(Some(pool));
        let outputs = self.model.run(values, &nodes, Some(options));
        let outputs = outputs.map_err(|error| self.failed(FailureKind::ModelError, &error.to_string()))?;
        let given = wanted.iter().zip(outputs).map(|(at, value)| {
            give(&self.specs[*at], value).map_err(|problem| self.failed(FailureKind::ModelError, &problem))
        });
        given.collect()
    }
}

impl RtenGraph {
    fn failed(&self, kind: FailureKind, problem: &str) -> Failure {
        Failure::new(kind, format!("model {}: {problem}", self.name))
    }
}

fn names(model: &Model, nodes: &[NodeId]) -> String {
    let names: Vec<_> = nodes.iter().filter_map(|node| model.node_info(*node)?.name()).collect();
    names.join(", ")
}

fn find(
    model: &Model,
    nodes: &[NodeId],
    what: &str,
    name: &str,
    datatype: Datatype,
) -> Result<NodeId, String> {
    let node = model.find_node(name).filter(|node| nodes.contains(node));
    let node = node.ok_or_else(|| format!("it has no {what} {name:?}: it has {}", names(model, nodes)))?;
    let computed = computed_as(datatype).ok_or_else(|| {
        format!("{what} {name:?} is {datatype} in its contract, which rten does not compute with")
    })?;
    match model.node_info(node).and_then(|info| info.dtype()) {
        Some(found) if found != ValueType::Tensor(computed) => {
            Err(format!("{what} {name:?} is {found}, which its contract calls {datatype}"))
        }
        _ => Ok(node),
    }
}

/// Whether the shape in the contract can be what the file says, as far as it says. Known here, a contradiction is one
/// error at start; found out later it would be a failure of every job.
fn agree(model: &Model, node: NodeId, what: &str, name: &str, contract: &[i64]) -> Result<(), String> {
    let Some(file) = model.node_info(node).and_then(|info| info.shape()) else { return Ok(()) };
    let same = |(file, contract): (&Dimension, &i64)| match file {
        Dimension::Fixed(size) => *contract < 0 || usize::try_from(*contract) == Ok(*size),
        Dimension::Symbolic(_) => true,
    };
    if file.len() == contract.len() && file.iter().zip(contract).all(same) {
        return Ok(());
    }
    let file: Vec<_> = file
        .iter()
        .map(|dimension| match dimension {
            Dimension::Fixed(size) => size.to_string(),
            Dimension::Symbolic(_) => "-1".to_owned(),
        })
        .collect();
    Err(format!("{what} {name:?} has the shape [{}], its contract says {contract:?}", file.join(", ")))
}

/// The element type that rten computes with for `datatype`.
fn computed_as(datatype: Datatype) -> Option<DataType> {
    match datatype {
        Datatype::Fp32 | Datatype::Fp64 => Some(DataType::Float),
        Datatype::Int32 | Datatype::Int64 | Datatype::Bool => Some(DataType::Int32),
        Datatype::Int8 => Some(DataType::Int8),
        Datatype::Uint8 => Some(DataType::UInt8),
        _ => None,
    }
}

fn take(datatype: Datatype, tensor: &Tensor) -> Result<Value, String> {
    let shape = tensor.shape().iter().map(|n| usize::try_from(*n));
    let shape = shape.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let data = tensor.data();
    macro_rules! value {
        ($type:ty, $convert:expr) => {{
            let chunks = data.as_chunks::<{ size_of::<$type>() }>().0.iter();
            let values =
                chunks.map(|b| $convert(<$type>::from_le_bytes(*b))).collect::<Result<Vec<_>, String>>()?;
            Value::from_shape(&shape, values).map_err(|error| error.to_string())
        }};
    }
    match datatype {
        Datatype::Fp32 => value!(f32, Ok),
        #[expect(clippy::cast_possible_truncation, reason = "rten computes with 32-bit floats")]
        Datatype::Fp64 => value!(f64, |value| Ok(value as f32)),
        Datatype::Int32 => value!(i32, Ok),
        Datatype::Int64 => value!(i64, |value| i32::try_from(value).map_err(|_| format!(
            "tensor {:?} has {value}, outside the 32 bits that rten computes with",
            tensor.name()
        ))),
        Datatype::Bool => value!(u8, |value| Ok(i32::from(value != 0))),
        Datatype::Int8 => value!(i8, Ok),
        Datatype::Uint8 => value!(u8, Ok),
        other => Err(format!("tensor {:?} is {other}, which rten does not compute with", tensor.name())),
    }
}

fn give(spec: &OutputSpec, value: Value) -> Result<Tensor, String> {
    let shape: Vec<u64> = value.shape().iter().map(|n| *n as u64).collect();
    let found = value.dtype();
    macro_rules! bytes {
        ($values:expr, $convert:expr) => {
            $values.into_data().into_iter().flat_map(|value| $convert(value).to_le_bytes()).collect()
        };
    }
    let data: Vec<u8> = match (spec.datatype, value) {
        (Datatype::Fp32, Value::FloatTensor(values)) => bytes!(values, f32::from),
        (Datatype::Fp64, Value::FloatTensor(values)) => bytes!(values, f64::from),
        (Datatype::Int32, Value::Int32Tensor(values)) => bytes!(values, i32::from),
        (Datatype::Int64, Value::Int32Tensor(values)) => bytes!(values, i64::from),
        (Datatype::Bool, Value::Int32Tensor(values)) => bytes!(values, |value| u8::from(value != 0)),
        (Datatype::Int8, Value::Int8Tensor(values)) => bytes!(values, i8::from),
        (Datatype::Uint8, Value::UInt8Tensor(values)) => bytes!(values, u8::from),
        _ => {
            return Err(format!(
                "output {:?} is {found}, which its contract calls {}",
                spec.name, spec.datatype
            ));
        }
    };
    Tensor::new(&spec.name, spec.datatype, shape, data).map_err(|error| error.to_string())
}

//! Reading one `model.toml`, and refusing promises that no worker could keep.

use super::{CatalogError, RESERVED_PREFIX};
use schemas::limits::{TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX, TENSORS_MAX};
use schemas::model::{OutputSpec, REMOTE};
use schemas::{Datatype, ModelContract};

/// What runs models here.
const ONNX: &str = "onnx";

pub(super) fn read(text: &str, origin: &str) -> Result<ModelContract, CatalogError> {
    let contract: ModelContract = toml::from_str(text)
        .map_err(|error| CatalogError::Malformed { origin: origin.to_owned(), error: Box::new(error) })?;
    match problem(&contract) {
        None => Ok(contract),
        Some((field, problem)) => Err(CatalogError::Contract { origin: origin.to_owned(), field, problem }),
    }
}

/// The first thing wrong with `contract`: the key, and what would be right.
fn problem(contract: &ModelContract) -> Option<(String, String)> {
    if contract.name.as_str().starts_with(RESERVED_PREFIX) {
        return Some(("name".into(), format!("may not begin with {RESERVED_PREFIX:?}: those are built in")));
    }
    if ![ONNX, REMOTE].contains(&contract.platform.as_str()) {
        let problem = format!(
            "{:?} is not known: use {ONNX:?}, or {REMOTE:?} for one without a file here",
            contract.platform
        );
        return Some(("platform".into(), problem));
    }
    let inputs = contract.inputs.iter().map(|spec| (spec.name.as_str(), &spec.shape[..]));
    let outputs = contract.outputs.iter().map(|spec| (spec.name.as_str(), &spec.shape[..]));
    tensors("inputs", inputs, contract.batch).or_else(|| tensors("outputs", outputs, contract.batch)).or_else(
        || contract.outputs.iter().enumerate().find_map(|(at, output)| derived(contract, at, output)),
    )
}

fn tensors<'a>(
    key: &str,
    specs: impl ExactSizeIterator<Item = (&'a str, &'a [i64])>,
    batch: bool,
) -> Option<(String, String)> {
    if specs.len() == 0 || specs.len() > TENSORS_MAX {
        return Some((key.to_owned(), format!("has {} tensors: use 1 to {TENSORS_MAX}", specs.len())));
    }
    let mut names = Vec::new();
    for (at, (name, shape)) in specs.enumerate() {
        let field = |of: &str| format!("{key}[{at}].{of}");
        if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX {
            return Some((
                field("name"),
                format!("has {} bytes: use 1 to {TENSOR_NAME_BYTES_MAX}", name.len()),
            ));
        }
        if names.contains(&name) {
            return Some((field("name"), format!("{name:?} is taken: names must differ")));
        }
        if shape.len() > TENSOR_RANK_MAX {
            return Some((
                field("shape"),
                format!("has {} dimensions: at most {TENSOR_RANK_MAX}", shape.len()),
            ));
        }
        if let Some(odd) = shape.iter().find(|n| **n < -1) {
            return Some((field("shape"), format!("has {odd}: use a length, or -1 for any")));
        }
        if batch && shape.first() != Some(&-1) {
            return Some((field("shape"), "must begin with -1, since batch = true".to_owned()));
        }
        names.push(name);
    }
    None
}

fn derived(contract: &ModelContract, at: usize, output: &OutputSpec) -> Option<(String, String)> {
    let source = output.argmax_of.as_ref()?;
    let field = |of: &str| format!("outputs[{at}].{of}");
    let native = |spec: &&OutputSpec| spec.name == *source && spec.argmax_of.is_none();
    let Some(source) = contract.outputs.iter().find(native) else {
        return Some((
            field("argmax_of"),
            format!("{source:?} is not an output that the model itself gives"),
        ));
    };
    if matches!(source.datatype, Datatype::Bool | Datatype::Bytes | Datatype::Fp16 | Datatype::Bf16) {
        return Some((
            field("argmax_of"),
            format!("{:?} is {}: has no greatest", source.name, source.datatype),
        ));
    }
    if output.datatype != Datatype::Int64 {
        return Some((field("datatype"), "must be INT64, since it is an index".to_owned()));
    }
    let Some((_, expected)) = source.shape.split_last() else {
        return Some((field("argmax_of"), format!("{:?} has no axis to look along", source.name)));
    };
    (output.shape != expected).then(|| {
        (field("shape"), format!("must be {expected:?}: that of {:?} without its last axis", source.name))
    })
}

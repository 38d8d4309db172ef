//! What a container is to be: settings made into one plan per model. Pure.

use super::{Config, Gpu, Limits};
use schemas::ModelName;
use std::collections::BTreeMap;

/// Where our own server listens inside its container.
pub(super) const PORT: u16 = 8080;
/// Where the models' folder lies in our images.
pub(super) const MODELS_DIR: &str = "/models";
/// Every container of ours has it: the worker's name.
pub(super) const LABEL_WORKER: &str = "straightline.worker";
/// The model it serves.
pub(super) const LABEL_MODEL: &str = "straightline.model";
/// The instance of the lane that owns it.
pub(super) const LABEL_OWNER: &str = "straightline.owner";
/// The process that owns it: see [`super::owner`].
pub(super) const LABEL_PROCESS: &str = "straightline.process";

/// How a container's server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// On a free port of this machine's loopback interface.
    Loopback,
    /// On its own address in this network.
    Network(String),
}

/// One container, before it is created.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) model: ModelName,
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) user: String,
    pub(super) port: u16,
    pub(super) published: Published,
    pub(super) limits: Limits,
    pub(super) gpu: Option<Gpu>,
    pub(super) labels: BTreeMap<String, String>,
}

/// Whose containers they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Of this instance of the lane, told from all others.
    pub(super) instance: String,
    pub(super) process: String,
}

impl Owner {
    /// The label by which all of the owner's containers are found.
    pub(super) fn label(&self) -> String {
        format!("{LABEL_OWNER}={}", self.instance)
    }

    /// The name of the owner's `number`th container.
    pub(super) fn container(&self, number: u64) -> String {
        format!("straightline-{}-{number}", self.instance)
    }
}

/// The plan of the `number`th container, which serves `model` from `image`.
pub(super) fn plan(config: &Config, owner: &Owner, model: &ModelName, image: &str, number: u64) -> Plan {
    let theirs = config.images.get(model);
    let labels = [
        (LABEL_WORKER, config.worker.as_str()),
        (LABEL_MODEL, model.as_str()),
        (LABEL_OWNER, &owner.instance),
        (LABEL_PROCESS, &owner.process),
    ];
    let limits = Limits { memory_bytes: config.memory_of(model), ..config.limits.clone() };
    Plan {
        name: owner.container(number),
        model: model.clone(),
        image: image.to_owned(),
        command: theirs.map_or_else(|| ours(config, model), |spec| spec.command.clone()),
        env: theirs.map(|spec| spec.env.clone()).unwrap_or_default(),
        user: theirs.and_then(|spec| spec.user.clone()).unwrap_or_else(|| config.user.clone()),
        port: theirs.map_or(PORT, |spec| spec.port),
        published: config.network.clone().map_or(Published::Loopback, Published::Network),
        limits,
        gpu: theirs.and_then(|spec| spec.gpu.clone()),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

/// What our own server is told; the image's entry point is `straightline serve`.
fn ours(config: &Config, model: &ModelName) -> Vec<String> {
    let mut arguments = vec![
        format!("--listen=0.0.0.0:{PORT}"),
        format!("--model={model}"),
        format!("--slots={}", config.slots_per_container),
        format!("--body-max={}", config.body_bytes_max),
    ];
    if config.models_dir.is_some() {
        arguments.push(format!("--models={MODELS_DIR}"));
    }
    if model.as_str().starts_with(crate::catalog::RESERVED_PREFIX) {
        arguments.push("--diagnostics".to_owned());
    }
    arguments
}

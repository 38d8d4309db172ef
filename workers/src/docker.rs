//! The docker lane: model containers on this machine's Docker engine, started on demand and kept warm.
//!
//! A task goes to a container of its model through the Open Inference Protocol, so any image that speaks it will do;
//! a model that names no image is served by our own, made of this very program. [`pool`] decides which container
//! takes a task, which is started and which makes room; [`keeper`] is the one place where that is carried out;
//! [`engine`] is Docker. While the engine is away the lane has no slots, and it is watched until it is back.
//!
//! What must hold: a container runs confined (memory, processors, processes, a read-only root, no capabilities, no new
//! privileges, not root) and is reached from this machine only; one that is in use is never removed unless it is
//! dead; one whose run was given up or outlived its limit takes no more tasks; those of dead workers are removed at
//! start and all of ours at the end; an image is never fetched from a registry unless configured so.

mod client;
mod config;
mod engine;
mod image;
mod keeper;
mod owner;
mod plan;
mod pool;
mod starter;
mod watcher;

use crate::lane::{Capacity, Executor, InvalidConfig, Ran, Task};
use crate::remote::http::Http;
use async_trait::async_trait;
use client::Client;
use engine::Engine;
use keeper::Keeper;
use schemas::heartbeat::{Backend, Instances};
use schemas::limits::{BACKEND_MODELS_MAX, INSTANCE_IDS_MAX};
use schemas::{Failure, Lane, ModelName};
use starter::Starter;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use config::{Config, Gpu, ImageSpec, Limits};
pub use pool::Stage;

/// How the lane is, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The engine's version; none while it is away.
    pub engine: Option<String>,
    /// Why it is away.
    pub away: Option<String>,
    /// Every container, the oldest first.
    pub containers: Vec<Container>,
    /// The models whose latest container would not start, and why.
    pub faults: Vec<(ModelName, String)>,
    /// Jobs that wait for one.
    pub waiting: usize,
}

impl Summary {
    /// The same for a heartbeat, of the engine at `host`.
    fn backend(&self, host: &str) -> Backend {
        let mut of: BTreeMap<&ModelName, Instances> = BTreeMap::new();
        let entry = |model| Instances::none(ModelName::clone(model));
        for container in &self.containers {
            let model = of.entry(&container.model).or_insert_with_key(|model| entry(model));
            match (container.stage, container.running) {
                (Stage::Starting, _) => model.starting += 1,
                (Stage::Serving, 0) => model.idle += 1,
                (Stage::Serving, _) => model.busy += 1,
                (Stage::Closing | Stage::Leaving, _) => model.leaving += 1,
            }
            if let Some(id) = &container.id
                && model.ids.len() < INSTANCE_IDS_MAX
            {
                model.ids.push(id.chars().take(ID_SHORT).collect());
            }
        }
        for (model, problem) in &self.faults {
            of.entry(model).or_insert_with_key(|model| entry(model)).problem = Some(problem.clone());
        }
        // Why it is away says where it was looked for.
        let up = |version: &String| format!("Docker {version} at {host}");
        Backend {
            name: self.engine.as_ref().map_or_else(|| "Docker".to_owned(), up),
            problem: self.away.clone(),
            waiting: u32::try_from(self.waiting).unwrap_or(u32::MAX),
            instances: of.into_values().take(BACKEND_MODELS_MAX).collect(),
        }
    }
}

/// A container, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The engine's name for it, once it is ready.
    pub id: Option<String>,
    /// The model it serves.
    pub model: ModelName,
    /// Where it is in its life.
    pub stage: Stage,
    /// Jobs it runs.
    pub running: u32,
}

/// Letters of a container's id that tell it apart, as `docker ps` shows it.
const ID_SHORT: usize = 12;

/// The lane.
pub struct Docker {
    host: String,
    models: Vec<ModelName>,
    client: Client,
    capacity: watch::Receiver<Capacity>,
    summary: watch::Receiver<Summary>,
    watching: JoinHandle<()>,
}

impl Docker {
    /// Starts watching the engine, which need not be there yet. Needs a Tokio runtime.
    pub fn start(config: Config) -> Result<Self, InvalidConfig> {
        let engine = Arc::new(engine::Docker::new(&config.host));
        Self::start_on(engine, config)
    }

    fn start_on(engine: Arc<dyn Engine>, config: Config) -> Result<Self, InvalidConfig> {
        config.check()?;
        keeper::describe();
        let models: BTreeSet<ModelName> = config.models.iter().chain(config.images.keys()).cloned().collect();
        let config = Arc::new(config);
        let (owner, host) = (owner::this(), config.host.clone());
        let starter = Starter::new(Arc::clone(&config), owner.clone(), Arc::clone(&engine), Http::new());
        let (client, keeper) = Keeper::new(Arc::clone(&config), owner.clone(), Arc::clone(&engine), starter);
        let (capacity, summary) = (keeper.capacity(), keeper.summary());
        let watcher = watcher::watch(engine, owner, config.worker.clone(), client.events());
        let watching = tokio::spawn(watcher);
        tokio::spawn(keeper.run());
        Ok(Self { host, models: models.into_iter().collect(), client, capacity, summary, watching })
    }

    /// How the lane is, and changes of that.
    pub fn summary(&self) -> watch::Receiver<Summary> {
        self.summary.clone()
    }
}

#[async_trait]
impl Executor for Docker {
    fn lane(&self) -> Lane {
        Lane::Docker
    }

    fn models(&self) -> Vec<ModelName> {
        self.models.clone()
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.clone()
    }

    fn backend(&self) -> Option<Backend> {
        Some(self.summary.borrow().backend(&self.host))
    }

    async fn obstacles(&self) -> Vec<Failure> {
        self.client.missing().await
    }

    /// Waiting for a container to be ready does not count against the task's limit.
    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        self.client.run(&task).await
    }

    async fn stop(&self) {
        self.watching.abort();
        self.client.stop().await;
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // The keeper holds events of its own: without this it would wait for ever.
        self.watching.abort();
        self.client.abandon();
    }
}

#[cfg(test)]
mod tests;

//! What can be set about the lanes beyond the local one's slots.

use bytesize::ByteSize;
use schemas::ModelName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use workers::{docker, serverless};

/// `[worker.server]`: a model server beside the worker, in place of models in its own process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `http://host:port`, with the path in front of `/v2` if it has one.
    pub url: String,
    /// The models it has.
    pub models: Vec<ModelName>,
    /// Whether it reads and writes tensors as raw bytes (the protocol's binary extension).
    #[serde(default)]
    pub binary: bool,
}

/// `[docker]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// The engine: `unix:///path` or `tcp://host:port`.
    pub host: String,
    /// Most containers.
    pub containers_max: u32,
    /// Jobs that one container runs at once; the lane's slots are this times `containers_max`.
    pub slots_per_container: u32,
    /// Memory of a container.
    pub memory: ByteSize,
    /// Processors of a container.
    pub cpus: f64,
    /// Processes and threads of a container.
    pub pids_max: u32,
    /// User and group in containers, as numbers.
    pub user: String,
    /// Network to join, for a worker that is a container itself. Absent: a free port of the loopback interface each.
    pub network: Option<String>,
    /// Whether an image that is not there is fetched from its registry.
    pub pull: bool,
    /// How long a container may take to be ready.
    #[serde(with = "humantime_serde")]
    pub ready_timeout: Duration,
    /// How long a job waits for a slot of its model before another container is started for it.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// Images of models that are not served from our own, by model.
    pub images: BTreeMap<ModelName, Image>,
}

/// `[docker.images.<model>]`: an image that speaks the Open Inference Protocol.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name: `repository:tag`, or with a digest.
    pub image: String,
    /// Where its server listens.
    #[serde(default = "Image::port")]
    pub port: u16,
    /// Whether it reads and writes tensors as raw bytes.
    #[serde(default)]
    pub binary: bool,
    /// The GPUs it asks for: a number, `"all"`, or a list of indexes or UUIDs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Gpus>,
    /// Its command, in place of the image's own.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User and group, in place of `docker.user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Memory, in place of `docker.memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

/// GPUs of a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Gpus {
    /// So many, any of them.
    Count(u32),
    /// These.
    Ids(Vec<String>),
    /// All there are.
    All(All),
}

/// The word for all of them.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// `all`
    All,
}

impl Default for Docker {
    fn default() -> Self {
        let defaults = docker::Config::default();
        Self {
            host: defaults.host,
            containers_max: defaults.containers_max,
            slots_per_container: defaults.slots_per_container,
            memory: ByteSize(defaults.limits.memory_bytes),
            cpus: defaults.limits.cpus,
            pids_max: defaults.limits.pids_max,
            user: defaults.user,
            network: defaults.network,
            pull: defaults.pull,
            ready_timeout: defaults.ready_timeout,
            patience: defaults.patience,
            images: BTreeMap::new(),
        }
    }
}

impl Image {
    fn port() -> u16 {
        docker::ImageSpec::new("").port
    }

    fn spec(&self) -> docker::ImageSpec {
        docker::ImageSpec {
            port: self.port,
            binary: self.binary,
            gpu: self.gpus.clone().map(|gpus| match gpus {
                Gpus::Count(count) => docker::Gpu::Count(count),
                Gpus::Ids(ids) => docker::Gpu::Ids(ids),
                Gpus::All(All::All) => docker::Gpu::All,
            }),
            command: self.command.clone(),
            env: self.env.clone(),
            user: self.user.clone(),
            memory_bytes: self.memory.map(|memory| memory.as_u64()),
            ..docker::ImageSpec::new(&self.image)
        }
    }
}

impl Docker {
    /// Jobs that the lane runs at once.
    pub fn slots(&self) -> u32 {
        self.containers_max.saturating_mul(self.slots_per_container)
    }

    /// The lane's settings, with our own image for `models`.
    pub fn config(
        &self,
        worker: &str,
        models: Vec<ModelName>,
        models_dir: Option<PathBuf>,
    ) -> docker::Config {
        docker::Config {
            host: self.host.clone(),
            worker: worker.to_owned(),
            models,
            images: self.images.iter().map(|(model, image)| (model.clone(), image.spec())).collect(),
            models_dir,
            containers_max: self.containers_max,
            slots_per_container: self.slots_per_container,
            limits: docker::Limits {
                memory_bytes: self.memory.as_u64(),
                cpus: self.cpus,
                pids_max: self.pids_max,
            },
            user: self.user.clone(),
            network: self.network.clone(),
            pull: self.pull,
            ready_timeout: self.ready_timeout,
            patience: self.patience,
            ..docker::Config::default()
        }
    }
}

/// `[serverless]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serverless {
    /// Who runs the functions.
    pub provider: Provider,
    /// Jobs run at once: the provider's concurrency limit, or this worker's share of it.
    pub concurrency_max: u32,
    /// The function host in the worker.
    pub host: FunctionHost,
    /// AWS Lambda, or whoever answers its Invoke API. Credentials come from the standard environment variables.
    pub lambda: Lambda,
    /// Functions that are HTTP servers: Knative, OpenFaaS, Cloud Run.
    pub http: HttpFunctions,
}

/// Who runs functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The function host in the worker.
    #[default]
    Host,
    /// AWS Lambda's Invoke API.
    Lambda,
    /// HTTP servers that speak the Open Inference Protocol.
    Http,
}

/// `[serverless.host]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionHost {
    /// An instance that was not used for so long ends.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long a function may take until it asks for its first event.
    #[serde(with = "humantime_serde")]
    pub init_timeout: Duration,
    /// Memory of each process of a function that sets none.
    pub memory: ByteSize,
    /// Most instances of one function. Absent: `serverless.concurrency_max`.
    pub function_concurrency_max: Option<u32>,
    /// Where AWS Lambda's Invoke API is answered, on the loopback interface. Absent: nowhere.
    pub invoke_listen: Option<SocketAddr>,
    /// Functions of models, by model. The others run in this program.
    pub functions: BTreeMap<ModelName, Function>,
}

/// `[serverless.host.functions.<model>]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// A program that asks the Lambda Runtime API for events, and its arguments.
    pub command: Vec<String>,
    /// What it finds in `_HANDLER`.
    #[serde(default = "Function::handler")]
    pub handler: String,
    /// Its working folder, and what it finds in `LAMBDA_TASK_ROOT`.
    #[serde(default = "Function::task_root")]
    pub task_root: PathBuf,
    /// Further environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Memory of each of its processes, in place of `serverless.host.memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

impl Function {
    fn handler() -> String {
        serverless::host::Function::new(Vec::new()).handler
    }

    fn task_root() -> PathBuf {
        serverless::host::Function::new(Vec::new()).task_root
    }
}

/// `[serverless.lambda]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lambda {
    /// `https://host` or `http://host:port`. Absent: AWS Lambda in the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The name or ARN of a model's function, `{model}` being the model's name.
    pub function: String,
    /// Functions of models whose names that does not give.
    pub functions: BTreeMap<ModelName, String>,
    /// The version or alias to invoke.
    pub qualifier: Option<String>,
    /// The models that have a function. Empty: those in this program and its models folder.
    pub models: Vec<ModelName>,
}

/// `[serverless.http]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpFunctions {
    /// A function's address without `/v2`, `{model}` being the model's name.
    pub url: String,
    /// The models that have a function.
    pub models: Vec<ModelName>,
    /// Whether they read and write tensors as raw bytes.
    pub binary: bool,
}

impl Default for Serverless {
    fn default() -> Self {
        Self {
            provider: Provider::default(),
            concurrency_max: serverless::Config::default().concurrency_max,
            host: FunctionHost::default(),
            lambda: Lambda::default(),
            http: HttpFunctions::default(),
        }
    }
}

impl Default for FunctionHost {
    fn default() -> Self {
        let defaults = serverless::host::Config::default();
        Self {
            idle_timeout: defaults.idle_timeout,
            init_timeout: defaults.init_timeout,
            memory: ByteSize(serverless::host::Function::new(Vec::new()).limits.memory_bytes),
            function_concurrency_max: None,
            invoke_listen: None,
            functions: BTreeMap::new(),
        }
    }
}

impl Default for Lambda {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            function: "{model}".to_owned(),
            functions: BTreeMap::new(),
            qualifier: None,
            models: Vec::new(),
        }
    }
}

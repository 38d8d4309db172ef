//! The container engine, as the lane needs it: [`Engine`] is the port, [`Docker`] the real one, through bollard.
//!
//! What this module owns: how a container is confined, and reading what the engine says. What it must not do:
//! decide when anything is started or removed.

use super::plan::{Plan, Published};
use async_trait::async_trait;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, DeviceRequest, HostConfig, PortBinding, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// How long one call may take; a large image takes longer to import, and has its answer's head early.
const CALL_TIMEOUT_S: u64 = 60;
/// The same for asking whether it is there.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The status of a process that was killed, by whomever.
const KILLED: i64 = 137;
/// How often it is looked again whether one that was killed was over its memory limit, and the pause between.
const OOM_LOOKS: u32 = 10;
const OOM_PAUSE: Duration = Duration::from_millis(50);
/// How often one that is being removed already is asked for again, and the pause between.
const REMOVALS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);
/// Most of a container's last words that a message repeats, in bytes.
const WORDS_BYTES_MAX: usize = 300;

/// The port.
#[async_trait]
pub(super) trait Engine: Send + Sync {
    /// Connects afresh; its version.
    async fn hello(&self) -> Result<String, EngineError>;

    /// Whether an image is there.
    async fn has_image(&self, image: &str) -> Result<bool, EngineError>;

    /// Fetches an image from its registry.
    async fn pull(&self, image: &str) -> Result<(), EngineError>;

    /// Makes an image of a file system, a tar archive, and of instructions such as `USER 1`.
    async fn import(
        &self,
        image: &str,
        instructions: Vec<String>,
        tar: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), EngineError>;

    /// Creates a container; its id.
    async fn create(&self, plan: &Plan) -> Result<String, EngineError>;

    /// Starts it; where its server can be reached, unless it has ended already.
    async fn start(&self, id: &str, plan: &Plan) -> Result<Option<SocketAddr>, EngineError>;

    /// How it is.
    async fn look(&self, id: &str) -> Result<Look, EngineError>;

    /// Removes it, running or not. One that is gone already is no error.
    async fn remove(&self, id: &str) -> Result<(), EngineError>;

    /// All containers with this label, running or not.
    async fn list(&self, label: &str) -> Result<Vec<Found>, EngineError>;

    /// Ids of containers with this label as they die, and of those that died since. The stream ends, with or without an error, with the connection.
    fn deaths(&self, label: &str, since: SystemTime) -> BoxStream<'static, Result<String, EngineError>>;
}

/// How a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Running,
    Ended {
        status: i64,
        over_memory: bool,
        /// The last line it printed.
        words: String,
        /// When, by the engine's clock.
        at: Option<SystemTime>,
    },
    Gone,
}

impl Look {
    /// Whether it had ended by then.
    pub(super) fn before(&self, then: SystemTime) -> bool {
        matches!(self, Self::Ended { at: Some(at), .. } if *at < then)
    }
}

/// A container, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) running: bool,
}

/// Why the engine did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EngineError {
    /// It was not reached, or did not answer.
    #[error("docker engine at {host} cannot be reached: {reason}")]
    Away { host: String, reason: String },
    /// The image is not there.
    #[error("image {0} is not there")]
    NoImage(String),
    /// It was not done in time.
    #[error("docker engine was not done within {0} s")]
    Late(u64),
    /// It will not.
    #[error("docker engine refuses: {0}")]
    Refused(String),
}

/// The real one.
pub(super) struct Docker {
    host: String,
    /// Set by [`Engine::hello`].
    client: Mutex<Option<bollard::Docker>>,
}

impl Docker {
    pub(super) fn new(host: &str) -> Self {
        Self { host: host.to_owned(), client: Mutex::default() }
    }

    fn client(&self) -> Result<bollard::Docker, EngineError> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        client.ok_or_else(|| self.away("it was not there yet"))
    }

    fn away(&self, reason: impl ToString) -> EngineError {
        EngineError::Away { host: self.host.clone(), reason: reason.to_string() }
    }

    /// Whose fault an error is: the engine's words are a refusal, everything else is no answer.
    fn error(&self, error: bollard::errors::Error) -> EngineError {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError { status_code: 404, message }
                if message.to_ascii_lowercase().contains("no such image") =>
            {
                EngineError::NoImage(message.rsplit(": ").next().unwrap_or(&message).trim().to_owned())
            }
            Error::DockerResponseServerError { message, .. } => {
                EngineError::Refused(message.trim().to_owned())
            }
            Error::DockerStreamError { error } => EngineError::Refused(error),
            error => self.away(innermost(&error)),
        }
    }
}

#[async_trait]
impl Engine for Docker {
    async fn hello(&self) -> Result<String, EngineError> {
        let mut client = bollard::Docker::connect_with_host(&self.host).map_err(|error| self.error(error))?;
        client.set_timeout(Duration::from_secs(CALL_TIMEOUT_S));
        let greeted = timeout(HELLO_TIMEOUT, async {
            // The version it speaks may have changed with an upgrade: asked anew each time.
            let client = client.negotiate_version().await?;
            let version = client.version().await?;
            Ok((client, version.version.unwrap_or_default()))
        });
        let greeted = greeted.await.map_err(|_| self.away("no answer"))?;
        let (client, version) = greeted.map_err(|error| self.error(error))?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
        Ok(version)
    }

    async fn has_image(&self, image: &str) -> Result<bool, EngineError> {
        match self.client()?.inspect_image(image).await.map_err(|error| self.error(error)) {
            Ok(_) => Ok(true),
            Err(EngineError::NoImage(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn pull(&self, image: &str) -> Result<(), EngineError> {
        let named = image.rsplit('/').next().is_some_and(|name| name.contains([':', '@']));
        let image = if named { image.to_owned() } else { format!("{image}:latest") };
        let options = CreateImageOptionsBuilder::default().from_image(&image).build();
        let client = self.client()?;
        let told = client.create_image(Some(options), None, None);
        told.map_err(|error| self.error(error)).try_for_each(async |_| Ok(())).await
    }

    async fn import(
        &self,
        image: &str,
        instructions: Vec<String>,
        tar: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), EngineError> {
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(name)
            .tag(tag)
            .changes(instructions)
            .build();
        let client = self.client()?;
        let told = client.create_image(Some(options), Some(bollard::body_try_stream(tar)), None);
        told.map_err(|error| self.error(error)).try_for_each(async |_| Ok(())).await
    }

    async fn create(&self, plan: &Plan) -> Result<String, EngineError> {
        let options = CreateContainerOptions { name: Some(plan.name.clone()), ..Default::default() };
        let created = self.client()?.create_container(Some(options), body(plan)).await;
        Ok(created.map_err(|error| self.error(error))?.id)
    }

    async fn start(&self, id: &str, plan: &Plan) -> Result<Option<SocketAddr>, EngineError> {
        let client = self.client()?;
        client.start_container(id, None::<StartContainerOptions>).await.map_err(|error| self.error(error))?;
        let inspected = client.inspect_container(id, None::<InspectContainerOptions>).await;
        Ok(address(&inspected.map_err(|error| self.error(error))?, plan))
    }

    async fn look(&self, id: &str) -> Result<Look, EngineError> {
        let client = self.client()?;
        let mut looks = OOM_LOOKS;
        loop {
            let inspected = client.inspect_container(id, None::<InspectContainerOptions>).await;
            let state = match inspected {
                Ok(inspected) => inspected.state.unwrap_or_default(),
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                    return Ok(Look::Gone);
                }
                Err(error) => return Err(self.error(error)),
            };
            if state.running == Some(true) {
                return Ok(Look::Running);
            }
            let status = state.exit_code.unwrap_or_default();
            let over_memory = state.oom_killed == Some(true);
            // The engine hears of the end and of its cause by different ways, and of the cause perhaps later.
            if status == KILLED && !over_memory && looks > 0 {
                looks -= 1;
                tokio::time::sleep(OOM_PAUSE).await;
                continue;
            }
            let words = last_words(&client, id).await;
            let at = state.finished_at.and_then(|at| humantime::parse_rfc3339(&at).ok());
            return Ok(Look::Ended { status, over_memory, words, at });
        }
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let client = self.client()?;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        for _ in 0..REMOVALS {
            match client.remove_container(id, Some(options.clone())).await {
                Ok(()) | Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                    return Ok(());
                }
                // It is being removed already, and is gone only when it is gone.
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => {
                    tokio::time::sleep(REMOVAL_PAUSE).await;
                }
                Err(error) => return Err(self.error(error)),
            }
        }
        Err(EngineError::Refused("the container is still being removed".to_owned()))
    }

    async fn list(&self, label: &str) -> Result<Vec<Found>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed =
            self.client()?.list_containers(Some(options)).await.map_err(|error| self.error(error))?;
        let found = listed.into_iter().filter_map(|one| {
            let running = one.state.is_some_and(|state| state.to_string() == "running");
            let labels = one.labels.unwrap_or_default().into_iter().collect();
            // The engine puts a slash before it.
            let name = one.names.unwrap_or_default().into_iter().next().unwrap_or_default();
            let name = name.trim_start_matches('/').to_owned();
            Some(Found { id: one.id?, name, labels, running })
        });
        Ok(found.collect())
    }

    fn deaths(&self, label: &str, since: SystemTime) -> BoxStream<'static, Result<String, EngineError>> {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return futures_util::stream::iter([Err(error)]).boxed(),
        };
        let filters = HashMap::from([("label", vec![label]), ("event", vec!["die"])]);
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
        let host = self.host.clone();
        client
            .events(Some(options))
            .filter_map(move |event| {
                let told = match event {
                    Ok(event) => event.actor.and_then(|actor| actor.id).map(Ok),
                    Err(error) => {
                        Some(Err(EngineError::Away { host: host.clone(), reason: innermost(&error) }))
                    }
                };
                std::future::ready(told)
            })
            .boxed()
    }
}

/// The container that `plan` describes, confined.
fn body(plan: &Plan) -> ContainerCreateBody {
    let limits = &plan.limits;
    let port = format!("{}/tcp", plan.port);
    let anywhere = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(String::new()) };
    let published = plan.published == Published::Loopback;
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let host_config = HostConfig {
        memory: Some(memory),
        // The same number: no swap on top.
        memory_swap: Some(memory),
        nano_cpus: Some(limits.nano_cpus()),
        pids_limit: Some(limits.pids_max.into()),
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([(
            "/tmp".to_owned(),
            "rw,noexec,nosuid,nodev,size=64m,mode=1777".to_owned(),
        )])),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        port_bindings: published.then(|| HashMap::from([(port.clone(), Some(vec![anywhere]))])),
        network_mode: match &plan.published {
            Published::Loopback => None,
            Published::Network(network) => Some(network.clone()),
        },
        device_requests: plan.gpu.as_ref().map(|gpu| {
            vec![DeviceRequest {
                driver: None,
                count: gpu.count(),
                device_ids: gpu.ids(),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                options: None,
            }]
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(plan.image.clone()),
        cmd: (!plan.command.is_empty()).then(|| plan.command.clone()),
        env: Some(plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: Some(plan.user.clone()),
        exposed_ports: Some(vec![port]),
        labels: Some(plan.labels.clone().into_iter().collect()),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

/// Where the server of a started container can be reached.
fn address(inspected: &ContainerInspectResponse, plan: &Plan) -> Option<SocketAddr> {
    let network = inspected.network_settings.as_ref()?;
    match &plan.published {
        Published::Loopback => {
            let bindings = network.ports.as_ref()?.get(&format!("{}/tcp", plan.port))?.as_ref()?;
            let port = bindings.iter().find_map(|binding| binding.host_port.as_ref()?.parse().ok())?;
            Some(SocketAddr::from(([127, 0, 0, 1], port)))
        }
        Published::Network(name) => {
            let ip: IpAddr = network.networks.as_ref()?.get(name)?.ip_address.as_ref()?.parse().ok()?;
            Some(SocketAddr::new(ip, plan.port))
        }
    }
}

/// The last line a container printed, if it can be had.
async fn last_words(client: &bollard::Docker, id: &str) -> String {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("5").build();
    let lines: Vec<_> = client.logs(id, Some(options)).take(5).collect().await;
    let lines = lines.into_iter().filter_map(Result::ok).map(|line| line.to_string());
    let last = lines.filter(|line| !line.trim().is_empty()).last().unwrap_or_default();
    let text = last.trim();
    text.char_indices().take_while(|(at, _)| *at < WORDS_BYTES_MAX).map(|(_, letter)| letter).collect()
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;

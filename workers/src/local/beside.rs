//! The local lane's second way: a model server beside the worker, such as a Flask application, that speaks the Open
//! Inference Protocol over HTTP.
//!
//! The server is somebody else's: it is neither started nor stopped here, only asked whether it is ready. While it is
//! not, the lane has no slots, so that its jobs are placed elsewhere.

use crate::lane::{Capacity, Executor, InvalidConfig, Ran, Task};
use crate::remote::http::Http;
use crate::remote::{Form, ModelServer};
use async_trait::async_trait;
use schemas::heartbeat::Backend;
use schemas::{Failure, FailureKind, Lane, ModelName};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Settings of the server beside the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `http://host:port`, with a path in front of `/v2` if it has one.
    pub url: String,
    /// Jobs it runs at once.
    pub slots: u32,
    /// The models it has.
    pub models: Vec<ModelName>,
    /// Whether it reads and writes tensors as raw bytes (the protocol's binary extension).
    pub binary: bool,
    /// Longest answer, in bytes.
    pub answer_bytes_max: usize,
}

/// Time between two looks at a server that is ready.
const LOOK: Duration = Duration::from_secs(5);
/// The same while it is not.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long it may take to say that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// The lane.
pub struct Beside {
    url: String,
    server: ModelServer,
    models: Vec<ModelName>,
    capacity: watch::Receiver<Capacity>,
    /// Why it is not ready, while that is so.
    problem: watch::Receiver<Option<String>>,
    doubted: Arc<Notify>,
    watching: JoinHandle<()>,
}

impl Config {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        self.server().map(drop)
    }

    fn server(&self) -> Result<ModelServer, InvalidConfig> {
        let slots = self.slots;
        if slots == 0 || slots > super::SLOTS_MAX {
            let problem = format!("is {slots}: use 1 to {}", super::SLOTS_MAX);
            return Err(InvalidConfig::new("worker.slots", problem));
        }
        if self.models.is_empty() {
            let problem = "is empty: name the models that the server has";
            return Err(InvalidConfig::new("worker.server.models", problem));
        }
        if self.url.trim_end_matches('/').ends_with("/v2") {
            let problem = format!(
                "ends in /v2, which is put behind it: {:?} will do",
                self.url.trim_end_matches('/').trim_end_matches("/v2")
            );
            return Err(InvalidConfig::new("worker.server.url", problem));
        }
        let form = if self.binary { Form::Binary } else { Form::Json };
        let server = ModelServer::new(Http::new(), &self.url, form, self.answer_bytes_max);
        server.map_err(|error| InvalidConfig::new("worker.server.url", error.to_string()))
    }
}

impl Beside {
    /// Starts watching the server, which need not be there yet.
    pub fn start(config: Config) -> Result<Self, InvalidConfig> {
        let server = config.server()?;
        let Config { url, slots, models, .. } = config;
        let (sender, capacity) = watch::channel(Capacity::default());
        let (reasons, problem) = watch::channel(Some("it was not asked yet whether it is ready".to_owned()));
        let doubted = Arc::new(Notify::new());
        let watched = Watched { server: server.clone(), url: url.clone(), slots, capacity: sender, reasons };
        let watching = tokio::spawn(look_after(watched, Arc::clone(&doubted)));
        Ok(Self { url, server, models, capacity, problem, doubted, watching })
    }
}

/// A server that is looked after, and who is told of it.
struct Watched {
    server: ModelServer,
    url: String,
    slots: u32,
    capacity: watch::Sender<Capacity>,
    reasons: watch::Sender<Option<String>>,
}

/// Keeps the capacity what the server's readiness makes it.
async fn look_after(watched: Watched, doubted: Arc<Notify>) {
    let Watched { server, url, slots, capacity, reasons } = watched;
    let mut was: Option<bool> = None;
    loop {
        let found = server.ready(READY_TIMEOUT).await;
        match &found {
            Ok(()) if was != Some(true) => tracing::info!(server = url, "model server is ready"),
            Err(reason) if was != Some(false) => {
                tracing::warn!(server = url, reason, "model server is not ready; this lane takes no jobs");
            }
            _ => {}
        }
        let ready = found.is_ok();
        // Before the capacity, whose change has it reported.
        reasons.send_replace(found.err());
        was = Some(ready);
        let now = Capacity { slots: if ready { slots } else { 0 }, abandoned: 0 };
        capacity.send_if_modified(|shown| std::mem::replace(shown, now) != now);
        if ready {
            // Cut short by a job that found it gone.
            let _ = timeout(LOOK, doubted.notified()).await;
        } else {
            sleep(LOOK_AGAIN).await;
        }
    }
}

#[async_trait]
impl Executor for Beside {
    fn lane(&self) -> Lane {
        Lane::Local
    }

    fn models(&self) -> Vec<ModelName> {
        self.models.clone()
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.clone()
    }

    fn backend(&self) -> Option<Backend> {
        let problem = self.problem.borrow().clone();
        Some(Backend { name: format!("server at {}", self.url), problem, ..Backend::default() })
    }

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let ran = self.server.infer(&task).await;
        if let Err(failure) = &ran
            && matches!(failure.kind, FailureKind::LaneUnavailable | FailureKind::ModelError)
        {
            self.doubted.notify_one();
        }
        ran
    }

    async fn stop(&self) {
        self.watching.abort();
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

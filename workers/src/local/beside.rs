//! The local lane's second way: a model server beside the worker, such as a Flask application, that speaks the Open
//! Inference Protocol over HTTP.
//!
//! The server is somebody else's: it is neither started nor stopped here, only asked whether it is ready. While it is
//! not, the lane has no slots, so that its jobs are placed elsewhere.

use crate::lane::{Capacity, Executor, InvalidConfig, Ran, Task};
use crate::remote::http::Http;
use crate::remote::{Form, ModelServer};
use async_trait::async_trait;
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
    server: ModelServer,
    models: Vec<ModelName>,
    capacity: watch::Receiver<Capacity>,
    doubted: Arc<Notify>,
    watching: JoinHandle<()>,
}

impl Beside {
    /// Starts watching the server, which need not be there yet.
    pub fn start(config: Config) -> Result<Self, InvalidConfig> {
        let Config { url, slots, models, binary, answer_bytes_max } = config;
        if slots == 0 || slots > super::SLOTS_MAX {
            let problem = format!("is {slots}: use 1 to {}", super::SLOTS_MAX);
            return Err(InvalidConfig::new("worker.slots", problem));
        }
        if models.is_empty() {
            let problem = "is empty: name the models that the server has";
            return Err(InvalidConfig::new("worker.server.models", problem));
        }
        let form = if binary { Form::Binary } else { Form::Json };
        let server = ModelServer::new(Http::new(), &url, form, answer_bytes_max);
        let server = server.map_err(|error| InvalidConfig::new("worker.server.url", error.to_string()))?;
        let (sender, capacity) = watch::channel(Capacity::default());
        let doubted = Arc::new(Notify::new());
        let watching = tokio::spawn(look_after(server.clone(), url, slots, sender, Arc::clone(&doubted)));
        Ok(Self { server, models, capacity, doubted, watching })
    }
}

/// Keeps the capacity what the server's readiness makes it.
async fn look_after(
    server: ModelServer,
    url: String,
    slots: u32,
    capacity: watch::Sender<Capacity>,
    doubted: Arc<Notify>,
) {
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

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let ran = self.server.infer(&task).await;
        if let Err(failure) = &ran
            && matches!(failure.kind, FailureKind::LaneUnavailable | FailureKind::WorkerLost)
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

//! Starting one container: its image, its creation, and the wait until its server is ready.

use super::engine::{Engine, EngineError, Look};
use super::image::{Contents, ImageError};
use super::plan::{Owner, Plan, plan};
use super::{Config, ImageSpec};
use crate::remote::http::Http;
use crate::remote::{Form, ModelServer};
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::{Failure, FailureKind, ModelName};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio::time::sleep;

/// How long a server may take to say whether it is ready.
const READY_CALL: Duration = Duration::from_secs(2);
/// First pause between two such questions; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Bytes of an archive that are handed over at once, and how many such parts may wait.
const PART_BYTES: usize = 256 * 1024;
const PARTS: usize = 4;

/// When a container ended that never served.
const EARLY: &str = "before it was ready";

/// Starts containers, one call each.
pub(super) struct Starter {
    config: Arc<Config>,
    owner: Owner,
    engine: Arc<dyn Engine>,
    http: Http,
    /// Our image's name and contents, found out once.
    ours: OnceCell<(String, Contents)>,
    /// Held while images are made or fetched, so that each is once.
    imaging: Mutex<()>,
}

/// A container whose server is ready.
pub(super) struct Started {
    pub(super) id: String,
    pub(super) server: ModelServer,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct NotStarted {
    pub(super) failure: Failure,
    /// Whether trying it again soon would come to the same.
    pub(super) own_fault: bool,
}

impl Starter {
    pub(super) fn new(config: Arc<Config>, owner: Owner, engine: Arc<dyn Engine>, http: Http) -> Self {
        Self { config, owner, engine, http, ours: OnceCell::new(), imaging: Mutex::default() }
    }

    /// Makes our image if a model needs it, so that the first container need not wait for it.
    pub(super) async fn prepare(&self) {
        if let Some(model) = self.config.models.iter().find(|model| !self.config.images.contains_key(*model))
            && let Err(error) = self.image(model).await
        {
            tracing::error!(error = %error.failure.message, "image for our containers cannot be made");
        }
    }

    /// Starts the `number`th container, for `model`.
    pub(super) async fn start(&self, model: &ModelName, number: u64) -> Result<Started, NotStarted> {
        let image = self.image(model).await?;
        let plan = plan(&self.config, &self.owner, model, &image, number);
        let refused = |error| refused(&plan, error);
        let id = self.engine.create(&plan).await.map_err(refused)?;
        match self.bring_up(&id, &plan).await {
            Ok(server) => Ok(Started { id, server }),
            Err(error) => {
                if let Err(error) = self.engine.remove(&id).await {
                    tracing::warn!(container.id = id, %error, "container that did not start cannot be removed");
                }
                Err(error)
            }
        }
    }

    async fn bring_up(&self, id: &str, plan: &Plan) -> Result<ModelServer, NotStarted> {
        let refused = |error| refused(plan, error);
        let Some(address) = self.engine.start(id, plan).await.map_err(refused)? else {
            return Err(match self.engine.look(id).await.map_err(refused)? {
                Look::Running => own_fault(format!("container of {} has no address", plan.model)),
                ended => own_fault(obituary(&plan.model, plan.limits.memory_bytes, &ended, EARLY)),
            });
        };
        // Our own server reads raw bytes; another does if its settings say so.
        let binary = self.config.images.get(&plan.model).is_none_or(|spec| spec.binary);
        let form = if binary { Form::Binary } else { Form::Json };
        let url = format!("http://{address}");
        let server = ModelServer::new(self.http.clone(), &url, form, self.config.answer_bytes_max);
        let server = server.expect("an address and a port make a URL");
        self.until_ready(id, plan, &server).await?;
        Ok(server)
    }

    async fn until_ready(&self, id: &str, plan: &Plan, server: &ModelServer) -> Result<(), NotStarted> {
        let limit = self.config.ready_timeout;
        let until = Instant::now() + limit;
        let mut pause = PAUSE_MIN;
        loop {
            let Err(reason) = server.ready(READY_CALL).await else { return Ok(()) };
            match self.engine.look(id).await.map_err(|error| refused(plan, error))? {
                Look::Running if Instant::now() < until => {}
                Look::Running => {
                    let model = &plan.model;
                    return Err(own_fault(format!(
                        "container of {model} was not ready within {} ms: {reason}",
                        limit.as_millis()
                    )));
                }
                ended => {
                    return Err(own_fault(obituary(
                        &plan.model,
                        plan.limits.memory_bytes,
                        &ended,
                        "before it was ready",
                    )));
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The name of the image that serves `model`, once it is there.
    async fn image(&self, model: &ModelName) -> Result<String, NotStarted> {
        match self.config.images.get(model) {
            Some(spec) => self.theirs(model, spec).await,
            None => self.own().await,
        }
    }

    async fn theirs(&self, model: &ModelName, spec: &ImageSpec) -> Result<String, NotStarted> {
        let image = &spec.image;
        let failed = |error: EngineError| {
            let own_fault = !matches!(error, EngineError::Away { .. });
            let message = format!("image {image} of model {model}: {error}");
            NotStarted { failure: Failure::new(FailureKind::LaneUnavailable, message), own_fault }
        };
        if self.engine.has_image(image).await.map_err(failed)? {
            return Ok(image.clone());
        }
        if !self.config.pull {
            return Err(own_fault(format!(
                "image {image} of model {model} is not on this machine: run `docker pull {image}`, or set docker.pull = true"
            )));
        }
        let _imaging = self.imaging.lock().await;
        if !self.engine.has_image(image).await.map_err(failed)? {
            tracing::info!(image, %model, "fetching an image");
            self.engine.pull(image).await.map_err(failed)?;
        }
        Ok(image.clone())
    }

    async fn own(&self) -> Result<String, NotStarted> {
        let (name, contents) = self.ours.get_or_try_init(|| self.gather()).await?;
        let failed = |error: EngineError| NotStarted {
            own_fault: !matches!(error, EngineError::Away { .. }),
            failure: Failure::new(FailureKind::LaneUnavailable, format!("image {name} of ours: {error}")),
        };
        let _imaging = self.imaging.lock().await;
        if !self.engine.has_image(name).await.map_err(failed)? {
            let began = Instant::now();
            let tar = archive(contents.clone());
            self.engine.import(name, contents.instructions(), tar).await.map_err(failed)?;
            tracing::info!(image = name, import_ms = began.elapsed().as_millis(), "image of ours made");
        }
        Ok(name.clone())
    }

    async fn gather(&self) -> Result<(String, Contents), NotStarted> {
        let config = Arc::clone(&self.config);
        let gathered = tokio::task::spawn_blocking(move || {
            // Not /proc/self/exe: the loader that is asked for its libraries is another self.
            let this = || PathBuf::from(format!("/proc/{}/exe", std::process::id()));
            let program = config.program.clone().unwrap_or_else(this);
            let contents = Contents::gather(&program, config.models_dir.as_deref(), &config.user)?;
            Ok((contents.name()?, contents))
        });
        let gathered = gathered.await.expect("gathering files neither panics nor is aborted");
        gathered.map_err(|error: ImageError| own_fault(format!("image of ours cannot be made: {error}")))
    }
}

/// The archive, written elsewhere and read here in parts.
fn archive(contents: Contents) -> futures_util::stream::BoxStream<'static, io::Result<Bytes>> {
    let (parts, received) = mpsc::channel(PARTS);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PART_BYTES, Parts(parts.clone()));
        let written = contents.write(&mut out).map_err(io::Error::other).and_then(|()| out.flush());
        if let Err(error) = written {
            // Whoever reads has gone, or is told that this is not the whole of it.
            let _ = parts.blocking_send(Err(error));
        }
    });
    futures_util::stream::unfold(received, async |mut received| Some((received.recv().await?, received)))
        .boxed()
}

struct Parts(mpsc::Sender<io::Result<Bytes>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = Ok(Bytes::copy_from_slice(bytes));
        self.0.blocking_send(part).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a container that is no more died of.
pub(super) fn obituary(model: &ModelName, memory_bytes: u64, look: &Look, when: &str) -> String {
    match look {
        Look::Ended { over_memory: true, .. } => {
            let limit = memory_bytes >> 20;
            format!("container of {model} was killed: over its memory limit of {limit} MiB")
        }
        Look::Ended { status, words, .. } => {
            let words = if words.is_empty() { String::new() } else { format!(": {words}") };
            format!("container of {model} ended with status {status} {when}{words}")
        }
        Look::Gone | Look::Running => format!("container of {model} was removed {when}"),
    }
}

/// The same as a metric label.
pub(super) fn cause(look: &Look) -> &'static str {
    match look {
        Look::Ended { over_memory: true, .. } => "over_memory",
        Look::Ended { .. } => "exited",
        Look::Gone | Look::Running => "removed",
    }
}

fn refused(plan: &Plan, error: EngineError) -> NotStarted {
    let own_fault = !matches!(error, EngineError::Away { .. });
    let gpu = if own_fault && plan.gpu.is_some() { " (it asks for a GPU)" } else { "" };
    let message = format!("container of {}{gpu} cannot be started: {error}", plan.model);
    NotStarted { failure: Failure::new(FailureKind::LaneUnavailable, message), own_fault }
}

fn own_fault(message: String) -> NotStarted {
    NotStarted { failure: Failure::new(FailureKind::LaneUnavailable, message), own_fault: true }
}

//! Starting containers: seeing to the image, then the creation of one, and the wait until its server is ready.

use super::engine::{Engine, EngineError, Look};
use super::image::{Contents, ImageError};
use super::plan::{Owner, Plan, plan};
use super::{Config, ImageSpec};
use crate::remote::http::Http;
use crate::remote::{Form, ModelServer};
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::{Failure, FailureKind, ModelName};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::{sleep, timeout};

/// How long a server may take to say whether it is ready.
const READY_CALL: Duration = Duration::from_secs(2);
/// First pause between two such questions; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How long an image may take to be fetched or made.
const IMAGE: Duration = Duration::from_secs(600);
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
    /// By image: held while it is made or fetched, so that each is once and none waits for another.
    imaging: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
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
    /// The id of a container that could not be removed again.
    pub(super) left: Option<String>,
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

    /// Starts the `number`th container, for `model` from `image`.
    pub(super) async fn start(
        &self,
        model: &ModelName,
        image: &str,
        number: u64,
    ) -> Result<Started, NotStarted> {
        let plan = plan(&self.config, &self.owner, model, image, number);
        let refused = |error| refused(&plan, error);
        let id = self.engine.create(&plan).await.map_err(refused)?;
        match self.bring_up(&id, &plan).await {
            Ok(server) => Ok(Started { id, server }),
            Err(error) => {
                // The first try; the keeper sees to the others.
                let left = self.engine.remove(&id).await.is_err().then_some(id);
                Err(NotStarted { left, ..error })
            }
        }
    }

    async fn bring_up(&self, id: &str, plan: &Plan) -> Result<ModelServer, NotStarted> {
        let refused = |error| refused(plan, error);
        let Some(address) = self.engine.start(id, plan).await.map_err(refused)? else {
            return Err(match self.engine.look(id).await.map_err(refused)? {
                Look::Running => own_fault(format!("container of {} has no address", plan.model)),
                ended => died(plan, &ended),
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
                ended => return Err(died(plan, &ended)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The name of the image that serves `model`, once it is there.
    pub(super) async fn image(&self, model: &ModelName) -> Result<String, NotStarted> {
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
            not_started(message, own_fault)
        };
        if self.engine.has_image(image).await.map_err(failed)? {
            return Ok(image.clone());
        }
        if !self.config.pull {
            return Err(own_fault(absent(model, image)));
        }
        let imaging = self.imaging(image);
        let _imaging = imaging.lock().await;
        if !self.engine.has_image(image).await.map_err(failed)? {
            tracing::info!(image, %model, "fetching an image");
            within(self.engine.pull(image)).await.map_err(failed)?;
        }
        Ok(image.clone())
    }

    async fn own(&self) -> Result<String, NotStarted> {
        let (name, contents) = self.ours.get_or_try_init(|| self.gather()).await?;
        let failed = |error: EngineError| {
            let own_fault = !matches!(error, EngineError::Away { .. });
            not_started(format!("image {name} of ours: {error}"), own_fault)
        };
        if self.engine.has_image(name).await.map_err(failed)? {
            return Ok(name.clone());
        }
        let imaging = self.imaging(name);
        let _imaging = imaging.lock().await;
        if !self.engine.has_image(name).await.map_err(failed)? {
            let began = Instant::now();
            let tar = archive(contents.clone());
            within(self.engine.import(name, contents.instructions(), tar)).await.map_err(failed)?;
            tracing::info!(image = name, import_ms = began.elapsed().as_millis(), "image of ours made");
        }
        Ok(name.clone())
    }

    fn imaging(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut imaging = self.imaging.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(imaging.entry(image.to_owned()).or_default())
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

/// An image that is not there, and not to be fetched.
pub(super) fn absent(model: &ModelName, image: &str) -> String {
    format!(
        "image {image} of model {model} is not on this machine: run `docker pull {image}`, or set docker.pull = true"
    )
}

/// What the engine does with an image, if it is done in time.
async fn within(done: impl Future<Output = Result<(), EngineError>>) -> Result<(), EngineError> {
    let late = || EngineError::Late(IMAGE.as_secs());
    timeout(IMAGE, done).await.unwrap_or_else(|_| Err(late()))
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
    not_started(message, own_fault)
}

/// One that somebody removed under way says nothing about its model.
fn died(plan: &Plan, ended: &Look) -> NotStarted {
    let message = obituary(&plan.model, plan.limits.memory_bytes, ended, EARLY);
    not_started(message, *ended != Look::Gone)
}

fn own_fault(message: String) -> NotStarted {
    not_started(message, true)
}

fn not_started(message: String, own_fault: bool) -> NotStarted {
    NotStarted { failure: Failure::new(FailureKind::LaneUnavailable, message), own_fault, left: None }
}

//! The HTTP face: the Open Inference Protocol, version 2, and our own routes beside it.
//!
//! | route | what it does |
//! |---|---|
//! | `GET /v2`, `/v2/health/live`, `/v2/health/ready` | what this is; whether it runs; whether jobs can be done |
//! | `GET /v2/models` | the names of the models that may be asked for; ours, the protocol has no such list |
//! | `GET /v2/models/{m}[/versions/{v}][/ready]` | what a model takes and gives; whether a worker runs it |
//! | `POST /v2/models/{m}[/versions/{v}]/infer` | submits and waits; JSON or the binary tensor extension |
//! | `POST /v1/jobs` | submits: 202 and an id; `application/x-ndjson` for many; `?model=` for opaque bytes |
//! | `GET /v1/jobs/{id}[?wait_ms=]`, `DELETE /v1/jobs/{id}` | the result so far; take the job back |
//! | `GET /v1/jobs/{id}/output` | the output alone: tensors as the protocol has them, opaque bytes as they are |
//! | `GET /v1/results?ids=`, `POST /v1/results` | many results; as lines while they come |
//! | `GET /v1/status` | how it stands |
//! | `GET /v1/dead`, `/v1/dead/{id}`, `POST /v1/dead/requeue`, `/v1/dead/drop` | dead jobs |
//! | `GET /metrics` | for Prometheus |
//!
//! What it owns: limits on what a caller may send and how many may wait, and the meaning of a status code. What it must
//! not do: decide anything about a job, hold one back, or tie a job to its connection: a caller that goes away changes
//! nothing. There is no login here: everyone who can reach the address submits as this face's client and shares its
//! idempotency keys.

use crate::client::Client;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use broker::Broker;
use errors::Error;
use metrics::counter;
use schemas::{ModelContract, ModelName};
use state::State as Facts;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

mod asks;
mod batch;
mod body;
mod errors;
mod infer;
mod jobs;
mod linger;
mod models;
mod operations;
mod results;
mod serve;

pub use jobs::read_job;
pub use serve::serve;

/// What the face stands in front of.
pub struct Face {
    /// Submits and waits.
    pub client: Client,
    /// For status and dead jobs.
    pub broker: Arc<dyn Broker>,
    /// For status, readiness and dead jobs.
    pub state: Arc<dyn Facts>,
    /// The models that may be asked for. A model without input tensors takes opaque bytes.
    pub models: Vec<ModelContract>,
    /// Limits.
    pub limits: Limits,
    /// What `/metrics` answers.
    pub metrics_text: MetricsText,
    /// What of the process itself keeps it from being ready.
    pub obstacle: Obstacle,
}

/// Says what keeps a process from its part in getting jobs done, if anything does.
pub type Obstacle = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// Renders the process's metrics in Prometheus' text format.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// The face's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest body, in bytes.
    pub body_bytes_max: usize,
    /// Largest JSON document in a body, in bytes: values in JSON take many times their size while they are read.
    pub json_bytes_max: usize,
    /// Largest line of a body of lines, in bytes.
    pub line_bytes_max: usize,
    /// Most lines of one body whose answers the caller has not read: many send everything before they read anything.
    pub unread_max: usize,
    /// Most bodies of lines at once.
    pub batches_max: usize,
    /// Bytes of all bodies in hand together, the outputs on their way out of `/v1/results` among them.
    pub bodies_bytes_max: usize,
    /// How long a body, or the next part of a body of lines, may take to arrive.
    pub body_timeout: Duration,
    /// Most requests that wait for a job at once.
    pub waits_max: usize,
    /// The longest wait for a job's end, be it asked for by `wait_ms` or that of an inference.
    pub wait_max: Duration,
    /// Most ids in one request.
    pub ids_max: usize,
    /// The deadline of an inference that names none: someone is waiting.
    pub infer_deadline: Duration,
    /// How long results are kept: an id older than that and the furthest deadline is not pending but unknown.
    pub record_keep: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 << 20,
            json_bytes_max: 16 << 20,
            line_bytes_max: 4 << 20,
            unread_max: 100_000,
            batches_max: 8,
            bodies_bytes_max: 256 << 20,
            body_timeout: Duration::from_secs(30),
            waits_max: 1_024,
            wait_max: Duration::from_secs(60),
            ids_max: 1_000,
            infer_deadline: Duration::from_secs(60),
            record_keep: schemas::limits::RECORD_RETENTION_DEFAULT,
        }
    }
}

/// What every handler shares.
struct App {
    client: Client,
    broker: Arc<dyn Broker>,
    state: Arc<dyn Facts>,
    models: BTreeMap<ModelName, Arc<ModelContract>>,
    limits: Limits,
    metrics_text: MetricsText,
    obstacle: Obstacle,
    /// Bytes of bodies in hand, in the units of [`body::units`].
    bodies: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    decoders: Semaphore,
    batches: Arc<Semaphore>,
    /// One pass through the dead queue at a time: two would hold each other's jobs.
    dead: Arc<Mutex<()>>,
}

/// The routes over `face`.
pub fn router(face: Face) -> Router {
    let mut limits = face.limits;
    // No limit on one body may be over what all may have together.
    let one_max = limits.body_bytes_max.max(limits.line_bytes_max).max(limits.json_bytes_max);
    limits.bodies_bytes_max = limits.bodies_bytes_max.max(one_max);
    let app = Arc::new(App {
        client: face.client,
        broker: face.broker,
        state: face.state,
        models: face.models.into_iter().map(|model| (model.name.clone(), Arc::new(model))).collect(),
        bodies: Arc::new(Semaphore::new(body::units(limits.bodies_bytes_max))),
        waits: Arc::new(Semaphore::new(limits.waits_max)),
        decoders: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
        batches: Arc::new(Semaphore::new(limits.batches_max)),
        dead: Arc::default(),
        metrics_text: face.metrics_text,
        obstacle: face.obstacle,
        limits,
    });
    Router::new()
        .route("/v2", get(models::server))
        .route("/v2/", get(models::server))
        .route("/v2/health/live", get(models::live))
        .route("/v2/health/ready", get(models::ready))
        .route("/v2/models", get(models::list))
        .route("/v2/models/{model}", get(models::metadata))
        .route("/v2/models/{model}/ready", get(models::model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .route("/v2/models/{model}/versions/{version}", get(models::metadata_of_version))
        .route("/v2/models/{model}/versions/{version}/ready", get(models::version_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::infer_version))
        .route("/v1/jobs", post(jobs::submit))
        .route("/v1/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/v1/jobs/{id}/output", get(jobs::output))
        .route("/v1/results", get(results::fetch).post(results::stream))
        .route("/v1/status", get(operations::status))
        .route("/v1/dead", get(operations::dead_list))
        .route("/v1/dead/requeue", post(operations::dead_requeue))
        .route("/v1/dead/drop", post(operations::dead_drop))
        .route("/v1/dead/{id}", get(operations::dead_show))
        .route("/metrics", get(operations::metrics))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_route)
        .layer(from_fn(linger::read_on))
        .layer(from_fn(count))
        .with_state(app)
}

impl App {
    /// A place among those that wait for a job.
    fn wait_place(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.waits.clone().try_acquire_owned().map_err(|_| {
            let limit = self.limits.waits_max;
            Error::come_back(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{limit} requests are waiting for jobs, the most there may be: try again later"),
            )
        })
    }

    /// How long a `wait_ms` lets its caller wait.
    fn wait(&self, wait_ms: u64) -> Duration {
        Duration::from_millis(wait_ms).min(self.limits.wait_max)
    }
}

async fn no_route(request: Request) -> Error {
    let routes = "/v2, /v2/health/ready, /v2/models, /v1/jobs, /v1/results, /v1/status, /v1/dead, /metrics";
    Error::not_found(format!("no route {}: see {routes}", request.uri().path()))
}

async fn wrong_method(request: Request) -> Error {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    Error::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn count(request: Request, next: Next) -> Response {
    // A label takes only values that we know: a caller may invent methods and paths without end.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let response = next.run(request).await;
    counter!("straightline_http_requests_total", "method" => method, "status" => response.status().as_u16().to_string())
        .increment(1);
    response
}

//! The model server: an [`Executor`] behind HTTP, speaking the Open Inference Protocol. It is what runs in our
//! containers, and anywhere else a model is wanted without a queue.
//!
//! What this module owns: the routes, the limits, and the end of a server that drains. What it must not do: know
//! queues, records or how a run is made.
//!
//! Invariants: bodies in memory ≤ ([`Config::slots`] + [`Config::queue`]) × [`Config::body_bytes_max`], since a
//! request has its place before its body is read; no more runs at once than slots; a refused body is read to its
//! end, or the caller would see a broken pipe in place of the reason; while it drains, it still answers, that it is
//! not ready, until its last run is over.

mod errors;
mod infer;

use crate::lane::Executor;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use errors::Error;
use futures_util::future::BoxFuture;
use schemas::{ModelContract, ModelName};
use serde_json::{Value, json};
use serving::Limits;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections, and how long they may take to end once the last run is over.
const LIMITS: Limits = Limits {
    connections_max: 1_024,
    head_timeout: Some(Duration::from_secs(30)),
    grace: Duration::from_secs(5),
};

/// Settings of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Runs at once; the executor's slots.
    pub slots: u32,
    /// Requests that may wait for a slot; one more is told to come back. Default 8.
    pub queue: u32,
    /// Largest request body, in bytes. Default 64 MiB.
    pub body_bytes_max: usize,
    /// Longest JSON in a request, in bytes: while it is read it takes many times that. Default 8 MiB.
    pub json_bytes_max: usize,
    /// How long a request's body may take to arrive. Default 30 s.
    pub body_timeout: Duration,
    /// Longest run. Default 10 minutes: a caller with less patience leaves, which gives its run up.
    pub run_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slots: 1,
            queue: 8,
            body_bytes_max: 64 << 20,
            json_bytes_max: 8 << 20,
            body_timeout: Duration::from_secs(30),
            run_timeout: Duration::from_secs(600),
        }
    }
}

/// What the handlers share.
struct App {
    config: Config,
    executor: Arc<dyn Executor>,
    models: BTreeMap<ModelName, ModelContract>,
    /// One for every request that runs or waits.
    places: Arc<Semaphore>,
    slots: Semaphore,
    draining: AtomicBool,
}

/// Serves the `models` of `executor` on `listener` until `drain` resolves; then refuses new runs, ends those under
/// way and the executor with them.
pub fn serve(
    config: Config,
    listener: TcpListener,
    executor: Arc<dyn Executor>,
    models: Vec<ModelContract>,
    drain: BoxFuture<'static, ()>,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let places = config.slots.max(1).saturating_add(config.queue);
        let app = Arc::new(App {
            places: Arc::new(Semaphore::new(places as usize)),
            slots: Semaphore::new(config.slots.max(1) as usize),
            draining: AtomicBool::new(false),
            models: models.into_iter().map(|model| (model.name.clone(), model)).collect(),
            executor: Arc::clone(&executor),
            config,
        });
        let router = router(Arc::clone(&app));
        let idle = async move {
            drain.await;
            app.draining.store(true, Ordering::Relaxed);
            // Every place free: nothing runs, nothing waits.
            drop(app.places.acquire_many(places).await);
        };
        if !serving::serve(listener, router, LIMITS, Box::pin(idle)).await {
            tracing::warn!("some connections are still open; they end with the process");
        }
        executor.stop().await;
    })
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn server() -> Json<Value> {
    Json(json!({
        "name": "straightline",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.obstacle() {
        None => Json(json!({ "ready": true })).into_response(),
        Some(obstacle) => {
            let body = Json(json!({ "ready": false, "error": obstacle }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metadata(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Json<Value>, Error> {
    let model = app.model(&model)?;
    let outputs = model
        .outputs
        .iter()
        .map(|output| json!({ "name": output.name, "datatype": output.datatype, "shape": output.shape }));
    Ok(Json(json!({
        "name": model.name,
        "versions": [model.version],
        "platform": model.platform,
        "inputs": model.inputs,
        "outputs": outputs.collect::<Vec<_>>(),
    })))
}

async fn model_ready(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Json<Value>, Error> {
    let model = app.model(&model)?;
    match app.obstacle() {
        None => Ok(Json(json!({ "name": model.name, "ready": true }))),
        Some(obstacle) => Err(Error::come_back(obstacle)),
    }
}

async fn unknown(request: Request) -> Error {
    let path: String = request.uri().path().chars().take(200).collect();
    infer::read_on(request).await;
    Error::new(StatusCode::NOT_FOUND, format!("{path} is not here: the protocol begins at /v2"))
}

async fn wrong_method(request: Request) -> Error {
    let method = request.method().clone();
    infer::read_on(request).await;
    Error::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for this address"))
}

impl App {
    /// Why nothing can be run just now, if so.
    fn obstacle(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Relaxed) {
            Some("this server is draining")
        } else if self.executor.capacity().borrow().slots == 0 {
            Some("this server takes no jobs just now: too many runs outlived their limit")
        } else {
            None
        }
    }

    fn model(&self, name: &str) -> Result<&ModelContract, Error> {
        let found = ModelName::new(name).ok().and_then(|name| self.models.get(&name));
        found.ok_or_else(|| {
            let known: Vec<_> = self.models.keys().map(ModelName::as_str).collect();
            let name: String = name.chars().take(80).collect();
            let message = format!("model {name:?} is not here: there are {}", known.join(", "));
            Error::new(StatusCode::NOT_FOUND, message)
        })
    }
}

#[cfg(test)]
mod tests;

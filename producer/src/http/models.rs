//! Health, and what the models are: the parts of the protocol that ask nothing of a model.

use super::App;
use super::errors::Error;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use broker::Health;
use schemas::{ModelContract, ModelName, Payload};
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /v2`.
pub(super) async fn server() -> Json<Value> {
    Json(json!({
        "name": "straightline",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

/// `GET /v2/health/live`.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// `GET /v2/health/ready`: jobs are taken, placed and run.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    match obstacle(&app).await {
        None => Json(json!({ "ready": true })).into_response(),
        Some(obstacle) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "error": obstacle })))
                .into_response()
        }
    }
}

async fn obstacle(app: &App) -> Option<String> {
    if let Some(obstacle) = (app.obstacle)() {
        return Some(obstacle.to_owned());
    }
    let health = app.broker.health().borrow().clone();
    match health {
        Health::Connected => {}
        Health::Blocked(reason) => return Some(format!("the broker takes no messages just now: {reason}")),
        Health::Disconnected(reason) => return Some(format!("the broker cannot be reached: {reason}")),
    }
    let (workers, dispatchers) = tokio::join!(app.state.workers(), app.state.dispatchers());
    match (workers, dispatchers) {
        (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
        (_, Ok(dispatchers)) if dispatchers.iter().all(|dispatcher| dispatcher.draining) => {
            Some("no dispatcher is alive: start one with `straightline dispatcher`".to_owned())
        }
        (Ok(workers), _) if workers.iter().all(|worker| worker.draining) => {
            Some("no worker is alive: start one with `straightline worker --lane local`".to_owned())
        }
        _ => None,
    }
}

/// `GET /v2/models`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "models": app.models.keys().collect::<Vec<_>>() }))
}

/// `GET /v2/models/{model}`.
pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, Error> {
    Ok(describe(&*app.model(&model, None)?))
}

/// `GET /v2/models/{model}/versions/{version}`.
pub(super) async fn metadata_of_version(
    State(app): State<Arc<App>>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<Value>, Error> {
    Ok(describe(&*app.model(&model, Some(&version))?))
}

fn describe(model: &ModelContract) -> Json<Value> {
    let outputs = model
        .outputs
        .iter()
        .map(|output| json!({ "name": output.name, "datatype": output.datatype, "shape": output.shape }));
    Json(json!({
        "name": model.name,
        "versions": [model.version],
        "platform": model.platform,
        "inputs": model.inputs,
        "outputs": outputs.collect::<Vec<_>>(),
    }))
}

/// `GET /v2/models/{model}/ready`.
pub(super) async fn model_ready(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, Error> {
    is_ready(&app, &*app.model(&model, None)?).await
}

/// `GET /v2/models/{model}/versions/{version}/ready`.
pub(super) async fn version_ready(
    State(app): State<Arc<App>>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<Value>, Error> {
    is_ready(&app, &*app.model(&model, Some(&version))?).await
}

async fn is_ready(app: &App, model: &ModelContract) -> Result<Json<Value>, Error> {
    let workers = app.state.workers().await?;
    let runs = workers.iter().any(|worker| !worker.draining && worker.models.contains(&model.name));
    match runs {
        true => Ok(Json(json!({ "name": model.name, "ready": true }))),
        false => Err(Error::unavailable(format!("no live worker runs model {}", model.name))),
    }
}

impl App {
    /// The contract of the model that a caller names.
    pub(super) fn model(&self, name: &str, version: Option<&str>) -> Result<Arc<ModelContract>, Error> {
        let name = ModelName::new(name).map_err(|error| Error::not_found(error.to_string()))?;
        let Some(model) = self.models.get(&name) else {
            let known: Vec<_> = self.models.keys().map(ModelName::as_str).collect();
            return Err(Error::not_found(format!(
                "model {name} is not known: there are {}; give one that others run a {name}/model.toml with \
                 platform = \"remote\" in worker.models",
                known.join(", ")
            )));
        };
        match version {
            Some(version) if version != model.version => Err(Error::not_found(format!(
                "model {name} has no version {:?}: there is {}",
                version.chars().take(80).collect::<String>(),
                model.version
            ))),
            _ => Ok(model.clone()),
        }
    }
}

/// Whether `input` and the wanted `outputs` keep to the model's contract.
pub(super) fn check(model: &ModelContract, input: &Payload, outputs: &[String]) -> Result<(), Error> {
    let takes_opaque = model.inputs.is_empty() && matches!(input, Payload::Opaque(_));
    if !takes_opaque {
        model.check(input).map_err(|failure| Error::of_failure(&failure, ""))?;
    }
    model.check_outputs(outputs).map_err(|failure| Error::of_failure(&failure, ""))
}

//! What an operator asks over HTTP: status, dead jobs, metrics.

use super::errors::Error;
use super::{App, body, jobs};
use crate::operations::{self, DEAD_PAGE_MAX, DeadDetails, DeadPage, Dropped, Requeued, Status, Which};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use schemas::JobId;
use serde::Deserialize;
use std::future::Future;
use std::sync::Arc;

/// `GET /v1/status`.
pub(super) async fn status(State(app): State<Arc<App>>) -> Json<Status> {
    Json(operations::status(Ok(&*app.broker), &*app.state).await)
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], (app.metrics_text)()).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    #[serde(default)]
    offset: u64,
    #[serde(default = "page")]
    limit: u64,
}

const fn page() -> u64 {
    100
}

/// `GET /v1/dead?offset=&limit=`: newest first.
pub(super) async fn dead_list(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<DeadPage>, Error> {
    let query: PageQuery = jobs::query(&uri)?;
    if !(1..=DEAD_PAGE_MAX).contains(&query.limit) {
        return Err(Error::bad(format!("query: limit is {}: use 1 to {DEAD_PAGE_MAX}", query.limit)));
    }
    Ok(Json(operations::dead_list(&*app.state, query.offset, query.limit).await?))
}

/// `GET /v1/dead/{id}`.
pub(super) async fn dead_show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<DeadDetails>, Error> {
    let id = jobs::job(&id)?;
    let details = operations::dead_show(&*app.state, id).await?;
    details.map(Json).ok_or_else(|| Error::not_found(format!("job {id} is not among the dead")))
}

/// Which dead jobs: `{"ids":[…]}` or `{"all":true}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    ids: Option<Vec<JobId>>,
    #[serde(default)]
    all: bool,
}

/// `POST /v1/dead/requeue`.
pub(super) async fn dead_requeue(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Requeued>, Error> {
    let which = which(&app, &headers, body).await?;
    let on_app = app.clone();
    let requeue = async move { operations::dead_requeue(&*on_app.broker, &*on_app.state, &which).await };
    Ok(Json(to_its_end(&app, requeue).await?))
}

/// `POST /v1/dead/drop`.
pub(super) async fn dead_drop(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Dropped>, Error> {
    let which = which(&app, &headers, body).await?;
    let on_app = app.clone();
    let drop = async move { operations::dead_drop(&*on_app.broker, &*on_app.state, &which).await };
    Ok(Json(to_its_end(&app, drop).await?))
}

async fn which(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Which, Error> {
    let body = body::read(app, headers, body, app.limits.json_bytes_max).await?;
    match body::json::<Ask>(&body.bytes)? {
        Ask { ids: None, all: true } => Ok(Which::All),
        Ask { ids: Some(ids), all: false } if !ids.is_empty() => Ok(Which::These(ids)),
        _ => Err(Error::bad(r#"say which: {"ids":["…"]} or {"all":true}"#)),
    }
}

/// Runs `work` on a task of its own: a caller that goes away must not leave it half done.
async fn to_its_end<T, E>(
    app: &Arc<App>,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, Error>
where
    T: Send + 'static,
    E: Send + 'static,
    Error: From<E>,
{
    let turn = app.dead.clone();
    let work = tokio::spawn(async move {
        let _turn = turn.lock_owned().await;
        work.await
    });
    Ok(work.await.expect("dealing with dead jobs neither panics nor is aborted")?)
}

//! Serving the face within limits: connections, and the time a request's head may take.

use axum::Router;
use futures_util::future::BoxFuture;
use serving::Limits;
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::warn;

/// Most connections; beyond them callers wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 4_096;
/// How long the head of a request may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until `shutdown` resolves, then takes no more requests and lets those under way end, for at most `grace`.
/// Whoever is left then has an id to ask for, or none and no job.
pub fn serve(
    listener: TcpListener,
    router: Router,
    grace: Duration,
    shutdown: BoxFuture<'static, ()>,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let limits = Limits { connections_max: CONNECTIONS_MAX, head_timeout: Some(HEAD_TIMEOUT), grace };
        if !serving::serve(listener, router, limits, shutdown).await {
            warn!(grace_ms = grace.as_millis(), "requests were still under way; they are cut off");
        }
    })
}

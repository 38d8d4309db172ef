//! One small HTTP client: bodies bounded, time bounded, connections kept. It follows nothing and retries nothing;
//! what a status code means is its callers' business.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;

/// How long a connection may take to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept: less than servers keep one (five seconds is common), since a request that meets
/// its server's farewell is lost.
const IDLE: Duration = Duration::from_secs(4);

/// The client.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Parts>,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpError {
    /// Nobody was reached: nothing was asked.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// The connection ended in the middle: it may have been asked.
    #[error("went away before it had answered: {0}")]
    Broken(String),
    /// It took too long.
    #[error("did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The answer is too long.
    #[error("answered with more than {0} bytes")]
    TooLarge(usize),
}

impl Http {
    pub(crate) fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // Without it a request written in two parts waits for the server's delayed acknowledgement.
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client }
    }

    /// Sends `request` and takes an answer of at most `bytes_max`, both within `limit`.
    pub(crate) async fn send(
        &self,
        request: Request<Parts>,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<Reply, HttpError> {
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| {
                let reason = innermost(&error);
                if error.is_connect() { HttpError::Unreachable(reason) } else { HttpError::Broken(reason) }
            })?;
            collect(response, bytes_max).await
        };
        timeout(limit, exchange).await.unwrap_or(Err(HttpError::TimedOut(limit)))
    }
}

async fn collect(response: Response<Incoming>, bytes_max: usize) -> Result<Reply, HttpError> {
    let (head, body) = response.into_parts();
    let collected = Limited::new(body, bytes_max).collect().await;
    let body = collected.map_err(|error| match error.downcast_ref::<http_body_util::LengthLimitError>() {
        Some(_) => HttpError::TooLarge(bytes_max),
        None => HttpError::Broken(innermost(&*error)),
    })?;
    Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
}

/// The cause of causes: what lies around it says "client error (Connect)" and the like.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A body in parts, so that a tensor's data is sent from where it lies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts(VecDeque<Bytes>);

impl FromIterator<Bytes> for Parts {
    fn from_iter<I: IntoIterator<Item = Bytes>>(parts: I) -> Self {
        Self(parts.into_iter().filter(|part| !part.is_empty()).collect())
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

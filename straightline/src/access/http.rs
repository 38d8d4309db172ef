//! The HTTP way.

use super::nobody;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use schemas::JobResult;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::pin::Pin;

type Streamed = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;
type Body = Either<Full<Bytes>, Streamed>;

/// A client of one HTTP face.
pub struct Http {
    address: String,
    client: Client<HttpConnector, Body>,
}

/// An answer that is an error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    /// Whether the very same request can succeed later.
    pub fn worth_another_try(&self) -> bool {
        let soon = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
        self.status.is_server_error() || soon.contains(&self.status)
    }
}

/// What the face answers when it cannot.
#[derive(Deserialize)]
struct Problem {
    error: String,
}

impl Http {
    /// A client for `http://host:port`.
    pub fn new(address: &str) -> Result<Self> {
        let address = address.trim_end_matches('/');
        let address = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let uri: hyper::Uri = address.parse().with_context(|| format!("--server {address}"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            bail!("--server {address}: use http://HOST:PORT");
        }
        Ok(Self { address, client: Client::builder(TokioExecutor::new()).build_http() })
    }

    /// `GET`, decoded.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.send(Method::GET, path, None, Either::Left(Full::default())).await?;
        decode(expect(response).await?).await
    }

    /// `GET`, as text.
    pub async fn text(&self, path: &str) -> Result<String> {
        let response = self.send(Method::GET, path, None, Either::Left(Full::default())).await?;
        let body =
            expect(response).await?.into_body().collect().await.context("failed to read the answer")?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    /// `POST` of JSON, decoded.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> Result<T> {
        let body = Either::Left(Full::from(body.to_string()));
        let response = self.send(Method::POST, path, Some("application/json"), body).await?;
        decode(expect(response).await?).await
    }

    /// `DELETE` of a job: 200 when it is cancelled, 409 when it had ended otherwise; its result either way.
    pub async fn delete(&self, path: &str) -> Result<(bool, JobResult)> {
        let response = self.send(Method::DELETE, path, None, Either::Left(Full::default())).await?;
        let over = response.status() == StatusCode::CONFLICT;
        let response = if over { response } else { expect(response).await? };
        Ok((!over, decode(response).await?))
    }

    /// `POST` of bytes with their media type, decoded.
    pub async fn post_bytes<T: DeserializeOwned>(&self, path: &str, kind: &str, bytes: Bytes) -> Result<T> {
        let response = self.send(Method::POST, path, Some(kind), Either::Left(Full::from(bytes))).await?;
        decode(expect(response).await?).await
    }

    /// `POST` of lines as they come; the answer's lines as they come.
    pub async fn post_lines(
        &self,
        path: &str,
        lines: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    ) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let frames = lines.map(|line| Ok(Frame::data(line)));
        let body: Streamed = StreamBody::new(Box::pin(frames));
        let response =
            self.send(Method::POST, path, Some("application/x-ndjson"), Either::Right(body)).await?;
        Ok(lines_of(expect(response).await?.into_body()))
    }

    /// `POST` of JSON; the answer's lines as they come.
    pub async fn post_for_lines(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let body = Either::Left(Full::from(body.to_string()));
        let response = self.send(Method::POST, path, Some("application/json"), body).await?;
        Ok(lines_of(expect(response).await?.into_body()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.address));
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(body).context("failed to build a request")?;
        self.client.request(request).await.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            nobody(&self.address, &cause)
        })
    }
}

/// The response, if it says yes; else what it says.
async fn expect(response: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.into_body().collect().await.context("failed to read the answer")?.to_bytes();
    let message = match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => problem.error,
        Err(_) => format!("the server answered {status}"),
    };
    Err(Refused { status, message }.into())
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T> {
    let body = response.into_body().collect().await.context("failed to read the answer")?.to_bytes();
    serde_json::from_slice(&body).context("failed to read the answer")
}

/// A body as its lines.
fn lines_of(body: Incoming) -> impl Stream<Item = Result<Bytes>> {
    let state = (BodyStream::new(body), bytes::BytesMut::new());
    stream::unfold(state, |(mut body, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1).freeze();
                return Some((Ok(line.slice(..end)), (body, buffer)));
            }
            match body.next().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    return Some((Err(anyhow::anyhow!("the answer ended early: {error}")), (body, buffer)));
                }
                None if buffer.is_empty() => return None,
                None => {
                    let rest = buffer.split().freeze();
                    return Some((Ok(rest), (body, buffer)));
                }
            }
        }
    })
}

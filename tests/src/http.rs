//! A plain HTTP client for the faces under test: one request, one answer, nothing kept.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

/// No answer may take longer; a scenario that waits for results says so in its own bound.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// This answer if its status is the expected one, else an error that shows the body.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "status {} in place of {status}: {}", self.status, self.text());
        Ok(self)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// A header's value as text, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// `GET url`.
pub async fn get(url: &str) -> Result<Answer> {
    send(Method::GET, url, &[], Bytes::new()).await
}

/// `DELETE url`.
pub async fn delete(url: &str) -> Result<Answer> {
    send(Method::DELETE, url, &[], Bytes::new()).await
}

/// `POST url` with a JSON body.
pub async fn post_json(url: &str, body: &serde_json::Value) -> Result<Answer> {
    send(Method::POST, url, &[("content-type", "application/json")], body.to_string()).await
}

/// Any request; the answer is read to its end.
pub async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Answer> {
    let mut request = Request::builder().method(method.clone()).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).context("not a request")?;
    let exchange = async {
        let answer = Client::builder(TokioExecutor::new()).build_http().request(request).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        anyhow::Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    };
    timeout(ANSWER_BOUND, exchange)
        .await
        .with_context(|| format!("no answer within {ANSWER_BOUND:?}"))
        .and_then(|answer| answer)
        .with_context(|| format!("failed to {method} {url}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one request with these bytes and gives back what was asked.
    async fn answer_once(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/jobs", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (url, served)
    }

    #[tokio::test]
    async fn sends_json_and_reads_the_whole_answer() {
        let (url, served) = answer_once(
            "HTTP/1.1 202 Accepted\r\nx-lane: local\r\ncontent-length: 12\r\n\r\n{\"id\": \"j1\"}",
        )
        .await;
        let answer =
            post_json(&url, &serde_json::json!({"model": "digits"})).await.unwrap().expect(202).unwrap();
        assert_eq!(answer.json().unwrap()["id"], "j1");
        assert_eq!(answer.header("x-lane"), Some("local"));
        let asked = served.await.unwrap();
        assert!(asked.starts_with("POST /v1/jobs HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("application/json"), "{asked}");
    }

    #[tokio::test]
    async fn an_unexpected_status_shows_the_body() {
        let (url, _served) =
            answer_once("HTTP/1.1 503 Unavailable\r\ncontent-length: 10\r\n\r\nno workers").await;
        let error = get(&url).await.unwrap().expect(200).unwrap_err();
        assert_eq!(error.to_string(), "status 503 in place of 200: no workers");
    }
}

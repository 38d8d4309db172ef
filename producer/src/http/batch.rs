//! Many jobs in one request: lines of JSON in, lines out as the broker confirms them, in no order:
//! `{"index":0,"id":"…"}` or `{"index":1,"status":400,"error":"…"}`; the index counts the lines that are not blank.
//!
//! Invariant: reading goes on whether or not the caller reads the answers, since many send everything first; answers
//! that are not read are bounded in number. A caller that goes away takes nothing back.

use super::body::{self, Allowance};
use super::errors::Error;
use super::{App, jobs};
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Takes the lines of `body`; the answer follows as they are submitted.
pub(super) fn submit(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Response, Error> {
    body::check_encoding(headers)?;
    let place = app.batches.clone().try_acquire_owned().map_err(|_| {
        let limit = app.limits.batches_max;
        Error::come_back(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{limit} requests are sending lines, the most there may be: try again later"),
        )
    })?;
    // Unbounded by itself; `unread` bounds what is in it.
    let (answers, answered) = mpsc::unbounded_channel();
    let unread = Arc::new(Semaphore::new(app.limits.unread_max));
    let lines = Lines {
        app: app.clone(),
        body: body.into_data_stream(),
        buffer: BytesMut::new(),
        unread: unread.clone(),
        count: 0,
        over: false,
    };
    let app = app.clone();
    tokio::spawn(async move {
        let lines = stream::unfold(lines, |mut lines| async move { Some((lines.next().await?, lines)) });
        let in_flight = app.client.in_flight_max();
        let submits = lines.map(|(index, line)| submit_line(&app, index, line)).buffer_unordered(in_flight);
        let mut submits = pin!(submits);
        while let Some(answer) = submits.next().await {
            // Nobody may be reading any more; what was read is submitted all the same.
            let _ = answers.send(answer);
        }
        drop(place);
    });
    let answers = stream::unfold((answered, unread), |(mut answered, unread)| async move {
        let answer = answered.recv().await?;
        unread.add_permits(1);
        Some((Ok::<_, Infallible>(answer), (answered, unread)))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(answers)).into_response())
}

type Line = Result<(Bytes, Allowance), Error>;

async fn submit_line(app: &Arc<App>, index: usize, line: Line) -> Bytes {
    let submitted = async {
        let (line, _allowance) = line?;
        let on_app = app.clone();
        let bytes = line.len();
        let submission =
            body::off_runtime(app, bytes, move || jobs::decode(&on_app, &line, Bytes::new())).await?;
        app.client.enqueue(submission).await.map_err(Error::from)
    };
    let answer = match submitted.await {
        Ok(id) => json!({ "index": index, "id": id }),
        Err(error) => json!({ "index": index, "status": error.status().as_u16(), "error": error.message() }),
    };
    format!("{answer}\n").into()
}

/// The lines of a body, within its limits.
struct Lines {
    app: Arc<App>,
    body: BodyDataStream,
    buffer: BytesMut,
    /// Places for answers that are not read yet.
    unread: Arc<Semaphore>,
    /// Lines that were not blank so far.
    count: usize,
    /// Nothing more can be read.
    over: bool,
}

impl Lines {
    /// The next line with its index, or what ended the lines; `None` after the last.
    async fn next(&mut self) -> Option<(usize, Line)> {
        loop {
            if self.over {
                return None;
            }
            let line = match self.read_line().await {
                Ok(Some(line)) => line,
                Ok(None) => {
                    self.over = true;
                    return None;
                }
                Err(error) => {
                    self.over = true;
                    return Some((self.count, Err(error)));
                }
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let index = self.count;
            self.count += 1;
            if let Err(error) = self.unread_place().await {
                self.over = true;
                return Some((index, Err(error)));
            }
            // Waits: what is in hand is on its way to the broker, and this reader holds nothing else back.
            let allowance = body::allow_when_free(&self.app, line.len()).await;
            return Some((index, Ok((line, allowance))));
        }
    }

    /// Waits until the answer to the next line has a place to stay until it is read.
    async fn unread_place(&mut self) -> Result<(), Error> {
        let place = timeout(self.app.limits.body_timeout, self.unread.acquire()).await;
        let place = place.map_err(|_| {
            let limit = self.app.limits.unread_max;
            let message =
                format!("{limit} answers wait to be read: this line and all after it were not taken");
            Error::come_back(StatusCode::TOO_MANY_REQUESTS, message)
        })?;
        // Given back when the answer is read.
        place.expect("this semaphore is never closed").forget();
        Ok(())
    }

    async fn read_line(&mut self) -> Result<Option<Bytes>, Error> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + at + 1).freeze();
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            let limit = self.app.limits.line_bytes_max;
            if searched > limit {
                return Err(Error::too_large(format!(
                    "line is over {limit} bytes: this one and all after it were not read"
                )));
            }
            match timeout(self.app.limits.body_timeout, self.body.next()).await {
                Ok(Some(Ok(part))) => self.buffer.extend_from_slice(&part),
                Ok(Some(Err(error))) => return Err(Error::bad(format!("body ended early: {error}"))),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Ok(Some(self.buffer.split().freeze())),
                Err(_) => {
                    let waited = self.app.limits.body_timeout.as_millis();
                    let message = format!("nothing more of the body arrived within {waited} ms");
                    return Err(Error::new(StatusCode::REQUEST_TIMEOUT, message));
                }
            }
        }
    }
}

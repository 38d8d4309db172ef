//! Reading request bodies within their limits, and decoding large ones off the runtime.

use super::App;
use super::errors::Error;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// A whole body, counted against the bytes that all bodies in hand may have, until it is dropped.
#[derive(Debug)]
pub(super) struct InHand {
    pub(super) bytes: Bytes,
    _allowance: Allowance,
}

/// A share of the bytes that bodies in hand may have.
#[derive(Debug)]
pub(super) struct Allowance {
    _share: OwnedSemaphorePermit,
}

/// The unit of the allowance, in bytes, so that its count fits a semaphore.
const UNIT: usize = 1024;
/// Decoding less than this is quicker than handing it to another thread, in bytes.
const OFF_RUNTIME_BYTES: usize = 64 * 1024;

/// Units of allowance in `bytes`.
pub(super) const fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<InHand, Error> {
    check_encoding(headers)?;
    let announced = content_length(headers);
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(over(limit));
    }
    // A body that does not say how long it is may become as long as it may be.
    let expected = announced.map_or(limit, |length| usize::try_from(length).unwrap_or(limit));
    let allowance = allow(app, expected)?;
    let whole = timeout(app.limits.body_timeout, Limited::new(body, limit).collect()).await;
    match whole {
        Ok(Ok(whole)) => Ok(InHand { bytes: whole.to_bytes(), _allowance: allowance }),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(over(limit)),
        Ok(Err(error)) => Err(Error::bad(format!("body ended early: {error}"))),
        Err(_) => Err(Error::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("body did not arrive within {} ms", app.limits.body_timeout.as_millis()),
        )),
    }
}

/// Refuses a compressed body: it would otherwise fail as JSON that makes no sense.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(Error::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("content encoding {encoding:?} is not supported: send the body as it is"),
        )),
        _ => Ok(()),
    }
}

/// A share of `bytes`, or of all there is, as soon as there is one.
pub(super) async fn allow_when_free(app: &App, bytes: usize) -> Allowance {
    let bytes = bytes.min(app.limits.bodies_bytes_max);
    let share = app.bodies.clone().acquire_many_owned(count(bytes)).await;
    Allowance { _share: share.expect("this semaphore is never closed") }
}

/// A share of `bytes`, or the answer that there is none just now.
fn allow(app: &Arc<App>, bytes: usize) -> Result<Allowance, Error> {
    let share = app.bodies.clone().try_acquire_many_owned(count(bytes)).map_err(|_| {
        Error::unavailable(format!(
            "bodies in hand are at their limit of {} bytes: try again later",
            app.limits.bodies_bytes_max
        ))
    })?;
    Ok(Allowance { _share: share })
}

fn count(bytes: usize) -> u32 {
    u32::try_from(units(bytes)).expect("limits keep a body far below 4 TiB")
}

/// Runs `work`, elsewhere if `bytes` are many; then only so many at once as there are processors, since values take
/// many times the memory of their JSON while they are read.
pub(super) async fn off_runtime<T: Send + 'static>(
    app: &App,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes < OFF_RUNTIME_BYTES {
        return work();
    }
    let _turn = app.decoders.acquire().await.expect("this semaphore is never closed");
    tokio::task::spawn_blocking(work).await.expect("decoding and encoding neither panic nor are aborted")
}

/// Reads JSON; the error names the path of the field and what was expected there.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match (path.as_str(), inner.classify()) {
            (".", _) => Error::bad(format!("body is not the JSON it should be: {inner}")),
            (_, serde_json::error::Category::Data) => Error::bad(format!("{path}: {inner}")),
            _ => Error::bad(format!("body is not JSON: {inner}")),
        }
    })?;
    reader.end().map_err(|error| Error::bad(format!("body is not JSON: {error}")))?;
    Ok(value)
}

/// The body's media type without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn over(limit: usize) -> Error {
    Error::too_large(format!("body is over {limit} bytes: split it into several jobs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[expect(dead_code, reason = "read by serde only")]
        inputs: Vec<Inner>,
    }
    #[derive(Debug, Deserialize)]
    struct Inner {
        #[expect(dead_code, reason = "read by serde only")]
        shape: Vec<u64>,
    }

    #[test]
    fn a_json_error_names_the_field() {
        let cases = [
            (
                r#"{"inputs":[{"shape":[1]},{"shape":[-1]}]}"#,
                "inputs[1].shape[0]: invalid value: integer `-1`",
            ),
            (r#"{"inputs":[{}]}"#, "inputs[0]: missing field `shape`"),
            (r#"{}"#, "missing field `inputs`"),
            (r#"{"inputs":["#, "body is not JSON: EOF"),
            ("hello", "expected value"),
            (r#"{"inputs":[]} {}"#, "body is not JSON: trailing characters"),
            ("", "EOF"),
        ];
        for (text, expected) in cases {
            let error = json::<Outer>(text.as_bytes()).unwrap_err();
            assert!(error.message().contains(expected), "{text}: {}", error.message());
        }
    }
}

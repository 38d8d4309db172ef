//! What goes wrong, as a status and `{"error": "…"}`, the protocol's own shape.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemas::oip::Malformed;
use schemas::{Failure, FailureKind};
use serde_json::json;

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Error {
    status: StatusCode,
    message: String,
}

impl Error {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Nothing is wrong with the request but its time.
    pub(super) fn come_back(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl From<Failure> for Error {
    /// The status by which the other side ([`crate::remote`]) finds the kind again.
    fn from(failure: Failure) -> Self {
        let status = match failure.kind {
            FailureKind::Undecodable | FailureKind::UnsupportedVersion | FailureKind::InvalidInput => {
                StatusCode::BAD_REQUEST
            }
            FailureKind::UnknownModel => StatusCode::NOT_FOUND,
            FailureKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            FailureKind::Forbidden => StatusCode::FORBIDDEN,
            FailureKind::DeadlineExceeded | FailureKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            FailureKind::Unplaceable => StatusCode::UNPROCESSABLE_ENTITY,
            FailureKind::LaneUnavailable | FailureKind::Busy | FailureKind::BlobUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            FailureKind::ModelError | FailureKind::WorkerLost | FailureKind::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, failure.message)
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::bad(error.to_string())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.message }))).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
        }
        response
    }
}

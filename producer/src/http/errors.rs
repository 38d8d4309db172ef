//! What goes wrong, as a status code and `{"error": "…"}`, the protocol's own shape. Every error a client sees is
//! made here.

use crate::client::{ResolveError, SubmitError, WaitError};
use crate::operations::DeadError;
use crate::submission::InvalidSubmission;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use broker::PublishError;
use schemas::failure::FailureKind;
use schemas::oip::Malformed;
use schemas::{Failure, JobResult, Status};
use state::StateError;
use state::blobs::BlobError;

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Error {
    status: StatusCode,
    message: String,
    /// Seconds after which trying again makes sense.
    retry_after: Option<u32>,
}

/// A job taken back by its client: no registered code says so; this one is widely used for it.
const CANCELLED: u16 = 499;

impl Error {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// At a limit of this face or of what stands behind it.
    pub(super) fn come_back(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: Some(1) }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::come_back(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// What a job without an output is to whoever waited for it.
    pub(super) fn of_ended(result: &JobResult) -> Self {
        let id = result.id;
        match (&result.status, &result.error) {
            (Status::Cancelled, _) => {
                let status = StatusCode::from_u16(CANCELLED).expect("a code between 100 and 999");
                Self::new(status, format!("job {id} was cancelled"))
            }
            (Status::Expired, None) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, format!("job {id} was not done by its deadline"))
            }
            (_, Some(failure)) => Self::of_failure(failure, &format!("job {id} failed: ")),
            (Status::Failed | Status::Succeeded, None) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("job {id} ended without output or error"),
            ),
        }
    }

    /// A failure, its message behind `context`.
    pub(super) fn of_failure(failure: &Failure, context: &str) -> Self {
        let message = format!("{context}{}", failure.message);
        match failure.kind {
            FailureKind::Undecodable | FailureKind::UnsupportedVersion | FailureKind::InvalidInput => {
                Self::bad(message)
            }
            FailureKind::UnknownModel => Self::not_found(message),
            FailureKind::TooLarge => Self::too_large(message),
            FailureKind::Forbidden => Self::new(StatusCode::FORBIDDEN, message),
            FailureKind::DeadlineExceeded | FailureKind::Timeout => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, message)
            }
            FailureKind::Unplaceable => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            FailureKind::LaneUnavailable | FailureKind::Busy | FailureKind::BlobUnavailable => {
                Self::unavailable(message)
            }
            FailureKind::ModelError | FailureKind::WorkerLost | FailureKind::Internal => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(serde_json::json!({ "error": self.message }))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::bad(error.to_string())
    }
}

impl From<InvalidSubmission> for Error {
    /// Names the field as callers write it: their times are numbers of milliseconds.
    fn from(error: InvalidSubmission) -> Self {
        let unit = if matches!(error.field, "deadline" | "run_timeout") { "_ms" } else { "" };
        Self::bad(format!("{}{unit} {}", error.field, error.problem))
    }
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid(invalid) => invalid.into(),
            SubmitError::TooLarge { .. } | SubmitError::Unavailable(PublishError::TooLarge { .. }) => {
                Self::too_large(message)
            }
            SubmitError::Blob(BlobError::TooLarge { .. }) => Self::too_large(message),
            SubmitError::Conflict { .. } => Self::new(StatusCode::CONFLICT, message),
            SubmitError::TooManyPending { .. } => Self::come_back(StatusCode::TOO_MANY_REQUESTS, message),
            SubmitError::Blob(_)
            | SubmitError::Full { .. }
            | SubmitError::Unavailable(_)
            | SubmitError::Unconfirmed { .. }
            | SubmitError::Closed => Self::unavailable(message),
        }
    }
}

impl From<WaitError> for Error {
    fn from(error: WaitError) -> Self {
        let status = match error {
            WaitError::Timeout { .. } | WaitError::NoRecord { .. } => StatusCode::GATEWAY_TIMEOUT,
            WaitError::Closed { .. } => return Self::unavailable(error.to_string()),
        };
        Self::new(status, error.to_string())
    }
}

impl From<ResolveError> for Error {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::State(error) => error.into(),
            ResolveError::Blob { reason: BlobError::NotFound { .. }, .. } => {
                Self::new(StatusCode::GONE, error.to_string())
            }
            ResolveError::Blob { .. } => Self::unavailable(error.to_string()),
            ResolveError::Record { .. } | ResolveError::NoStore { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<DeadError> for Error {
    fn from(error: DeadError) -> Self {
        Self::unavailable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blame_for_a_failure_shows_in_its_status() {
        use schemas::failure::Blame;
        for kind in FailureKind::ALL {
            let error = Error::of_failure(&Failure::new(kind, "why"), "job failed: ");
            let clients = error.status.is_client_error() || kind == FailureKind::DeadlineExceeded;
            assert_eq!(clients, kind.blame() == Blame::Client, "{kind}: {}", error.status);
            assert_eq!(error.message, "job failed: why");
        }
    }

    #[test]
    fn what_may_go_better_later_says_when() {
        let full = Error::from(SubmitError::Full {
            queue: "jobs.high".into(),
            waited: std::time::Duration::from_millis(10),
        });
        let response = full.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let bad = Error::bad("x").into_response();
        assert!(!bad.headers().contains_key(header::RETRY_AFTER));
    }
}

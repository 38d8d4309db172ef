//! What went wrong, in the words of this crate. No message repeats a password: none is at hand here.

use crate::StateError;
use deadpool_redis::redis::{ErrorKind, RedisError, ServerErrorKind};

/// Puts the server's address into errors.
pub(super) struct Faults {
    address: String,
}

impl Faults {
    pub(super) fn new(address: String) -> Self {
        Self { address }
    }

    /// Host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn unreachable(&self, reason: &str) -> StateError {
        StateError::Unreachable { address: self.address.clone(), reason: reason.to_owned() }
    }

    /// Why there is no connection.
    pub(super) fn of_connecting(&self, error: &RedisError) -> StateError {
        match error.kind() {
            ErrorKind::RESP3NotSupported => self.too_old("one before 6.0"),
            ErrorKind::Parse => self.unreachable("what listens there does not speak Redis's protocol"),
            _ => self.of_call(error),
        }
    }

    /// Why a call was not answered.
    pub(super) fn of_call(&self, error: &RedisError) -> StateError {
        let server = error.clone().into_server_errors();
        let Some((_, first)) = server.as_deref().and_then(|errors| errors.first()) else {
            return match error.kind() {
                ErrorKind::AuthenticationFailed => self.credentials(),
                ErrorKind::Parse | ErrorKind::UnexpectedReturnType => corrupt("the answer", error),
                ErrorKind::Io => self.unreachable(&io_reason(error)),
                _ => self.unreachable(&error.to_string()),
            };
        };
        let reason = format!("{} {}", first.code(), first.details().unwrap_or_default());
        match (first.kind(), first.code()) {
            (_, "NOAUTH" | "WRONGPASS") => self.credentials(),
            (_, "WRONGTYPE") => corrupt("in use by someone else", error),
            // It starts, is stuck, or another has taken its place: a later call or a new connection helps.
            (
                Some(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::ReadOnly),
                _,
            )
            | (_, "BUSY") => self.unreachable(reason.trim_end()),
            _ => StateError::Refused { address: self.address.clone(), reason: reason.trim_end().to_owned() },
        }
    }

    /// The server lacks what this adapter uses.
    pub(super) fn too_old(&self, version: &str) -> StateError {
        StateError::Config {
            field: "state.url",
            problem: format!(
                "names a server, {}, of a version too old, {version}: use Redis 6.2 or later",
                self.address
            ),
        }
    }

    fn credentials(&self) -> StateError {
        StateError::Credentials { address: self.address.clone() }
    }
}

fn corrupt(key: &str, error: &RedisError) -> StateError {
    StateError::Corrupt { key: key.to_owned(), reason: error.to_string() }
}

fn io_reason(error: &RedisError) -> String {
    if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() }
}

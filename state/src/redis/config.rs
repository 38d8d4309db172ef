//! How to reach the server, and which settings cannot work.

use crate::{Limits, StateError};
use secrecy::SecretString;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Longest prefix, in bytes: it is in every key.
const PREFIX_BYTES_MAX: usize = 64;

/// How to reach the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// `redis://[user[:password]@]host[:port][/database]`, or `redis+unix:///path`.
    pub url: SecretString,
    /// What every key begins with: installations that share a server need different ones.
    pub prefix: String,
    /// Connections held open.
    pub pool_size: NonZeroUsize,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer. A call that must connect first can take both.
    pub response_timeout: Duration,
    /// What it holds at most.
    pub limits: Limits,
}

impl Config {
    /// The defaults, for the server at `url`.
    pub fn new(url: impl Into<SecretString>) -> Self {
        Self {
            url: url.into(),
            prefix: "sl".to_owned(),
            pool_size: const { NonZeroUsize::new(4).expect("4 is not zero") },
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            limits: Limits::default(),
        }
    }

    /// Refuses what cannot work, by the name of the setting.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let refuse = |field, problem: &str| Err(StateError::Config { field, problem: problem.to_owned() });
        let printable = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if self.prefix.is_empty() || self.prefix.len() > PREFIX_BYTES_MAX || !printable {
            return refuse("state.prefix", "must be 1 to 64 printable characters without spaces");
        }
        if self.connect_timeout.is_zero() {
            return refuse("state.connect_timeout", "must be longer than 0");
        }
        if self.response_timeout.is_zero() {
            return refuse("state.response_timeout", "must be longer than 0");
        }
        Ok(())
    }
}

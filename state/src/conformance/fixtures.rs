//! The adapters' own fixtures.

use super::Fixture;
use crate::embedded::{self, Embedded};
use crate::redis::{self, Redis};
use crate::{Limits, State};
use async_trait::async_trait;
use secrecy::SecretString;
use std::path::PathBuf;
use std::sync::Arc;

/// Embedded states in a folder, one folder each.
pub struct EmbeddedFixture {
    dir: PathBuf,
}

impl EmbeddedFixture {
    /// States in folders under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

#[async_trait]
impl Fixture for EmbeddedFixture {
    async fn open(&self, name: &str, limits: Limits) -> Arc<dyn State> {
        let config = embedded::Config { limits, ..embedded::Config::new(self.dir.join(name)) };
        Embedded::open(config).await.expect("the embedded state opens")
    }
}

/// States on one Redis database, told apart by prefix. What they leave behind is the caller's to remove, with the
/// database or the server.
pub struct RedisFixture {
    url: SecretString,
}

impl RedisFixture {
    /// States on the server and database of `url`.
    pub fn new(url: &str) -> Self {
        Self { url: url.into() }
    }
}

#[async_trait]
impl Fixture for RedisFixture {
    async fn open(&self, name: &str, limits: Limits) -> Arc<dyn State> {
        let prefix = format!("sl-test-{name}");
        let config = redis::Config { prefix, limits, ..redis::Config::new(self.url.clone()) };
        Redis::open(config).await.expect("Redis opens")
    }
}

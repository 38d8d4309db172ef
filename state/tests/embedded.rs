//! The embedded adapter passes the suite, and keeps what it promises about its file.

use async_trait::async_trait;
use state::conformance::{EmbeddedFixture, Fixture};
use state::{Limits, State};
use std::sync::Arc;
use tempfile::TempDir;

/// States in a folder that goes with the fixture.
struct Temporary(TempDir);

impl Temporary {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }
}

#[async_trait]
impl Fixture for Temporary {
    async fn open(&self, name: &str, limits: Limits) -> Arc<dyn State> {
        EmbeddedFixture::new(self.0.path()).open(name, limits).await
    }
}

state::conformance_suite!(Temporary::new());

//! The embedded broker, from outside.

#[cfg(feature = "conformance")]
mod conformance {
    use async_trait::async_trait;
    use broker::conformance::Fixture;
    use broker::embedded::{Config, Embedded};
    use broker::{Broker, Limits};
    use std::sync::Arc;
    use tempfile::TempDir;
    use tokio::sync::Mutex;

    /// A folder, and the one process that can use it at a time.
    struct Folder {
        dir: TempDir,
        limits: Limits,
        process: Mutex<Option<Arc<Embedded>>>,
    }

    #[async_trait]
    impl Fixture for Folder {
        async fn clean(limits: Limits) -> Self {
            Self { dir: TempDir::new().expect("a folder"), limits, process: Mutex::new(None) }
        }

        async fn open(&self) -> Arc<dyn Broker> {
            let mut process = self.process.lock().await;
            // Closed, it has let go of the file; until then it is the process that has it.
            if let Some(open) = &*process
                && open.depths(&[]).await.is_ok()
            {
                return open.clone();
            }
            let config = Config { dir: self.dir.path().to_owned(), limits: self.limits.clone() };
            process.insert(Embedded::open(config).await.expect("a store")).clone()
        }

        async fn crash(&self, broker: Arc<dyn Broker>) {
            drop(broker);
            if let Some(process) = self.process.lock().await.take() {
                process.abandon().await;
            }
        }

        async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
            broker.close().await;
            self.open().await
        }

        fn service_apart(&self) -> bool {
            false
        }
    }

    broker::conformance_suite!(Folder);
}

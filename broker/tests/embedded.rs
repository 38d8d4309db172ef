//! The embedded broker, from outside: the conformance suite, a process killed under load, files that do not open.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "embedded/files.rs"]
mod files;
#[path = "embedded/killed.rs"]
mod killed;

use broker::embedded::{Config, Embedded};
use broker::{Broker, BrokerError, Consumer, Delivery, Incoming, Limits, Queue};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn open(dir: &Path) -> Result<Arc<Embedded>, BrokerError> {
    let limits = Limits { returns_max: 1, ..Limits::default() };
    Embedded::open(Config { dir: dir.to_owned(), limits }).await
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    match within("a delivery", consumer.next()).await {
        Some(Incoming::Delivery(delivery)) => *delivery,
        other => panic!("{other:?}"),
    }
}

/// Everything that rests in these queues, which nobody consumes; it stays there.
async fn contents(broker: &Embedded, queues: impl IntoIterator<Item = Queue>) -> Vec<Delivery> {
    let mut found = Vec::new();
    for queue in queues {
        let depth = broker.depths(std::slice::from_ref(&queue)).await.unwrap()[0].unwrap();
        let mut consumer = broker.consume(&queue, u32::MAX).await.unwrap();
        for _ in 0..depth.ready {
            found.push(next(&mut consumer).await);
        }
    }
    found
}

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

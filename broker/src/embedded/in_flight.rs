//! Bounds on what is published and not yet on disk.

use crate::Limits;
use crate::receipt::PublishError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Messages, and bytes of their bodies.
pub(super) struct InFlight {
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
    patience: Duration,
}

impl InFlight {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            messages: Arc::new(Semaphore::new(limits.in_flight_messages_max as usize)),
            bytes: Arc::new(Semaphore::new(limits.in_flight_bytes_max as usize)),
            bytes_max: limits.in_flight_bytes_max,
            patience: limits.publish_timeout,
        }
    }

    /// Waits for room for one message; it is given back when the permits are dropped. One that is larger than all the
    /// room there is takes all of it.
    pub(super) async fn enter(&self, bytes: usize) -> Result<[OwnedSemaphorePermit; 2], PublishError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        match timeout(self.patience, self.acquire(bytes)).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(AcquireError { .. })) => Err(PublishError::Closed),
            Err(_) => Err(PublishError::Unavailable(format!(
                "no room among the messages in flight within {:?}",
                self.patience
            ))),
        }
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.messages.close();
        self.bytes.close();
    }

    async fn acquire(&self, bytes: u32) -> Result<[OwnedSemaphorePermit; 2], AcquireError> {
        let message = self.messages.clone().acquire_owned().await?;
        Ok([message, self.bytes.clone().acquire_many_owned(bytes).await?])
    }
}

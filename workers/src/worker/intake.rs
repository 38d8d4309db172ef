//! The consumer of the lane's queue, in a task of its own: so that a change of the prefetch, or a broker that is away,
//! holds up nothing else.

use backon::{BackoffBuilder, ExponentialBuilder};
use broker::{Broker, BrokerError, Consumer, Delivery, Incoming, Queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often the consumer's place at the broker is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The task's side.
pub(crate) struct Intake {
    broker: Arc<dyn Broker>,
    queue: Queue,
    /// How many deliveries to hold; 0 for none at all. Its sender gone means no more.
    prefetch: watch::Receiver<u32>,
    arrivals: mpsc::Sender<Box<Delivery>>,
    registered: Arc<AtomicBool>,
}

impl Intake {
    /// Begins to consume; the first time must succeed, so that a worker that cannot work does not start.
    pub(crate) async fn start(
        broker: Arc<dyn Broker>,
        queue: Queue,
        prefetch: watch::Receiver<u32>,
        arrivals: mpsc::Sender<Box<Delivery>>,
        registered: Arc<AtomicBool>,
    ) -> Result<(), BrokerError> {
        let first = (*prefetch.borrow()).max(1);
        let consumer = broker.consume(&queue, first).await?;
        let intake = Self { broker, queue, prefetch, arrivals, registered };
        intake.registered.store(consumer.registered(), Ordering::Relaxed);
        tokio::spawn(intake.run(consumer));
        Ok(())
    }

    async fn run(mut self, mut consumer: Box<dyn Consumer>) {
        loop {
            let ended = self.take(consumer).await;
            self.registered.store(false, Ordering::Relaxed);
            if let Ended::ForGood = ended {
                return;
            }
            // Paused: the lane has no slots.
            if self.prefetch.wait_for(|prefetch| *prefetch > 0).await.is_err() {
                return;
            }
            match self.consume().await {
                Some(again) => consumer = again,
                None => return,
            }
        }
    }

    /// Passes deliveries on until the consumer ends, or is to end.
    async fn take(&mut self, mut consumer: Box<dyn Consumer>) -> Ended {
        let mut look = tokio::time::interval(LOOK);
        if *self.prefetch.borrow() == 0 {
            return Ended::Paused;
        }
        loop {
            tokio::select! {
                incoming = consumer.next() => match incoming {
                    None => return Ended::ForGood,
                    Some(Incoming::Resumed) => tracing::info!(queue = %self.queue, "consuming again"),
                    Some(Incoming::Delivery(delivery)) => {
                        if let Err(unwanted) = self.arrivals.send(delivery).await {
                            unwanted.0.give_back();
                            return Ended::ForGood;
                        }
                    }
                },
                changed = self.prefetch.changed() => {
                    let prefetch = *self.prefetch.borrow_and_update();
                    if changed.is_err() {
                        return Ended::ForGood;
                    }
                    if prefetch == 0 {
                        return Ended::Paused;
                    }
                    if let Err(error) = consumer.set_prefetch(prefetch).await {
                        tracing::debug!(%error, prefetch, "failed to change the prefetch; the old one stands");
                    }
                }
                _ = look.tick() => {}
            }
            self.registered.store(consumer.registered(), Ordering::Relaxed);
        }
    }

    /// Consumes again, trying until it succeeds, or is no longer wanted.
    async fn consume(&mut self) -> Option<Box<dyn Consumer>> {
        let backoff = ExponentialBuilder::default().with_jitter().with_max_delay(Duration::from_secs(5));
        for delay in backoff.without_max_times().build() {
            let prefetch = *self.prefetch.borrow_and_update();
            match self.broker.consume(&self.queue, prefetch.max(1)).await {
                Ok(consumer) => return Some(consumer),
                Err(BrokerError::Closed) => return None,
                Err(error) => tracing::warn!(%error, queue = %self.queue, "failed to consume; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Only its end matters here; a change is read when consuming succeeds.
                () = closed(&mut self.prefetch) => return None,
            }
        }
        None
    }
}

async fn closed(prefetch: &mut watch::Receiver<u32>) {
    while prefetch.changed().await.is_ok() {}
}

enum Ended {
    /// The broker is closed, or the worker takes no more.
    ForGood,
    /// No slots for now.
    Paused,
}

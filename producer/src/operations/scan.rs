//! Going through the `dead` queue once. A queue can only be read from its head, so jobs that are not wanted are held,
//! unsettled, until the end and then given back, as near to their old order as the broker can. When holding them would
//! take too much memory the oldest are moved to the tail, confirmed before they are acknowledged. Bounded by the
//! depth at the start.

use super::dead::DeadError;
use broker::{Broker, Consumer, Delivery, Incoming, Message, Queue, Route};
use schemas::{JobHeader, JobId};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;
use tokio::time::timeout;

/// Which dead jobs are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that are there when it begins.
    All,
    /// These.
    These(Vec<JobId>),
}

/// How much is held back while looking for others.
#[derive(Clone, Copy, Debug)]
struct HeldMax {
    jobs: usize,
    bytes: usize,
}

const HELD_MAX: HeldMax = HeldMax { jobs: 10_000, bytes: 64 << 20 };
/// How many are fetched ahead.
const AHEAD: u32 = 64;
/// The queue is taken to be at its end when nothing came for so long.
const QUIET: Duration = Duration::from_secs(2);

/// One pass through `dead`.
pub(super) struct Scan<'a> {
    broker: &'a dyn Broker,
    /// None once the pass is over.
    consumer: Option<Box<dyn Consumer>>,
    /// The ids still looked for; none for all of them.
    wanted: Option<HashSet<JobId>>,
    /// Ids already dealt with: a crash may have left a copy.
    done: HashSet<JobId>,
    held: VecDeque<Box<Delivery>>,
    held_bytes: usize,
    held_max: HeldMax,
    prefetch: u32,
    /// Deliveries still to look at.
    left: u64,
}

/// A dead job in hand.
pub(super) struct Dead {
    pub(super) delivery: Box<Delivery>,
    /// What it is; none when its header cannot be read.
    pub(super) header: Option<JobHeader>,
    /// Its id, as far as the message says.
    pub(super) id: Option<JobId>,
}

impl<'a> Scan<'a> {
    pub(super) async fn begin(broker: &'a dyn Broker, which: &Which) -> Result<Self, DeadError> {
        let depth = broker.depths(&[Queue::Dead]).await?.into_iter().next().flatten().unwrap_or_default();
        let consumer = broker.consume(&Queue::Dead, AHEAD).await?;
        Ok(Self {
            broker,
            consumer: Some(consumer),
            wanted: match which {
                Which::All => None,
                Which::These(ids) => Some(ids.iter().copied().collect()),
            },
            done: HashSet::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            held_max: HELD_MAX,
            prefetch: AHEAD,
            left: depth.ready + depth.unacked.unwrap_or(0),
        })
    }

    /// The next job that is wanted; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Dead>, DeadError> {
        while self.left > 0 && self.wanted.as_ref().is_none_or(|wanted| !wanted.is_empty()) {
            // Nothing for a while: others hold the rest, or have taken it.
            let Some(consumer) = &mut self.consumer else { break };
            let Ok(incoming) = timeout(QUIET, consumer.next()).await else { break };
            match incoming {
                None => return Err(DeadError::Closed),
                Some(Incoming::Resumed) => self.start_over(),
                Some(Incoming::Delivery(delivery)) => {
                    self.left -= 1;
                    let (header, id) = identify(&delivery.message);
                    if id.is_some_and(|id| self.done.contains(&id)) {
                        delivery.ack();
                    } else if self.wants(id) {
                        return Ok(Some(Dead { delivery, header, id }));
                    } else {
                        self.hold(delivery).await?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// The next hop of `dead` is safe: forget it.
    pub(super) fn settle(&mut self, dead: Dead) {
        if let Some(id) = dead.id {
            self.done.insert(id);
            if let Some(wanted) = &mut self.wanted {
                wanted.remove(&id);
            }
        }
        dead.delivery.ack();
    }

    /// It stays where it is.
    pub(super) async fn keep(&mut self, dead: Dead) -> Result<(), DeadError> {
        if let (Some(wanted), Some(id)) = (&mut self.wanted, dead.id) {
            wanted.remove(&id);
        }
        self.hold(dead.delivery).await
    }

    /// Gives back what is held and says which ids were not found.
    pub(super) fn end(mut self) -> Vec<JobId> {
        self.wanted.take().into_iter().flatten().collect()
    }

    fn wants(&self, id: Option<JobId>) -> bool {
        match &self.wanted {
            None => true,
            Some(wanted) => id.is_some_and(|id| wanted.contains(&id)),
        }
    }

    async fn hold(&mut self, delivery: Box<Delivery>) -> Result<(), DeadError> {
        self.held_bytes += delivery.message.body.len();
        self.held.push_back(delivery);
        while self.held.len() > self.held_max.jobs || self.held_bytes > self.held_max.bytes {
            self.move_oldest_to_tail().await?;
        }
        // Room for what is held and for as much ahead: doubling, since each change costs a round trip.
        if self.held.len() as u64 * 2 > u64::from(self.prefetch) {
            self.prefetch *= 2;
            if let Some(consumer) = &mut self.consumer {
                consumer.set_prefetch(self.prefetch).await?;
            }
        }
        Ok(())
    }

    async fn move_oldest_to_tail(&mut self) -> Result<(), DeadError> {
        let Some(oldest) = self.held.pop_front() else { return Ok(()) };
        self.held_bytes -= oldest.message.body.len();
        let receipt = self.broker.publish(Route::To(Queue::Dead), oldest.message.clone()).await;
        match receipt.await {
            Ok(()) => {
                oldest.ack();
                Ok(())
            }
            Err(error) => {
                oldest.give_back();
                Err(error.into())
            }
        }
    }

    /// What is held will be delivered again.
    fn start_over(&mut self) {
        self.left += self.held.len() as u64;
        self.give_back();
    }

    fn give_back(&mut self) {
        self.held_bytes = 0;
        // From the tail, so that each lands before those given back earlier.
        while let Some(delivery) = self.held.pop_back() {
            delivery.give_back();
        }
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        // First what was fetched ahead, then what came before it: each lands at the head.
        self.consumer = None;
        self.give_back();
    }
}

fn identify(message: &Message) -> (Option<JobHeader>, Option<JobId>) {
    let header = message.packed.as_ref().and_then(|packed| JobHeader::decode(packed).ok());
    let named = || message.properties.correlation_id.as_deref().and_then(|id| id.parse().ok());
    let id = header.as_ref().map(|header| header.id).or_else(named);
    (header, id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use broker::embedded::{Config, Embedded};
    use broker::{Limits, Properties};
    use std::sync::Arc;

    struct Dead5 {
        broker: Arc<Embedded>,
        ids: Vec<JobId>,
        _dir: tempfile::TempDir,
    }

    /// Five dead jobs of 100 bytes each in a queue with this limit.
    async fn five(dead_messages_max: u64) -> Dead5 {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { dead_messages_max, ..Limits::default() };
        let broker = Embedded::open(Config { dir: dir.path().into(), limits }).await.unwrap();
        let ids: Vec<_> = (0..5).map(|_| JobId::new()).collect();
        for id in &ids {
            let properties = Properties { correlation_id: Some(id.to_string()), ..Properties::default() };
            let message = Message { properties, body: vec![0; 100].into(), ..Message::default() };
            broker.publish(Route::To(Queue::Dead), message).await.await.unwrap();
        }
        Dead5 { broker, ids, _dir: dir }
    }

    /// What is in the queue, once all that was given back is there again.
    async fn sorted(broker: &Embedded) -> Vec<JobId> {
        let ready = async {
            while broker.depths(&[Queue::Dead]).await.unwrap()[0].unwrap().ready < 5 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), ready).await.unwrap();
        let mut consumer = broker.consume(&Queue::Dead, 10).await.unwrap();
        let mut deliveries = Vec::new();
        while deliveries.len() < 5 {
            let Some(Incoming::Delivery(delivery)) = consumer.next().await else {
                panic!("the queue has five")
            };
            deliveries.push(delivery);
        }
        let mut ids = Vec::new();
        for delivery in deliveries {
            ids.extend(identify(&delivery.message).1);
            delivery.give_back();
        }
        ids.sort();
        ids
    }

    #[tokio::test]
    async fn what_is_not_wanted_is_held_and_given_back() {
        let Dead5 { broker, ids, _dir } = five(5).await;
        let mut scan = Scan::begin(&*broker, &Which::These(vec![ids[3]])).await.unwrap();
        let found = scan.next().await.unwrap().unwrap();
        assert_eq!((found.id, scan.held.len()), (Some(ids[3]), 3));
        scan.keep(found).await.unwrap();
        assert!(scan.next().await.unwrap().is_none());
        assert_eq!(scan.end(), []);
        assert_eq!(sorted(&broker).await, ids);
    }

    #[tokio::test]
    async fn what_is_too_much_to_hold_moves_to_the_tail_and_nothing_is_lost() {
        let Dead5 { broker, ids, _dir } = five(10).await;
        for held_max in [HeldMax { jobs: 1, bytes: usize::MAX }, HeldMax { jobs: 9, bytes: 100 }] {
            let stranger = JobId::new();
            let mut scan = Scan::begin(&*broker, &Which::These(vec![stranger])).await.unwrap();
            scan.held_max = held_max;
            assert!(scan.next().await.unwrap().is_none());
            assert_eq!(scan.held.len(), 1);
            assert_eq!(scan.end(), [stranger]);
            assert_eq!(sorted(&broker).await, ids, "each once");
        }
    }

    #[tokio::test]
    async fn a_queue_that_takes_no_more_stops_the_moving_and_loses_nothing() {
        let Dead5 { broker, ids, _dir } = five(5).await;
        let mut scan = Scan::begin(&*broker, &Which::These(vec![JobId::new()])).await.unwrap();
        scan.held_max = HeldMax { jobs: 0, bytes: 0 };
        let Err(error) = scan.next().await else { panic!("there is no room at the tail") };
        assert!(matches!(error, DeadError::Publish(_)), "{error}");
        drop(scan);
        assert_eq!(sorted(&broker).await, ids);
    }
}

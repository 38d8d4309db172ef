//! The embedded broker on a disk that fails: at any one operation, or because it is full.

use super::*;
use crate::{Consumer, Incoming};
use redb::{Database, StorageBackend};
use schemas::retry::DELAYS;
use schemas::{Class, Lane, ReplyQueue};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// A disk in memory that knows what it was told to keep, and fails on demand.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    live: Vec<u8>,
    /// As of the last sync: what a loss of power leaves.
    kept: Vec<u8>,
    /// Writes, syncs and changes of length so far.
    operations: usize,
    /// Operations that fail.
    fails: std::ops::Range<usize>,
    /// Bytes it holds.
    capacity: Option<usize>,
    /// The next sync panics, as the store's crate may.
    panics: bool,
}

impl Disk {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn opener(&self) -> Opener {
        let disk = self.clone();
        Box::new(move |_| Database::builder().create_with_backend(disk.clone()))
    }

    /// Another disk with what this one would have after a loss of power.
    fn after_power_loss(&self) -> Self {
        let kept = self.state().kept.clone();
        Self(Arc::new(Mutex::new(State { live: kept.clone(), kept, ..State::default() })))
    }
}

impl State {
    fn operation(&mut self, end: usize) -> io::Result<()> {
        self.operations += 1;
        if self.fails.contains(&self.operations) {
            return Err(io::Error::other("the disk failed"));
        }
        match self.capacity {
            Some(capacity) if end > capacity => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
            }
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let state = self.state();
        let found = state.live.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation(len as usize)?;
        state.live.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let panics = std::mem::take(&mut self.state().panics);
        assert!(!panics, "as a test wants it");
        let mut state = self.state();
        state.operation(0)?;
        state.kept = state.live.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        let mut state = self.state();
        state.operation(offset + data.len())?;
        state.live[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }
}

async fn open(disk: &Disk) -> Result<Arc<Embedded>, BrokerError> {
    let dir = tempfile::TempDir::new().unwrap();
    let limits = Limits { returns_max: 1, publish_timeout: Duration::from_millis(100), ..Limits::default() };
    Embedded::open_with(
        Config { dir: dir.path().to_owned(), limits },
        disk.opener(),
        Duration::from_millis(5),
    )
    .await
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

fn message(body: &str, bytes: usize) -> Message {
    Message { body: format!("{body:<bytes$}").into(), ..Message::default() }
}

fn body(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap().trim_end().to_owned()
}

async fn next(consumer: &mut Box<dyn Consumer>) -> crate::Delivery {
    match within("a delivery", consumer.next()).await {
        Some(Incoming::Delivery(delivery)) => *delivery,
        other => panic!("{other:?}"),
    }
}

/// Everything that rests in the store, and how often.
async fn contents(disk: &Disk) -> BTreeMap<String, usize> {
    let broker = open(disk).await.unwrap();
    let mut found = BTreeMap::new();
    let replies = Queue::Reply(ReplyQueue::new("reply.c.i").unwrap());
    let fixed = Queue::fixed().filter(|queue| !matches!(queue, Queue::Retry(_)));
    // A retry that is on its way is where it goes when it is there.
    let delayed = || async {
        let queues: Vec<Queue> = Queue::fixed().filter(|queue| matches!(queue, Queue::Retry(_))).collect();
        broker.depths(&queues).await.unwrap().iter().flatten().map(|depth| depth.ready).sum::<u64>()
    };
    within("retries to be through", async {
        while delayed().await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for queue in fixed.chain([replies]) {
        let Some(depth) = broker.depths(std::slice::from_ref(&queue)).await.unwrap()[0] else { continue };
        let mut consumer = broker.consume(&queue, u32::MAX).await.unwrap();
        for _ in 0..depth.ready {
            let delivery = next(&mut consumer).await;
            *found.entry(body(&delivery.message)).or_default() += 1;
            delivery.ack();
        }
    }
    broker.abandon().await;
    found
}

/// What became of the messages of [`work`].
#[derive(Debug, Default)]
struct Told {
    confirmed: Vec<String>,
    refused: Vec<String>,
    /// Nobody knows.
    lost: Vec<String>,
    acknowledged: Vec<String>,
    settled_may_return: bool,
}

/// A bit of everything: publishes small and large, takes, acknowledges, gives back until one dies, retries, declares.
async fn work(broker: &Embedded) -> Told {
    let mut told = Told::default();
    let replies = Queue::Reply(ReplyQueue::new("reply.c.i").unwrap());
    let declared = broker.consume(&replies, 5).await.is_ok();
    let lane = Queue::Lane(Lane::Local);
    let mut consumer = broker.consume(&lane, 100).await.unwrap();
    for round in 0..4 {
        let mut receipts = Vec::new();
        let routes = [
            Route::To(lane.clone()),
            Route::Retry(DELAYS[0], Class::Low),
            Route::To(lane.clone()),
            Route::To(if declared { replies.clone() } else { Queue::Dead }),
        ];
        for (n, route) in routes.into_iter().enumerate() {
            let name = format!("{round}.{n}");
            let size = if n == 2 { 5_000 } else { 100 };
            receipts.push((name.clone(), broker.publish(route, message(&name, size)).await));
        }
        for (name, receipt) in receipts {
            match within("a receipt", receipt).await {
                Ok(()) => told.confirmed.push(name),
                Err(PublishError::Unavailable(_)) => told.refused.push(name),
                Err(PublishError::Lost) => told.lost.push(name),
                Err(error) => panic!("{name}: {error}"),
            }
        }
        let waiting = broker.depths(std::slice::from_ref(&lane)).await.unwrap()[0].unwrap().ready;
        for n in 0..waiting {
            let delivery = next(&mut consumer).await;
            if (n + round) % 2 == 0 {
                told.acknowledged.push(body(&delivery.message));
                delivery.ack();
            } else {
                delivery.give_back();
            }
        }
    }
    told
}

fn check(told: &Told, found: &BTreeMap<String, usize>, what: &str) {
    for name in &told.confirmed {
        let acknowledged = told.acknowledged.contains(name);
        match found.get(name) {
            None => assert!(acknowledged, "{what}: {name} was confirmed and is lost"),
            Some(1) => assert!(!acknowledged || told.settled_may_return, "{what}: {name} was acknowledged"),
            Some(times) => panic!("{what}: {name} is there {times} times"),
        }
    }
    for name in &told.refused {
        assert!(!found.contains_key(name), "{what}: {name} was refused and is there");
    }
    assert!(told.lost.iter().all(|name| found.get(name).is_none_or(|times| *times == 1)), "{what}");
    assert_eq!(told.confirmed.len() + told.refused.len() + told.lost.len(), 16, "{what}");
}

#[tokio::test]
async fn a_receipt_means_that_the_message_survives_a_loss_of_power() {
    let disk = Disk::default();
    let broker = open(&disk).await.unwrap();
    for n in 0..20 {
        broker.publish(Route::Submit(Class::High), message(&n.to_string(), 3_000)).await.await.unwrap();
        let found = contents(&disk.after_power_loss()).await;
        assert_eq!(found.len(), n + 1, "after message {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_operations_anywhere_lose_nothing_and_repeat_nothing() {
    // How many operations there are when all is well.
    let disk = Disk::default();
    let broker = open(&disk).await.unwrap();
    let opened = disk.state().operations;
    let told = work(&broker).await;
    broker.close().await;
    let operations = disk.state().operations;
    assert_eq!(told.confirmed.len(), 16);
    check(&told, &contents(&disk).await, "no failure");

    let mut refused = 0;
    // One failure, and several, so that the file cannot be opened again at once.
    for (failing, failures) in (opened + 1..operations).flat_map(|failing| [(failing, 1), (failing, 4)]) {
        let disk = Disk::default();
        let broker = open(&disk).await.unwrap();
        disk.state().fails = failing..failing + failures;
        let mut told = work(&broker).await;
        let mut health = broker.health();
        within("recovery", health.wait_for(|health| *health == Health::Connected)).await.unwrap();
        refused += told.refused.len();
        // What is settled last is written when it closes; a disk that fails again and again then brings it back.
        told.settled_may_return = failures > 1 && disk.state().operations < failing + failures;
        broker.close().await;
        // Another order of things may have needed fewer operations.
        disk.state().fails = 0..0;
        check(&told, &contents(&disk).await, &format!("{failures} operations from {failing} on failed"));
    }
    assert!(refused > 0, "no failure hit a publish");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_lost_at_any_operation_loses_nothing_confirmed() {
    for lost_after in (10..200).step_by(7) {
        let disk = Disk::default();
        let broker = open(&disk).await.unwrap();
        let from = disk.state().operations + lost_after;
        // From here on nothing reaches the disk; what was confirmed until then must be on it.
        disk.state().fails = from..usize::MAX;
        let told = within("the work", work_until_trouble(&broker)).await;
        let found = contents(&disk.after_power_loss()).await;
        broker.abandon().await;
        for name in &told.confirmed {
            assert_eq!(found.get(name), Some(&1), "power lost after {lost_after}: {name}");
        }
    }
}

async fn work_until_trouble(broker: &Embedded) -> Told {
    let mut told = Told::default();
    for n in 0.. {
        let name = n.to_string();
        match broker.publish(Route::Submit(Class::Normal), message(&name, 700)).await.await {
            Ok(()) => told.confirmed.push(name),
            Err(PublishError::Unavailable(_) | PublishError::Lost) => break,
            Err(error) => panic!("{error}"),
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_takes_again_once_there_is_room() {
    let disk = Disk::default();
    let broker = open(&disk).await.unwrap();
    let mut health = broker.health();
    let queue = Queue::Jobs(Class::Normal);
    let mut consumer = broker.consume(&queue, 10).await.unwrap();
    let mut confirmed = Vec::new();
    let mut held = Vec::new();
    let size = disk.state().live.len();
    disk.state().capacity = Some(size + (1 << 20));
    let error = loop {
        let name = confirmed.len().to_string();
        match within("a receipt", broker.publish(Route::To(queue.clone()), message(&name, 50_000)).await)
            .await
        {
            Ok(()) => confirmed.push(name),
            Err(error) => break error,
        }
        if held.len() < 5 {
            held.push(next(&mut consumer).await);
        }
    };
    assert!(
        matches!(&error, PublishError::Unavailable(reason) if reason.contains("disk is full")),
        "{error}"
    );
    let blocked =
        within("health", health.wait_for(|health| *health != Health::Connected)).await.unwrap().clone();
    assert!(matches!(&blocked, Health::Blocked(reason) if reason.contains("disk is full")), "{blocked:?}");
    // What is settled meanwhile stays settled, and deliveries go on.
    for delivery in held.drain(..3) {
        confirmed.retain(|name| *name != body(&delivery.message));
        delivery.ack();
    }
    let sixth = next(&mut consumer).await;
    assert_eq!(body(&sixth.message), "5");
    sixth.give_back();

    disk.state().capacity = None;
    within("health", health.wait_for(|health| *health == Health::Connected)).await.unwrap();
    let later = message("later", 50_000);
    within("a receipt", broker.publish(Route::To(queue.clone()), later).await).await.unwrap();
    confirmed.push("later".to_owned());
    drop(held);
    broker.close().await;
    let found: Vec<String> = contents(&disk).await.into_keys().collect();
    confirmed.sort();
    assert_eq!(found, confirmed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_gone_is_told_in_time_and_closing_does_not_hang() {
    let disk = Disk::default();
    let broker = open(&disk).await.unwrap();
    let before = broker.publish(Route::Submit(Class::High), message("before", 10)).await;
    within("a receipt", before).await.unwrap();
    let from = disk.state().operations;
    disk.state().fails = from..usize::MAX;
    let receipts = [
        broker.publish(Route::Submit(Class::High), message("first", 10)).await,
        broker.publish(Route::Submit(Class::High), message("second", 10)).await,
    ];
    for receipt in receipts {
        let error = within("a receipt", receipt).await.unwrap_err();
        assert!(matches!(error, PublishError::Lost | PublishError::Unavailable(_)), "{error}");
    }
    assert_ne!(*broker.health().borrow(), Health::Connected);
    within("closing", broker.close()).await;
    let found = contents(&disk.after_power_loss()).await;
    assert_eq!(found.get("before"), Some(&1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_thread_that_breaks_down_is_seen_and_nobody_waits_for_it() {
    let disk = Disk::default();
    let broker = open(&disk).await.unwrap();
    let mut consumer = broker.consume(&Queue::Jobs(Class::High), 1).await.unwrap();
    disk.state().panics = true;
    let receipt = broker.publish(Route::Submit(Class::High), message("m", 10)).await;
    assert_eq!(within("a receipt", receipt).await, Err(PublishError::Lost));
    let mut health = broker.health();
    let seen = health.wait_for(|health| matches!(health, Health::Disconnected(_)));
    let seen = within("health", seen).await.unwrap().clone();
    assert!(matches!(&seen, Health::Disconnected(reason) if reason.contains("broke down")), "{seen:?}");
    assert!(within("the end", consumer.next()).await.is_none());
    let late = broker.publish(Route::Submit(Class::High), message("m", 10)).await;
    assert_eq!(within("a receipt", late).await, Err(PublishError::Closed));
    within("closing", broker.close()).await;
}

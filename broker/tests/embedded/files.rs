//! Files that do not open, and what is said about them.

use super::{contents, next, open};
use broker::{Broker, BrokerError, Message, Queue, Route};
use redb::{Database, ReadableTable, TableDefinition};
use schemas::Class;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Opens what must not open; what is said, which names the file.
async fn refused(dir: &Path) -> String {
    match open(dir).await {
        Err(error @ BrokerError::Store { .. }) => {
            let said = error.to_string();
            assert!(said.contains(&*file(dir).to_string_lossy()), "{said}");
            said
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened"),
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("broker.redb")
}

/// A store with messages small and large, closed.
async fn filled(dir: &Path, messages: usize) {
    let broker = open(dir).await.unwrap();
    let mut receipts = Vec::new();
    for n in 0..messages {
        let body = vec![n as u8; if n % 10 == 0 { 9_000 } else { 300 }].into();
        receipts
            .push(broker.publish(Route::Submit(Class::High), Message { body, ..Message::default() }).await);
    }
    for receipt in receipts {
        receipt.await.unwrap();
    }
    broker.close().await;
}

#[tokio::test]
async fn a_folder_in_use_is_refused_until_it_is_free() {
    let dir = TempDir::new().unwrap();
    let broker = open(dir.path()).await.unwrap();
    let said = refused(dir.path()).await;
    assert!(said.contains("another StraightLine process uses this data directory"), "{said}");
    broker.publish(Route::Submit(Class::High), Message::default()).await.await.unwrap();
    broker.close().await;
    // The handle is still there; the file is free at once.
    let again = open(dir.path()).await.unwrap();
    assert_eq!(contents(&again, [Queue::Jobs(Class::High)]).await.len(), 1);
    again.close().await;
    drop(broker);
}

#[tokio::test]
async fn a_file_of_something_else_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(file(dir.path()), "not a store, but notes that somebody wants to keep".repeat(100))
        .unwrap();
    let said = refused(dir.path()).await;
    assert!(said.contains("not a StraightLine store"), "{said}");
    let kept = std::fs::read_to_string(file(dir.path())).unwrap();
    assert!(kept.starts_with("not a store"), "it must be left alone");

    let dir = TempDir::new().unwrap();
    let other = Database::create(file(dir.path())).unwrap();
    let transaction = other.begin_write().unwrap();
    transaction.open_table(TableDefinition::<&str, &str>::new("theirs")).unwrap().insert("a", "b").unwrap();
    transaction.commit().unwrap();
    drop(other);
    let said = refused(dir.path()).await;
    assert!(said.contains("not a StraightLine store"), "{said}");
}

#[tokio::test]
async fn a_format_of_the_future_is_refused() {
    let dir = TempDir::new().unwrap();
    filled(dir.path(), 1).await;
    let database = Database::open(file(dir.path())).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let said = refused(dir.path()).await;
    assert!(said.contains("format 2, and this version knows 1 only"), "{said}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_is_refused() {
    let dir = TempDir::new().unwrap();
    let blocked = dir.path().join("blocked");
    std::fs::write(&blocked, "a file").unwrap();
    let said = refused(&blocked.join("below")).await;
    assert!(said.contains("folder cannot be made"), "{said}");
    std::fs::create_dir_all(file(&dir.path().join("taken"))).unwrap();
    refused(&dir.path().join("taken")).await;
}

#[tokio::test]
async fn what_is_left_of_an_unreadable_message_arrives_where_messages_die() {
    const BODIES: TableDefinition<u64, &[u8]> = TableDefinition::new("bodies");
    const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");
    let dir = TempDir::new().unwrap();
    let broker = open(dir.path()).await.unwrap();
    for n in 0..4_u8 {
        // The body of the second is stored apart.
        let body = vec![n; if n == 1 { 9_000 } else { 10 }].into();
        let message = Message { packed: Some(vec![n; 40].into()), body, ..Message::default() };
        broker.publish(Route::Submit(Class::High), message).await.await.unwrap();
    }
    broker.close().await;
    let database = Database::open(file(dir.path())).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut messages = transaction.open_table(MESSAGES).unwrap();
        let ids: Vec<u64> = messages.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
        assert!(transaction.open_table(BODIES).unwrap().remove(ids[1]).unwrap().is_some());
        // What describes the third is no longer what it was.
        let mut record = messages.get(ids[2]).unwrap().unwrap().value().to_vec();
        record[32] = 0xc1;
        messages.insert(ids[2], record.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);

    let broker = open(dir.path()).await.unwrap();
    let mut jobs = broker.consume(&Queue::Jobs(Class::High), 10).await.unwrap();
    let mut intake = broker.consume(&Queue::DeadIntake, 10).await.unwrap();
    for n in [0, 3_u8] {
        let delivery = next(&mut jobs).await;
        assert_eq!(delivery.message.body[..], [n; 10]);
        delivery.ack();
    }
    for packed in [Some(vec![1; 40].into()), None] {
        let delivery = next(&mut intake).await;
        assert_eq!(delivery.message, Message { packed, ..Message::default() });
        let death = delivery.death.clone().unwrap();
        assert_eq!((death.queue.as_str(), death.reason.as_str()), ("jobs.high", "unreadable"));
        delivery.ack();
    }
    let depths = broker.depths(&[Queue::Jobs(Class::High), Queue::DeadIntake]).await.unwrap();
    assert!(depths.iter().flatten().all(|depth| (depth.ready, depth.unacked) == (0, Some(0))), "{depths:?}");
    broker.close().await;
    let again = open(dir.path()).await.unwrap();
    assert!(contents(&again, [Queue::Jobs(Class::High), Queue::DeadIntake]).await.is_empty());
    again.close().await;
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_whole() {
    const MESSAGES: usize = 60;
    let dir = TempDir::new().unwrap();
    filled(dir.path(), MESSAGES).await;
    let whole = std::fs::read(file(dir.path())).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut found_out = 0;
    for at in (0..used).step_by(used / 197) {
        let mut damaged = whole.clone();
        damaged[at..].iter_mut().take(512).for_each(|byte| *byte ^= 0x5a);
        std::fs::write(file(dir.path()), damaged).unwrap();
        match open(dir.path()).await {
            Err(BrokerError::Store { path, reason }) => {
                assert_eq!(Path::new(&path), file(dir.path()));
                assert!(!reason.is_empty());
                found_out += 1;
            }
            Err(error) => panic!("damaged at {at}: {error}"),
            // Nothing that counts was hit: then nothing may be missing.
            Ok(broker) => {
                let found = contents(&broker, [Queue::Jobs(Class::High)]).await;
                assert_eq!(found.len(), MESSAGES, "damaged at {at}");
                for (n, delivery) in found.iter().enumerate() {
                    assert!(delivery.message.body.iter().all(|byte| *byte == n as u8), "damaged at {at}");
                }
                broker.close().await;
            }
        }
    }
    assert!(found_out >= 5, "found out {found_out} times only: most of the file should count");

    std::fs::write(file(dir.path()), &whole[..used / 2]).unwrap();
    refused(dir.path()).await;
}

//! The embedded adapter passes the suite, and keeps what it promises about its file.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod child;

use async_trait::async_trait;
use bytes::Bytes;
use child::Child;
use redb::{Database, TableDefinition};
use schemas::JobId;
use state::conformance::{EmbeddedFixture, Fixture};
use state::embedded::{Config, Embedded};
use state::{Finish, Limits, Record, State, StateError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const KEEP: Duration = Duration::from_secs(600);

/// States in a folder that goes with the fixture.
struct Temporary(TempDir);

impl Temporary {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

#[async_trait]
impl Fixture for Temporary {
    async fn open(&self, name: &str, limits: Limits) -> Arc<dyn State> {
        EmbeddedFixture::new(self.0.path()).open(name, limits).await
    }
}

state::conformance_suite!(Temporary::new());

async fn open(dir: &Path) -> Result<Arc<Embedded>, StateError> {
    Embedded::open(Config::new(dir)).await
}

async fn refusal(dir: &Path) -> String {
    match open(dir).await.err().expect("it cannot open") {
        StateError::Store { path, reason } => {
            assert!(path.ends_with("state.redb"), "{path}");
            reason
        }
        other => panic!("{other:?}"),
    }
}

fn record(id: JobId, result: &'static [u8]) -> Record {
    Record { id, result: Bytes::from_static(result), keep: KEEP }
}

/// A state with a few hundred records, closed; its file.
async fn filled(dir: &Path) -> (PathBuf, Vec<JobId>) {
    let state = open(dir).await.unwrap();
    let ids: Vec<_> = (0..500).map(|_| JobId::new()).collect();
    let records: Vec<_> =
        ids.iter().map(|id| record(*id, b"a result of some length, so that it takes pages")).collect();
    state.finish(&records).await.unwrap();
    state.close().await;
    (dir.join("state.redb"), ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered = Vec::new();
    for _ in 0..3 {
        let mut child = Child::start("finish", dir.path());
        answered.extend((0..200).map(|_| child.line().parse::<JobId>().unwrap()));
        child.kill();
        let state = open(dir.path()).await.unwrap();
        let found = state.fetch(&answered).await.unwrap();
        assert!(found.iter().all(|found| found.as_deref() == Some(b"done")), "a record is gone");
        let again: Vec<_> = answered.iter().map(|id| record(*id, b"again")).collect();
        let lost = Finish::Lost(Bytes::from_static(b"done"));
        assert!(state.finish(&again).await.unwrap().iter().all(|finish| *finish == lost));
        state.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_at_a_time_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Child::start("finish", dir.path());
    child.line();
    let reason = refusal(dir.path()).await;
    assert!(reason.contains("another process has it open"), "{reason}");
    child.kill();
    let state = open(dir.path()).await.unwrap();
    assert!(refusal(dir.path()).await.contains("another process"), "nor twice in one process");
    state.close().await;
    open(dir.path()).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_calls_until_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Child::start("ask", dir.path());
    assert_eq!(child.ask("finish"), "won");
    child.limit_files("8000000:unlimited");
    let mut answer = child.ask("finish");
    for _ in 0..20 {
        if answer != "won" {
            break;
        }
        answer = child.ask("finish");
    }
    assert!(answer.contains("state.redb cannot be used: File too large"), "{answer}");
    for _ in 0..3 {
        let answer = child.ask("finish");
        assert!(answer.contains("state.redb cannot be used"), "{answer}");
    }
    child.limit_files("unlimited:unlimited");
    let mut tries = 0;
    while child.ask("finish") != "won" {
        tries += 1;
        assert!(tries < 2000, "it never recovers");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(child.ask("all"), "all there", "what was won before and after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_told_and_breaks_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ids) = filled(dir.path()).await;
    let whole = std::fs::read(&file).unwrap();

    std::fs::write(&file, b"this was a store once").unwrap();
    let reason = refusal(dir.path()).await;
    assert!(reason.contains("it is damaged") && reason.contains("move it away"), "{reason}");
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(refusal(dir.path()).await.contains("it is damaged"));

    // Pages overwritten, wherever they lie: told on opening or in use, and never by a panic, a hang or a wrong result.
    let pages = whole.len() / 4096;
    for page in 0..pages.min(64) {
        let mut broken = whole.clone();
        broken[page * 4096..][..4096].fill(0xa5);
        std::fs::write(&file, &broken).unwrap();
        match open(dir.path()).await {
            Err(StateError::Store { .. }) => {}
            Err(other) => panic!("page {page}: {other:?}"),
            Ok(state) => {
                for found in state.fetch(&ids).await.iter().flatten().flatten() {
                    assert!(found.starts_with(b"a result"), "page {page}");
                }
                let finished = state.finish(&[record(JobId::new(), b"new")]).await;
                assert!(
                    matches!(finished, Ok(_) | Err(StateError::Store { .. })),
                    "page {page}: {finished:?}"
                );
                state.close().await;
            }
        }
    }
    std::fs::write(&file, &whole).unwrap();
    let state = open(dir.path()).await.unwrap();
    assert!(state.fetch(&ids).await.unwrap().iter().all(Option::is_some));
    state.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_a_newer_build_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = filled(dir.path()).await;
    let database = Database::create(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let reason = refusal(dir.path()).await;
    assert!(reason.contains("format 2") && reason.contains("newer build"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_cannot_be_made_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert!(!refusal(&dir.path().join("file")).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_waits_for_the_commit_it_sees() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path()).await.unwrap();
    for _ in 0..50 {
        let id = JobId::new();
        let writer = {
            let state = Arc::clone(&state);
            tokio::spawn(async move { state.finish(&[record(id, b"done")]).await.unwrap() })
        };
        // Whatever a reader is told of is there for every later reader.
        let mut seen = false;
        while !writer.is_finished() {
            let found = state.fetch(&[id]).await.unwrap()[0].is_some();
            assert!(found || !seen, "a record was seen and then was not");
            seen = found;
        }
        assert_eq!(writer.await.unwrap(), [Finish::Won]);
        assert!(state.fetch(&[id]).await.unwrap()[0].is_some());
    }
    state.close().await;
}

/// Not a test of its own: what the others start as a process to kill, lock out or starve. Started by nobody it has
/// nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process() {
    child::run().await;
}

//! What one scenario holds ([`Context`]), and what all of a run share ([`Stage`]).
//!
//! The stage starts a shared service when it is first asked for and remembers a failure to, so that a broker
//! that cannot start is waited for once, not once per scenario. Its folder is removed after a run that passed
//! and kept, with its logs, until the next run after one that failed.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use tokio::runtime::{self, Runtime};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::process::{Program, build, python, workspace};
use crate::services::{Database, Rabbit, RabbitVersion, Redis, Vhost, tail};

/// A service started at most once, or why it did not start.
type Shared<T> = OnceCell<Result<T, String>>;

/// What the scenarios of one run share.
pub(crate) struct Stage {
    // Services go before the runtime: fields are dropped in this order.
    rabbit_3_10: Shared<Arc<Rabbit>>,
    rabbit_4_0: Shared<Arc<Rabbit>>,
    redis: Shared<Arc<Redis>>,
    binary: Shared<PathBuf>,
    turn: RwLock<()>,
    versions: Mutex<BTreeSet<String>>,
    left_out: Mutex<Vec<String>>,
    folder: PathBuf,
    pub(crate) runtime: Runtime,
}

/// Held while a scenario runs: side by side with others, or alone.
pub(crate) enum Turn<'stage> {
    Together { _guard: RwLockReadGuard<'stage, ()> },
    Alone { _guard: RwLockWriteGuard<'stage, ()> },
}

impl Stage {
    pub(crate) fn set() -> Result<Self> {
        let runs = env::temp_dir().join("straightline-tests");
        remove_ended_runs(&runs);
        let folder = runs.join(process::id().to_string());
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        Ok(Self {
            rabbit_3_10: OnceCell::new(),
            rabbit_4_0: OnceCell::new(),
            redis: OnceCell::new(),
            binary: OnceCell::new(),
            turn: RwLock::new(()),
            versions: Mutex::default(),
            left_out: Mutex::default(),
            folder,
            runtime: runtime::Builder::new_multi_thread().enable_all().build()?,
        })
    }

    pub(crate) fn turn(&self, alone: bool) -> Turn<'_> {
        if alone {
            Turn::Alone { _guard: self.runtime.block_on(self.turn.write()) }
        } else {
            Turn::Together { _guard: self.runtime.block_on(self.turn.read()) }
        }
    }

    pub(crate) fn note_versions(&self, versions: Vec<String>) {
        locked(&self.versions).extend(versions);
    }

    pub(crate) fn note_left_out(&self, what: String) {
        locked(&self.left_out).push(what);
    }

    /// Stops everything and says what a reader of the results must know. `tests/run` repeats these lines.
    pub(crate) fn strike(self, failed: bool) {
        for version in locked(&self.versions).iter() {
            eprintln!("tested against: {version}");
        }
        for what in locked(&self.left_out).iter() {
            eprintln!("left out: {what}");
        }
        let folder = self.folder.clone();
        drop(self);
        if failed {
            eprintln!("logs are kept until the next run: {}", folder.display());
        } else if let Err(error) = fs::remove_dir_all(&folder) {
            eprintln!("failed to remove {}: {error}", folder.display());
        }
    }

    pub(crate) async fn binary(&self) -> Result<&Path> {
        Ok(once(&self.binary, build).await?)
    }

    async fn rabbit(&self, version: RabbitVersion) -> Result<&Arc<Rabbit>> {
        let cell = match version {
            RabbitVersion::V3_10 => &self.rabbit_3_10,
            RabbitVersion::V4_0 => &self.rabbit_4_0,
        };
        let folder = self.folder.join(format!("rabbitmq-{}", version.name()));
        once(cell, async || Ok(Arc::new(Rabbit::start(version, &folder).await?))).await
    }

    async fn redis(&self) -> Result<&Arc<Redis>> {
        let folder = self.folder.join("redis");
        once(&self.redis, async || Ok(Arc::new(Redis::start(&folder).await?))).await
    }
}

/// What one scenario holds: its folder, and the ways to services and programs.
pub struct Context {
    pub(crate) stage: Arc<Stage>,
    folder: PathBuf,
    vhosts: Mutex<Vec<Vhost>>,
}

impl Context {
    pub(crate) fn new(stage: &Arc<Stage>, scenario: &str) -> Result<Self> {
        let folder = stage.folder.join(scenario.replace('/', "."));
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        Ok(Self { stage: Arc::clone(stage), folder, vhosts: Mutex::default() })
    }

    /// The scenario's own folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A virtual host of its own on the shared broker, gone when the scenario ends. Do not break the broker:
    /// others are on it.
    pub async fn rabbit(&self, version: RabbitVersion) -> Result<Vhost> {
        let vhost = self.stage.rabbit(version).await?.vhost().await?;
        locked(&self.vhosts).push(vhost.clone());
        Ok(vhost)
    }

    /// A broker of its own, to be broken at will; stopped when dropped.
    pub async fn own_rabbit(&self, version: RabbitVersion) -> Result<Rabbit> {
        Rabbit::start(version, &self.folder.join(format!("rabbitmq-{}", version.name()))).await
    }

    /// A database of its own on the shared Redis. Do not break the server: others are on it.
    pub async fn redis(&self) -> Result<Database> {
        self.stage.redis().await?.database()
    }

    /// A Redis of its own, to be broken at will; stopped when dropped.
    pub async fn own_redis(&self) -> Result<Redis> {
        Redis::start(&self.folder.join("redis")).await
    }

    /// The binary under test, to be started in the scenario's folder under a name that tells its logs apart
    /// (`worker-1`). A scenario that says [`Need::Binary`](crate::scenario::Need) finds it built.
    pub async fn straightline(&self, name: &str) -> Result<Program> {
        Ok(Program::new(name, self.stage.binary().await?, &self.folder))
    }

    /// A Python script of the checkout, named from its top folder.
    #[must_use]
    pub fn python(&self, name: &str, script: &str) -> Program {
        Program::new(name, &python(), &self.folder).args([workspace().join(script)])
    }

    /// Cleans up what outlives the scenario on shared services.
    pub(crate) fn leave(&self) -> Result<()> {
        let vhosts = std::mem::take(&mut *locked(&self.vhosts));
        self.stage.runtime.block_on(async {
            for vhost in vhosts {
                vhost.delete().await?;
            }
            Ok(())
        })
    }

    /// The last lines of what its programs printed on standard error, for a failure.
    pub(crate) fn logs(&self) -> String {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "err"));
        paths.sort();
        let last = |path: &PathBuf| format!("--- {} ---\n{}", path.display(), tail(path, 20));
        paths.iter().map(last).collect::<Vec<_>>().join("\n")
    }
}

async fn once<T>(cell: &Shared<T>, start: impl AsyncFnOnce() -> Result<T>) -> Result<&T> {
    let outcome = cell.get_or_init(async || start().await.map_err(|error| format!("{error:#}"))).await;
    outcome.as_ref().map_err(|reason| anyhow!("{reason}"))
}

/// A panic elsewhere leaves these lists whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run whose process is gone left its folder behind, because it failed or was killed.
fn remove_ended_runs(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let ended = !Path::new("/proc").join(entry.file_name()).exists();
        if ended {
            // A run that starts at the same time may be removing it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

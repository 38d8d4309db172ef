//! State in Redis: for many machines. Redis 6.2 or later, or a server that speaks as it does.
//!
//! Every call is one round trip: a pipeline, or a script where it must be atomic. Calls of many tasks share a few
//! connections and follow one another without waiting (module `link`). While the server is away calls fail within the
//! time-outs, most of them at once (module `circuit`); they work again by themselves when it is back, with or without data.
//!
//! Keys, all under the configured prefix and a colon (`sl:w`); an id is its 16 bytes:
//!
//! | key | type | holds | expires |
//! |---|---|---|---|
//! | `w` | hash | worker → a line of numbers, its lane and models | with the last worker |
//! | `wr` | hash | worker → expiry and report | with the last worker |
//! | `ws` | string | sums over the workers of each lane, good until the next worker expires | 1 h |
//! | `wm` | hash | model → lanes that serve it | 2 h |
//! | `wk` | sorted set | models once named, by when last | [`facts::MODEL_MEMORY`](crate::facts::MODEL_MEMORY) |
//! | `s` | hash | the last sample, its stamp, the places claimed under it | never; ten fields |
//! | `f:<slice µs>:<model>` | string | jobs counted in each slice of the window | window and one slice |
//! | `l:<role>` | string | who leads | lease |
//! | `di` | hash | dispatcher → expiry and report | with the last dispatcher |
//! | `r:<id>` | string | record | as the record says |
//! | `n:<id>` | hash | attempt → starts noted | as noted; with the record |
//! | `d`, `de` | sorted set, hash | the dead: ids by death, entries by id | never; bounded in number |
//!
//! What is derived (`ws`, `wm`) is counted afresh from `w` when it is missing, and at least whenever a worker
//! expires, so that an eviction or a lost key heals by itself. An eviction policy should spare the rest all the same:
//! `noeviction`, or `volatile-*` with room for the records. Nothing here needs persistence; with an append-only file
//! records and the index of the dead survive a restart.
//!
//! All keys belong together. On Redis Cluster give the prefix a hash tag, such as `{sl}`, and the address of the node
//! that owns it: redirections are not followed.

mod circuit;
mod config;
mod faults;
mod keys;
mod link;
mod observe;
mod scripts;

pub use config::Config;

use crate::facts::{Batch, Facts, Sample};
use crate::registry::Load;
use crate::{Finish, Limits, Record, Start, State, StateError, decode};
use async_trait::async_trait;
use bytes::Bytes;
use deadpool_redis::redis::{self, Cmd, FromRedisValue, Pipeline, Value, from_redis_value};
use futures_util::future::BoxFuture;
use keys::{Keys, millis, shape};
use link::Link;
use schemas::dead::DeadEntry;
use schemas::heartbeat::{DispatcherReport, WorkerReport};
use schemas::{JobId, UnixMillis, wire};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// First version of Redis that has all commands used here.
const VERSION_MIN: (u32, u32) = (6, 2);

/// The adapter.
pub struct Redis {
    link: Link,
    keys: Keys,
    limits: Limits,
}

impl Redis {
    /// The same without asking the server for anything: while it is away, calls say so.
    pub fn unasked(config: Config) -> Result<Arc<Self>, StateError> {
        config.check()?;
        let link = Link::new(&config)?;
        Ok(Arc::new(Self { link, keys: Keys::new(&config.prefix), limits: config.limits }))
    }

    /// Connects, and checks that the server is one that serves.
    pub fn open(config: Config) -> BoxFuture<'static, Result<Arc<Self>, StateError>> {
        Box::pin(async move {
            let redis = Self::unasked(config)?;
            redis.check_version().await?;
            redis.link.call::<()>("open", &redis.link.scripts().load()).await?;
            Ok(redis)
        })
    }

    async fn check_version(&self) -> Result<(), StateError> {
        let mut info = Pipeline::new();
        info.cmd("INFO").arg("server");
        let (info,): (String,) = match self.link.call("open", &info).await {
            // A login may lack the right to ask; then what is missing shows in use.
            Err(StateError::Refused { .. }) => return Ok(()),
            answer => answer?,
        };
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default();
        let mut numbers = version.split('.').map(|number| number.trim().parse().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) < VERSION_MIN => {
                Err(self.link.faults().too_old(version.trim()))
            }
            _ => Ok(()),
        }
    }

    async fn one<T: FromRedisValue>(&self, name: &'static str, command: Cmd) -> Result<T, StateError> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        self.link.call::<(T,)>(name, &pipeline).await.map(|(answer,)| answer)
    }

    fn fetch_call(&self, ids: &[JobId]) -> Cmd {
        let mut call = redis::cmd("MGET");
        for id in ids {
            call.arg(self.keys.record(id));
        }
        call
    }

    /// The reports of a hash that have not expired by the server's clock.
    async fn alive<T: DeserializeOwned>(
        &self,
        name: &'static str,
        key: &'static str,
    ) -> Result<Vec<T>, StateError> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("TIME").cmd("HVALS").arg(self.keys.one(key));
        let ((seconds, micros), reports): ((u64, u64), Vec<Bytes>) = self.link.call(name, &pipeline).await?;
        let now = seconds * 1000 + micros / 1000;
        let alive = |stored: &Bytes| {
            let space = stored.iter().position(|byte| *byte == b' ')?;
            let expires: u64 = std::str::from_utf8(&stored[..space]).ok()?.parse().ok()?;
            (expires > now).then(|| stored.slice(space + 1..))
        };
        Ok(reports.iter().filter_map(alive).filter_map(|report| decode::or_skip(key, &report)).collect())
    }
}

#[async_trait]
impl State for Redis {
    async fn observe(&self, batch: &Batch) -> Result<Facts, StateError> {
        self.observe_batch(batch).await
    }

    async fn sample(&self, sample: &Sample) -> Result<(), StateError> {
        let mut call = self.link.scripts().sample.call(1);
        call.arg(self.keys.one("s"));
        // Written so that the server reads the very same number.
        call.arg(format!("{:?}", sample.interval.as_secs_f64())).arg(sample.target_max).arg(&sample.ready);
        self.one("sample", call).await
    }

    async fn lead(&self, role: &str, holder: &str, lease: Duration) -> Result<bool, StateError> {
        let mut call = self.link.scripts().lead.call(1);
        call.arg(self.keys.lease(role)).arg(holder).arg(millis(lease));
        self.one("lead", call).await
    }

    async fn report_worker(&self, report: &WorkerReport, keep: Duration) -> Result<(), StateError> {
        let load = Load::of(report);
        let mut call = self.link.scripts().report_worker.call(self.keys.workers.len());
        call.arg(&self.keys.workers[..]).arg(&report.worker).arg(millis(keep));
        call.arg(load.slots).arg(load.busy).arg(load.completed_milli);
        call.arg(shape(report)).arg(&wire::encode(report)[..]).arg(millis(self.limits.model_memory));
        self.one("report_worker", call).await
    }

    async fn forget_worker(&self, worker: &str) -> Result<(), StateError> {
        let mut call = self.link.scripts().forget_worker.call(self.keys.workers.len());
        call.arg(&self.keys.workers[..]).arg(worker).arg(millis(self.limits.model_memory));
        self.one("forget_worker", call).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>, StateError> {
        let mut alive: Vec<WorkerReport> = self.alive("workers", "wr").await?;
        alive.sort_by(|one, other| (one.lane, &one.worker).cmp(&(other.lane, &other.worker)));
        Ok(alive)
    }

    async fn report_dispatcher(&self, report: &DispatcherReport, keep: Duration) -> Result<(), StateError> {
        let mut call = self.link.scripts().report_dispatcher.call(1);
        call.arg(self.keys.one("di")).arg(&report.dispatcher).arg(millis(keep));
        call.arg(&wire::encode(report)[..]);
        self.one("report_dispatcher", call).await
    }

    async fn forget_dispatcher(&self, dispatcher: &str) -> Result<(), StateError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("HDEL").arg(self.keys.one("di")).arg(dispatcher).ignore();
        self.link.call("forget_dispatcher", &pipeline).await
    }

    async fn dispatchers(&self) -> Result<Vec<DispatcherReport>, StateError> {
        let mut alive: Vec<DispatcherReport> = self.alive("dispatchers", "di").await?;
        alive.sort_by(|one, other| one.dispatcher.cmp(&other.dispatcher));
        Ok(alive)
    }

    async fn finish(&self, records: &[Record]) -> Result<Vec<Finish>, StateError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = self.link.scripts().finish.call(records.len() * 2);
        for record in records {
            call.arg(self.keys.record(&record.id));
        }
        for record in records {
            call.arg(self.keys.starts(&record.id));
        }
        for record in records {
            call.arg(&record.result[..]).arg(millis(record.keep));
        }
        let standing: Vec<Option<Bytes>> = self.one("finish", call).await?;
        Ok(standing.into_iter().map(|standing| standing.map_or(Finish::Won, Finish::Lost)).collect())
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<Bytes>>, StateError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.one("fetch", self.fetch_call(ids)).await
    }

    async fn note_starts(&self, starts: &[Start], keep: Duration) -> Result<Vec<u32>, StateError> {
        let mut pipeline = Pipeline::with_capacity(starts.len() * 2);
        for start in starts {
            let key = self.keys.starts(&start.id);
            pipeline.cmd("HINCRBY").arg(&key).arg(start.attempt).arg(1);
            pipeline.cmd("PEXPIRE").arg(&key).arg(millis(keep)).ignore();
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let noted: Vec<u32> = self.link.call("note_starts", &pipeline).await?;
        Ok(noted.into_iter().map(|noted| noted.saturating_sub(1)).collect())
    }

    async fn bury(&self, entries: &[DeadEntry]) -> Result<(), StateError> {
        let mut call = self.link.scripts().bury.call(2);
        call.arg(self.keys.one("d")).arg(self.keys.one("de")).arg(self.limits.dead_max);
        for entry in entries {
            call.arg(entry.id.as_bytes()).arg(entry.died.0).arg(&wire::encode(entry)[..]);
        }
        self.one("bury", call).await
    }

    async fn dead(&self, offset: u64, limit: u64) -> Result<(Vec<DeadEntry>, u64), StateError> {
        let position = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        // From the last place on there is nothing, so this page is empty; a negative place would count from the end.
        let (first, last) = match limit {
            0 => (1, 0),
            _ => (position(offset), position(offset.saturating_add(limit - 1))),
        };
        let mut call = self.link.scripts().dead.call(2);
        call.arg(self.keys.one("d")).arg(self.keys.one("de")).arg(first).arg(last);
        let mut answer = self.one::<Vec<Value>>("dead", call).await?.into_iter();
        let corrupt = |reason: String| StateError::Corrupt { key: self.keys.one("d"), reason };
        let total = answer.next().ok_or_else(|| corrupt("the answer is empty".to_owned()))?;
        let total = from_redis_value(total).map_err(|error| corrupt(error.to_string()))?;
        let mut page = Vec::with_capacity(answer.len());
        for entry in answer {
            let entry: Bytes = from_redis_value(entry).map_err(|error| corrupt(error.to_string()))?;
            page.extend(decode::or_skip("de", &entry));
        }
        Ok((page, total))
    }

    async fn dead_entries(&self, ids: &[JobId]) -> Result<Vec<Option<DeadEntry>>, StateError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = redis::cmd("HMGET");
        call.arg(self.keys.one("de"));
        for id in ids {
            call.arg(id.as_bytes());
        }
        let entries: Vec<Option<Bytes>> = self.one("dead_entries", call).await?;
        entries
            .iter()
            .map(|entry| entry.as_deref().map(|entry| decode::exactly("de", entry)).transpose())
            .collect()
    }

    async fn unbury(&self, ids: &[JobId]) -> Result<(), StateError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::with_capacity(2);
        for (command, key) in [("ZREM", "d"), ("HDEL", "de")] {
            pipeline.cmd(command).arg(self.keys.one(key));
            for id in ids {
                pipeline.arg(id.as_bytes());
            }
            pipeline.ignore();
        }
        self.link.call("unbury", pipeline.atomic()).await
    }

    async fn now(&self) -> Result<UnixMillis, StateError> {
        let (seconds, micros): (u64, u64) = self.one("now", redis::cmd("TIME")).await?;
        Ok(UnixMillis(seconds * 1000 + micros / 1000))
    }

    async fn close(&self) {
        self.link.close().await;
    }
}

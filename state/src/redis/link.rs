//! Connections to the server, and every call over them.
//!
//! The pool makes connections, bounds their number and checks those that came back. A healthy one is not given back
//! after each call, because the pool's check is a round trip of its own: it is held, and shared by calls that follow
//! one another on the wire without waiting. After any failure all are given back, to be checked or made anew.
//! Nothing is sent twice but a call the server did not know the script of: it has done nothing then.

use super::Config;
use super::circuit::Circuit;
use super::faults::Faults;
use super::scripts::Scripts;
use crate::StateError;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{
    AsyncConnectionConfig, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, PushKind, RedisError, ServerErrorKind,
};
use deadpool_redis::{Connection, Manager, Pool, PoolError};
use secrecy::ExposeSecret;
use std::sync::Arc;
use std::sync::Mutex as BlockingMutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Calls that wait on one connection to be written to its socket.
const QUEUED_CALLS_MAX: usize = 256;

/// The way to the server.
pub(super) struct Link {
    pool: Pool,
    held: Vec<Mutex<Option<Held>>>,
    next: AtomicUsize,
    /// Goes up with every failure: a connection held since before is suspect.
    failures: Arc<AtomicU64>,
    circuit: BlockingMutex<Circuit>,
    scripts: Scripts,
    faults: Faults,
    connect_timeout: Duration,
    call_max: Duration,
}

struct Held {
    connection: Connection,
    failures: u64,
}

impl Link {
    /// A way to the configured server; nothing is connected yet.
    pub(super) fn new(config: &Config) -> Result<Self, StateError> {
        let info = connection_info(config)?;
        let faults = Faults::new(info.addr().to_string());
        let failures = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&failures);
        // The server's going away is told at once, so that no later call has to find out.
        let on_push = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                lost.fetch_add(1, Ordering::Release);
            }
            Ok::<(), std::convert::Infallible>(())
        };
        let connections = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout))
            .set_pipeline_buffer_size(QUEUED_CALLS_MAX)
            .set_push_sender(on_push);
        let manager = Manager::new_with_config(info, connections)
            .map_err(|error| StateError::Config { field: "state.url", problem: error.to_string() })?;
        let pool = Pool::builder(manager).max_size(config.pool_size.get()).build();
        let pool = pool.map_err(|error| faults.unreachable(&error.to_string()))?;
        Ok(Self {
            pool,
            held: (0..config.pool_size.get()).map(|_| Mutex::new(None)).collect(),
            next: AtomicUsize::new(0),
            failures,
            circuit: BlockingMutex::default(),
            scripts: Scripts::new(),
            faults,
            connect_timeout: config.connect_timeout,
            call_max: config.connect_timeout + config.response_timeout,
        })
    }

    /// The scripts that calls are made of.
    pub(super) fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// What went wrong, in words.
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Sends `commands` in one go and brings back their answers. `name` is the call's name in metrics.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        name: &'static str,
        commands: &Pipeline,
    ) -> Result<T, StateError> {
        let started = Instant::now();
        self.circuit().admit(started, self.call_max)?;
        let done = self.try_call(commands).await;
        metrics::histogram!("straightline_state_call_seconds", "call" => name).record(started.elapsed());
        match &done {
            Err(error @ (StateError::Unreachable { .. } | StateError::Credentials { .. })) => {
                self.failed(error)
            }
            _ => self.answered(),
        }
        done.inspect_err(|_| {
            metrics::counter!("straightline_state_errors_total", "call" => name).increment(1)
        })
    }

    async fn try_call<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, StateError> {
        let mut connection = self.connection().await?;
        let mut done = commands.query_async(&mut connection).await;
        if matches!(&done, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            done = match self.scripts.load().query_async::<()>(&mut connection).await {
                Ok(()) => commands.query_async(&mut connection).await,
                Err(error) => Err(error),
            };
        }
        done.map_err(|error| self.faults.of_call(&error))
    }

    /// A connection that was healthy when it was last heard of.
    async fn connection(&self) -> Result<MultiplexedConnection, StateError> {
        let slot = &self.held[self.next.fetch_add(1, Ordering::Relaxed) % self.held.len()];
        let connect = async {
            // Held while connecting: the others who want this connection want this very one.
            let mut held = slot.lock().await;
            let failures = self.failures.load(Ordering::Acquire);
            if let Some(held) = held.as_ref().filter(|held| held.failures == failures) {
                return Ok::<_, PoolError>(MultiplexedConnection::clone(&held.connection));
            }
            // Back to the pool, whose next check decides on it.
            drop(held.take());
            let connection = self.pool.get().await?;
            Ok(MultiplexedConnection::clone(&held.insert(Held { connection, failures }).connection))
        };
        match timeout(self.connect_timeout, connect).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(PoolError::Backend(error))) => Err(self.faults.of_connecting(&error)),
            Ok(Err(PoolError::Closed)) => Err(self.faults.unreachable("it is closed")),
            Ok(Err(other)) => Err(self.faults.unreachable(&other.to_string())),
            Err(_) => {
                Err(self.faults.unreachable(&format!("no connection within {:?}", self.connect_timeout)))
            }
        }
    }

    /// Lets go of all connections for good.
    pub(super) async fn close(&self) {
        self.pool.close();
        for slot in &self.held {
            drop(slot.lock().await.take());
        }
    }

    fn failed(&self, error: &StateError) {
        self.failures.fetch_add(1, Ordering::Release);
        if self.circuit().failed(Instant::now(), error.clone()) && !self.pool.is_closed() {
            tracing::warn!(error = %error, "shared state is away");
        }
    }

    fn answered(&self) {
        if self.circuit().answered() {
            tracing::info!(state.address = %self.faults.address(), "shared state is back");
        }
    }

    fn circuit(&self) -> std::sync::MutexGuard<'_, Circuit> {
        self.circuit.lock().expect("nothing panics while it holds this lock")
    }
}

/// What the URL says, and what we need of every connection: the third protocol, in which the server's going away is
/// an event.
fn connection_info(config: &Config) -> Result<ConnectionInfo, StateError> {
    let problem = |error: RedisError| StateError::Config {
        field: "state.url",
        // The detail may repeat a part of the URL; the kind of mistake never does.
        problem: format!(
            "is not a Redis address ({}): use redis://[user[:password]@]host[:port][/database]",
            without_detail(&error)
        ),
    };
    let info = config.url.expose_secret().into_connection_info().map_err(problem)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(settings))
}

fn without_detail(error: &RedisError) -> String {
    let text = error.to_string();
    match error.detail() {
        Some(detail) => text.replace(detail, "").trim_end_matches([':', ' ']).to_owned(),
        None => text,
    }
}

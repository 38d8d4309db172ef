//! The client: submit, await, fetch, cancel.
//!
//! One client has one reply queue and any number of clones. Two tasks serve it: one hands replies over to whoever
//! waits for them, one looks for the records of jobs whose reply is late, so that a lost reply strands nobody.
//! Both end when the last clone is dropped or [`Client::close`] is called.
//!
//! Invariants: `Ok` from a submit means the broker has the job; a waiter is in place before its job is published;
//! a result is handed over once, whatever is delivered twice; everything held is bounded by [`Config`].

use crate::keys::Keys;
use crate::pending::Pending;
use broker::{Broker, BrokerError, Health, Queue};
use futures_util::future::BoxFuture;
use metrics::gauge;
use schemas::limits::{INLINE_BYTES_DEFAULT, INLINE_BYTES_MAX, RECORD_RETENTION_DEFAULT};
use schemas::names::InvalidName;
use schemas::{ClientName, JobId, ReplyQueue};
use state::State;
use state::blobs::Blobs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;

mod many;
mod records;
mod replies;
mod submit;
mod wait;

pub use many::{Done, RunError};
pub(crate) use records::created;
pub use records::{Cancelled, ResolveError};
pub use submit::SubmitError;
pub use wait::{Ticket, WaitError};

/// A client's settings. Bytes of replies in hand are bounded by what [`Config::check`] derives from the inline limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who submits: the broker's login where it has logins.
    pub client: ClientName,
    /// Which instance of it: part of the reply queue's name, so unique among all that live. A random one unless set.
    pub instance: Option<String>,
    /// A job whose encoded body is longer goes through the blob store, in bytes.
    pub inline_bytes_max: usize,
    /// How long the record of a cancelled job is kept.
    pub record_keep: Duration,
    /// Most jobs waited for at once.
    pub pending_max: usize,
    /// Most submitted jobs not yet confirmed by the broker.
    pub in_flight_max: usize,
    /// How long a submit waits for a place, a full queue or a broker that lost it before it fails.
    pub patience: Duration,
    /// How long after its deadline a job's record may still come.
    pub grace: Duration,
    /// How long a reply may take before its record is looked for; the looks then become rarer.
    pub look_after: Duration,
}

/// Bytes of replies that may be in hand, delivered and not yet handed over.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Most replies in hand, however small.
const REPLIES_MAX: usize = 256;

impl Config {
    /// The defaults for `client`.
    pub fn new(client: ClientName) -> Self {
        Self {
            client,
            instance: None,
            inline_bytes_max: INLINE_BYTES_DEFAULT,
            record_keep: RECORD_RETENTION_DEFAULT,
            pending_max: 10_000,
            in_flight_max: 1_000,
            patience: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            look_after: Duration::from_secs(5),
        }
    }

    /// Whether it can work.
    pub fn check(&self) -> Result<(), OpenError> {
        let counts = [
            ("client.inline_bytes_max", self.inline_bytes_max, 1024, INLINE_BYTES_MAX),
            ("client.pending_max", self.pending_max, 1, 1_000_000),
            ("client.in_flight_max", self.in_flight_max, 1, 100_000),
        ];
        for (field, value, min, max) in counts {
            if !(min..=max).contains(&value) {
                return Err(OpenError::Config { field, problem: format!("is {value}: use {min} to {max}") });
            }
        }
        let day = Duration::from_secs(24 * 3600);
        let durations = [
            ("client.record_keep", self.record_keep, 30 * day),
            ("client.patience", self.patience, day),
            ("client.grace", self.grace, day),
            ("client.look_after", self.look_after, day),
        ];
        for (field, value, max) in durations {
            if !(Duration::from_millis(1)..=max).contains(&value) {
                let problem = format!("is {} ms: use 1 to {}", value.as_millis(), max.as_millis());
                return Err(OpenError::Config { field, problem });
            }
        }
        Ok(())
    }

    fn prefetch(&self) -> u32 {
        let replies = (REPLY_BYTES_MAX / self.inline_bytes_max).clamp(1, REPLIES_MAX);
        u32::try_from(replies).expect("at most REPLIES_MAX")
    }
}

/// Why a client could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting that cannot work.
    #[error("{field} {problem}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The instance's name is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The broker vouches for another name.
    #[error("client.client is {client}, but the broker knows this login as {login}: use the login's name")]
    Login {
        /// The name in the settings.
        client: ClientName,
        /// The name the broker vouches for.
        login: ClientName,
    },
    /// The reply queue cannot be consumed.
    #[error("failed to consume the reply queue: {0}")]
    Broker(#[from] BrokerError),
}

/// A client. Cheap to clone; all clones share one reply queue and one set of limits.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// Dropped with the last clone, which ends the two tasks.
    _alive: Arc<watch::Sender<()>>,
}

pub(crate) struct Shared {
    config: Config,
    reply_to: ReplyQueue,
    login: Option<ClientName>,
    broker: Arc<dyn Broker>,
    state: Arc<dyn State>,
    blobs: Option<Arc<Blobs>>,
    pending: Mutex<Pending>,
    keys: Mutex<Keys>,
    /// Places for those who wait; closed with the client.
    places: Arc<Semaphore>,
    /// Places for what is published and not confirmed; closed with the client.
    in_flight: Semaphore,
    /// The schedule's head has changed.
    rescheduled: Notify,
    /// Nobody waits any more.
    idle: Notify,
}

impl Client {
    /// Opens a client: declares its reply queue and starts to consume it.
    pub fn open(
        config: Config,
        broker: Arc<dyn Broker>,
        state: Arc<dyn State>,
        blobs: Option<Arc<Blobs>>,
    ) -> BoxFuture<'static, Result<Self, OpenError>> {
        Box::pin(async move {
            config.check()?;
            let login = broker.login();
            if let Some(login) = login.as_ref().filter(|login| **login != config.client) {
                return Err(OpenError::Login { client: config.client, login: login.clone() });
            }
            let instance = config.instance.clone().unwrap_or_else(|| JobId::new().to_string());
            let reply_to = ReplyQueue::of(&config.client, &instance)?;
            // A dot would move the border between client and instance: the queue would be another client's.
            if !reply_to.belongs_to(&config.client) {
                let rule = "use 1 to 64 letters, digits, '_' and '-'";
                return Err(InvalidName { field: "client.instance", value: instance, rule }.into());
            }
            let consumer = broker.consume(&Queue::Reply(reply_to.clone()), config.prefetch()).await?;
            let shared = Arc::new(Shared {
                places: Arc::new(Semaphore::new(config.pending_max)),
                in_flight: Semaphore::new(config.in_flight_max),
                config,
                reply_to,
                login,
                broker,
                state,
                blobs,
                pending: Mutex::default(),
                keys: Mutex::default(),
                rescheduled: Notify::new(),
                idle: Notify::new(),
            });
            let (alive, ended) = watch::channel(());
            tokio::spawn(replies::receive(shared.clone(), consumer, ended.clone()));
            tokio::spawn(replies::look_for_late(shared.clone(), ended));
            Ok(Self { shared, _alive: Arc::new(alive) })
        })
    }

    /// Who it submits as.
    pub fn name(&self) -> &ClientName {
        &self.shared.config.client
    }

    /// Where its replies go.
    pub fn reply_queue(&self) -> &ReplyQueue {
        &self.shared.reply_to
    }

    /// Whether its broker can be reached.
    pub fn broker_health(&self) -> Health {
        self.shared.broker.health().borrow().clone()
    }

    /// Most submitted jobs not yet confirmed by the broker.
    pub fn in_flight_max(&self) -> usize {
        self.shared.config.in_flight_max
    }

    /// How many jobs are waited for.
    pub fn pending(&self) -> usize {
        self.shared.with_pending(|pending| pending.len())
    }

    /// Takes no more jobs, waits until those under way are confirmed and, for at most `drain`, until those waited for
    /// have ended; whoever still waits then is told so. Their results stay in their records.
    pub fn close(&self, drain: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.places.close();
            let all = u32::try_from(self.shared.config.in_flight_max).expect("checked when it was opened");
            // Waits in line behind every publish under way; whoever comes later finds the door closed.
            let under_way = self.shared.in_flight.acquire_many(all);
            let under_way = timeout(self.shared.config.patience, under_way).await;
            self.shared.in_flight.close();
            drop(under_way);
            let ended = async {
                loop {
                    let idle = self.shared.idle.notified();
                    if self.pending() == 0 {
                        return;
                    }
                    idle.await;
                }
            };
            let _ = timeout(drain, ended).await;
            self.shared.with_pending(Pending::close);
        })
    }
}

impl Shared {
    fn with_pending<R>(&self, act: impl FnOnce(&mut Pending) -> R) -> R {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (head, jobs) = (pending.next_due(), pending.len());
        let result = act(&mut pending);
        if pending.next_due() != head {
            self.rescheduled.notify_one();
        }
        if pending.len() != jobs {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            gauge!("straightline_pending_jobs").increment(pending.len() as f64 - jobs as f64);
            if pending.len() == 0 {
                self.idle.notify_waiters();
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let good = Config::new(ClientName::new("c").unwrap());
        good.check().unwrap();
        type Spoil = fn(&mut Config);
        let cases: [(Spoil, &str); 4] = [
            (|c| c.inline_bytes_max = 9 << 20, "client.inline_bytes_max is 9437184: use 1024 to 8388608"),
            (|c| c.pending_max = 0, "client.pending_max is 0"),
            (|c| c.in_flight_max = 0, "client.in_flight_max"),
            (|c| c.patience = Duration::ZERO, "client.patience is 0 ms"),
        ];
        for (spoil, expected) in cases {
            let mut config = good.clone();
            spoil(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn replies_in_hand_stay_within_their_bytes() {
        let mut config = Config::new(ClientName::new("c").unwrap());
        assert_eq!(config.prefetch(), 256);
        config.inline_bytes_max = INLINE_BYTES_MAX;
        assert_eq!(config.prefetch(), 8);
    }
}

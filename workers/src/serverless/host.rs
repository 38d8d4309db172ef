//! The function host: runs functions on this machine as AWS Lambda runs them, so that a real one runs here unchanged.
//!
//! An instance is a process of the function's own program with limits and a clean environment, which asks the
//! Lambda Runtime API for events. It is started when an event finds no idle one, does one at a time, is kept warm, and ends
//! when it was idle for long.
//!
//! What this module owns: instances, their number and their ends. What it must not do: understand events or answers.
//!
//! - [`pool`]: who runs what; pure.
//! - [`instance`]: the life of one, between [`api`] (what it asks) and [`process`] (what it is).
//! - [`keeper`]: sees to it that an instance keeps its limits and does not outlive its worker.
//! - [`face`]: AWS Lambda's Invoke API in front of all this, for other clients than the lane.

mod api;
mod config;
mod face;
mod instance;
pub mod keeper;
mod measure;
mod pool;
mod process;

use super::{Call, Functions, InvokeError};
use crate::lane::InvalidConfig;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use instance::{Instance, Order};
use pool::{Id, Limits, Pool, Taken};
use schemas::heartbeat::{Backend, Instances};
use schemas::limits::BACKEND_MODELS_MAX;
use schemas::{Failure, FailureKind, JobId, ModelName};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

pub use config::{Config, Function};

/// How long [`Host::stop`] waits for busy instances before it kills them.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Hides this process's environment and memory from others of its user, its own functions among them: passwords of
/// brokers are in there. Root sees them all the same. Not for a process that serves the docker lane as well: that
/// reads its own program as another process would.
pub fn conceal() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_dumpable(false)?;
    Ok(())
}

/// Why the host could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting that cannot work.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The Invoke API cannot listen.
    #[error("serverless.host.invoke_listen {address} cannot be had: {error}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the operating system says.
        error: std::io::Error,
    },
}

/// What the host has and did, for status.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Most instances of all functions together.
    pub concurrency_max: u32,
    /// Each function.
    pub functions: Vec<FunctionSummary>,
}

/// One function.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FunctionSummary {
    /// Its model.
    pub model: ModelName,
    /// Instances that have not yet asked for an event.
    pub starting: u32,
    /// Instances that wait for one.
    pub idle: u32,
    /// Instances that run one.
    pub busy: u32,
    /// Events that had to wait for a new instance.
    pub cold: u64,
    /// Events that found an idle one.
    pub warm: u64,
    /// Instances that did not come as far as asking for an event.
    pub starts_failed: u64,
    /// How long the latest cold start took, in seconds.
    pub cold_start_s: Option<f64>,
    /// Why the latest start failed, until one does not.
    pub start_problem: Option<String>,
}

/// The host. Dropping it ends idle instances at once and busy ones after their event.
pub struct Host {
    shared: Arc<Shared>,
    face: Option<(SocketAddr, JoinHandle<()>)>,
}

/// What the host, its instances and the Invoke API share.
struct Shared {
    config: Config,
    table: Mutex<Table>,
    /// Instances whose end is not yet complete.
    alive: watch::Sender<usize>,
    /// True once busy instances are to be killed.
    halting: watch::Sender<bool>,
}

struct Table {
    pool: Pool,
    /// The way to each instance; dropping it lets the instance go.
    handles: BTreeMap<Id, mpsc::Sender<Order>>,
    tallies: BTreeMap<ModelName, Tally>,
}

#[derive(Clone, Debug, Default)]
struct Tally {
    cold: u64,
    warm: u64,
    starts_failed: u64,
    cold_start: Option<Duration>,
    start_problem: Option<String>,
}

/// An invocation without an answer.
#[derive(Clone, Debug)]
struct Failed {
    error: InvokeError,
    /// What the function reported, where it did so itself.
    document: Option<Bytes>,
}

impl Failed {
    fn function(type_: &str, message: &str) -> Self {
        Self::from(InvokeError::Function { type_: type_.to_owned(), message: message.to_owned() })
    }
}

impl From<InvokeError> for Failed {
    fn from(error: InvokeError) -> Self {
        Self { error, document: None }
    }
}

/// An event and what is passed on with it.
struct Request {
    id: String,
    event: Bytes,
    client_context: Option<String>,
    trace: Option<String>,
    limit: Duration,
}

impl Host {
    /// Starts the host, and the Invoke API if it is configured. No function is started before its first event.
    pub fn start(config: Config) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(async move {
            config.check()?;
            measure::describe();
            let limits = Limits {
                all: config.concurrency_max as usize,
                per_function: config.function_concurrency_max as usize,
            };
            let tallies = config.functions.keys().map(|model| (model.clone(), Tally::default())).collect();
            let listen = config.invoke_listen;
            let shared = Arc::new(Shared {
                config,
                table: Mutex::new(Table { pool: Pool::new(limits), handles: BTreeMap::new(), tallies }),
                alive: watch::Sender::new(0),
                halting: watch::Sender::new(false),
            });
            let face = match listen {
                None => None,
                Some(address) => {
                    let listening = face::serve(address, Arc::clone(&shared)).await;
                    let (at, serving) = listening.map_err(|error| StartError::Listen { address, error })?;
                    tracing::info!(address = %at, "function host answers AWS Lambda's Invoke API");
                    Some((at, serving))
                }
            };
            Ok(Self { shared, face })
        })
    }

    /// The models that have a function here.
    pub fn models(&self) -> Vec<ModelName> {
        self.shared.config.functions.keys().cloned().collect()
    }

    /// Where the Invoke API is answered, if it is.
    pub fn invoke_address(&self) -> Option<SocketAddr> {
        self.face.as_ref().map(|(address, _)| *address)
    }

    /// What it has and did.
    pub fn summary(&self) -> Summary {
        let table = self.shared.table();
        let of = |(model, tally): (&ModelName, &Tally)| {
            let counts = table.pool.counts(model);
            FunctionSummary {
                model: model.clone(),
                starting: counts.starting,
                idle: counts.idle,
                busy: counts.busy,
                cold: tally.cold,
                warm: tally.warm,
                starts_failed: tally.starts_failed,
                cold_start_s: tally.cold_start.map(|took| took.as_secs_f64()),
                start_problem: tally.start_problem.clone(),
            }
        };
        Summary {
            concurrency_max: self.shared.config.concurrency_max,
            functions: table.tallies.iter().map(of).collect(),
        }
    }

    fn close(&self) {
        if let Some((_, serving)) = &self.face {
            serving.abort();
        }
        let mut table = self.shared.table();
        table.pool.stop();
        table.handles.clear();
    }
}

impl FunctionSummary {
    fn instances(self) -> Instances {
        let Self { model, starting, idle, busy, start_problem: problem, .. } = self;
        Instances { starting, idle, busy, problem, ..Instances::none(model) }
    }
}

#[async_trait]
impl Functions for Host {
    fn backend(&self) -> Backend {
        let functions = self.summary().functions.into_iter().map(FunctionSummary::instances);
        let name = match self.invoke_address() {
            Some(address) => format!("function host, Invoke API at {address}"),
            None => "function host".to_owned(),
        };
        let told = functions.filter(|function| !function.is_none()).take(BACKEND_MODELS_MAX);
        Backend { name, instances: told.collect(), ..Backend::default() }
    }

    async fn invoke(&self, call: Call) -> Result<Bytes, InvokeError> {
        let request = Request {
            id: JobId::new().to_string(),
            event: call.event,
            client_context: None,
            trace: None,
            limit: call.limit,
        };
        self.shared.invoke(&call.model, request).await.map_err(|failed| failed.error)
    }

    async fn stop(&self) {
        self.close();
        let mut alive = self.shared.alive.subscribe();
        let all_gone = tokio::time::timeout(STOP_GRACE, alive.wait_for(|alive| *alive == 0)).await.is_ok();
        if !all_gone {
            self.shared.halting.send_replace(true);
            // Each ends within a bound of its own.
            let _ = alive.wait_for(|alive| *alive == 0).await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Runs `request` on an instance of `function`.
    async fn invoke(self: &Arc<Self>, function: &ModelName, request: Request) -> Result<Bytes, Failed> {
        let unreachable = |problem: &str| Failed::from(InvokeError::Unreachable(problem.to_owned()));
        if !self.config.functions.contains_key(function) {
            return Err(unreachable("is not configured: see serverless.host.functions"));
        }
        let (length, bytes_max) = (request.event.len(), self.config.payload_bytes_max);
        if length > bytes_max {
            let words = format!("takes events of at most {bytes_max} bytes, not {length}");
            return Err(InvokeError::TooLarge(words).into());
        }
        let deadline = (Instant::now() + request.limit, SystemTime::now() + request.limit);
        loop {
            let (answer, answered) = oneshot::channel();
            let order = Order {
                request_id: request.id.clone(),
                event: request.event.clone(),
                deadline,
                client_context: request.client_context.clone(),
                trace: request.trace.clone(),
                answer,
            };
            let cold = self.order(function, order)?;
            match timeout_at(deadline.0.into(), answered).await {
                Ok(Ok(answer)) => return answer,
                // The instance ended, and the function never saw the event: another can take it.
                Ok(Err(_)) => {}
                Err(_) => {
                    let start = if cold { ", its cold start included" } else { "" };
                    let words = format!("did not answer within {} ms{start}", request.limit.as_millis());
                    return Err(InvokeError::TimedOut(words).into());
                }
            }
        }
    }

    /// Puts `order` before an instance; true if that had to be started for it.
    fn order(self: &Arc<Self>, function: &ModelName, order: Order) -> Result<bool, Failed> {
        let mut table = self.table();
        let (id, cold) = match table.pool.take(function) {
            Taken::Warm(id) => (id, false),
            Taken::Cold { id, instead_of } => {
                instead_of.and_then(|victim| table.handles.remove(&victim));
                // Room for one order: more are never under way to one instance.
                let (handle, orders) = mpsc::channel(1);
                table.handles.insert(id, handle);
                let instance = Instance { id, function: function.clone(), shared: Arc::clone(self), orders };
                self.alive.send_modify(|alive| *alive += 1);
                tokio::spawn(instance.live());
                (id, true)
            }
            Taken::Full { running, of_one_function } => {
                let (whose, setting) = if of_one_function {
                    ("its instances", "serverless.host.function_concurrency_max")
                } else {
                    ("instances", "serverless.concurrency_max")
                };
                let words = format!("finds no room: {running} of {whose} run, as {setting} allows");
                return Err(InvokeError::Throttled { words, retry_after: None }.into());
            }
            Taken::Stopped => {
                return Err(InvokeError::Unreachable("is not run any more: the host ends".to_owned()).into());
            }
        };
        if let Some(tally) = table.tallies.get_mut(function) {
            *if cold { &mut tally.cold } else { &mut tally.warm } += 1;
        }
        measure::taken(function, if cold { "cold" } else { "warm" });
        // Fails only if the instance has just ended, which drops the order, and that is what tells the caller.
        if let Some(handle) = table.handles.get(&id) {
            let _ = handle.try_send(order);
        }
        Ok(cold)
    }

    /// An instance has asked for its first event.
    fn started(&self, function: &ModelName, took: Duration) {
        measure::cold_start(function, took);
        if let Some(tally) = self.table().tallies.get_mut(function) {
            tally.cold_start = Some(took);
            tally.start_problem = None;
        }
    }

    fn start_failed(&self, function: &ModelName, error: &InvokeError) {
        if let Some(tally) = self.table().tallies.get_mut(function) {
            tally.starts_failed += 1;
            // A function says as much as it likes; a failure's message is bounded.
            tally.start_problem = Some(Failure::new(FailureKind::LaneUnavailable, error).message);
        }
    }

    fn ended(&self) {
        self.alive.send_modify(|alive| *alive -= 1);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing in it is left half-changed by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What can be set, with units and defaults.

use super::lanes;
use super::shown::hidden;
use bytesize::ByteSize;
use schemas::Lane;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be set.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The message broker.
    pub broker: Broker,
    /// Shared state.
    pub state: State,
    /// What is kept on this machine's disk.
    pub storage: Storage,
    /// What `up` runs.
    pub up: Up,
    /// The HTTP face of `up`.
    pub http: Http,
    /// The metrics port of `dispatcher` and `worker`.
    pub metrics: Metrics,
    /// Placement.
    pub dispatcher: Dispatcher,
    /// Running jobs.
    pub worker: Worker,
    /// The docker lane.
    pub docker: lanes::Docker,
    /// The serverless lane.
    pub serverless: lanes::Serverless,
    /// Trying failed jobs again.
    pub retry: Retry,
    /// Limits that every part holds.
    pub limits: Limits,
    /// Records of results.
    pub records: Records,
    /// Submitting.
    pub client: Client,
    /// Logs.
    pub log: Log,
}

/// `[broker]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Broker {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`. Absent: the embedded broker, in `storage.dir`.
    #[serde(deserialize_with = "secret", serialize_with = "hidden")]
    pub url: Option<SecretString>,
    /// Certificates to trust for `amqps://` besides the usual authorities' ones: a PEM file.
    pub ca_file: Option<PathBuf>,
}

/// `[state]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// `redis://:password@host:port/db`. Absent: the embedded state, in `storage.dir`.
    #[serde(deserialize_with = "secret", serialize_with = "hidden")]
    pub url: Option<SecretString>,
    /// What every key in Redis starts with.
    pub prefix: String,
}

impl Default for State {
    fn default() -> Self {
        Self { url: None, prefix: "sl".to_owned() }
    }
}

/// `[storage]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Folder of the embedded broker and state, and of blobs unless `storage.blobs` says otherwise.
    pub dir: PathBuf,
    /// Folder of blobs: inputs and outputs too large for a message.
    pub blobs: Option<PathBuf>,
    /// Says that every host sees the same folder of blobs. Where broker and state are configured, and are not both on
    /// this machine, inputs and outputs above `limits.inline` are refused until it is true.
    pub blobs_shared: bool,
}

impl Default for Storage {
    fn default() -> Self {
        Self { dir: PathBuf::from("data"), blobs: None, blobs_shared: false }
    }
}

/// `[up]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Up {
    /// The lanes that it runs a worker of.
    pub lanes: BTreeSet<Lane>,
}

impl Default for Up {
    fn default() -> Self {
        Self { lanes: BTreeSet::from([Lane::Local]) }
    }
}

/// `[http]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where the HTTP face listens. Default `127.0.0.1:8080`: this machine only.
    pub listen: SocketAddr,
    /// Largest request body.
    pub body_max: ByteSize,
    /// Longest wait of a request for a job's result, inference included: what takes longer is answered with the
    /// job's id, and its result can be fetched later.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            body_max: ByteSize::mib(64),
            wait_max: Duration::from_secs(120),
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics`, `/health/live` and `/health/ready` of `dispatcher` and `worker` listen. Absent: a free port
    /// of the loopback interface, logged at start.
    pub listen: Option<SocketAddr>,
}

/// `[dispatcher]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatcher {
    /// `straightline` (the rule), or a lane's name: everything there.
    pub policy: String,
    /// F: requests per second of one model above which it counts as asked for often.
    pub frequency_threshold: f64,
    /// D: from this size an input counts as large.
    pub size_threshold: ByteSize,
    /// How far back the frequency looks.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// How long a job may be held in memory for want of room before it moves to a wait queue.
    #[serde(with = "humantime_serde")]
    pub hold_max: Duration,
    /// Jobs taken from each class and not yet settled, at most.
    pub prefetch: u32,
    /// Time between two looks at the lanes' queues.
    #[serde(with = "humantime_serde")]
    pub sample_interval: Duration,
    /// Largest input of each lane: `payload_max = { serverless = "4MB" }`.
    pub payload_max: BTreeMap<Lane, ByteSize>,
    /// Longest queue of a lane beyond its slots, in jobs.
    pub lane_queue_max: u32,
    /// Memory that jobs in hand may take.
    pub memory_budget: ByteSize,
    /// File that every placement is added to, a line of JSON each, with all that it was decided by. Absent: none. It
    /// grows without end: rotate it by copying and truncating.
    pub placement_log: Option<PathBuf>,
}

impl Default for Dispatcher {
    fn default() -> Self {
        let defaults = dispatcher::Config::default();
        let limit = |lane: Lane| defaults.payload_max[lane.index()].map(|max| (lane, ByteSize(max)));
        Self {
            policy: "straightline".to_owned(),
            frequency_threshold: defaults.frequency_threshold,
            size_threshold: ByteSize(defaults.size_threshold),
            window: defaults.window,
            hold_max: defaults.hold_max,
            prefetch: defaults.prefetch,
            sample_interval: defaults.sample_interval,
            payload_max: Lane::ALL.into_iter().filter_map(limit).collect(),
            lane_queue_max: defaults.lane_queue_max,
            memory_budget: ByteSize(defaults.memory_budget as u64),
            placement_log: None,
        }
    }
}

/// `[worker]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Jobs run at once. Absent: the processors of this machine.
    pub slots: Option<u32>,
    /// Longest run of one attempt.
    #[serde(with = "humantime_serde")]
    pub run_timeout: Duration,
    /// Folder with one folder per model, besides the models in the binary.
    pub models: Option<PathBuf>,
    /// Offers the models `diagnose.*` (echo, sleep, fail, hang, abort, panic) for drills and benchmarks.
    pub diagnostics: bool,
    /// Runs that outlived their time limit before the worker takes no more jobs.
    pub abandoned_max: u32,
    /// Memory that jobs in hand may take.
    pub memory_budget: ByteSize,
    /// A model server beside a worker of the local lane, in place of models in its own process.
    pub server: Option<lanes::Server>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            slots: None,
            run_timeout: Duration::from_secs(60),
            models: None,
            diagnostics: false,
            abandoned_max: 8,
            memory_budget: ByteSize::mib(128),
            server: None,
        }
    }
}

/// `[retry]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Most attempts of a job that asks for no other number.
    pub attempts_max: u8,
    /// Ceiling of the first delay; it doubles with each attempt.
    #[serde(with = "humantime_serde")]
    pub backoff_base: Duration,
    /// Ceiling of every delay.
    #[serde(with = "humantime_serde")]
    pub backoff_cap: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        let policy = schemas::retry::RetryPolicy::default();
        Self {
            attempts_max: policy.attempts_max,
            backoff_base: policy.backoff_base,
            backoff_cap: policy.backoff_cap,
        }
    }
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Inputs and outputs above this travel through the blob store.
    pub inline: ByteSize,
    /// Most jobs in one queue.
    pub queue_jobs: u64,
    /// Most bytes in one queue. Keep the sum below the broker's disk alarm.
    pub queue_bytes: ByteSize,
    /// Most jobs at rest in `dead`.
    pub dead_jobs: u64,
    /// Returns of one message after which the broker gives up on it.
    pub returns: u32,
    /// Messages of one process that the broker has not confirmed, at most.
    pub in_flight_messages: u32,
    /// Their bytes, at most.
    pub in_flight_bytes: ByteSize,
    /// How long publishing waits for a broker that is away.
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let limits = broker::Limits::default();
        Self {
            inline: ByteSize(schemas::limits::INLINE_BYTES_DEFAULT as u64),
            queue_jobs: limits.queue_messages_max,
            queue_bytes: ByteSize(limits.queue_bytes_max),
            dead_jobs: limits.dead_messages_max,
            returns: limits.returns_max,
            in_flight_messages: limits.in_flight_messages_max,
            in_flight_bytes: ByteSize(u64::from(limits.in_flight_bytes_max)),
            publish_timeout: limits.publish_timeout,
        }
    }
}

/// `[records]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// How long results can be fetched.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// How long blobs are kept: at least the furthest deadline (24 hours) and `records.keep`; a dead job that is
    /// requeued later than that has lost its input.
    #[serde(with = "humantime_serde")]
    pub blobs_keep: Duration,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            keep: schemas::limits::RECORD_RETENTION_DEFAULT,
            blobs_keep: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// `[client]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// Name of the client on a broker without logins.
    pub name: String,
    /// Where commands reach a running `up` while no broker is configured. Default: `http.listen`.
    pub server: Option<String>,
}

impl Default for Client {
    fn default() -> Self {
        Self { name: "local".to_owned(), server: None }
    }
}

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `human` or `json`.
    pub format: LogFormat,
    /// A filter, such as `info` or `warn,workers=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Human, filter: "info".to_owned() }
    }
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// For machines: one object per line.
    Json,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

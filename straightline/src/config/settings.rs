//! What can be set, with units and defaults.

use super::{lanes, names};
use bytesize::ByteSize;
use schemas::Lane;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

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

impl Settings {
    /// Every setting with its value, as a configuration file; passwords are hidden, and what is not set is a comment.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        write_section(&mut out, &[], &toml::from_str(&toml::to_string(self)?)?)?;
        Ok(out)
    }
}

/// Writes the section at `path`, its keys in the order they are written down in, and then those within it.
fn write_section(out: &mut String, path: &[&str], section: &Table) -> anyhow::Result<()> {
    let known = names::keys(path);
    // What has no keys of its own is a map: its keys are those it has.
    let keys: Vec<&str> = match known.is_empty() {
        true => section.keys().map(String::as_str).collect(),
        false => known.iter().map(String::as_str).collect(),
    };
    if !path.is_empty() {
        let quoted = path.iter().map(|name| quoted(name)).collect::<Vec<_>>();
        writeln!(out, "{}[{}]", if out.is_empty() { "" } else { "\n" }, quoted.join("."))?;
    }
    for key in &keys {
        match section.get(*key) {
            Some(Value::Table(_)) => {}
            Some(value) => {
                out.push_str(&toml::to_string(&Table::from_iter([((*key).to_owned(), value.clone())]))?)
            }
            None => writeln!(out, "# {key} is not set")?,
        }
    }
    for key in keys {
        if let Some(Value::Table(inner)) = section.get(key) {
            write_section(out, &[path, &[key]].concat(), inner)?;
        }
    }
    Ok(())
}

/// A key as TOML has it.
fn quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if key.bytes().all(is_bare) { key.to_owned() } else { Value::from(key).to_string() }
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

/// A URL without its password.
fn hidden<S: Serializer>(url: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => serializer.serialize_str(&without_password(url.expose_secret())),
        None => serializer.serialize_none(),
    }
}

/// `scheme://user:***@rest?***`. What is not surely free of a secret is hidden whole: a URL that does not look like
/// one, and one whose login or port holds what has no place there, since nobody knows where its password begins.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let (place, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], &rest[at..=at]),
        None => (rest, ""),
    };
    let host = place.split('/').next().unwrap_or_default();
    let port = host.rsplit(']').next().and_then(|host| host.split_once(':')).map_or("", |(_, port)| port);
    let is_odd = login.is_some_and(|login| login.contains(['/', '?', '#']))
        || !port.bytes().all(|byte| byte.is_ascii_digit());
    if is_odd {
        return format!("{scheme}://***");
    }
    let login = match login.map(|login| login.split_once(':').map_or((login, ""), |(user, _)| (user, ":***")))
    {
        Some((user, password)) => format!("{user}{password}@"),
        None => String::new(),
    };
    let hidden = if query.is_empty() { "" } else { "***" };
    format!("{scheme}://{login}{place}{query}{hidden}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (url, shown) in [
            ("amqp://u:hunter2@h:5672/v", "amqp://u:***@h:5672/v"),
            ("redis://:hunter2@h/0", "redis://:***@h/0"),
            ("redis://h/0", "redis://h/0"),
            ("amqp://u@h", "amqp://u@h"),
            ("amqp://u:hun@ter2@h/v", "amqp://u:***@h/v"),
            ("hunter2", "***"),
            ("amqp://u:hun/ter2@h/v", "amqp://***"),
            ("amqp://u:hun?ter2@h/v", "amqp://***"),
            ("amqp://u:hun#ter2@h/v", "amqp://***"),
            ("amqp://hun/ter2:p@h/v", "amqp://***"),
            ("amqp://u:h@nt/er2@h/v", "amqp://***"),
            ("redis://:hunter2", "redis://***"),
            ("redis://h:6379/0?password=hunter2", "redis://h:6379/0?***"),
            ("amqps://u:p@h/v?cacertfile=x&password=hunter2", "amqps://u:***@h/v?***"),
            ("redis://h:6379#hunter2", "redis://h:6379#***"),
            ("redis://:hunter2@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
            ("redis://[::1]/0", "redis://[::1]/0"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let shown = Settings::default().to_toml().unwrap();
        let read: Settings = toml::from_str(&shown).unwrap();
        assert_eq!(read.to_toml().unwrap(), shown);
        let text = "[worker]\nslots = 3\n[worker.server]\nurl = \"http://h\"\nmodels = [\"m\"]\n\
            [docker.images.\"a.b\"]\nimage = \"i\"\nenv = { K = \"two\\nlines\" }\n";
        let set: Settings = toml::from_str(text).unwrap();
        let shown = set.to_toml().unwrap();
        let read: Settings = toml::from_str(&shown).unwrap();
        assert_eq!(read.to_toml().unwrap(), shown);
        let image = &read.docker.images[&schemas::ModelName::new("a.b").unwrap()];
        assert_eq!((image.env["K"].as_str(), read.worker.slots), ("two\nlines", Some(3)));
    }

    #[test]
    fn what_is_not_set_is_shown_in_its_section() {
        let shown = Settings::default().to_toml().unwrap();
        for (section, key) in [
            ("broker", "url"),
            ("state", "url"),
            ("storage", "blobs"),
            ("metrics", "listen"),
            ("dispatcher", "placement_log"),
            ("worker", "slots"),
            ("worker", "models"),
            ("worker", "server"),
            ("docker", "network"),
            ("serverless.host", "invoke_listen"),
            ("serverless.lambda", "qualifier"),
            ("client", "server"),
        ] {
            let (_, of_section) = shown.split_once(&format!("[{section}]\n")).expect(section);
            let of_section = of_section.split("\n[").next().unwrap();
            assert!(of_section.contains(&format!("# {key} is not set\n")), "{section} {key}\n{shown}");
        }
    }
}

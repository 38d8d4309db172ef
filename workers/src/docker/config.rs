//! Settings of the lane, and what is wrong with them: the setting is named as in the configuration file.

use super::plan::PORT;
use crate::lane::InvalidConfig;
use crate::local::SLOTS_MAX;
use hyper::Uri;
use schemas::ModelName;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the docker lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The engine: `unix:///var/run/docker.sock` (default) or `tcp://host:port`, on another machine only with
    /// `network`.
    pub host: String,
    /// The worker's name, a label of its containers.
    pub worker: String,
    /// Models served from our own image.
    pub models: Vec<ModelName>,
    /// Models served from other images.
    pub images: BTreeMap<ModelName, ImageSpec>,
    /// Folder of models that our image holds besides those in the program.
    pub models_dir: Option<PathBuf>,
    /// The program in our image. Default: this one.
    pub program: Option<PathBuf>,
    /// Most containers, in every state. Default 4.
    pub containers_max: u32,
    /// Jobs that one container runs at once. Default 1. The lane's slots are this times `containers_max`.
    pub slots_per_container: u32,
    /// What one container may use.
    pub limits: Limits,
    /// User and group in containers, as numbers. Default `65534:65534`: nobody.
    pub user: String,
    /// Network that containers join and are reached in by their own address, for a worker that is a container itself.
    /// Default: none; each is published on a free port of the loopback interface.
    pub network: Option<String>,
    /// Whether an image that is not there is fetched from its registry. Default false.
    pub pull: bool,
    /// How long a container may take to be ready. Default 30 s.
    pub ready_timeout: Duration,
    /// How long a job waits for a slot of its model before another container is started, or one in use is closed to
    /// make room. Default 500 ms.
    pub patience: Duration,
    /// Longest wait for a slot; then the job comes back later, which costs it no attempt. Default 60 s.
    pub wait_max: Duration,
    /// Longest answer of a container, in bytes. Default 64 MiB.
    pub answer_bytes_max: usize,
    /// Largest request that our own image takes, in bytes. Default 64 MiB.
    pub body_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "unix:///var/run/docker.sock".to_owned(),
            worker: "worker".to_owned(),
            models: Vec::new(),
            images: BTreeMap::new(),
            models_dir: None,
            program: None,
            containers_max: 4,
            slots_per_container: 1,
            limits: Limits::default(),
            user: "65534:65534".to_owned(),
            network: None,
            pull: false,
            ready_timeout: Duration::from_secs(30),
            patience: Duration::from_millis(500),
            wait_max: Duration::from_secs(60),
            answer_bytes_max: 64 << 20,
            body_bytes_max: 64 << 20,
        }
    }
}

/// What one container may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Memory, in bytes, with nothing swapped. Default 512 MiB.
    pub memory_bytes: u64,
    /// Processors. Default 1.
    pub cpus: f64,
    /// Processes and threads. Default 256.
    pub pids_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 512 << 20, cpus: 1.0, pids_max: 256 }
    }
}

impl Limits {
    pub(super) fn nano_cpus(&self) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "checked to be a sane number of processors")]
        let nanos = (self.cpus * 1e9).round() as i64;
        nanos
    }
}

/// An image that speaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Its name: `repository:tag`, or with a digest.
    pub image: String,
    /// Where its server listens. Default 8080.
    pub port: u16,
    /// Whether it reads and writes tensors as raw bytes (the protocol's binary extension). Default false.
    pub binary: bool,
    /// The GPUs it asks for. Default none.
    pub gpu: Option<Gpu>,
    /// Its command, in place of the image's own.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// User and group, in place of [`Config::user`].
    pub user: Option<String>,
    /// Memory, in bytes, in place of [`Limits::memory_bytes`].
    pub memory_bytes: Option<u64>,
}

impl ImageSpec {
    /// An image by name, all else as usual.
    pub fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            port: PORT,
            binary: false,
            gpu: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            user: None,
            memory_bytes: None,
        }
    }
}

/// GPUs that a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpu {
    /// So many, any of them.
    Count(u32),
    /// All there are.
    All,
    /// These, by index or UUID.
    Ids(Vec<String>),
}

impl Gpu {
    pub(super) fn count(&self) -> Option<i64> {
        match self {
            Self::Count(count) => Some(i64::from(*count)),
            Self::All => Some(-1),
            Self::Ids(_) => None,
        }
    }

    pub(super) fn ids(&self) -> Option<Vec<String>> {
        match self {
            Self::Ids(ids) => Some(ids.clone()),
            Self::Count(_) | Self::All => None,
        }
    }
}

impl Config {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let invalid = |field, problem: String| Err(InvalidConfig::new(field, problem));
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| self.host.starts_with(scheme)) {
            return invalid("docker.host", format!("{:?}: use unix:///path or tcp://host:port", self.host));
        }
        if self.network.is_none() && is_elsewhere(&self.host) {
            let problem = "is another machine, whose containers are published on its own loopback interface, out of reach";
            return invalid(
                "docker.host",
                format!(
                    "{:?} {problem}: use an engine on this one, or set docker.network to a network that this worker is in",
                    self.host
                ),
            );
        }
        if self.models.is_empty() && self.images.is_empty() {
            return invalid("docker.images", "is empty, and there is no other model to serve".to_owned());
        }
        for (field, count) in [
            ("docker.containers_max", self.containers_max),
            ("docker.slots_per_container", self.slots_per_container),
        ] {
            if count == 0 || count > SLOTS_MAX {
                return invalid(field, format!("is {count}: use 1 to {SLOTS_MAX}"));
            }
        }
        if self.slots() > SLOTS_MAX {
            return invalid(
                "docker.slots_per_container",
                format!("times docker.containers_max is {}: at most {SLOTS_MAX}", self.slots()),
            );
        }
        if !(0.01..=10_000.0).contains(&self.limits.cpus) {
            return invalid("docker.cpus", format!("is {}: use 0.01 or more", self.limits.cpus));
        }
        if self.ready_timeout.is_zero() {
            return invalid(
                "docker.ready_timeout",
                "is 0: use the time a container may take to start".to_owned(),
            );
        }
        let shared =
            |network: &&String| ["host", "none"].contains(&network.as_str()) || network.contains(':');
        if let Some(network) = self.network.as_ref().filter(shared) {
            let problem = "gives a container no address of its own: name a network that this worker is in";
            return invalid("docker.network", format!("{network:?} {problem}"));
        }
        if self.limits.pids_max == 0 {
            return invalid("docker.pids_max", "is 0: use 1 or more".to_owned());
        }
        let named =
            |(field, problem): (&'static str, String)| InvalidConfig::new(format!("docker.{field}"), problem);
        enough(self.limits.memory_bytes).and_then(|()| unprivileged(&self.user)).map_err(named)?;
        for (model, spec) in &self.images {
            spec.check().map_err(|(field, problem)| {
                InvalidConfig::new(format!("docker.images.{model}.{field}"), problem)
            })?;
        }
        Ok(())
    }

    /// Memory of a container of `model`, in bytes.
    pub(super) fn memory_of(&self, model: &ModelName) -> u64 {
        let theirs = self.images.get(model).and_then(|spec| spec.memory_bytes);
        theirs.unwrap_or(self.limits.memory_bytes)
    }

    /// Jobs the lane runs at once.
    pub fn slots(&self) -> u32 {
        self.containers_max.saturating_mul(self.slots_per_container)
    }
}

/// Docker's own least, in bytes.
const MEMORY_MIN: u64 = 6 << 20;

fn enough(memory: u64) -> Result<(), (&'static str, String)> {
    match memory < MEMORY_MIN {
        true => Err(("memory", format!("is {memory} bytes: use 6 MiB or more"))),
        false => Ok(()),
    }
}

/// Numbers, so that no image's own names decide who that is; and not root.
fn unprivileged(user: &str) -> Result<(), (&'static str, String)> {
    let (id, group) = user.split_once(':').unwrap_or((user, "0"));
    match (id.parse::<u32>(), group.parse::<u32>()) {
        (Ok(1..), Ok(_)) => Ok(()),
        _ => Err(("user", format!("is {user:?}: use numbers other than root's, such as 65534:65534"))),
    }
}

impl ImageSpec {
    /// The first field that cannot work, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let plain = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
        // Only a tag may have capital letters.
        let repository = self.image.split('@').next().unwrap_or_default();
        let repository = match repository.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => repository,
        };
        // The registry in front of it is a host's name.
        let path = match repository.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
            _ => repository,
        };
        if repository.is_empty()
            || !path.bytes().all(plain)
            || !self.image.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let problem = "is no image's name: use repository:tag, the repository in small letters";
            return Err(("image", format!("{:?} {problem}", self.image)));
        }
        if self.port == 0 {
            return Err(("port", "is 0: use the one its server listens on".to_owned()));
        }
        let nothing = match &self.gpu {
            Some(Gpu::Count(count)) => *count == 0,
            Some(Gpu::Ids(ids)) => ids.is_empty() || ids.iter().any(String::is_empty),
            Some(Gpu::All) | None => false,
        };
        if nothing {
            let problem =
                "asks for none: use a number, \"all\" or a list of indexes or UUIDs, or leave it out";
            return Err(("gpus", problem.to_owned()));
        }
        self.user.as_deref().map_or(Ok(()), unprivileged)?;
        self.memory_bytes.map_or(Ok(()), enough)
    }
}

/// Whether an engine's address is not this machine's.
fn is_elsewhere(host: &str) -> bool {
    let uri: Option<Uri> = host.parse().ok().filter(|_| !host.starts_with("unix:"));
    let Some(name) = uri.as_ref().and_then(Uri::host) else { return false };
    let name = name.trim_matches(['[', ']']);
    let here = |address: IpAddr| address.is_loopback() || address.is_unspecified();
    !name.eq_ignore_ascii_case("localhost") && !name.parse().is_ok_and(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ModelName {
        ModelName::new(name).unwrap()
    }

    fn config() -> Config {
        Config { models: vec![name("digits")], containers_max: 2, ..Config::default() }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let refused = |config: Config| config.check().unwrap_err().to_string();
        assert!(refused(Config { host: "ssh://x".to_owned(), ..config() }).starts_with("docker.host"));
        let at = |host: &str| Config { host: host.to_owned(), ..config() };
        for host in ["tcp://10.0.0.1:2375", "http://engine.example:2375"] {
            let problem = refused(at(host));
            assert!(problem.starts_with("docker.host") && problem.contains("docker.network"), "{problem}");
            assert_eq!(Config { network: Some("models".to_owned()), ..at(host) }.check(), Ok(()));
        }
        for host in
            ["unix:///run/engine.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375", "http://localhost:2375"]
        {
            assert_eq!(at(host).check(), Ok(()), "{host}");
        }
        assert!(refused(Config { models: Vec::new(), ..config() }).contains("no other model"));
        assert!(refused(Config { containers_max: 0, ..config() }).contains("use 1 to"));
        assert!(refused(Config { slots_per_container: 1_000, ..config() }).contains("at most"));
        let limits = Limits { memory_bytes: 1, ..Limits::default() };
        assert!(refused(Config { limits, ..config() }).contains("docker.memory is 1 bytes"));
        for network in ["host", "none", "container:abc"] {
            let network = Some(network.to_owned());
            assert!(refused(Config { network, ..config() }).starts_with("docker.network"));
        }
        let late = Config { ready_timeout: Duration::ZERO, ..config() };
        assert!(refused(late).starts_with("docker.ready_timeout is 0"));
        for user in ["root", "0", "0:0", "", "nobody", "1:"] {
            assert!(
                refused(Config { user: user.to_owned(), ..config() }).starts_with("docker.user is "),
                "{user}"
            );
        }
        type Spoil = fn(&mut ImageSpec);
        let spoilt: [(Spoil, &str); 8] = [
            (|spec| spec.image = String::new(), "image \"\" is no image's name"),
            (|spec| spec.image = "Repo/It:1".to_owned(), "image \"Repo/It:1\" is no"),
            (|spec| spec.image = "a b".to_owned(), "image \"a b\" is no"),
            (|spec| spec.port = 0, "port is 0"),
            (|spec| spec.gpu = Some(Gpu::Count(0)), "gpus asks for none"),
            (|spec| spec.gpu = Some(Gpu::Ids(Vec::new())), "gpus asks for none"),
            (|spec| spec.user = Some("root".to_owned()), "user is \"root\""),
            (|spec| spec.memory_bytes = Some(1), "memory is 1 bytes"),
        ];
        for (spoil, problem) in spoilt {
            let mut spec = ImageSpec::new("Host:5000/repo/it:1.0-RC@sha256:0");
            let with = |spec: &ImageSpec| Config { images: [(name("m"), spec.clone())].into(), ..config() };
            assert_eq!(with(&spec).check(), Ok(()));
            spoil(&mut spec);
            let problem = format!("docker.images.m.{problem}");
            assert!(refused(with(&spec)).starts_with(&problem), "{}", refused(with(&spec)));
        }
        let limits = Limits { cpus: f64::NAN, ..Limits::default() };
        assert!(refused(Config { limits, ..config() }).contains("docker.cpus"));
    }
}

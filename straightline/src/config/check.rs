//! What must hold between settings, checked before anything is opened.

use super::{ConfigError, Settings};
use schemas::ClientName;
use schemas::limits::{ATTEMPTS_MAX, DEADLINE_MAX};
use std::time::Duration;

/// Longest run of one attempt: RabbitMQ closes the channel of a consumer that takes 30 minutes over a delivery, and what
/// follows a run (a blob, the record, the reply) must be done by then.
const RUN_TIMEOUT_MAX: Duration = Duration::from_secs(25 * 60);

/// Where a process needs broker and state to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Services {
    /// Both configured, or both embedded in this process.
    Together,
    /// Both configured: others share them.
    Shared,
}

impl Settings {
    /// Checks what the types cannot.
    pub fn check(&self, services: Services) -> Result<(), ConfigError> {
        self.check_services(services)?;
        if let Err(error) = ClientName::new(&self.client.name) {
            return invalid(format!("client.name: {error}"));
        }
        let attempts = self.retry.attempts_max;
        if !(1..=ATTEMPTS_MAX).contains(&attempts) {
            return invalid(format!("retry.attempts_max is {attempts}: use 1 to {ATTEMPTS_MAX}"));
        }
        let limit = self.worker.run_timeout;
        if limit.is_zero() || limit > RUN_TIMEOUT_MAX {
            return invalid(format!(
                "worker.run_timeout is {limit:?}: use more than 0 and at most {} minutes, or the broker takes a job for \
                 lost while it runs",
                RUN_TIMEOUT_MAX.as_secs() / 60
            ));
        }
        let least = DEADLINE_MAX + self.records.keep;
        if self.records.blobs_keep < least {
            return invalid(format!(
                "records.blobs_keep is {} s, but a job may wait {} s for its input and its result is kept {} s \
                 (records.keep): raise it to {} s or more, or lower records.keep",
                self.records.blobs_keep.as_secs(),
                DEADLINE_MAX.as_secs(),
                self.records.keep.as_secs(),
                least.as_secs()
            ));
        }
        Ok(())
    }

    /// Checks that broker and state are where they must be. Nothing may fall back to the embedded ones because a
    /// variable was forgotten: a process alone with its queues looks healthy and does nothing.
    pub fn check_services(&self, services: Services) -> Result<(), ConfigError> {
        let urls = [("broker", self.broker.url.is_some()), ("state", self.state.url.is_some())];
        let absent: Vec<_> = urls.iter().filter(|(_, is_set)| !is_set).map(|(section, _)| *section).collect();
        let why = match (services, absent.len()) {
            (_, 0) | (Services::Together, 2) => return Ok(()),
            (Services::Together, _) => "set both URLs, or none to have both embedded in one process",
            (Services::Shared, _) => {
                "this command works for others, over the broker and the state they share"
            }
        };
        let is_absent = |section: &&str| format!("{section}.url is not set");
        let how = |section: &&str| {
            format!(
                "[{section}] url = \"…\" in the configuration file or STRAIGHTLINE_{}__URL",
                section.to_uppercase()
            )
        };
        invalid(format!(
            "{}: {why}; use {}",
            absent.iter().map(is_absent).collect::<Vec<_>>().join(", "),
            absent.iter().map(how).collect::<Vec<_>>().join(", and ")
        ))
    }

    /// Whether processes on other hosts may take part: broker and state are configured, and are not both on this machine.
    pub fn spans_hosts(&self) -> bool {
        use secrecy::ExposeSecret;
        let urls = [&self.broker.url, &self.state.url];
        urls.into_iter().flatten().any(|url| !is_loopback(url.expose_secret()))
    }
}

/// Whether `error` says that a setting cannot work, whoever found that out.
pub fn is_to_blame(error: &anyhow::Error) -> bool {
    use broker::BrokerError;
    use producer::client::OpenError;
    use state::StateError;
    use workers::serverless::host;
    use workers::{lane, local, worker};
    error.is::<ConfigError>()
        || error.is::<dispatcher::config::InvalidConfig>()
        || error.is::<lane::InvalidConfig>()
        || matches!(error.downcast_ref(), Some(host::StartError::Config(_)))
        || matches!(error.downcast_ref(), Some(BrokerError::Config { .. }))
        || matches!(error.downcast_ref(), Some(StateError::Config { .. }))
        || matches!(error.downcast_ref(), Some(OpenError::Config { .. }))
        || matches!(error.downcast_ref(), Some(worker::StartError::Config { .. }))
        || matches!(error.downcast_ref(), Some(local::StartError::Slots(_)))
}

fn invalid(problem: String) -> Result<(), ConfigError> {
    Err(ConfigError::Value(problem))
}

/// Whether the host in `url` is surely this machine.
fn is_loopback(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let address = authority.rsplit('@').next().unwrap_or_default();
    let host = match address.strip_prefix('[').and_then(|address| address.split_once(']')) {
        Some((host, _)) => host,
        None => address.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;

    fn with(broker: Option<&str>, state: Option<&str>) -> Settings {
        let mut settings = Settings::default();
        settings.broker.url = broker.map(SecretString::from);
        settings.state.url = state.map(SecretString::from);
        settings
    }

    #[test]
    fn nobody_is_left_alone_with_an_embedded_half() {
        use Services::{Shared, Together};
        let (broker, state) = (Some("amqp://h"), Some("redis://h"));
        let ways = ["broker.url", "[broker] url", "STRAIGHTLINE_BROKER__URL"];
        let other = ["state.url", "[state] url", "STRAIGHTLINE_STATE__URL"];
        for (settings, services, refused) in [
            (with(broker, state), Together, vec![]),
            (with(broker, state), Shared, vec![]),
            (with(None, None), Together, vec![]),
            (with(None, None), Shared, [ways, other].concat()),
            (with(broker, None), Together, other.to_vec()),
            (with(broker, None), Shared, other.to_vec()),
            (with(None, state), Together, ways.to_vec()),
            (with(None, state), Shared, ways.to_vec()),
        ] {
            let said = settings.check(services).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(said.is_empty(), refused.is_empty(), "{said}");
            assert!(refused.iter().all(|words| said.contains(words)), "{said}");
        }
    }

    #[test]
    fn limits_that_contradict_each_other_are_named() {
        Settings::default().check(Services::Together).unwrap();
        type Spoil = fn(&mut Settings);
        let cases: [(Spoil, &str); 6] = [
            (|s| s.client.name = "a b".to_owned(), "client.name: "),
            (|s| s.retry.attempts_max = 0, "retry.attempts_max is 0: use 1 to 20"),
            (|s| s.retry.attempts_max = 21, "retry.attempts_max is 21"),
            (|s| s.worker.run_timeout = Duration::from_secs(1501), "worker.run_timeout is 1501s"),
            (|s| s.worker.run_timeout = Duration::ZERO, "worker.run_timeout is 0ns"),
            (|s| s.records.keep = Duration::from_secs(6 * 86_400 + 1), "raise it to 604801 s"),
        ];
        for (spoil, expected) in cases {
            let mut settings = Settings::default();
            spoil(&mut settings);
            let error = settings.check(Services::Together).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_what_is_surely_this_machine_is_one_host() {
        for (broker, state, spans) in [
            ("amqp://u:p@127.0.0.1:5672/v", "redis://localhost/0", false),
            ("amqp://[::1]:5672", "rediss://:p@127.8.0.1:6379?x=y", false),
            ("amqp://rabbit:5672", "redis://localhost/0", true),
            ("amqp://localhost", "redis://redis.localhost.example:6379", true),
            ("amqp://u:p/localhost@rabbit", "redis://localhost", true),
            ("amqp://localhost:p@rabbit", "redis://localhost", true),
        ] {
            assert_eq!(with(Some(broker), Some(state)).spans_hosts(), spans, "{broker} {state}");
        }
        assert!(!with(None, None).spans_hosts());
    }
}

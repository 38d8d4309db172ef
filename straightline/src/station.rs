//! What every long-running command stands on: broker, state and blob store, as configured.

use crate::config::{ConfigError, Settings, is_to_blame};
use anyhow::Result;
use broker::Broker;
use producer::operations::{self, Status};
use schemas::ClientName;
use secrecy::SecretString;
use state::State;
use state::blobs::Blobs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// An opened deployment, seen from one process.
pub struct Station {
    pub settings: Settings,
    pub broker: Arc<dyn Broker>,
    pub state: Arc<dyn State>,
    pub blobs: Arc<Blobs>,
}

/// How long a process that ends waits for its last settlements.
const CLOSE_MAX: Duration = Duration::from_secs(10);

impl Station {
    /// Opens what `settings` name. Broker first: without it there is nothing to do.
    pub async fn open(settings: Settings) -> Result<Self> {
        let broker = open_broker(&settings).await?;
        let state = open_state(&settings).await?;
        let blobs = Blobs::open(state::blobs::Config {
            shared: settings.storage.blobs_shared,
            several_hosts: settings.spans_hosts(),
            ..state::blobs::Config::new(blobs_dir(&settings))
        })
        .await?;
        Ok(Self { settings, broker, state, blobs: Arc::new(blobs) })
    }

    /// Who this process submits as: the broker's login, or the configured name where there are no logins.
    pub fn client_name(&self) -> Result<ClientName> {
        match self.broker.login() {
            Some(login) => Ok(login),
            None => configured_client(&self.settings),
        }
    }

    /// A client's settings.
    pub fn client_config(&self) -> Result<producer::Config> {
        Ok(producer::Config {
            inline_bytes_max: inline_bytes(&self.settings),
            record_keep: self.settings.records.keep,
            patience: self.settings.limits.publish_timeout,
            ..producer::Config::new(self.client_name()?)
        })
    }

    /// Opens a client.
    pub async fn client(&self) -> Result<producer::Client> {
        self.client_with(self.client_config()?).await
    }

    /// Opens a client with other settings than the configured ones.
    pub async fn client_with(&self, config: producer::Config) -> Result<producer::Client> {
        let (broker, state) = (Arc::clone(&self.broker), Arc::clone(&self.state));
        Ok(producer::Client::open(config, broker, state, Some(Arc::clone(&self.blobs))).await?)
    }

    /// Lets go of everything; what is on its way is settled first.
    pub async fn close(self) {
        let close = async {
            self.broker.close().await;
            self.state.close().await;
        };
        if tokio::time::timeout(CLOSE_MAX, close).await.is_err() {
            tracing::warn!("gave up waiting for broker and state to close");
        }
    }
}

/// Broker and state as they are, be one of them away: what an operator looks at then.
pub struct Parts {
    settings: Settings,
    broker: Result<Arc<dyn Broker>, String>,
    state: Arc<dyn State>,
}

impl Parts {
    /// Reaches for both. Only a setting that cannot work is an error.
    pub async fn open(settings: Settings) -> Result<Self> {
        let state = match &settings.state.url {
            Some(url) => state::redis::Redis::unasked(redis_config(&settings, url))?,
            None => open_state(&settings).await?,
        };
        let broker = Self::reach(&settings).await?;
        Ok(Self { settings, broker, state })
    }

    async fn reach(settings: &Settings) -> Result<Result<Arc<dyn Broker>, String>> {
        match open_broker(settings).await {
            Ok(broker) => Ok(Ok(broker)),
            Err(error) if is_to_blame(&error) => Err(error),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// How it stands. A broker that was away is reached for again.
    pub async fn status(&mut self) -> Result<Status> {
        if self.broker.is_err() {
            self.broker = Self::reach(&self.settings).await?;
        }
        let broker = self.broker.as_deref().map_err(String::as_str);
        Ok(operations::status(broker, self.state.as_ref()).await)
    }

    /// Lets go of both.
    pub async fn close(self) {
        if let Ok(broker) = self.broker {
            broker.close().await;
        }
        self.state.close().await;
    }
}

/// Whether the embedded broker is in use.
pub fn is_embedded(settings: &Settings) -> bool {
    settings.broker.url.is_none()
}

/// The configured inline limit, in bytes.
pub fn inline_bytes(settings: &Settings) -> usize {
    usize::try_from(settings.limits.inline.as_u64()).unwrap_or(usize::MAX)
}

/// Who submits where the broker has no logins.
pub fn configured_client(settings: &Settings) -> Result<ClientName> {
    let name = ClientName::new(&settings.client.name);
    Ok(name.map_err(|error| ConfigError::Value(format!("client.name: {error}")))?)
}

/// How to reach the configured broker; none where it is embedded.
pub fn amqp_config(settings: &Settings) -> Option<broker::amqp::Config> {
    let url = settings.broker.url.clone()?;
    let (limits, ca_file) = (limits(settings), settings.broker.ca_file.clone());
    Some(broker::amqp::Config { limits, ca_file, ..broker::amqp::Config::new(url) })
}

async fn open_broker(settings: &Settings) -> Result<Arc<dyn Broker>> {
    match amqp_config(settings) {
        Some(config) => Ok(broker::amqp::Amqp::open(config).await?),
        None => {
            let limits = limits(settings);
            let config = broker::embedded::Config { dir: settings.storage.dir.clone(), limits };
            Ok(broker::embedded::Embedded::open(config).await?)
        }
    }
}

fn redis_config(settings: &Settings, url: &SecretString) -> state::redis::Config {
    let prefix = settings.state.prefix.clone();
    state::redis::Config { prefix, ..state::redis::Config::new(url.clone()) }
}

/// Opens the configured state.
pub async fn open_state(settings: &Settings) -> Result<Arc<dyn State>> {
    match &settings.state.url {
        Some(url) => Ok(state::redis::Redis::open(redis_config(settings, url)).await?),
        None => {
            Ok(state::embedded::Embedded::open(state::embedded::Config::new(&settings.storage.dir)).await?)
        }
    }
}

fn blobs_dir(settings: &Settings) -> PathBuf {
    settings.storage.blobs.clone().unwrap_or_else(|| settings.storage.dir.join("blobs"))
}

fn limits(settings: &Settings) -> broker::Limits {
    let limits = &settings.limits;
    broker::Limits {
        queue_messages_max: limits.queue_jobs,
        queue_bytes_max: limits.queue_bytes.as_u64(),
        dead_messages_max: limits.dead_jobs,
        returns_max: limits.returns,
        in_flight_messages_max: limits.in_flight_messages,
        in_flight_bytes_max: u32::try_from(limits.in_flight_bytes.as_u64()).unwrap_or(u32::MAX),
        publish_timeout: limits.publish_timeout,
        ..broker::Limits::default()
    }
}

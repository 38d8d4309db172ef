//! The adapters on the services they are for: each port's own suite, and what only RabbitMQ can do to us.

use anyhow::{Context as _, Result, anyhow};
use async_trait::async_trait;
use broker::amqp::fixture::{self, Rabbit as OnRabbit, Service, trouble};
use secrecy::SecretString;
use state::State;
use state::conformance::Fixture;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::scenario::{Need, Scenario};
use tests::services::{Rabbit, RabbitVersion};
use tests::stage::Context;
use tokio::runtime::Handle;

const BOUND: Duration = Duration::from_secs(20 * 60);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let suite = Scenario::on_each_rabbit("conformance/broker", &[], broker_suite);
    let trouble = Scenario::on_each_rabbit("conformance/broker_in_trouble", &[], broker_in_trouble);
    let redis = Scenario::new("conformance/state/redis", &[Need::Redis], state_suite);
    suite.into_iter().chain(trouble).chain([redis]).map(|scenario| scenario.within(BOUND)).collect()
}

/// A broker of the scenario's own, which may be restarted and killed.
struct Own {
    rabbit: Arc<Rabbit>,
    vhosts: AtomicU32,
}

impl Own {
    /// Does something to the broker on a thread that may block: what the harness waits with cannot move between
    /// threads, which the service's futures must.
    async fn apart<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Rabbit, &Handle) -> Result<T> + Send + 'static,
    ) -> T {
        let (rabbit, runtime) = (Arc::clone(&self.rabbit), Handle::current());
        let acted = tokio::task::spawn_blocking(move || act(&rabbit, &runtime)).await;
        acted.expect("no panic").expect("the broker does as told")
    }
}

#[async_trait]
impl Service for Own {
    async fn clean(&self) -> String {
        let vhost = format!("v{}", self.vhosts.fetch_add(1, Ordering::Relaxed));
        self.ctl(&["add_vhost", &vhost]).await;
        self.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]).await;
        self.rabbit.url_as("guest", "guest", &vhost)
    }

    async fn restart(&self) {
        self.apart(|rabbit, runtime| runtime.block_on(rabbit.restart())).await;
    }

    async fn crash(&self) {
        // A queue that was declared moments ago is not yet on disk; a message in it would be, and be lost with it.
        self.apart(|rabbit, runtime| {
            runtime.block_on(rabbit.flush())?;
            runtime.block_on(rabbit.kill9())?;
            runtime.block_on(rabbit.resume())
        })
        .await;
    }

    async fn ctl(&self, arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self.apart(move |rabbit, runtime| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            runtime.block_on(rabbit.ctl(&arguments))
        })
        .await
    }
}

async fn own(context: &Context, version: RabbitVersion) -> Result<Arc<dyn Service>> {
    let rabbit = context.own_rabbit(version).await?;
    Ok(Arc::new(Own { rabbit: Arc::new(rabbit), vhosts: AtomicU32::new(0) }))
}

async fn broker_suite(context: &Context, version: RabbitVersion) -> Result<()> {
    let service = own(context, version).await?;
    let properties: [(&str, broker::conformance::Run); _] = broker::conformance_suite!(list OnRabbit);
    for (name, property) in properties {
        property_holds(name, fixture::on(Arc::clone(&service), property())).await?;
    }
    Ok(())
}

async fn broker_in_trouble(context: &Context, version: RabbitVersion) -> Result<()> {
    let service = own(context, version).await?;
    for (name, property) in trouble::ALL {
        property_holds(name, property(Arc::clone(&service))).await?;
    }
    Ok(())
}

struct OnRedis {
    url: String,
}

#[async_trait]
impl Fixture for OnRedis {
    async fn open(&self, name: &str, limits: state::Limits) -> Arc<dyn State> {
        let url = SecretString::from(self.url.clone());
        let config =
            state::redis::Config { prefix: name.to_owned(), limits, ..state::redis::Config::new(url) };
        state::redis::Redis::open(config).await.expect("Redis is there")
    }
}

async fn state_suite(context: &Context) -> Result<()> {
    let redis = context.redis().await?;
    let fixture = Arc::new(OnRedis { url: redis.url() });
    for property in state::conformance::ALL {
        let fixture = Arc::clone(&fixture);
        property_holds(property.name, async move { (property.run)(fixture.as_ref()).await }).await?;
    }
    Ok(())
}

/// Runs a property on a task of its own, so that its panic can be told with its name.
async fn property_holds(name: &str, property: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    eprintln!("    {name}");
    let failed = |error: tokio::task::JoinError| match error.try_into_panic() {
        Ok(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            anyhow!(
                said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
            )
        }
        Err(error) => anyhow!(error),
    };
    tokio::spawn(property).await.map_err(failed).with_context(|| name.to_owned())
}

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

const BOUND: Duration = Duration::from_secs(20 * 60);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let suite = Scenario::on_each_rabbit("conformance/broker", &[], broker_suite);
    let trouble = Scenario::on_each_rabbit("conformance/broker_in_trouble", &[], broker_in_trouble);
    let redis = Scenario::new("conformance/state/redis", &[Need::Redis], state_suite);
    suite.into_iter().chain(trouble).chain([redis]).map(|scenario| scenario.within(BOUND)).collect()
}

/// A broker of the scenario's own, which may be restarted and killed.
struct Own {
    rabbit: Rabbit,
    vhosts: AtomicU32,
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
        self.rabbit.restart().await.expect("the broker restarts");
    }

    async fn crash(&self) {
        // A queue that was declared moments ago is not yet on disk; a message in it would be, and be lost with it.
        self.rabbit.flush().await.expect("the broker writes down its queues");
        self.rabbit.kill9().await.expect("the broker is killed");
        self.rabbit.resume().await.expect("the broker starts again");
    }

    async fn ctl(&self, arguments: &[&str]) -> String {
        self.rabbit.ctl(arguments).await.expect("rabbitmqctl does as told")
    }
}

async fn own(context: &Context, version: RabbitVersion) -> Result<Arc<dyn Service>> {
    let rabbit = context.own_rabbit(version).await?;
    Ok(Arc::new(Own { rabbit, vhosts: AtomicU32::new(0) }))
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

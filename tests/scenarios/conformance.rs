//! The adapters on the services they are for: each port's own suite, and what only RabbitMQ or Redis can do to us.

use anyhow::{Context as _, Result, anyhow};
use async_trait::async_trait;
use broker::amqp::fixture::{self, Rabbit as OnRabbit, Service, trouble};
use state::conformance::{RedisFixture, Server};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::scenario::{Need, Scenario};
use tests::services::{Rabbit, RabbitVersion, Redis};
use tests::stage::Context;
use tokio::runtime::Handle;

const BOUND: Duration = Duration::from_secs(20 * 60);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let suite = Scenario::on_each_rabbit("conformance/broker", &[], broker_suite);
    let trouble = Scenario::on_each_rabbit("conformance/broker_in_trouble", &[], broker_in_trouble);
    let redis = Scenario::new("conformance/state/redis", &[Need::Redis], state_suite);
    let redis_in_trouble =
        Scenario::new("conformance/state/redis_in_trouble", &[Need::Redis], state_in_trouble);
    suite
        .into_iter()
        .chain(trouble)
        .chain([redis, redis_in_trouble])
        .map(|scenario| scenario.within(BOUND))
        .collect()
}

/// A broker of the scenario's own, which may be restarted and killed.
struct Own {
    rabbit: Arc<Rabbit>,
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
        // A queue that was declared moments ago is not yet on disk; a message in it would be, and be lost with it. A node of
        // 4.0 that is told to stop just then has been seen to come back without one as well.
        apart(&self.rabbit, |rabbit, runtime| {
            runtime.block_on(rabbit.flush())?;
            runtime.block_on(rabbit.restart())
        })
        .await;
    }

    async fn crash(&self) {
        apart(&self.rabbit, |rabbit, runtime| {
            runtime.block_on(rabbit.flush())?;
            runtime.block_on(rabbit.kill9())?;
            runtime.block_on(rabbit.resume())
        })
        .await;
    }

    async fn ctl(&self, arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        apart(&self.rabbit, move |rabbit, runtime| {
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

async fn state_suite(context: &Context) -> Result<()> {
    let redis = context.redis().await?;
    let fixture = Arc::new(RedisFixture::new(&redis.url()));
    for property in state::conformance::ALL {
        let fixture = Arc::clone(&fixture);
        property_holds(property.name, async move { (property.run)(fixture.as_ref()).await }).await?;
    }
    Ok(())
}

/// A Redis of the scenario's own, which may be killed and misconfigured.
struct OwnRedis {
    redis: Arc<Redis>,
}

#[async_trait]
impl Server for OwnRedis {
    fn port(&self) -> u16 {
        self.redis.port()
    }

    async fn kill(&self) {
        apart(&self.redis, |redis, runtime| runtime.block_on(redis.kill9())).await;
    }

    async fn start(&self) {
        apart(&self.redis, |redis, runtime| runtime.block_on(redis.resume())).await;
    }

    async fn cli(&self, arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        apart(&self.redis, move |redis, runtime| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            runtime.block_on(redis.cli(0, &arguments))
        })
        .await
    }
}

async fn state_in_trouble(context: &Context) -> Result<()> {
    let server = Arc::new(OwnRedis { redis: Arc::new(context.own_redis().await?) });
    for property in state::conformance::SERVER {
        let server = Arc::clone(&server);
        property_holds(property.name, async move { (property.run)(server.as_ref()).await }).await?;
    }
    Ok(())
}

/// Does something to a service on a thread that may block: what the harness waits with cannot move between threads,
/// which the futures of the suites must.
async fn apart<S: Send + Sync + 'static, T: Send + 'static>(
    service: &Arc<S>,
    act: impl FnOnce(&S, &Handle) -> Result<T> + Send + 'static,
) -> T {
    let (service, runtime) = (Arc::clone(service), Handle::current());
    let acted = tokio::task::spawn_blocking(move || act(&service, &runtime)).await;
    acted.expect("no panic").expect("the service does as told")
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

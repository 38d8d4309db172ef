//! What tests need to put this adapter to the test, for whoever can start a RabbitMQ: the conformance suite's fixture,
//! and in [`trouble`] what only this adapter has to live through.
//!
//! A [`Service`] is a broker that can be asked for clean virtual hosts, controlled and restarted. The suite's fixtures
//! are made without arguments, so the service to use is set for the running task by [`on`].

pub mod trouble;

use super::{Amqp, Config};
use crate::conformance::Fixture;
use crate::{Broker, Limits};
use async_trait::async_trait;
use secrecy::SecretString;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A RabbitMQ to test on.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// The URL of a virtual host that nobody used before, for a user who may do everything there. Its host is an
    /// address, its port is given.
    async fn clean(&self) -> String;

    /// Restarts the broker in an orderly way, and waits until it answers.
    async fn restart(&self);

    /// Kills the broker, starts it again, and waits until it answers.
    async fn crash(&self);

    /// Runs `rabbitmqctl` with these arguments; what it printed.
    async fn ctl(&self, arguments: &[&str]) -> String;
}

tokio::task_local! {
    static SERVICE: Arc<dyn Service>;
}

/// Runs `property`, one of the suite's with [`Rabbit`] as its fixture, on `service`.
pub async fn on<F: Future>(service: Arc<dyn Service>, property: F) -> F::Output {
    SERVICE.scope(service, property).await
}

/// A virtual host of the service set by [`on`]. Every process reaches it through a door of its own, which can be shut
/// in its face.
pub struct Rabbit {
    service: Arc<dyn Service>,
    url: String,
    limits: Limits,
    doors: Mutex<Vec<Door>>,
}

/// A way to the service, open while its tasks live, and who goes through it.
struct Door {
    broker: Arc<dyn Broker>,
    _tasks: JoinSet<()>,
}

#[async_trait]
impl Fixture for Rabbit {
    async fn clean(limits: Limits) -> Self {
        let service = SERVICE.with(Arc::clone);
        Self { url: service.clean().await, service, limits, doors: Mutex::default() }
    }

    async fn open(&self) -> Arc<dyn Broker> {
        let (head, rest) = self.url.split_once('@').expect("a URL with a login");
        let (address, vhost) = rest.split_once('/').expect("a URL with a virtual host");
        let (door, tasks) = door(address.to_owned()).await;
        let url = format!("{head}@{door}/{vhost}");
        let config = Config {
            limits: self.limits.clone(),
            reconnect_delay_max: Duration::from_secs(1),
            ..Config::new(SecretString::from(url))
        };
        let broker: Arc<dyn Broker> = Amqp::open(config).await.expect("the service is there");
        self.doors.lock().expect("no panic in between").push(Door { broker: broker.clone(), _tasks: tasks });
        broker
    }

    async fn crash(&self, broker: Arc<dyn Broker>) {
        let mut doors = self.doors.lock().expect("no panic in between");
        let nth = doors.iter().position(|door| Arc::ptr_eq(&door.broker, &broker)).expect("opened here");
        // Its tasks go and its sockets with them; what the process does from now on reaches nobody.
        doors.swap_remove(nth);
    }

    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        self.service.restart().await;
        broker
    }

    fn service_apart(&self) -> bool {
        true
    }
}

/// A loopback port that leads to `address`, for as long as its tasks live.
async fn door(address: String) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let own = listener.local_addr().expect("a bound port").to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut visits = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let address = address.clone();
            visits.spawn(async move {
                // Nobody behind the door: the visitor finds out when this end is closed.
                if let Ok(mut far) = TcpStream::connect(&address).await {
                    let _ = near.set_nodelay(true).and(far.set_nodelay(true));
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (own, tasks)
}

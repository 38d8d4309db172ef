//! The AMQP adapter on a RabbitMQ of your own:
//!
//! ```text
//! STRAIGHTLINE_TEST_AMQP=amqp://guest:guest@127.0.0.1:5672   # where it is
//! STRAIGHTLINE_TEST_AMQP_CTL='rabbitmqctl -n rabbit@host'    # how to control it
//! STRAIGHTLINE_TEST_AMQP_RESTART='systemctl restart …'       # how to restart it; may return before it answers
//! STRAIGHTLINE_TEST_AMQP_CRASH='systemctl kill -s KILL …'     # the same without warning
//! cargo test -p broker --features conformance --test amqp -- --ignored --test-threads=1
//! ```
//!
//! The workspace's own tests run the same suite on brokers that they start themselves.
#![cfg(feature = "conformance")]

use async_trait::async_trait;
use broker::amqp::fixture::{self, Rabbit, Service, trouble};
use broker::conformance::{Fixture, PATIENCE};
use broker::{Broker, Limits};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Virtual hosts made by one command: most of what it costs is its own start.
const BATCH: usize = 16;

struct Installed;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: see the head of this file"))
}

/// The URL without a virtual host.
fn base() -> String {
    setting("STRAIGHTLINE_TEST_AMQP").trim_end_matches('/').to_owned()
}

async fn run(command: String) -> String {
    let ended = tokio::task::spawn_blocking(move || {
        let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    ended.await.expect("no panic")
}

async fn ctl(arguments: &[&str]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|argument| format!("'{argument}'")).collect();
    run(format!("{} {}", setting("STRAIGHTLINE_TEST_AMQP_CTL"), quoted.join(" "))).await
}

/// A virtual host that this run has not used before.
async fn vhost() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static MADE: tokio::sync::Mutex<usize> = tokio::sync::Mutex::const_new(0);
    let nth = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = |nth: usize| format!("t{}-{nth}", std::process::id());
    let mut made = MADE.lock().await;
    while *made <= nth {
        let names: Vec<String> = (*made..*made + BATCH).map(|nth| format!("<<\"{}\">>", name(nth))).collect();
        let expression = format!(
            "lists:foreach(fun(V) -> rabbit_vhost:add(V, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, \
             <<\"test\">>) end, [{}]).",
            names.join(",")
        );
        ctl(&["eval", &expression]).await;
        *made += BATCH;
    }
    name(nth)
}

/// Waits until the broker answers the protocol header with a frame.
async fn answers() {
    let address = base().rsplit_once('@').expect("a URL with a login").1.to_owned();
    let look = async {
        loop {
            if let Ok(mut stream) = TcpStream::connect(&address).await
                && stream.write_all(b"AMQP\x00\x00\x09\x01").await.is_ok()
                && stream.read_u8().await.is_ok_and(|first| first == 1)
            {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("the broker came back");
}

#[async_trait]
impl Service for Installed {
    async fn clean(&self) -> String {
        format!("{}/{}", base(), vhost().await)
    }

    async fn restart(&self) {
        run(setting("STRAIGHTLINE_TEST_AMQP_RESTART")).await;
        answers().await;
    }

    async fn crash(&self) {
        run(setting("STRAIGHTLINE_TEST_AMQP_CRASH")).await;
        answers().await;
    }

    async fn ctl(&self, arguments: &[&str]) -> String {
        ctl(arguments).await
    }
}

/// The fixture on the service named by the environment.
struct OnInstalled(Rabbit);

#[async_trait]
impl Fixture for OnInstalled {
    async fn clean(limits: Limits) -> Self {
        static SERVICE: OnceLock<Arc<dyn Service>> = OnceLock::new();
        let service = SERVICE.get_or_init(|| Arc::new(Installed)).clone();
        Self(fixture::on(service, Rabbit::clean(limits)).await)
    }

    async fn open(&self) -> Arc<dyn Broker> {
        self.0.open().await
    }

    async fn crash(&self, broker: Arc<dyn Broker>) {
        self.0.crash(broker).await;
    }

    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        self.0.restart(broker).await
    }

    fn service_apart(&self) -> bool {
        true
    }
}

mod conformance {
    use super::OnInstalled;
    broker::conformance_suite!(
        #[ignore = "needs a RabbitMQ: see the head of tests/amqp.rs"]
        OnInstalled
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ: see the head of this file"]
async fn trouble_is_lived_through() {
    let only = std::env::var("STRAIGHTLINE_TEST_AMQP_TROUBLE").ok();
    for (name, property) in trouble::ALL {
        if only.as_deref().is_none_or(|only| name.contains(only)) {
            println!("{name}");
            property(Arc::new(Installed)).await;
        }
    }
}

//! The Redis adapter over a private server. Needs `redis-server` and `redis-cli`:
//! `cargo test -p state --test redis -- --ignored`. The workspace's own tests run the same properties.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use async_trait::async_trait;
use state::conformance::{ALL, RedisFixture, SERVER, Server};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// A server with a port and a folder of its own, which ends with its owner.
struct Private {
    port: u16,
    folder: TempDir,
    process: Mutex<Option<Child>>,
}

impl Private {
    async fn new() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
        let server = Self { port, folder: tempfile::tempdir().unwrap(), process: Mutex::new(None) };
        server.start().await;
        server
    }
}

#[async_trait]
impl Server for Private {
    fn port(&self) -> u16 {
        self.port
    }

    async fn kill(&self) {
        let mut process = self.process.lock().unwrap().take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    async fn start(&self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"]);
        command.arg(self.folder.path()).args(["--appendonly", "yes", "--save", ""]);
        let process =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server starts");
        *self.process.lock().unwrap() = Some(process);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.cli(&["PING"]).await.trim() != "PONG" {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            process.kill().and_then(|()| process.wait()).expect("it ends");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn the_suite_holds() {
    let server = Private::new().await;
    let fixture = Arc::new(RedisFixture::new(&format!("redis://127.0.0.1:{}", server.port)));
    let mut running = Vec::new();
    for property in ALL {
        let fixture = Arc::clone(&fixture);
        running.push((property.name, tokio::spawn(async move { (property.run)(&*fixture).await })));
    }
    let mut broken = Vec::new();
    for (name, run) in running {
        if run.await.is_err() {
            broken.push(name);
        }
    }
    assert!(broken.is_empty(), "broken: {broken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn it_bears_a_failing_server() {
    let server = Private::new().await;
    for property in SERVER {
        let started = Instant::now();
        (property.run)(&server).await;
        eprintln!("{} in {:?}", property.name, started.elapsed());
    }
}

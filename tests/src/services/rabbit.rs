//! A private RabbitMQ node.
//!
//! 3.10 is Debian 12's own package, 4.0 lives in a Debian 13 root that `tests/run` prepares; both run through
//! `chroot`, the former's root being `/`. Each node runs in a process namespace of its own with its port
//! mapper (epmd), so that its end is the end of all it started, and in a mount namespace, so that the node in
//! the other root finds its data folder at a fixed place.

mod vhost;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{START_BOUND, STOP_BOUND, cache, log_to, tail};
use crate::owned::{self, Owned, Signal};
use crate::ports;
use crate::until::until;

pub use vhost::{QueueDepth, Vhost};

/// Where a node in a root of its own sees its data folder.
const MOUNT_POINT: &str = "/mnt";
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// The depths of quorum queues are counted anew once a second, in place of every five.
const QUICK_DEPTHS: &str = "[{rabbit, [{quorum_tick_interval, 1000}]}].\n";

/// What a node prints once all of it is up.
const STARTED: &str = "Server startup complete";

/// Runs inside the new namespaces: $1 is the root, $2 the data folder, the rest the command.
const ENTER_ROOT: &str = r#"
root=$1 data=$2; shift 2
[ "$root" = / ] || mount --bind "$data" "$root/mnt"
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"#;

/// A RabbitMQ the project is tested against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RabbitVersion {
    /// 3.10, the oldest supported.
    V3_10,
    /// 4.0, with another default delivery limit and metadata store.
    V4_0,
}

impl RabbitVersion {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::V3_10, Self::V4_0];

    /// `3.10` or `4.0`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V3_10 => "3.10",
            Self::V4_0 => "4.0",
        }
    }

    /// The full version that is installed; an error that says what to do if none is.
    pub fn installed(self) -> Result<String> {
        let lib = self.root().join("usr/lib/rabbitmq/lib");
        let prefix = format!("rabbitmq_server-{}.", self.name());
        let names = fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let found = names.filter_map(|name| name.into_string().ok()).find(|name| name.starts_with(&prefix));
        let found = found.with_context(|| {
            format!("RabbitMQ {} is not in {}; tests/run as root prepares it", self.name(), lib.display())
        })?;
        let spaces = Command::new("unshare").args(["--pid", "--fork", "--mount", "true"]).output();
        ensure!(
            spaces.is_ok_and(|output| output.status.success()),
            "RabbitMQ {} needs namespaces of its own (unshare, chroot); run the tests as root",
            self.name()
        );
        Ok(found.trim_start_matches("rabbitmq_server-").to_owned())
    }

    fn root(self) -> PathBuf {
        match self {
            Self::V3_10 => "/".into(),
            Self::V4_0 => cache().join("rabbitmq-4.0"),
        }
    }
}

/// One node with its ports and data, running or stopped.
#[derive(Debug)]
pub struct Rabbit {
    version: RabbitVersion,
    data: PathBuf,
    amqp: u16,
    distribution: u16,
    epmd: u16,
    running: Mutex<Option<Owned>>,
    vhosts: Mutex<vhost::Made>,
}

impl Rabbit {
    /// Starts a node whose data live in `data`, which is made, and waits until it speaks AMQP.
    pub async fn start(version: RabbitVersion, data: &Path) -> Result<Self> {
        version.installed()?;
        fs::create_dir_all(data).with_context(|| format!("failed to make {}", data.display()))?;
        let node = Self {
            version,
            data: data.to_owned(),
            amqp: ports::free(),
            distribution: ports::free(),
            epmd: ports::free(),
            running: Mutex::default(),
            vhosts: Mutex::default(),
        };
        node.configure()?;
        node.resume().await?;
        Ok(node)
    }

    /// Starts the stopped or killed node again on the same ports and data, and waits until it speaks AMQP.
    pub async fn resume(&self) -> Result<()> {
        let mut running = self.running.lock().await;
        ensure!(running.is_none(), "RabbitMQ {} runs already", self.version.name());
        // Not the log's last lines: a node with many queues prints hundreds more as soon as it is up.
        let printed_before = fs::metadata(self.log()).map_or(0, |log| log.len());
        let mut server = Owned::start(format!("RabbitMQ {}", self.version.name()), self.server()?)?;
        let ready = until(START_BOUND, "RabbitMQ speaks AMQP", async || {
            if let Err(gone) = server.still_runs() {
                return Ok(Err(gone));
            }
            self.handshake().await?;
            // 4.0 speaks AMQP seconds before that, and a `list_queues` in between hangs for ever.
            ensure!(self.printed_since(printed_before).contains(STARTED), "it is still starting");
            Ok(Ok(()))
        });
        ready.await.and_then(|alive| alive).with_context(|| self.last_words())?;
        *running = Some(server);
        Ok(())
    }

    /// Stops the node as an operator would; its data stay.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM).await
    }

    /// Kills the node as a crash would; its data stay, but for what [`Rabbit::flush`] tells of.
    pub async fn kill9(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await
    }

    /// Writes down what the node has only noted: that its queues exist.
    ///
    /// A RabbitMQ node killed within some three seconds of a quorum queue's declaration comes back with an
    /// empty queue, confirmed messages and all (seen on 3.10 and 4.0): the queue's entry in the node's
    /// directory is a delayed write. A scenario that is not about this flushes once its queues are declared.
    pub async fn flush(&self) -> Result<()> {
        self.ctl(&["eval", "lists:foreach(fun dets:sync/1, dets:all())."]).await?;
        Ok(())
    }

    /// Stops the node and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.resume().await
    }

    /// Which RabbitMQ this is.
    #[must_use]
    pub fn version(&self) -> RabbitVersion {
        self.version
    }

    /// The port it speaks AMQP on, at 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.amqp
    }

    /// The address of its default virtual host, as the user `guest`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_as("guest", "guest", "%2f")
    }

    /// The address of a virtual host as some user, right or wrong.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str, vhost: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/{vhost}", self.amqp)
    }

    /// What the node printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.data.join("console.log")
    }

    fn printed_since(&self, offset: u64) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        String::from_utf8_lossy(&text[from..]).into_owned()
    }

    /// Runs `rabbitmqctl` with these arguments and gives back what it printed.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut command = owned::command("chroot");
        command.env_clear().envs(self.environment()).env("HOME", "/tmp");
        command.arg(self.version.root()).arg(format!("{SCRIPTS}/rabbitmqctl")).arg("--quiet");
        command.args(["-n", &self.node(), "--erlang-cookie", &self.cookie()]).args(args);
        owned::printed(&format!("rabbitmqctl {}", args.join(" ")), command, STOP_BOUND).await
    }

    fn configure(&self) -> Result<()> {
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             vm_memory_high_watermark.absolute = 1GiB\n\
             disk_free_limit.absolute = 50MB\n\
             log.file = false\n\
             log.console = true\n\
             log.console.level = info\n",
            self.amqp
        );
        for (name, text) in
            [("rabbitmq.conf", settings.as_str()), ("advanced.config", QUICK_DEPTHS), ("plugins", "[].\n")]
        {
            fs::write(self.data.join(name), text).with_context(|| format!("failed to write {name}"))?;
        }
        Ok(())
    }

    fn server(&self) -> Result<Command> {
        let mut command = owned::command("unshare");
        command.env_clear().envs(self.environment());
        command.args(["--pid", "--fork", "--kill-child", "--mount", "sh", "-ec", ENTER_ROOT, "sh"]);
        command.arg(self.version.root()).arg(&self.data).arg(format!("{SCRIPTS}/rabbitmq-server"));
        log_to(&mut command, &self.log())?;
        Ok(command)
    }

    /// For the node and for `rabbitmqctl` alike: nothing of the caller's environment, nothing of `/etc`.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let at = match self.version {
            RabbitVersion::V3_10 => self.data.display().to_string(),
            RabbitVersion::V4_0 => MOUNT_POINT.to_owned(),
        };
        // Schedulers that do not spin leave the two cores to what is tested.
        let erlang = format!(
            "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -setcookie {} \
             -kernel inet_dist_use_interface {{127,0,0,1}}",
            self.cookie()
        );
        vec![
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("HOME", at.clone()),
            ("ERL_EPMD_PORT", self.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            // The start script then becomes the node in place of minding it.
            ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_NODENAME", self.node()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", self.amqp.to_string()),
            ("RABBITMQ_DIST_PORT", self.distribution.to_string()),
            // Each rabbitmqctl listens too, by default on one of eleven ports for the whole machine.
            ("RABBITMQ_CTL_DIST_PORT_MIN", "32000".to_owned()),
            ("RABBITMQ_CTL_DIST_PORT_MAX", "32700".to_owned()),
            ("RABBITMQ_CONFIG_FILE", format!("{at}/rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", format!("{at}/advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", format!("{at}/plugins")),
            ("RABBITMQ_MNESIA_BASE", format!("{at}/data")),
            ("RABBITMQ_LOG_BASE", format!("{at}/log")),
            ("RABBITMQ_PID_FILE", format!("{at}/pid")),
            ("RABBITMQ_IO_THREAD_POOL_SIZE", "4".to_owned()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", erlang),
        ]
    }

    fn node(&self) -> String {
        format!("sl{}@localhost", self.amqp)
    }

    fn cookie(&self) -> String {
        format!("sl{}", self.amqp)
    }

    /// A broker that answers the protocol header with a method frame is ready for clients.
    async fn handshake(&self) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.amqp)).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        let frame = stream.read_u8().await?;
        ensure!(frame == 1, "it answered with a frame of type {frame}");
        Ok(())
    }

    /// Signals the node itself, the first process in its namespace: once that is gone so is all it started,
    /// and only then does `unshare`, the one we own, end. So the ports are free afterwards.
    async fn end(&self, signal: Signal) -> Result<()> {
        let mut running = self.running.lock().await;
        let server =
            running.as_mut().with_context(|| format!("RabbitMQ {} is stopped", self.version.name()))?;
        let outer = server.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
        let Some(inner) = children.split_whitespace().next() else {
            bail!("RabbitMQ {} has just ended\n{}", self.version.name(), tail(&self.log(), 20));
        };
        owned::signal_process(inner.parse()?, signal)?;
        server.ended(STOP_BOUND).await?;
        *running = None;
        Ok(())
    }

    fn last_words(&self) -> String {
        format!("RabbitMQ {} did not start; its last words:\n{}", self.version.name(), tail(&self.log(), 20))
    }
}

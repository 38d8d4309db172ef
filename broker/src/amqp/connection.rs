//! Connections to the broker that come back by themselves.
//!
//! A [`Link`] is one connection for one [`Role`], watched over by a task: when the connection is lost it connects
//! again with growing, jittered delays, declares the topology, and only then says that it is up. Everything that uses
//! a link (outlets, subscriptions, listeners) opens its own channels and opens them again after a loss; the
//! client library's own recovery is off, because it brings back neither a channel that the broker closed nor a
//! consumer that it cancelled, and one way of recovering is easier to reason about than two.

use super::endpoint::Endpoint;
use super::{Phase, Phases, Tasks, topology};
use crate::{BrokerError, Health, Limits};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt;
use lapin::tcp::AsyncTcpStream;
use lapin::types::LongString;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::{Notify, watch};
use tokio::time::{interval, sleep, timeout};

/// The first delay before connecting again; it doubles from there.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);
/// Some ends of a connection are announced to nobody: look now and then.
const LOOK: Duration = Duration::from_secs(1);

/// The broker's codes for a wrong login and for a virtual host that is not there or not ours.
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// What a connection is for. The two are apart because a broker that holds back publishers stops reading their
/// connection, and acknowledgements must still get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Publishing,
    Consuming,
}

impl Role {
    const ALL: [Self; 2] = [Self::Publishing, Self::Consuming];

    fn as_str(self) -> &'static str {
        match self {
            Self::Publishing => "publishing",
            Self::Consuming => "consuming",
        }
    }
}

/// How to connect.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) endpoint: Endpoint,
    pub(super) limits: Limits,
    pub(super) name: String,
    pub(super) connect_timeout: Duration,
    pub(super) heartbeat: Duration,
    pub(super) reconnect_delay_max: Duration,
}

impl Setup {
    /// The broker cannot be reached, for this reason.
    pub(super) fn unreachable(&self, reason: String) -> BrokerError {
        BrokerError::Unreachable { address: self.endpoint.address(), reason }
    }

    /// Something asked of an open connection failed.
    pub(super) fn failed(&self, operation: &str, error: &lapin::Error) -> BrokerError {
        match code(error) {
            Some(_) => BrokerError::Refused { operation: operation.to_owned(), reason: reason(error) },
            None => self.unreachable(format!("failed to {operation}: {}", reason(error))),
        }
    }

    /// Connecting failed.
    fn not_opened(&self, error: &lapin::Error) -> BrokerError {
        let endpoint = &self.endpoint;
        match code(error) {
            Some(ACCESS_REFUSED) => {
                BrokerError::Credentials { address: endpoint.address(), user: endpoint.user().to_owned() }
            }
            Some(NOT_ALLOWED) => BrokerError::Refused {
                operation: format!("open virtual host {:?} for user {:?}", endpoint.vhost(), endpoint.user()),
                reason: reason(error),
            },
            Some(_) => BrokerError::Refused { operation: "open a connection".into(), reason: reason(error) },
            None => self.unreachable(reason(error)),
        }
    }

    /// Delays for one series of tries, without end.
    pub(super) fn backoff(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(RECONNECT_DELAY_MIN)
            .with_max_delay(self.reconnect_delay_max.max(RECONNECT_DELAY_MIN))
            .with_jitter()
            .without_max_times()
            .build()
    }
}

/// The text of an error, as the broker or the system said it.
pub(super) fn reason(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}

/// The code the broker gave for a refusal, if it was one.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// One connection while it lasts.
pub(super) struct Uplink {
    pub(super) connection: Connection,
    /// Tells connections of one link apart.
    pub(super) generation: u64,
}

/// How a link is.
#[derive(Clone)]
pub(super) enum State {
    /// Connected; `blocked` holds the broker's reason while it holds publishers back.
    Up { uplink: Arc<Uplink>, blocked: Option<String> },
    /// Not connected, and why.
    Down(String),
    /// Closed for good.
    Closed,
}

/// A connection that comes back.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) setup: Arc<Setup>,
    pub(super) state: watch::Receiver<State>,
    declare_again: Arc<Notify>,
}

impl Link {
    /// Connects and declares the topology, once; a task keeps the link up from then on.
    pub(super) async fn open(
        setup: Arc<Setup>,
        role: Role,
        board: Arc<Board>,
        phases: Phases,
        tasks: &Tasks,
    ) -> Result<Self, BrokerError> {
        let connection = connect(&setup, role).await?;
        let uplink = Arc::new(Uplink { connection, generation: 0 });
        let (sender, state) = watch::channel(State::Up { uplink: uplink.clone(), blocked: None });
        board.set(role, Health::Connected);
        let declare_again = Arc::new(Notify::new());
        let link = Self { setup: setup.clone(), state, declare_again: declare_again.clone() };
        tasks.spawn(Keeper { setup, role, board, sender, declare_again, phases }.keep(uplink));
        Ok(link)
    }

    /// The connection, as soon as there is one; `None` once the link is closed.
    pub(super) async fn up(&self) -> Option<Arc<Uplink>> {
        let mut state = self.state.clone();
        let found = state.wait_for(|state| !matches!(state, State::Down(_))).await.ok()?;
        match &*found {
            State::Up { uplink, .. } => Some(uplink.clone()),
            State::Down(_) | State::Closed => None,
        }
    }

    /// Waits until publishers are welcome; `false` once the link is closed.
    pub(super) async fn unblocked(&self) -> bool {
        let welcome = |state: &State| match state {
            State::Up { blocked, .. } => blocked.is_none(),
            State::Down(_) => false,
            State::Closed => true,
        };
        if matches!(&*self.state.borrow(), State::Up { blocked: None, .. }) {
            return true;
        }
        let mut state = self.state.clone();
        state.wait_for(welcome).await.is_ok_and(|state| !matches!(*state, State::Closed))
    }

    /// The connection within the time that connecting may take, or why there is none.
    pub(super) async fn up_soon(&self) -> Result<Arc<Uplink>, BrokerError> {
        match timeout(self.setup.connect_timeout, self.up()).await {
            Ok(found) => found.ok_or(BrokerError::Closed),
            Err(_) => Err(self.setup.unreachable(self.trouble().unwrap_or_else(|| "no connection".into()))),
        }
    }

    /// What keeps publishers waiting, if anything does.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Up { blocked: None, .. } => None,
            State::Up { blocked: Some(reason), .. } => Some(format!("it holds publishers back: {reason}")),
            State::Down(reason) => Some(reason.clone()),
            State::Closed => Some("closed".into()),
        }
    }

    /// Something of the topology is gone: declares it again, soon and once for many such calls.
    pub(super) fn declare_again(&self) {
        self.declare_again.notify_one();
    }
}

/// The task that keeps a link up.
struct Keeper {
    setup: Arc<Setup>,
    role: Role,
    board: Arc<Board>,
    sender: watch::Sender<State>,
    declare_again: Arc<Notify>,
    phases: Phases,
}

impl Keeper {
    async fn keep(mut self, mut uplink: Arc<Uplink>) {
        while let Some(reason) = self.watch_over(&uplink).await {
            tracing::warn!(broker.role = self.role.as_str(), error = reason, "connection to the broker lost");
            self.down(reason);
            let generation = uplink.generation + 1;
            drop(uplink);
            let Some(connection) = self.reconnect().await else { break };
            tracing::info!(broker.role = self.role.as_str(), "connected to the broker again");
            metrics::counter!("straightline_broker_reconnects_total", "role" => self.role.as_str())
                .increment(1);
            uplink = Arc::new(Uplink { connection, generation });
            self.up(&uplink, None);
        }
        self.board.set(self.role, Health::Disconnected("closed".into()));
        let last = self.sender.send_replace(State::Closed);
        if let State::Up { uplink, .. } = last {
            let closing = uplink.connection.close(200, "closed".into());
            // A broker that holds back publishers does not read the close either.
            let _ = timeout(super::FAREWELL, closing).await;
        }
    }

    /// Follows a connection until it is lost, and says why; `None` when the link is to be closed.
    async fn watch_over(&mut self, uplink: &Arc<Uplink>) -> Option<String> {
        let mut events = Box::pin(uplink.connection.events_listener());
        let mut look = interval(LOOK);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = look.tick() => None,
                () = self.declare_again.notified() => {
                    self.declare(uplink).await;
                    None
                }
                () = self.phases.reached(Phase::Closed) => return None,
            };
            let reason = match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    self.up(uplink, Some(reason));
                    None
                }
                Some(Event::ConnectionUnblocked) => {
                    self.up(uplink, None);
                    None
                }
                Some(Event::Error(error)) => Some(reason(&error)),
                _ => None,
            };
            if !uplink.connection.status().connected() {
                return Some(reason.unwrap_or_else(|| "the connection ended".into()));
            }
        }
    }

    async fn declare(&self, uplink: &Uplink) {
        if let Err(error) = topology::declare_all(&uplink.connection, &self.setup).await {
            tracing::warn!(%error, "failed to declare the queues again");
        }
        // What is missing may be deleted again and again: not in a tight loop.
        sleep(RECONNECT_DELAY_MIN).await;
    }

    async fn reconnect(&mut self) -> Option<Connection> {
        let mut backoff = self.setup.backoff();
        loop {
            let delay = backoff.next().unwrap_or(self.setup.reconnect_delay_max);
            let attempt = async {
                sleep(delay).await;
                connect(&self.setup, self.role).await
            };
            let connected = tokio::select! {
                connected = attempt => connected,
                () = self.phases.reached(Phase::Closed) => return None,
            };
            match connected {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    tracing::debug!(broker.role = self.role.as_str(), %error, "failed to connect again");
                    self.down(error.to_string());
                }
            }
        }
    }

    fn up(&self, uplink: &Arc<Uplink>, blocked: Option<String>) {
        let health = blocked.clone().map_or(Health::Connected, Health::Blocked);
        self.board.set(self.role, health);
        self.sender.send_replace(State::Up { uplink: uplink.clone(), blocked });
    }

    fn down(&self, reason: String) {
        self.board.set(self.role, Health::Disconnected(reason.clone()));
        self.sender.send_replace(State::Down(reason));
    }
}

/// The health of both links as one.
pub(super) struct Board {
    roles: Mutex<[Health; Role::ALL.len()]>,
    sender: watch::Sender<Health>,
}

impl Board {
    pub(super) fn new() -> (Arc<Self>, watch::Receiver<Health>) {
        let down = Health::Disconnected("not connected yet".into());
        let (sender, receiver) = watch::channel(down.clone());
        (Arc::new(Self { roles: Mutex::new([down.clone(), down]), sender }), receiver)
    }

    fn set(&self, role: Role, health: Health) {
        let mut roles = self.roles.lock().expect("nothing panics with the board in hand");
        roles[role as usize] = health;
        let worst = combined(&*roles);
        self.sender.send_if_modified(|shown| {
            let differs = *shown != worst;
            *shown = worst;
            differs
        });
    }
}

/// The worst there is.
fn combined(roles: &[Health]) -> Health {
    let badness = |health: &&Health| match health {
        Health::Connected => 0,
        Health::Blocked(_) => 1,
        Health::Disconnected(_) => 2,
    };
    roles.iter().max_by_key(badness).cloned().unwrap_or(Health::Connected)
}

/// Connects once and declares the topology.
async fn connect(setup: &Setup, role: Role) -> Result<Connection, BrokerError> {
    let connection = handshake(setup, role).await?;
    topology::declare_all(&connection, setup).await?;
    Ok(connection)
}

async fn handshake(setup: &Setup, role: Role) -> Result<Connection, BrokerError> {
    let name = format!("{} {}", setup.name, role.as_str());
    let properties = ConnectionProperties::default().with_connection_name(LongString::from(name));
    let mut uri = setup.endpoint.uri.clone();
    let heartbeat = setup.heartbeat.as_secs().clamp(1, u16::MAX.into());
    uri.query.heartbeat = u16::try_from(heartbeat).ok();

    let runtime = lapin::runtime::default_runtime().map_err(|error| setup.unreachable(error.to_string()))?;
    let socket = Socket::default();
    let (endpoint, limit, held) = (setup.endpoint.clone(), setup.connect_timeout, socket.clone());
    let opening = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let connecting = async {
                let found = lookup_host((uri.authority.host.as_str(), uri.authority.port)).await?;
                AsyncTcpStream::connect(&runtime, found.collect::<Vec<_>>()).await
            };
            let stream =
                timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            if let AsyncTcpStream::Plain(stream) = &stream {
                held.hold(stream.get_ref());
            }
            match endpoint.encrypted() {
                true => Ok(stream.into_tls(&uri.authority.host, endpoint.tls.as_ref()).await?),
                false => Ok(stream),
            }
        },
        properties,
    );
    let opened = timeout(setup.connect_timeout, opening).await;
    match opened {
        Ok(outcome) => {
            socket.release();
            outcome.map_err(|error| setup.not_opened(&error))
        }
        Err(_) => {
            socket.shut();
            let waited = setup.connect_timeout;
            Err(setup.unreachable(format!(
                "no answer within {waited:?}: is this an AMQP port, and encrypted or not?"
            )))
        }
    }
}

/// The socket of a connection being opened, so that it can be shut down when we stop waiting: the client library
/// would wait for ever, on a thread of its own, for a broker that accepts and says nothing.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn hold(&self, stream: &impl AsFd) {
        *self.lock() = stream.as_fd().try_clone_to_owned().ok().map(TcpStream::from);
    }

    fn shut(&self) {
        if let Some(stream) = self.lock().take() {
            // It may be gone already, which is as well.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn release(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.0.lock().expect("nothing panics with the socket in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_two_links_is_what_is_shown() {
        let blocked = || Health::Blocked("memory".into());
        let down = || Health::Disconnected("gone".into());
        for (one, other, worst) in [
            (Health::Connected, Health::Connected, Health::Connected),
            (blocked(), Health::Connected, blocked()),
            (blocked(), down(), down()),
        ] {
            assert_eq!(combined(&[one.clone(), other.clone()]), worst);
            assert_eq!(combined(&[other, one]), worst);
        }
    }

    #[test]
    fn watchers_are_woken_by_changes_only() {
        let (board, mut receiver) = Board::new();
        board.set(Role::Publishing, Health::Connected);
        board.set(Role::Consuming, Health::Connected);
        assert_eq!(*receiver.borrow_and_update(), Health::Connected);
        board.set(Role::Consuming, Health::Connected);
        assert!(!receiver.has_changed().unwrap());
    }

    fn client_threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin-io-loop")).count()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_peer_that_accepts_and_says_nothing_is_given_up_and_leaves_no_thread_behind() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqp://guest:guest@{}/%2f", silent.local_addr().unwrap());
        let config = crate::amqp::Config {
            connect_timeout: Duration::from_millis(300),
            ..crate::amqp::Config::new(url.into())
        };
        let error = crate::amqp::Amqp::open(config).await.err().unwrap();
        assert!(error.to_string().contains("no answer within 300ms"), "{error}");
        let gone = async {
            while client_threads() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("the client library's thread ends");
    }
}

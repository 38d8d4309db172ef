//! Connections to the broker that come back by themselves.
//!
//! A [`Link`] is one connection for one [`Role`], watched over by a task: when the connection is lost it connects
//! again with growing, jittered delays, declares the topology, and only then says that it is up. Everything that uses
//! a link (outlets, subscriptions, listeners) opens its own channels and opens them again after a loss; the
//! client library's own recovery is off, because it brings back neither a channel that the broker closed nor a
//! consumer that it cancelled, and one way of recovering is easier to reason about than two.

use super::handshake::{RECONNECT_DELAY_MIN, Setup, connect, reason};
use super::{Phase, Phases, Tasks, topology};
use crate::{BrokerError, Health};
use futures_util::StreamExt;
use lapin::{Connection, Event};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{interval, sleep, timeout};

/// Some ends of a connection are announced to nobody: look now and then.
const LOOK: Duration = Duration::from_secs(1);

/// What a connection is for. The two are apart because a broker that holds back publishers stops reading their
/// connection, and acknowledgements must still get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Publishing,
    Consuming,
}

impl Role {
    const ALL: [Self; 2] = [Self::Publishing, Self::Consuming];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Publishing => "publishing",
            Self::Consuming => "consuming",
        }
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
}

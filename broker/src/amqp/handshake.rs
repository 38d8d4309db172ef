//! How to connect: the settings, the handshake, and what its failures mean.

use super::connection::Role;
use super::endpoint::Endpoint;
use super::{topology, transport};
use crate::{BrokerError, Limits};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use lapin::tcp::AsyncTcpStream;
use lapin::types::LongString;
use lapin::{Connection, ConnectionProperties, ErrorKind};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::timeout;

/// The first delay before connecting again; it doubles from there.
pub(super) const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);

/// How long the broker may take to answer on an open connection. The first declaration of a quorum queue is the slowest:
/// hundreds of milliseconds where it is busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The broker's codes for a wrong login and for a virtual host that is not there or not ours.
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

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

/// The broker's answer to something asked on an open connection. One that starts or stops, or whose queue has no leader,
/// may owe it for ever while the connection stands; whoever asked then gives up on the channel and asks again.
pub(super) async fn answered<T>(asked: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
    timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(|_| {
        let waited = format!("no answer within {ANSWER_TIMEOUT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, waited).into())
    })
}

/// Connects once and declares the topology.
pub(super) async fn connect(setup: &Setup, role: Role) -> Result<Connection, BrokerError> {
    let connection = handshake(setup, role.as_str()).await?;
    topology::declare_all(&connection, setup).await?;
    Ok(connection)
}

/// Connects once. Operators see `role` behind our name.
pub(super) async fn handshake(setup: &Setup, role: &str) -> Result<Connection, BrokerError> {
    let name = format!("{} {role}", setup.name);
    let properties = ConnectionProperties::default().with_connection_name(LongString::from(name));
    let mut uri = setup.endpoint.uri.clone();
    let heartbeat = setup.heartbeat.as_secs().clamp(1, u16::MAX.into());
    uri.query.heartbeat = u16::try_from(heartbeat).ok();

    let socket = Socket::default();
    let (endpoint, limit, held) = (setup.endpoint.clone(), setup.connect_timeout, socket.clone());
    let opening = Connection::connector(
        uri,
        transport::runtime(),
        async move |uri, _| {
            let host = uri.authority.host.as_str();
            let connecting = async {
                let stream = transport::connect((host, uri.authority.port)).await?;
                held.hold(&stream);
                transport::wrap(stream, endpoint.tls.as_ref(), host).await
            };
            let stream =
                timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            Ok(AsyncTcpStream::Plain(stream))
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
struct Socket(Arc<Mutex<Option<std::net::TcpStream>>>);

impl Socket {
    fn hold(&self, stream: &impl AsFd) {
        *self.lock() = stream.as_fd().try_clone_to_owned().ok().map(std::net::TcpStream::from);
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

    fn lock(&self) -> MutexGuard<'_, Option<std::net::TcpStream>> {
        self.0.lock().expect("nothing panics with the socket in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    fn client_threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin-io-loop")).count()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_peer_that_accepts_and_says_nothing_is_given_up_and_leaves_no_thread_behind() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for scheme in ["amqp", "amqps"] {
            let url = format!("{scheme}://guest:guest@{}/%2f", silent.local_addr().unwrap());
            let config = crate::amqp::Config {
                connect_timeout: Duration::from_millis(300),
                ..crate::amqp::Config::new(url.into())
            };
            let opening = timeout(Duration::from_secs(10), crate::amqp::Amqp::open(config));
            let error = opening.await.expect("it is given up").err().unwrap().to_string();
            assert!(error.contains("no answer within 300ms") || error.contains("timed out"), "{error}");
        }
        let gone = async {
            while client_threads() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("the client library's thread ends");
    }
}

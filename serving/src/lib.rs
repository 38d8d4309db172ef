//! Serving an HTTP router on a listener, within limits. Every face of the system is served here: the client's, a
//! model server's, the metrics port, the function host's.
//!
//! What this crate owns: accepting, how many connections there are, how long a caller may take over a request's head,
//! and the end. What it must not know: what is served.

use axum::Router;
use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Pause after a connection could not be accepted: out of file descriptors, most likely, trying again at once would
/// only spin.
const PAUSE: Duration = Duration::from_millis(100);

/// What bounds a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most connections; beyond them callers wait in the listener's backlog.
    pub connections_max: usize,
    /// How long the head of a request may take to arrive, the time its connection lies idle before it included. None
    /// where callers are few, known, and think for long between two requests.
    pub head_timeout: Option<Duration>,
    /// How long what is under way at the end may take.
    pub grace: Duration,
}

/// Serves until `end` resolves, then takes no more connections and lets the requests under way end within the grace:
/// a caller that reads slowly would hold up the end of the process. Says whether all of them did.
pub fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut end: BoxFuture<'static, ()>,
) -> BoxFuture<'static, bool> {
    Box::pin(async move {
        let places = Arc::new(Semaphore::new(limits.connections_max));
        let connections = GracefulShutdown::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.head_timeout);
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
                (accept(&listener).await, place)
            };
            let (stream, place) = tokio::select! {
                () = &mut end => break,
                accepted = accepted => accepted,
            };
            let service = TowerToHyperService::new(router.clone());
            let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(place);
            });
        }
        drop(listener);
        timeout(limits.grace, connections.shutdown()).await.is_ok()
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it an answer written in two parts waits for the caller's delayed acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot switch off Nagle's algorithm");
                }
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    const BOUND: Duration = Duration::from_secs(20);
    const LIMITS: Limits = Limits { connections_max: 8, head_timeout: None, grace: BOUND };

    struct Face {
        address: SocketAddr,
        end: oneshot::Sender<()>,
        serving: JoinHandle<bool>,
    }

    /// A face that answers at once, or never.
    async fn face(limits: Limits) -> Face {
        let router = Router::new()
            .route("/", get(async || "well"))
            .route("/never", get(async || std::future::pending::<()>().await));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let ended = Box::pin(async move { drop(ended.await) });
        Face { address, end, serving: tokio::spawn(serve(listener, router, limits, ended)) }
    }

    async fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut caller = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();
        caller
    }

    async fn answer(mut caller: TcpStream) -> String {
        let mut answer = String::new();
        timeout(BOUND, caller.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn it_answers_until_its_end_and_lets_none_hold_that_up() {
        let Face { address, end, serving } = face(LIMITS).await;
        assert!(answer(ask(address, "/").await).await.ends_with("well"));
        end.send(()).unwrap();
        assert!(timeout(BOUND, serving).await.unwrap().unwrap(), "nothing was under way");
        assert!(TcpStream::connect(address).await.is_err());

        let slow = Limits { grace: Duration::from_millis(20), ..LIMITS };
        let Face { address, end, serving } = face(slow).await;
        let _waiting = ask(address, "/never").await;
        assert!(answer(ask(address, "/").await).await.ends_with("well"), "the first has been accepted");
        end.send(()).unwrap();
        assert!(!timeout(BOUND, serving).await.unwrap().unwrap(), "one was cut off");
    }

    #[tokio::test]
    async fn one_over_the_limit_waits_and_one_that_says_nothing_is_let_go() {
        let limits = Limits { connections_max: 1, head_timeout: Some(Duration::from_millis(200)), ..LIMITS };
        let face = face(limits).await;
        let address = face.address;
        let silent = TcpStream::connect(address).await.unwrap();
        let waiting = ask(address, "/").await;
        assert!(answer(waiting).await.ends_with("well"), "once the silent one is gone");
        assert_eq!(answer(silent).await, "");
        face.serving.abort();
    }
}

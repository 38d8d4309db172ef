//! How a process is asked to stop: SIGTERM or SIGINT once to drain, twice to let go at once. What ends without being
//! asked has failed.

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Nothing.
    No,
    /// Take nothing new, finish, settle, end.
    Drain,
    /// Give back what is in hand and end.
    Now,
}

/// A command that was told to stop waiting, and has said what there is to say.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Watches for signals from here on, and logs what each leads to.
pub fn watch_signals() -> std::io::Result<watch::Receiver<Stop>> {
    watch(|asked| match asked {
        Stop::Drain => tracing::info!("draining; a second signal returns jobs to their queues at once"),
        _ => tracing::warn!("returning jobs to their queues"),
    })
}

/// Watches for signals from here on, for a command that has no jobs in hand and says itself what they lead to.
pub fn watch_quietly() -> std::io::Result<watch::Receiver<Stop>> {
    watch(|_| ())
}

fn watch(tell: fn(Stop)) -> std::io::Result<watch::Receiver<Stop>> {
    let (told, stop) = watch::channel(Stop::No);
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for asked in [Stop::Drain, Stop::Now] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            tell(asked);
            told.send_replace(asked);
        }
        // A third signal finds the receiver gone and is ignored: the process is ending already.
        std::future::pending::<()>().await;
    });
    Ok(stop)
}

/// Resolves once draining was asked for; fails if that which works until then ends first, by itself.
pub async fn until_drain<E: Into<anyhow::Error>>(
    stop: &mut watch::Receiver<Stop>,
    work: impl Future<Output = Result<(), E>>,
) -> Result<()> {
    tokio::select! {
        // First: what ends because it was asked to is no failure.
        biased;
        () = until(stop, Stop::Drain) => Ok(()),
        ended = work => match ended {
            Err(error) => Err(error.into()),
            Ok(()) => bail!("the work ended without being asked to"),
        },
    }
}

/// Resolves once at least `asked` was asked for.
pub async fn until(stop: &mut watch::Receiver<Stop>, asked: Stop) {
    // An error means that nobody can ask any more; then nobody has.
    if stop.wait_for(|now| *now >= asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

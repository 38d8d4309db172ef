//! What a dispatcher's owner wants of it, as its tasks see it.

use tokio::sync::watch;

/// How far a dispatcher is to stop; it only ever goes further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    No,
    Drain,
    Halt,
}

/// What the owner wants. An owner that is gone wants it drained.
#[derive(Clone)]
pub(crate) struct Stopping(pub(crate) watch::Receiver<Stop>);

impl Stopping {
    pub(crate) fn now(&self) -> Stop {
        let stop = *self.0.borrow();
        if self.0.has_changed().is_err() { stop.max(Stop::Drain) } else { stop }
    }

    /// Returns when that may have changed.
    pub(crate) async fn changed(&mut self) {
        // An error means that the owner is gone, which `now` tells.
        let _ = self.0.changed().await;
    }

    /// Returns once everything is to be let go of at once, if ever.
    pub(crate) async fn halted(&mut self) {
        if self.0.wait_for(|stop| *stop == Stop::Halt).await.is_err() {
            std::future::pending().await
        }
    }
}

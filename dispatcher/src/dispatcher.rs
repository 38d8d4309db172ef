//! A running dispatcher, as its process holds it.

use crate::config::{Config, InvalidConfig};
use crate::journal::Journal;
use crate::run::Loop;
use crate::stopping::Stop;
use broker::Broker;
use state::State;
use std::sync::Arc;
use tokio::sync::watch;

/// A running dispatcher. Dropping it drains it.
pub struct Dispatcher {
    stop: watch::Sender<Stop>,
    ended: watch::Receiver<Option<Result<(), Panicked>>>,
}

/// The dispatcher's loop has panicked: a defect. What it had in hand is back in its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dispatcher's loop has panicked")]
pub struct Panicked;

impl Dispatcher {
    /// Starts dispatching.
    pub fn start(
        config: Config,
        broker: Arc<dyn Broker>,
        state: Arc<dyn State>,
    ) -> Result<Self, InvalidConfig> {
        config.check()?;
        metrics::describe_histogram!(
            "straightline_dispatch_seconds",
            metrics::Unit::Seconds,
            "time from a job's delivery to this dispatcher until its next queue has confirmed it"
        );
        let journal = config.placement_log.as_deref().map(|path| {
            Journal::open(path).map_err(|error| InvalidConfig {
                field: "dispatcher.placement_log",
                problem: format!("{} cannot be written: {error}", path.display()),
            })
        });
        let journal = journal.transpose()?;
        let (stop, stopped) = watch::channel(Stop::No);
        let (ending, ended) = watch::channel(None);
        let running = tokio::spawn(Loop::new(config, broker, state, stopped, journal).run());
        tokio::spawn(async move { ending.send_replace(Some(running.await.map_err(|_| Panicked))) });
        Ok(Self { stop, ended })
    }

    /// Takes no more jobs, settles those in hand, and ends. What has no place at once goes back to its queue.
    pub async fn drain(&self) -> Result<(), Panicked> {
        self.advance(Stop::Drain);
        self.join().await
    }

    /// Gives every job in hand back to its queue at once, those whose next hop is not yet confirmed included.
    pub fn halt(&self) {
        self.advance(Stop::Halt);
    }

    /// Waits until the loop has ended: drained, halted, or by a defect.
    pub async fn join(&self) -> Result<(), Panicked> {
        let mut ended = self.ended.clone();
        ended.wait_for(Option::is_some).await.map_or(Err(Panicked), |ended| (*ended).unwrap_or(Ok(())))
    }

    fn advance(&self, to: Stop) {
        self.stop.send_if_modified(|stop| std::mem::replace(stop, (*stop).max(to)) < to);
    }
}

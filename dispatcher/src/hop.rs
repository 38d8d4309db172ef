//! From one queue to the next: a delivery is acknowledged once its next hop is confirmed, and given back if that was
//! refused.

use crate::stopping::Stopping;
use broker::{Delivery, Receipt};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A message on its way to its next queue.
pub(crate) struct Move {
    pub(crate) receipt: Receipt,
    /// What it came by, and when that was.
    pub(crate) delivery: Box<Delivery>,
    pub(crate) since: Instant,
}

/// How long a delivery whose publish was refused is kept before it goes back: its queue would hand it out again at once.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// Settles `moves`, the contiguous confirmed ones as they come. Once halted, what is not confirmed goes back at once.
pub(crate) async fn settle(moves: Vec<Move>, mut stop: Stopping) {
    let (mut moves, mut refused) = (VecDeque::from(moves), Vec::new());
    let confirms = async {
        let seconds = metrics::histogram!("straightline_dispatch_seconds");
        while let Some(Move { receipt, .. }) = moves.front_mut() {
            let confirmed = receipt.await;
            let Some(Move { delivery, since, .. }) = moves.pop_front() else { break };
            match confirmed {
                Ok(()) => {
                    seconds.record(since.elapsed());
                    delivery.ack();
                }
                Err(error) => {
                    metrics::counter!("straightline_hops_refused_total").increment(1);
                    refused.push((error, delivery));
                }
            }
        }
        let Some((error, _)) = refused.first() else { return };
        tracing::warn!(error = %error, jobs = refused.len(), "failed to move jobs on; they go back to their queues");
        tokio::time::sleep(REFUSED_PAUSE).await;
    };
    tokio::select! {
        biased;
        () = confirms => {}
        () = stop.halted() => {}
    }
    let unconfirmed = moves.into_iter().map(|moved| moved.delivery);
    for delivery in refused.into_iter().map(|(_, delivery)| delivery).chain(unconfirmed) {
        delivery.give_back();
    }
}

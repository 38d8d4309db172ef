//! Deliveries: a message in hand that must be settled exactly once.

use crate::message::Message;
use std::fmt;

/// A delivered message. It is settled by [`Delivery::ack`] or [`Delivery::give_back`], both of which consume it; one
/// that is dropped instead goes back to its queue and is counted, because it means a path forgot it.
#[must_use = "a delivery must be acknowledged or given back"]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Whether it was delivered before, to anyone: its last holder may have done anything with it.
    pub redelivered: bool,
    /// How often it came back to its queue, as far as the broker counts.
    pub returns: u32,
    /// Set on what arrives at `dead.intake`: where the broker gave up on it, and why.
    pub death: Option<Death>,
    settle: Option<Box<dyn Settle>>,
}

/// The reason of a death of which only the header, if that, could be saved: the body can no longer be read.
pub const UNREADABLE: &str = "unreadable";

/// Why the broker gave up on a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// The queue it was in.
    pub queue: String,
    /// `delivery_limit`, `expired`, `rejected` or `maxlen`; [`UNREADABLE`].
    pub reason: String,
}

/// How a delivery is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done with: the broker forgets it.
    Ack,
    /// Not now: back to its queue, as near to its old place as the broker can.
    GiveBack,
}

/// What an adapter does to settle a delivery. Called at most once, must not block, and cannot fail in a way the
/// holder could act on: a settlement that is lost with its connection means the message comes again.
pub trait Settle: Send {
    /// Settles.
    fn settle(self: Box<Self>, settlement: Settlement);
}

impl Delivery {
    /// A delivery that `settle` settles.
    pub fn new(
        message: Message,
        redelivered: bool,
        returns: u32,
        death: Option<Death>,
        settle: Box<dyn Settle>,
    ) -> Self {
        Self { message, redelivered, returns, death, settle: Some(settle) }
    }

    /// The message has its next hop confirmed, or its end recorded: forget it.
    pub fn ack(mut self) {
        self.settle_with(Settlement::Ack);
    }

    /// Not now: put it back.
    pub fn give_back(mut self) {
        self.settle_with(Settlement::GiveBack);
    }

    fn settle_with(&mut self, settlement: Settlement) {
        if let Some(settle) = self.settle.take() {
            settle.settle(settlement);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.settle.is_some() {
            metrics::counter!("straightline_deliveries_dropped_total").increment(1);
            self.settle_with(Settlement::GiveBack);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("body_bytes", &self.message.body.len())
            .field("redelivered", &self.redelivered)
            .field("returns", &self.returns)
            .field("death", &self.death)
            .finish_non_exhaustive()
    }
}

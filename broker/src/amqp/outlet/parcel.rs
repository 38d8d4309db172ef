//! What is sent, and how a message that came back is told from others.

use super::super::convert;
use crate::message::Message;
use crate::queue::{Queue, Route};
use lapin::BasicProperties;
use lapin::message::BasicReturnMessage;

/// A message and where it goes.
pub(in super::super) struct Parcel {
    /// `None` for a broadcast, which needs no queue.
    pub(in super::super) route: Option<Route>,
    pub(in super::super) exchange: String,
    pub(in super::super) key: String,
    pub(in super::super) message: Message,
}

/// How much a returned message looks like one that was sent, from not at all to being it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likeness {
    /// Sent elsewhere.
    Stranger,
    /// Sent to the same place.
    Place,
    /// Sent to the same place, with the same body.
    Body,
    /// The same in all that was sent; a broker's interceptors may have added to it.
    Same,
}

impl Parcel {
    pub(super) fn queue(&self) -> String {
        self.route.as_ref().map_or_else(String::new, |route| route.queue().to_string())
    }

    /// Whether it was meant for a queue that is always there.
    pub(super) fn goes_to_a_fixed_queue(&self) -> bool {
        self.route.as_ref().is_some_and(|route| !matches!(route.queue(), Queue::Reply(_)))
    }

    pub(super) fn likeness(&self, returned: &BasicReturnMessage) -> Likeness {
        if returned.routing_key.as_str() != self.key || returned.exchange.as_str() != self.exchange {
            Likeness::Stranger
        } else if returned.data != self.message.body {
            Likeness::Place
        } else if convert::properties(&self.message).is_ok_and(|sent| kept(&sent, &returned.properties)) {
            Likeness::Same
        } else {
            Likeness::Body
        }
    }
}

/// Whether all that was `sent` is there in what was `returned`.
fn kept(sent: &BasicProperties, returned: &BasicProperties) -> bool {
    let headers = || {
        let found = returned.headers().as_ref();
        let mut sent = sent.headers().iter().flatten();
        sent.all(|(name, value)| found.and_then(|table| table.inner().get(name)) == Some(value))
    };
    sent.delivery_mode() == returned.delivery_mode()
        && sent.content_type() == returned.content_type()
        && sent.correlation_id() == returned.correlation_id()
        && sent.reply_to() == returned.reply_to()
        && sent.user_id() == returned.user_id()
        && headers()
}

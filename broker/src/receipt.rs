//! What a publisher gets back.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;

/// Resolves when the broker has the message for good, or has not. Dropping it changes nothing about the
/// message; it only means that nobody will know.
#[must_use = "a message is only safe once its receipt is Ok"]
#[derive(Debug)]
pub struct Receipt(Inner);

#[derive(Debug)]
enum Inner {
    Pending(oneshot::Receiver<Result<(), PublishError>>),
    Refused(Option<PublishError>),
}

impl Receipt {
    /// A receipt and the sender that resolves it. A sender dropped without a word resolves it as [`PublishError::Lost`].
    pub fn pending() -> (oneshot::Sender<Result<(), PublishError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Inner::Pending(receiver)))
    }

    /// A receipt for a message that was refused before it left.
    pub fn refused(error: PublishError) -> Self {
        Self(Inner::Refused(Some(error)))
    }
}

impl Future for Receipt {
    type Output = Result<(), PublishError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Pending(receiver) => {
                Poll::Ready(ready!(Pin::new(receiver).poll(cx)).unwrap_or(Err(PublishError::Lost)))
            }
            Inner::Refused(error) => {
                Poll::Ready(Err(error.take().expect("a receipt is polled to its end once")))
            }
        }
    }
}

/// Why the broker does not have a message, or may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue to put it in.
    #[error("queue {queue} does not exist")]
    Unroutable {
        /// The queue.
        queue: String,
    },
    /// The queue is at a limit, or the broker will not take more just now.
    #[error("queue {queue} takes no more messages: it is at its limit; try again later")]
    Full {
        /// The queue.
        queue: String,
    },
    /// Larger than the adapter can carry.
    #[error("message has {bytes} bytes: at most {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The broker would cut us off over it: a text longer than the protocol can say, or another user's name.
    #[error("message cannot be sent: {0}")]
    Invalid(String),
    /// The connection went away, or the confirm did not come in time: the broker may have it or not.
    #[error("the broker went away before it confirmed the message")]
    Lost,
    /// The broker could not be reached within the publish time-out: it does not have it.
    #[error("the broker cannot be reached: {0}")]
    Unavailable(String),
    /// The broker adapter is closed.
    #[error("broker is closed")]
    Closed,
}

impl PublishError {
    /// Why a reply that failed so has nowhere to go, for a metric; none where it can still be sent. It is its client's
    /// loss: the record holds the result, and no job is ever run again for it.
    pub fn reply_dropped(&self) -> Option<&'static str> {
        match self {
            Self::Unroutable { .. } => Some("gone"),
            Self::Full { .. } => Some("full"),
            Self::TooLarge { .. } => Some("too_large"),
            Self::Invalid(_) => Some("invalid"),
            Self::Lost | Self::Unavailable(_) | Self::Closed => None,
        }
    }
}

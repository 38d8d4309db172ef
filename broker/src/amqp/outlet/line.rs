//! The messages that went out through one channel, until what became of each is known.
//!
//! Verdicts are given as answers come, in any order: one queue that does not answer holds up no other. A message that
//! may have an answer says so by ringing its bell, so that nothing is ever looked through.
//!
//! What was returned as unroutable must be told from what was routed, and the client library only says so loosely: it
//! hands a returned message out with whichever confirm it completes next, in any order within one confirm of many.
//! So (1) no verdict is given before everything that was answered until now has been taken from the line
//! ([`Line::settle`]), and (2) a returned message is matched with the line by what it is, not by the confirm it came
//! with. Two messages alike in everything are interchangeable: one copy was stored, one is told so. Where it cannot be
//! told which one came back, none that it may be is confirmed.

use super::parcel::{Likeness, Parcel};
use crate::receipt::{PublishError, Receipt};
use lapin::Confirmation;
use lapin::message::BasicReturnMessage;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// Room in flight; dropping it gives it back.
pub(in super::super) struct Room {
    pub(in super::super) _message: OwnedSemaphorePermit,
    pub(in super::super) _bytes: OwnedSemaphorePermit,
}

/// How publishing failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The frames did not leave.
    Unsent,
    /// They may have.
    Unconfirmed,
}

/// What the broker answered. The returned message may be another's.
#[derive(Debug)]
pub(super) struct Answer {
    accepted: bool,
    returned: Option<Box<BasicReturnMessage>>,
}

impl From<Confirmation> for Answer {
    fn from(confirmation: Confirmation) -> Self {
        let accepted = confirmation.is_ack();
        Self { accepted, returned: confirmation.take_message().map(Box::new) }
    }
}

pub(super) type Outcome = Result<Answer, Failure>;
pub(super) type Publishing = Pin<Box<dyn Future<Output = Outcome> + Send>>;

enum Progress {
    Publishing(Publishing),
    Done(Outcome),
}

struct InFlight {
    progress: Progress,
    bell: Waker,
    parcel: Parcel,
    /// `None` once told.
    receipt: Option<oneshot::Sender<Result<(), PublishError>>>,
    deadline: Instant,
    returned: bool,
    /// Something came back that this may be.
    in_doubt: bool,
    _room: Room,
}

impl InFlight {
    /// Whether it is answered for.
    fn done(&mut self) -> bool {
        if let Progress::Publishing(publishing) = &mut self.progress {
            match publishing.as_mut().poll(&mut Context::from_waker(&self.bell)) {
                Poll::Ready(outcome) => self.progress = Progress::Done(outcome),
                Poll::Pending => return false,
            }
        }
        true
    }

    /// The returned message that came with its confirm.
    fn take_returned(&mut self) -> Option<Box<BasicReturnMessage>> {
        match &mut self.progress {
            Progress::Done(Ok(answer)) => answer.returned.take(),
            _ => None,
        }
    }

    fn verdict(&self) -> Result<(), PublishError> {
        match &self.progress {
            _ if self.returned => Err(PublishError::Unroutable { queue: self.parcel.queue() }),
            _ if self.in_doubt => Err(PublishError::Lost),
            Progress::Done(Ok(answer)) if answer.accepted => Ok(()),
            Progress::Done(Ok(_)) => Err(PublishError::Full { queue: self.parcel.queue() }),
            _ => Err(PublishError::Lost),
        }
    }

    fn tell(&mut self, verdict: Result<(), PublishError>) {
        if let Some(receipt) = self.receipt.take() {
            // Whoever dropped the receipt does not want to know.
            let _ = receipt.send(verdict);
        }
    }
}

/// Who rang. Rung by the client library under locks of its own: nothing else may be locked while it is.
#[derive(Default)]
struct Bells {
    rung: Mutex<Vec<u64>>,
    stirred: Notify,
}

impl Bells {
    fn rung(&self) -> MutexGuard<'_, Vec<u64>> {
        self.rung.lock().expect("nothing panics with the bells in hand")
    }
}

/// The bell of one message.
struct Bell {
    number: u64,
    bells: Arc<Bells>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut rung = self.bells.rung();
        rung.push(self.number);
        let first = rung.len() == 1;
        drop(rung);
        if first {
            self.bells.stirred.notify_one();
        }
    }
}

/// See the module.
pub(super) struct Line {
    waiting: Mutex<Waiting>,
    bells: Arc<Bells>,
    /// How long a confirm may take.
    patience: Duration,
}

/// Messages by their numbers, which rise as their deadlines do.
#[derive(Default)]
struct Waiting {
    /// Boxed: what is large would be moved about with its neighbours.
    messages: BTreeMap<u64, Box<InFlight>>,
    next: u64,
}

impl Line {
    pub(super) fn new(patience: Duration) -> Self {
        Self { waiting: Mutex::default(), bells: Arc::default(), patience }
    }

    /// Starts `publishing`, which queues the frames, and gives the message its place. Hands everything back if nothing
    /// was sent.
    ///
    /// The lock is held over both, because the client library takes a number and queues the frames apart: without it two
    /// publishers could swap places and get each other's confirms.
    pub(super) fn enter(
        &self,
        mut publishing: Publishing,
        parcel: Parcel,
        room: Room,
    ) -> Result<Receipt, Box<(Parcel, Room)>> {
        let (sender, receipt) = Receipt::pending();
        let mut waiting = self.waiting();
        let number = waiting.next;
        let bell = Waker::from(Arc::new(Bell { number, bells: self.bells.clone() }));
        let progress = match publishing.as_mut().poll(&mut Context::from_waker(&bell)) {
            Poll::Pending => Progress::Publishing(publishing),
            Poll::Ready(Err(Failure::Unsent)) => {
                drop(waiting);
                self.stir();
                return Err(Box::new((parcel, room)));
            }
            Poll::Ready(outcome) => {
                bell.wake_by_ref();
                Progress::Done(outcome)
            }
        };
        waiting.next += 1;
        let message = Box::new(InFlight {
            progress,
            bell,
            parcel,
            receipt: Some(sender),
            deadline: Instant::now() + self.patience,
            returned: false,
            in_doubt: false,
            _room: room,
        });
        waiting.messages.insert(number, message);
        Ok(receipt)
    }

    /// Wakes whoever waits for something to do.
    fn stir(&self) {
        self.bells.stirred.notify_one();
    }

    /// Waits until something may be answered for, or the channel was found broken.
    pub(super) async fn stirred(&self) {
        self.bells.stirred.notified().await;
    }

    /// Takes from the line what is answered for, and gives each its verdict. Whether a queue that should always be there
    /// may be missing.
    ///
    /// `complete` has the client library finish the confirm of many that it may be in the middle of.
    pub(super) fn settle(&self, complete: impl Fn()) -> bool {
        let mut answered = Vec::new();
        loop {
            let before = answered.len();
            self.take_answered(&mut answered);
            if answered.len() == before {
                break;
            }
            complete();
        }
        let mut missing = false;
        for nth in 0..answered.len() {
            if let Some(returned) = answered[nth].take_returned() {
                missing |= self.note_returned(&mut answered, &returned);
            }
        }
        for mut message in answered {
            missing |= message.returned && message.parcel.goes_to_a_fixed_queue();
            let verdict = message.verdict();
            message.tell(verdict);
        }
        missing
    }

    #[expect(clippy::vec_box, reason = "they come out of the line in their boxes")]
    fn take_answered(&self, answered: &mut Vec<Box<InFlight>>) {
        let mut waiting = self.waiting();
        // Under the line's lock: who rings has a place by then.
        let rung = std::mem::take(&mut *self.bells.rung());
        for number in rung {
            if waiting.messages.get_mut(&number).is_some_and(|message| message.done()) {
                answered.extend(waiting.messages.remove(&number));
            }
        }
    }

    /// Marks the message that `returned` is, among those just answered or else in the line; if there is more than one
    /// that it may be, all of them. Whether that leaves a fixed queue in doubt.
    fn note_returned(&self, answered: &mut [Box<InFlight>], returned: &BasicReturnMessage) -> bool {
        let mut waiting = self.waiting();
        let open = answered.iter_mut().chain(waiting.messages.values_mut());
        let mut alike: Vec<&mut Box<InFlight>> = Vec::new();
        let mut best = Likeness::Stranger;
        for message in open.filter(|message| !message.returned) {
            let likeness = message.parcel.likeness(returned);
            if likeness == Likeness::Same {
                message.returned = true;
                return false;
            }
            if likeness > best {
                best = likeness;
                alike.clear();
            }
            if likeness == best {
                alike.push(message);
            }
        }
        if let ([only], true) = (&mut alike[..], best > Likeness::Stranger) {
            only.returned = true;
            return false;
        }
        tracing::error!(
            queue = %returned.routing_key,
            may_be = alike.len(),
            "a message came back and cannot be told from others: none of them counts as confirmed"
        );
        alike.iter_mut().for_each(|message| message.in_doubt = true);
        best == Likeness::Stranger || alike.iter().any(|message| message.parcel.goes_to_a_fixed_queue())
    }

    /// Tells those whose confirm did not come in time. They keep their places and their room: the broker, or the
    /// client library, still has them. When to look next.
    pub(super) fn give_up_on_the_late(&self, now: Instant) -> Instant {
        let mut waiting = self.waiting();
        for message in waiting.messages.values_mut() {
            if message.deadline > now {
                return message.deadline;
            }
            message.tell(Err(PublishError::Lost));
        }
        now + self.patience
    }

    /// When nothing more can be hoped of the channel: some message has then been late for as long as it could have
    /// waited in the first place, not counting what was before `welcome`.
    pub(super) fn stuck_at(&self, welcome: Instant) -> Option<Instant> {
        let waiting = self.waiting();
        let (_, first) = waiting.messages.first_key_value()?;
        Some(first.deadline.max(welcome) + self.patience)
    }

    /// Forgets what is left; receipts say lost.
    pub(super) fn clear(&self) {
        let left = std::mem::take(&mut self.waiting().messages);
        drop(left);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics with the line in hand")
    }
}

#[cfg(test)]
mod tests;

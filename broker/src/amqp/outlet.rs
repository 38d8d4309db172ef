//! One confirmed channel that messages go out through, in order, many in flight.
//!
//! A publish is polled once, which queues its frames, and then waits its turn in a first-in-first-out line; one task
//! awaits the confirms. The line's lock is held over "take a number and queue the frames", because the client library
//! does those two apart: without it two publishers could swap places and get each other's confirms.
//!
//! What was returned as unroutable must be told from what was routed, and the client library only says so loosely: it
//! hands a returned message out with whichever confirm it completes next, in any order within one confirm of many.
//! So (1) no verdict is given before everything the broker confirmed together has been taken from the line
//! ([`settle`](Outlet::settle)), and (2) a returned message is matched with the line by what it is, not by the
//! confirm it came with. Two messages alike in everything are interchangeable: one copy was stored, one is told so.

use super::connection::Link;
use super::handshake::answered;
use super::{FAREWELL, Phase, Phases, Tasks, convert};
use crate::message::Message;
use crate::queue::{Queue, Route};
use crate::receipt::{PublishError, Receipt};
use futures_util::FutureExt;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// A message and where it goes.
pub(super) struct Parcel {
    /// `None` for a broadcast, which needs no queue.
    pub(super) route: Option<Route>,
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) message: Message,
}

impl Parcel {
    fn queue(&self) -> String {
        self.route.as_ref().map_or_else(String::new, |route| route.queue().to_string())
    }

    fn is(&self, returned: &BasicReturnMessage) -> bool {
        returned.routing_key.as_str() == self.key
            && returned.exchange.as_str() == self.exchange
            && returned.data == self.message.body
            && convert::properties(&self.message).is_ok_and(|sent| sent == returned.properties)
    }
}

/// Room in flight; dropping it gives it back.
pub(super) struct Room {
    pub(super) _message: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}

/// A channel while it lasts.
pub(super) struct Open {
    channel: Channel,
    /// Longest frame the broker takes.
    frame_max: usize,
    /// Tells the channels of one outlet apart.
    pub(super) id: u64,
}

/// How publishing failed.
enum Failure {
    /// The frames did not leave.
    Unsent,
    /// They may have.
    Unconfirmed,
}

/// What the broker answered. The returned message may be another's.
struct Answer {
    accepted: bool,
    returned: Option<Box<BasicReturnMessage>>,
}

impl From<Confirmation> for Answer {
    fn from(confirmation: Confirmation) -> Self {
        let accepted = confirmation.is_ack();
        Self { accepted, returned: confirmation.take_message().map(Box::new) }
    }
}

type Outcome = Result<Answer, Failure>;

enum Progress {
    Publishing(Pin<Box<dyn Future<Output = Outcome> + Send>>),
    Done(Outcome),
}

struct InFlight {
    progress: Progress,
    parcel: Parcel,
    /// `None` once told.
    receipt: Option<oneshot::Sender<Result<(), PublishError>>>,
    deadline: Instant,
    returned: bool,
    _room: Room,
}

impl InFlight {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Progress::Publishing(publishing) = &mut self.progress {
            match publishing.as_mut().poll(cx) {
                Poll::Ready(outcome) => self.progress = Progress::Done(outcome),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    /// The returned message that came with its confirm.
    fn take_returned(&mut self) -> Option<Box<BasicReturnMessage>> {
        match &mut self.progress {
            Progress::Done(Ok(answer)) => answer.returned.take(),
            _ => None,
        }
    }

    /// Whether it was meant for a queue that is always there.
    fn was_for_a_fixed_queue(&self) -> bool {
        self.parcel.route.as_ref().is_some_and(|route| !matches!(route.queue(), Queue::Reply(_)))
    }

    fn verdict(&self) -> Result<(), PublishError> {
        match &self.progress {
            _ if self.returned => Err(PublishError::Unroutable { queue: self.parcel.queue() }),
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

/// The way out to one queue, or to several.
pub(super) struct Outlet {
    line: Mutex<VecDeque<InFlight>>,
    /// The line is no longer empty, or its channel was found broken.
    stirred: Notify,
    open: watch::Receiver<Option<Arc<Open>>>,
    /// How long a confirm may take.
    patience: Duration,
}

impl Outlet {
    /// A new outlet, and the task that opens its channel and awaits its confirms.
    pub(super) fn start(link: Link, phases: Phases, tasks: &Tasks) -> Arc<Self> {
        let (sender, open) = watch::channel(None);
        let patience = link.setup.limits.publish_timeout;
        let outlet = Arc::new(Self { line: Mutex::default(), stirred: Notify::new(), open, patience });
        tasks.spawn(outlet.clone().keep(link, sender, phases));
        outlet
    }

    /// The channel, once there is one other than the one `tried`; `None` once the outlet is closed.
    pub(super) async fn open_after(&self, tried: Option<u64>) -> Option<Arc<Open>> {
        let mut open = self.open.clone();
        let fresh = |open: &Option<Arc<Open>>| open.as_ref().is_some_and(|open| Some(open.id) != tried);
        open.wait_for(fresh).await.ok()?.clone()
    }

    /// Queues the frames and takes a place in the line. Hands everything back if nothing was sent.
    pub(super) fn push(
        &self,
        open: &Arc<Open>,
        parcel: Parcel,
        room: Room,
    ) -> Result<Receipt, Box<(Parcel, Room)>> {
        let properties = match convert::properties(&parcel.message) {
            Ok(properties) => properties,
            Err(error) => return Ok(Receipt::refused(error)),
        };
        let (bytes, limit) = (convert::frame_bytes(&parcel.message), open.frame_max);
        if bytes > limit {
            return Ok(Receipt::refused(PublishError::TooLarge { bytes, limit }));
        }
        let (exchange, key) = (parcel.exchange.as_str().into(), parcel.key.as_str().into());
        let options = BasicPublishOptions { mandatory: parcel.route.is_some(), immediate: false };
        let (open, body) = (open.clone(), parcel.message.body.clone());
        let mut publishing: Pin<Box<dyn Future<Output = Outcome> + Send>> = Box::pin(async move {
            let sent = open.channel.basic_publish(exchange, key, options, &body, properties).await;
            let confirm = sent.map_err(|_| Failure::Unsent)?;
            confirm.await.map(Answer::from).map_err(|_| Failure::Unconfirmed)
        });

        let (sender, receipt) = Receipt::pending();
        let mut line = self.line();
        let progress = match poll_once(publishing.as_mut()) {
            Poll::Pending => Progress::Publishing(publishing),
            Poll::Ready(Err(Failure::Unsent)) => {
                drop(line);
                self.stirred.notify_one();
                return Err(Box::new((parcel, room)));
            }
            Poll::Ready(outcome) => Progress::Done(outcome),
        };
        let deadline = Instant::now() + self.patience;
        line.push_back(InFlight {
            progress,
            parcel,
            receipt: Some(sender),
            deadline,
            returned: false,
            _room: room,
        });
        let first = line.len() == 1;
        drop(line);
        if first {
            self.stirred.notify_one();
        }
        Ok(receipt)
    }

    /// Keeps a channel open until the end.
    async fn keep(self: Arc<Self>, link: Link, sender: watch::Sender<Option<Arc<Open>>>, mut phases: Phases) {
        let mut backoff = link.setup.backoff();
        for id in 0.. {
            let opened = tokio::select! {
                opened = open_channel(&link, id) => opened,
                () = phases.reached(Phase::Ending) => break,
            };
            match opened {
                Ok(Some(open)) => {
                    backoff = link.setup.backoff();
                    sender.send_replace(Some(open.clone()));
                    self.serve(&open, &link, &mut phases).await;
                    sender.send_replace(None);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "failed to open a channel to publish through");
                    sleep(backoff.next().unwrap_or(link.setup.reconnect_delay_max)).await;
                }
            }
        }
        // Their receipts say lost.
        self.line().clear();
    }

    /// Awaits confirms until the channel is gone or the end has come.
    async fn serve(&self, open: &Arc<Open>, link: &Link, phases: &mut Phases) {
        let mut state = link.state.clone();
        let mut alarm = Box::pin(sleep_until(Instant::now() + self.patience));
        loop {
            tokio::select! {
                () = self.first_confirm() => self.settle(open, link),
                () = self.stirred.notified() => {}
                () = &mut alarm => alarm.as_mut().reset(self.give_up_on_the_late()),
                changed = state.changed() => if changed.is_err() { break },
                () = phases.reached(Phase::Ending) => {
                    let closing = open.channel.close(200, "closed".into());
                    let _ = timeout(FAREWELL, closing).await;
                    break;
                }
            }
            if !open.channel.status().connected() {
                break;
            }
        }
        // What was confirmed before the end has its verdict; of the rest nobody can tell.
        self.settle(open, link);
        self.line().clear();
    }

    /// Waits for the confirm of the first message in line.
    async fn first_confirm(&self) {
        poll_fn(|cx| self.line().front_mut().map_or(Poll::Pending, |first| first.poll(cx))).await;
    }

    /// Takes from the line what is confirmed, and gives each its verdict.
    fn settle(&self, open: &Open, link: &Link) {
        let mut confirmed: Vec<InFlight> = Vec::new();
        loop {
            let before = confirmed.len();
            let mut line = self.line();
            let mut nobody = Context::from_waker(Waker::noop());
            while line.front_mut().is_some_and(|first| first.poll(&mut nobody).is_ready()) {
                confirmed.extend(line.pop_front());
            }
            drop(line);
            if confirmed.len() == before {
                break;
            }
            // Asking for the last confirm takes the lock under which the client library completes one confirm of many:
            // afterwards all of them are completed. A confirm of many covers everything before it, so they stand
            // at the front of the line.
            let _ = open.channel.wait_for_confirms().now_or_never();
        }
        for nth in 0..confirmed.len() {
            if let Some(returned) = confirmed[nth].take_returned() {
                self.note_returned(&mut confirmed, &returned);
            }
        }
        for mut message in confirmed {
            if message.returned && message.was_for_a_fixed_queue() {
                link.declare_again();
            }
            let verdict = message.verdict();
            message.tell(verdict);
        }
    }

    /// Marks the first message that `returned` can be, among those just confirmed or else in the line.
    fn note_returned(&self, confirmed: &mut [InFlight], returned: &BasicReturnMessage) {
        let mut line = self.line();
        let mut open = confirmed.iter_mut().chain(line.iter_mut()).filter(|message| !message.returned);
        match open.find(|message| message.parcel.is(returned)) {
            Some(message) => message.returned = true,
            None => {
                tracing::error!(queue = %returned.routing_key, "a message came back that was not sent from here")
            }
        }
    }

    /// Tells those whose confirm did not come in time. They keep their places and their room: the broker, or the
    /// client library, still has them. When to look next.
    fn give_up_on_the_late(&self) -> Instant {
        let now = Instant::now();
        let mut line = self.line();
        for message in line.iter_mut().take_while(|message| message.deadline <= now) {
            message.tell(Err(PublishError::Lost));
        }
        let next = line.iter().find(|message| message.deadline > now).map(|message| message.deadline);
        next.unwrap_or(now + self.patience)
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<InFlight>> {
        self.line.lock().expect("nothing panics with the line in hand")
    }
}

/// `None` once the link is closed.
async fn open_channel(link: &Link, id: u64) -> lapin::Result<Option<Arc<Open>>> {
    // A broker that holds publishers back reads nothing from them, not even this.
    if !link.unblocked().await {
        return Ok(None);
    }
    let Some(uplink) = link.up().await else { return Ok(None) };
    let channel = answered(uplink.connection.create_channel()).await?;
    answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let frame_max = uplink.connection.configuration().frame_max() as usize;
    Ok(Some(Arc::new(Open { channel, frame_max, id })))
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

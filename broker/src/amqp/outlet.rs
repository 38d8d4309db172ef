//! One confirmed channel that messages go out through, in order, many in flight.
//!
//! A publish is polled once, which queues its frames, and then waits in the [`Line`]; one task gives verdicts as confirms
//! come, and opens the channel again after it was lost. A channel that owes a confirm for too long is given up: what the
//! client library keeps for it and the room of its messages would otherwise be held for ever.

mod line;
mod parcel;

use super::connection::Link;
use super::handshake::answered;
use super::{FAREWELL, Phase, Phases, Tasks, convert};
use crate::receipt::{PublishError, Receipt};
use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use line::{Answer, Failure, Line};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub(super) use line::Room;
pub(super) use parcel::Parcel;

/// A channel while it lasts.
pub(super) struct Open {
    channel: Channel,
    /// Longest frame the broker takes.
    frame_max: usize,
    /// Tells the channels of one outlet apart.
    pub(super) id: u64,
}

/// The way out to one queue, or to several.
pub(super) struct Outlet {
    line: Line,
    open: watch::Receiver<Option<Arc<Open>>>,
}

impl Outlet {
    /// A new outlet, and the task that opens its channel and awaits its confirms.
    pub(super) fn start(link: Link, phases: Phases, tasks: &Tasks) -> Arc<Self> {
        let (sender, open) = watch::channel(None);
        let line = Line::new(link.setup.limits.publish_timeout);
        let outlet = Arc::new(Self { line, open });
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
        let publishing = Box::pin(async move {
            let sent = open.channel.basic_publish(exchange, key, options, &body, properties).await;
            let confirm = sent.map_err(|_| Failure::Unsent)?;
            confirm.await.map(Answer::from).map_err(|_| Failure::Unconfirmed)
        });
        self.line.enter(publishing, parcel, room)
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
        self.line.clear();
    }

    /// Gives verdicts until the channel is gone, or given up, or the end has come.
    async fn serve(&self, open: &Open, link: &Link, phases: &mut Phases) {
        let mut state = link.state.clone();
        // Since when the broker has not held publishers back.
        let mut welcome = Instant::now();
        let mut alarm = Box::pin(sleep_until(welcome));
        loop {
            tokio::select! {
                () = self.line.stirred() => self.settle(open, link),
                () = &mut alarm => {
                    let now = Instant::now();
                    let mut next = self.line.give_up_on_the_late(now);
                    if link.trouble().is_none()
                        && let Some(at) = self.line.stuck_at(welcome)
                    {
                        if at <= now {
                            give_up(open).await;
                            break;
                        }
                        next = next.min(at);
                    }
                    alarm.as_mut().reset(next);
                }
                changed = state.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    welcome = Instant::now();
                }
                () = phases.reached(Phase::Ending) => {
                    close(open).await;
                    break;
                }
            }
            if !open.channel.status().connected() {
                break;
            }
        }
        // What was confirmed before the end has its verdict; of the rest nobody can tell.
        self.settle(open, link);
        self.line.clear();
    }

    fn settle(&self, open: &Open, link: &Link) {
        // Asking for the last confirm takes the lock under which the client library completes one confirm of many:
        // afterwards all of them are completed.
        let complete = || drop(open.channel.wait_for_confirms().now_or_never());
        if self.line.settle(complete) {
            link.declare_again();
        }
    }
}

/// Closes a channel on which a confirm is owed that does not come.
async fn give_up(open: &Open) {
    tracing::warn!(
        "a confirm does not come: what is in flight on its channel is lost, and another is opened"
    );
    metrics::counter!("straightline_broker_channels_given_up_total").increment(1);
    close(open).await;
}

async fn close(open: &Open) {
    let _ = timeout(FAREWELL, open.channel.close(200, "closed".into())).await;
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

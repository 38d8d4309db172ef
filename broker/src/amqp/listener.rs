//! Listening to broadcasts: an exclusive queue of our own, made anew after every loss. What is said in between is
//! missed.

use super::connection::{Link, reason};
use super::{Phase, Phases, Tasks, topology};
use crate::BrokerError;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Broadcasts kept for a listener that is slow; it misses those that come when so many wait.
const BACKLOG: usize = 1_024;

/// A queue of our own and its consumer.
struct Ear {
    stream: lapin::Consumer,
    /// The queue lives as long as its consumer, and that as long as its channel.
    _channel: Channel,
}

/// Listens from now on.
pub(super) async fn listen(
    link: Link,
    phases: Phases,
    tasks: &Tasks,
) -> Result<mpsc::Receiver<Bytes>, BrokerError> {
    let ear = open(&link).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tasks.spawn(keep(link, ear, sender, phases));
    Ok(receiver)
}

async fn keep(link: Link, mut ear: Ear, sender: mpsc::Sender<Bytes>, mut phases: Phases) {
    let mut backoff = link.setup.backoff();
    loop {
        let heard = tokio::select! {
            heard = ear.stream.next() => heard,
            () = sender.closed() => return,
            () = phases.reached(Phase::Ending) => return,
        };
        match heard {
            Some(Ok(delivery)) => {
                if sender.try_send(delivery.data.into()).is_err() {
                    metrics::counter!("straightline_broadcasts_missed_total").increment(1);
                }
                continue;
            }
            Some(Err(error)) => tracing::warn!(error = reason(&error), "listening to broadcasts was cut off"),
            None => tracing::warn!("listening to broadcasts was cancelled by the broker"),
        }
        ear = loop {
            let delay = backoff.next().unwrap_or(link.setup.reconnect_delay_max);
            let attempt = async {
                sleep(delay).await;
                link.up().await?;
                Some(open(&link).await)
            };
            let opened = tokio::select! {
                opened = attempt => opened,
                () = sender.closed() => return,
                () = phases.reached(Phase::Ending) => return,
            };
            match opened {
                Some(Ok(ear)) => break ear,
                Some(Err(error)) => tracing::debug!(%error, "failed to listen to broadcasts again"),
                None => return,
            }
        };
        backoff = link.setup.backoff();
    }
}

async fn open(link: &Link) -> Result<Ear, BrokerError> {
    let setup = &link.setup;
    let uplink = link.up_soon().await?;
    let opened = async {
        let channel = uplink.connection.create_channel().await?;
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), own, FieldTable::default()).await?.name().clone();
        let bound = channel.queue_bind(
            queue.clone(),
            topology::CONTROL.into(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let stream = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        Ok(Ear { stream, _channel: channel })
    };
    opened.await.map_err(|error: lapin::Error| setup.failed("listen to broadcasts", &error))
}

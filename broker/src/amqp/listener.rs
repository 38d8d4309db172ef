//! Listening to broadcasts: an exclusive queue of our own, made anew after every loss. What is said in between is
//! missed.

use super::connection::Link;
use super::handshake::{answered, reason};
use super::{FAREWELL, Phase, Phases, Tasks, topology};
use crate::BrokerError;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// Broadcasts kept for a listener that is slow; it misses those that come when so many wait.
const BACKLOG: usize = 1_024;

/// A queue of our own and its consumer. It lives as long as its channel.
struct Ear {
    stream: lapin::Consumer,
    channel: Channel,
}

/// Listens from now on. The task opens the first ear too, so that a caller who stops waiting leaves nothing half open.
pub(super) async fn listen(
    link: Link,
    phases: Phases,
    tasks: &Tasks,
) -> Result<mpsc::Receiver<Bytes>, BrokerError> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let (opened, is_open) = oneshot::channel();
    tasks.spawn(async move {
        match open(&link).await {
            Ok(ear) => {
                // Nobody to tell means that the receiver is gone too.
                let _ = opened.send(Ok(()));
                keep(&link, ear, sender, phases).await;
            }
            Err(error) => drop(opened.send(Err(error))),
        }
    });
    is_open.await.unwrap_or(Err(BrokerError::Closed)).map(|()| receiver)
}

async fn keep(link: &Link, mut ear: Ear, sender: mpsc::Sender<Bytes>, mut phases: Phases) {
    let mut backoff = link.setup.backoff();
    while let Some(lost) = hear(&mut ear, &sender, &mut phases).await {
        tracing::warn!(error = lost, "listening to broadcasts was cut off");
        ear = loop {
            let ready = async {
                sleep(backoff.next().unwrap_or(link.setup.reconnect_delay_max)).await;
                link.up().await
            };
            let up = tokio::select! {
                up = ready => up,
                () = sender.closed() => None,
                () = phases.reached(Phase::Ending) => None,
            };
            if up.is_none() {
                return;
            }
            match open(link).await {
                Ok(ear) => break ear,
                Err(error) => tracing::debug!(%error, "failed to listen to broadcasts again"),
            }
        };
        backoff = link.setup.backoff();
    }
    if ear.channel.status().connected() {
        let _ = timeout(FAREWELL, ear.channel.close(200, "closed".into())).await;
    }
}

/// Passes on what is said until it is cut off, and says why; `None` when nobody listens any more.
async fn hear(ear: &mut Ear, sender: &mpsc::Sender<Bytes>, phases: &mut Phases) -> Option<String> {
    loop {
        let heard = tokio::select! {
            heard = ear.stream.next() => heard,
            () = sender.closed() => return None,
            () = phases.reached(Phase::Ending) => return None,
        };
        match heard {
            Some(Ok(delivery)) => {
                if sender.try_send(delivery.data.into()).is_err() {
                    metrics::counter!("straightline_broadcasts_missed_total").increment(1);
                }
            }
            Some(Err(error)) => return Some(reason(&error)),
            None => return Some("the broker cancelled the subscription".to_owned()),
        }
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
        Ok(Ear { stream, channel })
    };
    answered(opened).await.map_err(|error| setup.failed("listen to broadcasts", &error))
}

//! How full queues are: asked by a passive declare, on a channel kept for it.

use super::connection::Link;
use super::handshake::code;
use crate::queue::Queue;
use crate::{BrokerError, Depth};
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The broker's code for a queue that does not exist.
const NOT_FOUND: u16 = 404;

/// Asks for depths, one caller at a time.
pub(super) struct Depths {
    link: Link,
    channel: Mutex<Option<Channel>>,
}

impl Depths {
    pub(super) fn new(link: Link) -> Self {
        Self { link, channel: Mutex::default() }
    }

    /// The depths of `queues`, in their order.
    pub(super) async fn of(&self, queues: &[Queue]) -> Result<Vec<Option<Depth>>, BrokerError> {
        let setup = &self.link.setup;
        let asking = async {
            let mut channel = self.channel.lock().await;
            let mut depths = Vec::with_capacity(queues.len());
            for queue in queues {
                depths.push(self.one(&mut channel, queue).await?);
            }
            Ok(depths)
        };
        let waited = setup.limits.publish_timeout;
        timeout(waited, asking)
            .await
            .unwrap_or_else(|_| Err(setup.unreachable(format!("no answer about queues within {waited:?}"))))
    }

    /// A queue that is not there costs the channel.
    async fn one(&self, slot: &mut Option<Channel>, queue: &Queue) -> Result<Option<Depth>, BrokerError> {
        let setup = &self.link.setup;
        let channel = match slot.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => {
                let uplink = self.link.up_soon().await?;
                let opened = uplink.connection.create_channel().await;
                opened.map_err(|error| setup.failed("open a channel", &error))?
            }
        };
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = queue.to_string();
        match channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await {
            Ok(found) => {
                *slot = Some(channel);
                let ready = found.message_count().into();
                Ok(Some(Depth { ready, unacked: None, consumers: found.consumer_count() }))
            }
            Err(error) if code(&error) == Some(NOT_FOUND) => Ok(None),
            Err(error) => Err(setup.failed(&format!("look at queue {name}"), &error)),
        }
    }
}

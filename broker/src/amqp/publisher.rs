//! Publishing: room in flight, then the outlet of the queue.
//!
//! Every fixed queue has an outlet of its own (a channel, see [`Outlet`]); reply queues, of which there are many, share a
//! few. Confirms are awaited in any order, so that a slow queue holds up no other. Room is bounded in count and in bytes,
//! shared by all outlets, and is given back when the broker has answered for the message or the channel is gone: never
//! before, or what the client library has queued would grow without end while a broker holds publishers back. What a
//! queue that does not answer keeps of it comes back within twice the publish time-out, when its channel is given up.

use super::connection::Link;
use super::outlet::{Outlet, Parcel, Room};
use super::{Phases, Tasks, topology};
use crate::message::Message;
use crate::queue::{Queue, Route};
use crate::receipt::{PublishError, Receipt};
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// Outlets for reply queues, which share them by their names.
const REPLY_OUTLETS: u64 = 4;

/// Which outlet a message goes through. What goes to one queue goes through one outlet, which keeps its order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Fixed(Queue),
    Replies(u64),
    Control,
}

impl Key {
    fn of(route: Option<&Route>) -> Self {
        match route.map(Route::queue) {
            None => Self::Control,
            Some(Queue::Reply(queue)) => {
                let hasher = BuildHasherDefault::<DefaultHasher>::default();
                Self::Replies(hasher.hash_one(queue) % REPLY_OUTLETS)
            }
            Some(fixed) => Self::Fixed(fixed),
        }
    }
}

/// Publishes through one link.
pub(super) struct Publisher {
    link: Link,
    message_bytes_max: usize,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    outlets: Mutex<HashMap<Key, Arc<Outlet>>>,
    phases: Phases,
    tasks: Tasks,
}

impl Publisher {
    pub(super) fn new(link: Link, message_bytes_max: u32, phases: Phases, tasks: Tasks) -> Self {
        let limits = &link.setup.limits;
        Self {
            message_bytes_max: message_bytes_max.min(limits.in_flight_bytes_max) as usize,
            messages: Arc::new(Semaphore::new(limits.in_flight_messages_max as usize)),
            bytes: Arc::new(Semaphore::new(limits.in_flight_bytes_max as usize)),
            outlets: Mutex::default(),
            phases,
            tasks,
            link,
        }
    }

    /// Sends `message` along `route`; a broadcast where there is none.
    pub(super) async fn publish(&self, route: Option<Route>, message: Message) -> Receipt {
        if !self.phases.open() {
            return Receipt::refused(PublishError::Closed);
        }
        if let Err(error) = self.check(&message) {
            return Receipt::refused(error);
        }
        let deadline = Instant::now() + self.link.setup.limits.publish_timeout;
        let sent = timeout_at(deadline, self.send(parcel(route, message))).await;
        sent.unwrap_or_else(|_| Receipt::refused(PublishError::Unavailable(self.why())))
    }

    /// Waits until nothing is in flight, for as long as a confirm may take, and lets nothing more in.
    pub(super) async fn drain(&self) {
        let limits = &self.link.setup.limits;
        // Waiters are served in turn: whoever was waiting for room gets it first.
        let _ =
            timeout(limits.publish_timeout, self.messages.acquire_many(limits.in_flight_messages_max)).await;
        self.messages.close();
        self.bytes.close();
    }

    /// Refuses what would make the broker close the channel, and fail all that is in flight on it.
    fn check(&self, message: &Message) -> Result<(), PublishError> {
        let (bytes, limit) = (message.body.len(), self.message_bytes_max);
        if bytes > limit {
            return Err(PublishError::TooLarge { bytes, limit });
        }
        let login = self.link.setup.endpoint.user();
        match message.properties.user_id.as_deref() {
            Some(user) if user != login => Err(PublishError::Invalid(format!(
                "its user_id is {user:?}, and the login here is {login:?}"
            ))),
            _ => Ok(()),
        }
    }

    async fn send(&self, mut parcel: Parcel) -> Receipt {
        let body = u32::try_from(parcel.message.body.len()).expect("checked against a limit of this type");
        let Ok(message) = self.messages.clone().acquire_owned().await else {
            return Receipt::refused(PublishError::Closed);
        };
        let Ok(bytes) = self.bytes.clone().acquire_many_owned(body).await else {
            return Receipt::refused(PublishError::Closed);
        };
        let mut room = Room { _message: message, _bytes: bytes };
        let outlet = self.outlet(Key::of(parcel.route.as_ref()));
        let mut tried = None;
        loop {
            let open = match self.link.unblocked().await {
                true => outlet.open_after(tried).await,
                false => None,
            };
            let Some(open) = open else { return Receipt::refused(PublishError::Closed) };
            match outlet.push(&open, parcel, room) {
                Ok(receipt) => return receipt,
                Err(unsent) => (parcel, room) = *unsent,
            }
            tried = Some(open.id);
        }
    }

    fn outlet(&self, key: Key) -> Arc<Outlet> {
        let mut outlets = self.outlets.lock().expect("nothing panics with the outlets in hand");
        let start = || Outlet::start(self.link.clone(), self.phases.clone(), &self.tasks);
        outlets.entry(key).or_insert_with(start).clone()
    }

    /// Why a message found no way out in time.
    fn why(&self) -> String {
        let limits = &self.link.setup.limits;
        self.link.trouble().unwrap_or_else(|| {
            let (waited, most) = (limits.publish_timeout, limits.in_flight_messages_max);
            format!("no room among the {most} messages in flight within {waited:?}")
        })
    }
}

fn parcel(route: Option<Route>, message: Message) -> Parcel {
    let (exchange, key) = match &route {
        None => (topology::CONTROL.to_owned(), String::new()),
        Some(Route::Submit(class)) => (topology::JOBS.to_owned(), class.to_string()),
        Some(Route::To(queue)) => (topology::DEFAULT.to_owned(), queue.to_string()),
        Some(Route::Retry(delay, class)) => {
            (topology::retry_exchange(*delay), Queue::Jobs(*class).to_string())
        }
    };
    Parcel { route, exchange, key, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::retry::DELAYS;
    use schemas::{Class, ReplyQueue};

    #[test]
    fn what_goes_to_one_queue_goes_through_one_outlet() {
        let submit = Key::of(Some(&Route::Submit(Class::Low)));
        assert_eq!(submit, Key::of(Some(&Route::To(Queue::Jobs(Class::Low)))));
        assert_ne!(submit, Key::of(Some(&Route::Retry(DELAYS[0], Class::Low))));
        let reply = |name: &str| Key::of(Some(&Route::To(Queue::Reply(ReplyQueue::new(name).unwrap()))));
        assert_eq!(reply("reply.a.b"), reply("reply.a.b"));
        assert_ne!(Key::of(None), submit);
    }

    #[test]
    fn a_retry_names_the_queue_it_is_due_in() {
        let due = parcel(Some(Route::Retry(DELAYS[3], Class::High)), Message::default());
        assert_eq!((due.exchange.as_str(), due.key.as_str()), ("sl.retry.1000", "jobs.high"));
        let submitted = parcel(Some(Route::Submit(Class::Normal)), Message::default());
        assert_eq!((submitted.exchange.as_str(), submitted.key.as_str()), ("sl.jobs", "normal"));
        let direct = parcel(Some(Route::To(Queue::DeadIntake)), Message::default());
        assert_eq!((direct.exchange.as_str(), direct.key.as_str()), ("", "dead.intake"));
    }
}

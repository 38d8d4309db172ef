//! What every adapter must do, as tests that any adapter can run: implement [`Fixture`] and name it in
//! [`conformance_suite!`](crate::conformance_suite).
//!
//! Each property is one public function, gets a clean service with the limits it needs, and says in its
//! documentation what must hold. Nothing here knows an adapter: where a service that lives apart from its processes
//! and one that lives inside them cannot look the same, [`Fixture::service_apart`] tells them apart.
//!
//! No property sleeps to let something happen. It waits for the condition itself, for at most [`PATIENCE`]. That
//! something does *not* happen is shown by what must come in its place: the next message, or the other consumer.

mod bounds;
mod contents;
mod durability;
mod lifetime;
mod reply;
mod settling;
mod steps;

pub use bounds::*;
pub use contents::*;
pub use durability::*;
pub use lifetime::*;
pub use reply::*;
pub use settling::*;

use crate::{Broker, Limits};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

/// How long a property waits for what must happen: long enough for a broker to restart on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A service to test an adapter on, used by one property only.
#[async_trait]
pub trait Fixture: Send + Sync + Sized {
    /// A service without messages, whose queues have these limits: a virtual host, or a folder, of its own.
    async fn clean(limits: Limits) -> Self;

    /// One more process that uses the service: an adapter with connections of its own. Where the service lives inside
    /// the process, the one there is.
    async fn open(&self) -> Arc<dyn Broker>;

    /// Loses a process without a word: it settles nothing more, and the service finds out by itself. Where the
    /// service lives inside the process it is lost too, and every handle on it; the next [`Fixture::open`] is its
    /// restart.
    async fn crash(&self, broker: Arc<dyn Broker>);

    /// Restarts the service in an orderly way and hands back a broker to go on with: `broker` itself where the service
    /// lives apart, a fresh one where it lives inside.
    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker>;

    /// Whether the service lives apart from the processes that use it, so that they see it go and return.
    fn service_apart(&self) -> bool;
}

/// Runs one property.
pub type Run = fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// One named test per property, over the fixture named; `list` before it gives names and [`Run`]s in place of tests.
#[macro_export]
macro_rules! conformance_suite {
    (list $fixture:ty) => {
        $crate::conformance_suite! { @names list $fixture }
    };
    ($fixture:ty) => {
        $crate::conformance_suite! { @names each $fixture }
    };
    (@names $what:ident $fixture:ty) => {
        $crate::conformance_suite! { @$what $fixture:
            order_is_kept_per_publisher_and_queue
            thousands_in_flight_arrive_once_and_in_order
            what_is_published_comes_out_the_same
            a_retry_keeps_its_contents_and_its_class
            every_fixed_queue_takes_and_gives
            an_acknowledged_message_is_gone_for_good
            a_dropped_delivery_comes_again_and_is_counted
            a_delivery_given_back_comes_again
            prefetch_is_never_exceeded_and_can_be_changed
            consumers_of_one_queue_share_it
            a_dropped_consumer_leaves_its_deliveries_to_be_settled
            a_message_returned_too_often_arrives_at_dead_intake
            dead_intake_gives_up_on_nothing
            a_confirmed_message_survives_a_restart
            a_lost_process_loses_no_message
            a_retry_arrives_after_its_delay_and_not_before
            a_retry_survives_a_restart
            a_consumer_resumes_after_a_restart
            a_full_queue_refuses_by_count_until_there_is_room
            a_full_queue_refuses_by_bytes_until_there_is_room
            dead_is_bounded
            a_reply_queue_is_bounded_by_count
            a_reply_queue_is_bounded_by_bytes
            depths_tell_ready_unacked_and_consumers
            an_unroutable_message_fails_alone
            an_unused_reply_queue_expires
            a_reply_queue_has_one_consumer
            a_reply_queue_keeps_replies_while_its_client_is_away
            a_broadcast_reaches_every_listener
            closing_ends_everything
        }
    };
    (@list $fixture:ty: $($property:ident)+) => {
        [$((stringify!($property), (|| Box::pin($crate::conformance::$property::<$fixture>())) as $crate::conformance::Run)),+]
    };
    (@each $fixture:ty: $($property:ident)+) => {
        $($crate::conformance_suite! { @one $fixture: $property })+
    };
    (@one $fixture:ty: $property:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $property() {
            $crate::conformance::$property::<$fixture>().await;
        }
    };
}

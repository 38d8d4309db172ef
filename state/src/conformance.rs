//! What every adapter must do, as tests that any adapter can run: implement [`Fixture`] and give it to
//! [`conformance_suite!`](crate::conformance_suite), or run [`ALL`] over it.
//!
//! Each property is one public function that panics where the adapter breaks it. It opens a state of its own, so
//! properties may run side by side. Nothing here knows an adapter. No property sleeps for a guess: what takes time by
//! its nature (an expiry, a window) is made short and waited for with a bound of [`PATIENCE`].

#![expect(clippy::unwrap_used, reason = "test code: a failed unwrap is a failed test")]

mod dead;
mod fixtures;
mod frequency;
mod lease;
mod life;
mod records;
mod room;
mod samples;
mod server;
mod starts;
mod workers;

pub use dead::*;
pub use fixtures::{EmbeddedFixture, RedisFixture};
pub use frequency::*;
pub use lease::*;
pub use life::*;
pub use records::*;
pub use room::*;
pub use server::*;
pub use starts::*;
pub use workers::*;

use crate::{Limits, State};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a property waits for what must happen: long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where an adapter's states come from.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Opens the state of this name: a clean one the first time, after a [`State::close`] the same again, as
    /// after a restart of the process.
    async fn open(&self, name: &str, limits: Limits) -> Arc<dyn State>;
}

/// One property, for whoever makes tests of them at run time.
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Runs it; panics where the adapter breaks it.
    pub run: for<'a> fn(&'a dyn Fixture) -> BoxFuture<'a, ()>,
}

/// Every property.
pub const ALL: &[Property] = crate::conformance_suite!(@with list []);

/// One named test per property, over the fixture that the expression makes.
#[macro_export]
macro_rules! conformance_suite {
    (@with $what:ident $fixture:tt) => {
        $crate::conformance_suite! { @$what $fixture
            a_count_is_per_second_per_model_and_includes_its_batch
            a_burst_is_never_doubled_and_decays_to_nothing
            looking_up_a_frequency_counts_nothing
            a_worker_appears_expires_and_leaves
            a_report_comes_back_as_it_was
            a_worker_that_takes_no_jobs_is_listed_but_serves_nothing
            a_model_has_the_lanes_of_its_live_workers
            a_model_stays_known_for_a_while
            a_worker_that_changes_is_counted_as_it_is_now
            a_dispatcher_appears_expires_and_leaves
            room_is_what_the_formula_says
            observers_never_claim_more_than_the_room
            unused_places_come_back_once
            a_sample_voids_all_claims
            one_holder_leads_at_a_time
            a_lease_is_renewed_and_expires
            the_first_record_wins
            many_tasks_that_finish_one_job_find_one_winner
            a_record_expires
            ended_jobs_are_told_in_order
            a_result_comes_back_byte_for_byte
            starts_are_counted_per_job_and_attempt
            starts_are_dropped_with_the_record
            starts_expire
            the_dead_are_listed_newest_first
            burying_twice_changes_nothing
            the_dead_are_found_by_id_and_taken_out
            the_index_of_the_dead_is_bounded
            a_thousand_go_in_one_call
            empty_calls_have_empty_answers
            what_must_last_outlives_a_restart
            names_are_apart
            the_clock_goes_forward
            a_closed_state_says_so
        }
    };
    (@list [] $($property:ident)+) => {
        &[$($crate::conformance::Property {
            name: stringify!($property),
            run: |fixture| Box::pin($crate::conformance::$property(fixture)),
        }),+]
    };
    (@tests [$fixture:expr] $($property:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                $crate::conformance::$property(&$fixture).await;
            }
        )+
    };
    ($fixture:expr) => {
        $crate::conformance_suite! { @with tests [$fixture] }
    };
}

/// A clean state with the usual limits.
async fn open(fixture: &dyn Fixture) -> Arc<dyn State> {
    fixture.open(&fresh_name(), Limits::default()).await
}

/// A name that nobody has used.
fn fresh_name() -> String {
    format!("t{:016x}", fastrand::u64(..))
}

/// Asks until the answer is yes.
async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

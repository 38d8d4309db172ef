//! Which queues are consumed just now, and the tasks that consume them.
//!
//! `jobs.*` and `dead.intake` always are. A wait queue is while its lane has, or just had, room; and while its lane
//! is gone and another has room, or nothing has had room for long: those whose deadline has passed are then told so. A
//! lane's own queue is taken back once its workers have been gone for a while.
//! What is wanted is decided by [`Feeds::wanted`], on plain values; the rest starts and stops.

use broker::{Broker, Delivery, Incoming, Queue};
use schemas::{Class, Lane};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a feed brings.
pub(crate) type Arrival = (Queue, Box<Delivery>);

/// What is known of a lane for the purpose of feeding.
#[derive(Clone, Copy, Debug)]
struct LaneSeen {
    /// When it last had a live worker; the dispatcher's start counts, so that nothing is taken back at once.
    live: Instant,
    /// Whether it has one now.
    is_live: bool,
    /// When it last had room.
    room: Option<Instant>,
}

/// Decides what to consume, and remembers what it takes to know for that.
#[derive(Debug)]
pub struct Feeds {
    lanes: [LaneSeen; 3],
    /// Wait queues that brought only jobs which had to go back, and until when to leave them alone.
    resting: HashMap<(Lane, Class), (Instant, Duration)>,
    start: Instant,
    keep_open: Duration,
    gone_after: Duration,
}

/// Shortest and longest rest of a wait queue that brought only jobs which had to go back.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// How long there has been no room anywhere before the wait queues of lanes without workers are looked into all the same.
const VISIT_AFTER: Duration = Duration::from_secs(10);

impl Feeds {
    /// Nothing seen yet.
    pub fn new(now: Instant, keep_open: Duration, gone_after: Duration) -> Self {
        let lanes = [LaneSeen { live: now, is_live: false, room: None }; 3];
        Self { lanes, resting: HashMap::new(), start: now, keep_open, gone_after }
    }

    /// A lane was looked at.
    pub fn saw(&mut self, lane: Lane, live: bool, room: bool, now: Instant) {
        let seen = &mut self.lanes[lane.index()];
        seen.is_live = live;
        if live {
            seen.live = now;
        }
        if room {
            seen.room = Some(now);
        }
    }

    /// A job from a wait queue had to go back to it.
    pub fn in_vain(&mut self, lane: Lane, class: Class, now: Instant) {
        let rest = self
            .resting
            .get(&(lane, class))
            .map_or(REST.0, |(until, rest)| if *until > now { *rest } else { (*rest * 2).min(REST.1) });
        self.resting.insert((lane, class), (now + rest, rest));
    }

    /// A job from a wait queue found its place.
    pub fn worthwhile(&mut self, lane: Lane, class: Class) {
        self.resting.remove(&(lane, class));
    }

    /// The queues to consume now.
    pub fn wanted(&self, now: Instant) -> Vec<Queue> {
        let roomy = |lane: Lane| {
            self.lanes[lane.index()].room.is_some_and(|room| now.duration_since(room) < self.keep_open)
        };
        let anywhere = Lane::ALL.into_iter().any(roomy);
        let last_room = self.lanes.iter().filter_map(|lane| lane.room).max().unwrap_or(self.start);
        let stuck = now.duration_since(last_room) >= VISIT_AFTER;
        let mut wanted: Vec<_> = Class::ALL.into_iter().map(Queue::Jobs).collect();
        wanted.push(Queue::DeadIntake);
        for lane in Lane::ALL {
            let seen = self.lanes[lane.index()];
            if roomy(lane) || !seen.is_live && (anywhere || stuck) {
                let rested = |class| self.resting.get(&(lane, class)).is_none_or(|(until, _)| *until <= now);
                wanted.extend(Class::ALL.into_iter().filter(|c| rested(*c)).map(|c| Queue::Wait(lane, c)));
            }
            if !seen.is_live && now.duration_since(seen.live) >= self.gone_after {
                wanted.push(Queue::Lane(lane));
            }
        }
        wanted
    }
}

/// The running consumers.
pub(crate) struct Consumers {
    broker: Arc<dyn Broker>,
    arrivals: mpsc::Sender<Arrival>,
    running: HashMap<Queue, JoinHandle<()>>,
}

impl Consumers {
    pub(crate) fn new(broker: Arc<dyn Broker>, arrivals: mpsc::Sender<Arrival>) -> Self {
        Self { broker, arrivals, running: HashMap::new() }
    }

    /// Starts what is wanted and not running, stops what runs and is not wanted.
    pub(crate) fn set(&mut self, wanted: &[Queue], prefetch: impl Fn(&Queue) -> u32) {
        self.running.retain(|queue, task| {
            let keep = wanted.contains(queue) && !task.is_finished();
            if !keep {
                // Safe at any await: the task holds no delivery across one.
                task.abort();
            }
            keep
        });
        for queue in wanted {
            if !self.running.contains_key(queue) {
                let pump =
                    pump(Arc::clone(&self.broker), queue.clone(), prefetch(queue), self.arrivals.clone());
                self.running.insert(queue.clone(), tokio::spawn(pump));
            }
        }
    }

    /// Stops all of them.
    pub(crate) fn stop(&mut self) {
        self.set(&[], |_| 1);
    }
}

impl Drop for Consumers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Moves deliveries of one queue to the loop. A place in the loop's channel is reserved first, so that a delivery is
/// never in hand while this task waits, and stopping it loses none.
async fn pump(broker: Arc<dyn Broker>, queue: Queue, prefetch: u32, arrivals: mpsc::Sender<Arrival>) {
    let mut consumer = loop {
        match broker.consume(&queue, prefetch).await {
            Ok(consumer) => break consumer,
            Err(error) => {
                tracing::warn!(queue = %queue, error = %error, "failed to consume; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    while let Ok(place) = arrivals.reserve().await {
        match consumer.next().await {
            Some(Incoming::Delivery(delivery)) => place.send((queue.clone(), delivery)),
            Some(Incoming::Resumed) => tracing::info!(queue = %queue, "consuming again"),
            None => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(1);
    const GONE: Duration = Duration::from_secs(2);

    fn wanted(feeds: &Feeds, now: Instant) -> Vec<String> {
        feeds
            .wanted(now)
            .iter()
            .map(Queue::to_string)
            .filter(|q| !q.starts_with("jobs") && q != "dead.intake")
            .collect()
    }

    #[test]
    fn wait_queues_are_consumed_while_their_lane_has_room() {
        let start = Instant::now();
        let mut feeds = Feeds::new(start, KEEP, GONE);
        assert!(wanted(&feeds, start).is_empty());
        feeds.saw(Lane::Local, true, true, start);
        for lane in [Lane::Docker, Lane::Serverless] {
            feeds.saw(lane, true, false, start);
        }
        assert_eq!(wanted(&feeds, start), ["wait.local.high", "wait.local.normal", "wait.local.low"]);
        feeds.saw(Lane::Local, true, false, start + KEEP);
        assert!(wanted(&feeds, start + KEEP).is_empty(), "full for as long as a job may be held");
    }

    #[test]
    fn where_nothing_has_room_for_long_those_past_their_deadline_are_still_found() {
        let start = Instant::now();
        let mut feeds = Feeds::new(start, KEEP, Duration::MAX);
        feeds.saw(Lane::Docker, true, false, start);
        assert!(wanted(&feeds, start + VISIT_AFTER / 2).is_empty());
        let later = start + VISIT_AFTER;
        let found = wanted(&feeds, later);
        assert!(found.contains(&"wait.local.low".to_owned()), "{found:?}");
        assert!(
            !found.iter().any(|queue| queue.contains("docker")),
            "a full lane comes to its own: {found:?}"
        );
        feeds.in_vain(Lane::Local, Class::Low, later);
        assert!(!wanted(&feeds, later).contains(&"wait.local.low".to_owned()), "at an easy pace");
    }

    #[test]
    fn what_waits_for_a_lane_that_is_gone_is_offered_elsewhere_at_an_easy_pace() {
        let start = Instant::now();
        let mut feeds = Feeds::new(start, KEEP, GONE);
        let later = start + GONE;
        feeds.saw(Lane::Local, true, true, later);
        feeds.saw(Lane::Serverless, true, false, later);
        let found = wanted(&feeds, later);
        assert!(
            found.contains(&"lane.docker".to_owned()) && found.contains(&"wait.docker.low".to_owned()),
            "{found:?}"
        );
        assert!(!found.contains(&"lane.serverless".to_owned()), "{found:?}");
        feeds.in_vain(Lane::Docker, Class::Low, later);
        assert!(!wanted(&feeds, later).contains(&"wait.docker.low".to_owned()));
        let rested = later + REST.0;
        feeds.saw(Lane::Local, true, true, rested);
        assert!(wanted(&feeds, rested).contains(&"wait.docker.low".to_owned()));
        feeds.in_vain(Lane::Docker, Class::Low, rested);
        feeds.saw(Lane::Local, true, true, rested + REST.0);
        assert!(
            !wanted(&feeds, rested + REST.0).contains(&"wait.docker.low".to_owned()),
            "rests longer each time"
        );
    }
}

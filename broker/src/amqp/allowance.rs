//! How many deliveries a consumer may hold, expressed in what a broker understands. Pure.
//!
//! A subscription's own prefetch cannot be changed, and quorum queues refuse one that a channel's subscriptions share.
//! So an allowance is spread over several subscriptions to the same queue on one channel: it is raised by adding one,
//! and lowered by cancelling some and adding less once enough of what they had delivered is settled.
//!
//! Invariants: the live subscriptions together never have more prefetch than the allowance, and one is added only as far
//! as what is still out from cancelled ones leaves room. Right after it was lowered more can therefore be out, by what
//! cancelled subscriptions had delivered; the consumer's handle holds that back until there is room.

/// A subscription's number, unique in its channel.
pub(super) type Id = u32;

/// What to do at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Subscribe once more.
    Subscribe { id: Id, prefetch: u16 },
    /// Cancel a subscription; what it delivered stays out.
    Cancel { id: Id },
}

#[derive(Debug)]
struct Subscription {
    id: Id,
    prefetch: u32,
    out: u32,
    live: bool,
}

/// The subscriptions that make up one allowance.
#[derive(Debug)]
pub(super) struct Allowance {
    target: u32,
    /// Most live subscriptions: 1 where the queue takes an exclusive consumer only.
    subscriptions_max: usize,
    subscriptions: Vec<Subscription>,
    next: Id,
}

impl Allowance {
    /// Most subscriptions an allowance is spread over: each costs the queue a turn.
    pub(super) const SUBSCRIPTIONS_MAX: usize = 16;

    pub(super) fn new(target: u32, subscriptions_max: usize) -> Self {
        Self { target: bounded(target), subscriptions_max, subscriptions: Vec::new(), next: 0 }
    }

    /// From now on at most `target` deliveries may be out.
    pub(super) fn set_target(&mut self, target: u32) {
        self.target = bounded(target);
    }

    /// A subscription delivered.
    pub(super) fn delivered(&mut self, id: Id) {
        if let Some(subscription) = self.find(id) {
            subscription.out += 1;
        }
    }

    /// A delivery of a subscription was settled.
    pub(super) fn settled(&mut self, id: Id) {
        if let Some(subscription) = self.find(id) {
            subscription.out = subscription.out.saturating_sub(1);
        }
    }

    /// The next step towards the allowance; ask until there is none, and again whenever something was settled.
    pub(super) fn step(&mut self) -> Option<Step> {
        self.subscriptions.retain(|subscription| subscription.live || subscription.out > 0);
        let live: u32 = self.live().map(|subscription| subscription.prefetch).sum();
        if live > self.target {
            // The newest first: a small raise taken back costs a small cancel.
            let newest = self.live().next_back().map(|found| found.id);
            return newest.and_then(|id| self.cancel(id));
        }
        let missing = self.target - live;
        let count = self.live().count();
        if missing == 0 {
            return None;
        }
        if count == self.subscriptions_max {
            let smallest = self.live().min_by_key(|subscription| subscription.prefetch).map(|found| found.id);
            return smallest.and_then(|id| self.cancel(id));
        }
        let still_out: u32 =
            self.subscriptions.iter().filter(|found| !found.live).map(|found| found.out).sum();
        let room = missing.saturating_sub(still_out);
        // Not one subscription for every delivery that is settled; and the last one takes all that is missing.
        let worth_it = if count + 1 == self.subscriptions_max { missing } else { missing.div_ceil(8) };
        if room < worth_it {
            return None;
        }
        let prefetch = u16::try_from(room).expect("an allowance is bounded by what a subscription can have");
        let id = self.next;
        self.next += 1;
        self.subscriptions.push(Subscription { id, prefetch: prefetch.into(), out: 0, live: true });
        Some(Step::Subscribe { id, prefetch })
    }

    /// Cancels every live subscription; whose.
    pub(super) fn stop(&mut self) -> Vec<Id> {
        let live = self.subscriptions.iter_mut().filter(|subscription| subscription.live);
        live.map(|subscription| {
            subscription.live = false;
            subscription.id
        })
        .collect()
    }

    fn live(&self) -> impl DoubleEndedIterator<Item = &Subscription> {
        self.subscriptions.iter().filter(|subscription| subscription.live)
    }

    fn find(&mut self, id: Id) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|subscription| subscription.id == id)
    }

    fn cancel(&mut self, id: Id) -> Option<Step> {
        self.find(id)?.live = false;
        Some(Step::Cancel { id })
    }
}

/// None at all would mean no bound at all; more than 65,535 cannot be said.
fn bounded(target: u32) -> u32 {
    target.clamp(1, u16::MAX.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A broker that delivers as much as it may.
    #[derive(Default)]
    struct Queue {
        live: BTreeMap<Id, u32>,
        out: BTreeMap<Id, u32>,
    }

    impl Queue {
        fn follow(&mut self, allowance: &mut Allowance) {
            while let Some(step) = allowance.step() {
                match step {
                    Step::Subscribe { id, prefetch } => {
                        assert!(self.live.insert(id, prefetch.into()).is_none());
                        let cancelled = self.out.iter().filter(|(id, _)| !self.live.contains_key(id));
                        let still_out: u32 = cancelled.map(|(_, out)| out).sum();
                        assert!(self.prefetch() + still_out <= allowance.target);
                    }
                    Step::Cancel { id } => assert!(self.live.remove(&id).is_some(), "{id} is not live"),
                }
            }
        }

        fn deliver(&mut self, allowance: &mut Allowance) {
            for (&id, &prefetch) in &self.live {
                let out = self.out.entry(id).or_default();
                (*out..prefetch).for_each(|_| allowance.delivered(id));
                *out = prefetch;
            }
        }

        fn settle(&mut self, allowance: &mut Allowance, nth: usize) {
            let holders: Vec<Id> = self.out.iter().filter(|(_, out)| **out > 0).map(|(&id, _)| id).collect();
            if let Some(&id) = holders.get(nth % holders.len().max(1)) {
                allowance.settled(id);
                *self.out.get_mut(&id).unwrap() -= 1;
            }
        }

        fn prefetch(&self) -> u32 {
            self.live.values().sum()
        }

        fn out(&self) -> u32 {
            self.out.values().sum()
        }
    }

    #[test]
    fn it_is_raised_by_one_more_subscription_and_lowered_without_a_return() {
        let mut allowance = Allowance::new(3, Allowance::SUBSCRIPTIONS_MAX);
        let mut queue = Queue::default();
        queue.follow(&mut allowance);
        queue.deliver(&mut allowance);
        allowance.set_target(5);
        assert_eq!(allowance.step(), Some(Step::Subscribe { id: 1, prefetch: 2 }));
        assert_eq!(allowance.step(), None);
        queue.live.insert(1, 2);
        queue.deliver(&mut allowance);
        allowance.set_target(1);
        queue.follow(&mut allowance);
        assert!(queue.live.is_empty(), "five are out and one may be");
        for left in (0..5).rev() {
            queue.settle(&mut allowance, 0);
            queue.follow(&mut allowance);
            assert_eq!(queue.prefetch(), u32::from(left == 0));
        }
    }

    #[test]
    fn an_exclusive_consumer_has_one_subscription_at_a_time() {
        let mut allowance = Allowance::new(2, 1);
        let mut queue = Queue::default();
        queue.follow(&mut allowance);
        queue.deliver(&mut allowance);
        allowance.set_target(4);
        queue.follow(&mut allowance);
        assert!(queue.live.is_empty());
        queue.settle(&mut allowance, 0);
        queue.settle(&mut allowance, 0);
        queue.follow(&mut allowance);
        assert_eq!(queue.live.values().copied().collect::<Vec<_>>(), [4]);
    }

    proptest! {
        #[test]
        fn it_is_never_exceeded_and_always_reached(
            start in 1..300u32,
            changes in prop::collection::vec((1..300u32, 0..400usize, any::<usize>()), 0..20),
            exclusive in any::<bool>(),
        ) {
            let subscriptions_max = if exclusive { 1 } else { Allowance::SUBSCRIPTIONS_MAX };
            let mut allowance = Allowance::new(start, subscriptions_max);
            let mut queue = Queue::default();
            queue.follow(&mut allowance);
            queue.deliver(&mut allowance);
            prop_assert_eq!(queue.out(), start);
            for (target, settles, nth) in changes {
                allowance.set_target(target);
                queue.follow(&mut allowance);
                for _ in 0..settles {
                    queue.settle(&mut allowance, nth);
                    queue.follow(&mut allowance);
                    queue.deliver(&mut allowance);
                    prop_assert!(queue.prefetch() <= target);
                    prop_assert!(queue.live.len() <= subscriptions_max);
                }
                while queue.out() > 0 {
                    queue.settle(&mut allowance, nth);
                    if queue.out() == 0 {
                        queue.follow(&mut allowance);
                    }
                }
                queue.follow(&mut allowance);
                queue.deliver(&mut allowance);
                prop_assert_eq!(queue.out(), target, "all was settled: the whole allowance is there again");
            }
        }
    }
}

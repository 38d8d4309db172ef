//! How quickly jobs complete, and how many to ask the broker for. Pure; the clock is the caller's.
//!
//! A delivery is held until its job's end is confirmed, which takes as long as shared state and the broker take. Slots
//! would stand idle meanwhile if there were only as many deliveries as slots. So beside its slots a worker asks
//! for as many as are ending at a time (completions per second × the time an ending takes, as measured), and for
//! what completes while a message comes. For slow models that is next to nothing, and nothing is hoarded.

use std::time::Duration;

/// Over how long measurements are averaged.
const WINDOW: Duration = Duration::from_millis(500);
/// What a message takes to come: completions within it are asked for ahead.
const HOP: Duration = Duration::from_millis(20);
/// How long a prefetch stands before it is lowered.
const SHRINK_AFTER: Duration = Duration::from_secs(1);
/// Below this a rate is none.
const RATE_MIN: f64 = 0.05;

/// Measures of what passes through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    completed: u32,
    /// Time that jobs settled since the last tick spent ending, together.
    ended_for: Duration,
    per_second: f64,
    ending: f64,
    /// The last tick's own, not averaged: growth should not wait for the average.
    ending_now: f64,
}

impl Meter {
    /// One more run is over.
    pub(crate) fn completed(&mut self) {
        self.completed = self.completed.saturating_add(1);
    }

    /// A job is settled, so long after its run was over.
    pub(crate) fn settled(&mut self, after: Duration) {
        self.ended_for = self.ended_for.saturating_add(after);
    }

    /// `elapsed` has passed since the last tick.
    pub(crate) fn tick(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let weight = 1.0 - (-seconds / WINDOW.as_secs_f64()).exp();
        let seen = f64::from(std::mem::take(&mut self.completed)) / seconds;
        self.ending_now = std::mem::take(&mut self.ended_for).as_secs_f64() / seconds;
        self.per_second += (seen - self.per_second) * weight;
        self.ending += (self.ending_now - self.ending) * weight;
        if self.per_second < RATE_MIN {
            self.per_second = 0.0;
        }
    }

    /// Completions per second of late.
    pub(crate) fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Jobs that are ending at a time.
    pub(crate) fn ending(&self) -> f64 {
        self.ending.max(self.ending_now)
    }
}

/// How many deliveries to ask for now instead of `current`, `since` the last change; none where a change is not worth it,
/// for a broker may need a subscription more or less for each.
///
/// Beside the slots there is room for what is ending and what completes while a message comes. That room grows by
/// powers of two, at once, and shrinks when a quarter would do, after a while. At most `most` together, never fewer
/// than slots, and nothing beside them once nothing is wanted there.
pub(crate) fn prefetch(current: u32, slots: u32, meter: &Meter, most: u32, since: Duration) -> Option<u32> {
    let beside = meter.ending() + meter.per_second() * HOP.as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let room = match beside.clamp(0.0, f64::from(most)) as u32 {
        0 => 0,
        beside => beside.next_power_of_two(),
    };
    let target = slots.saturating_add(room).min(most).max(slots);
    let shrinks = room == 0 || room <= current.saturating_sub(slots) / 4;
    (target > current || target < current && shrinks && since >= SHRINK_AFTER).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: Duration = Duration::from_millis(100);

    /// A meter after a while of so many completions per second, each ending for so long.
    fn meter(per_second: u32, ending: Duration) -> Meter {
        let mut meter = Meter::default();
        for _ in 0..50 {
            for _ in 0..per_second / 10 {
                meter.completed();
                meter.settled(ending);
            }
            meter.tick(TICK);
        }
        meter
    }

    #[test]
    fn a_steady_rate_is_found_and_forgotten() {
        let mut meter = meter(200, Duration::from_millis(30));
        assert!((meter.per_second() - 200.0).abs() < 1.0, "{meter:?}");
        assert!((meter.ending() - 6.0).abs() < 0.1, "{meter:?}");
        (0..100).for_each(|_| meter.tick(TICK));
        assert!(meter.per_second() == 0.0 && meter.ending() < 0.01, "{meter:?}");
        meter.completed();
        meter.tick(Duration::ZERO);
        assert!(meter.per_second().is_finite());
    }

    /// What is asked for in the long run, starting from `current`.
    fn settled(current: u32, slots: u32, meter: &Meter) -> u32 {
        prefetch(current, slots, meter, 256, SHRINK_AFTER).unwrap_or(current)
    }

    #[test]
    fn slow_models_get_nothing_extra_and_quick_ones_what_their_ends_and_a_hop_take() {
        let short = Duration::from_millis(5);
        assert_eq!(settled(2, 2, &meter(0, short)), 2);
        assert_eq!(settled(2, 2, &meter(30, short)), 2);
        assert_eq!(settled(2, 2, &meter(1_000, short)), 2 + 32);
        assert_eq!(settled(2, 2, &meter(1_000, 10 * short)), 2 + 128);
        assert_eq!(settled(2, 2, &meter(100_000, short)), 256);
        assert_eq!(settled(2, 300, &meter(100_000, short)), 300, "every slot can be filled");
    }

    #[test]
    fn small_changes_are_not_worth_a_round_trip_and_large_ones_down_can_wait() {
        let (quick, slow) = (meter(1_000, Duration::from_millis(5)), meter(0, Duration::ZERO));
        let now = |current, meter| prefetch(current, 2, meter, 256, Duration::ZERO);
        assert_eq!(now(2, &quick), Some(34), "growth does not wait");
        assert_eq!((now(34, &quick), now(129, &quick), settled(129, 2, &quick)), (None, None, 129));
        assert_eq!((now(130, &quick), settled(130, 2, &quick)), (None, 34), "a quarter would do");
        assert_eq!(
            (now(3, &slow), settled(3, 2, &slow)),
            (None, 2),
            "nothing extra once nothing extra is wanted"
        );
        assert_eq!(prefetch(34, 40, &slow, 256, Duration::ZERO), Some(40), "a slot more is a slot to fill");
    }

    /// Deliveries and slots together bound what completes; starting with one delivery a slot, all slots come to be busy.
    #[test]
    fn slots_come_to_be_busy_however_long_endings_take() {
        for (run_us, ending_ms) in [(100, 5), (100, 100), (10_000, 100), (1_000_000, 100)] {
            let (run, ending) = (Duration::from_micros(run_us), Duration::from_millis(ending_ms));
            let (slots, mut held, mut meter) = (2, 2, Meter::default());
            let mut changes = 0;
            for _ in 0..100 {
                let by_slots = f64::from(slots) / run.as_secs_f64();
                let by_deliveries = f64::from(held) / (run + ending).as_secs_f64();
                let completed = by_slots.min(by_deliveries) * TICK.as_secs_f64();
                meter.completed = completed as u32;
                meter.ended_for = ending.mul_f64(completed);
                meter.tick(TICK);
                if let Some(next) = prefetch(held, slots, &meter, 256, Duration::ZERO) {
                    held = next;
                    changes += 1;
                }
            }
            // What is running, ending and on its way when every slot is busy.
            let needed = f64::from(slots) * (1.0 + (ending + HOP).as_secs_f64() / run.as_secs_f64());
            let (least, most) = (needed.min(256.0) * 0.7, needed * 2.0 + 1.0);
            assert!((least..=most).contains(&f64::from(held)), "{run:?} {ending:?}: {held}, not {needed}");
            assert!(changes <= 8, "{changes} changes");
        }
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_the_same_wish_changes_nothing_twice(
            slots in 0u32..64, rate in 0u32..10_000, ms in 0u64..1_000, current in 0u32..512,
        ) {
            let meter = meter(rate, Duration::from_millis(ms));
            let next = settled(current, slots, &meter);
            prop_assert!(next >= slots && (next <= 256 || next == current));
            prop_assert_eq!(prefetch(next, slots, &meter, 256, SHRINK_AFTER), None);
        }
    }
}

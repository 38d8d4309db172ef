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

/// How many deliveries to hold: the slots, what is `ending`, and what completes while a message comes; at most `most`,
/// but never fewer than slots.
pub(crate) fn wanted(slots: u32, meter: &Meter, most: u32) -> u32 {
    let beside = meter.ending() + meter.per_second() * HOP.as_secs_f64();
    let beside = beside.round().clamp(0.0, f64::from(most));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped just before")]
    let beside = beside as u32;
    slots.saturating_add(beside).min(most).max(slots)
}

/// What to change the prefetch to, if it is worth a round trip to the broker: growth by an eighth, shrinking by a quarter,
/// and anything that slots themselves ask for.
pub(crate) fn adjusted(current: u32, wanted: u32, slots: u32) -> Option<u32> {
    let grown = wanted > current && (current < slots || wanted - current >= (current / 8).max(1));
    let shrunk = wanted < current && (wanted == slots || current - wanted >= (current / 4).max(2));
    (grown || shrunk).then_some(wanted)
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

    #[test]
    fn slow_models_get_nothing_extra_and_quick_ones_what_their_ends_and_a_hop_take() {
        let short = Duration::from_millis(5);
        assert_eq!(wanted(2, &meter(0, short), 256), 2);
        assert_eq!(wanted(2, &meter(10, short), 256), 2);
        assert_eq!(wanted(2, &meter(1_000, short), 256), 27);
        assert_eq!(wanted(2, &meter(1_000, 10 * short), 256), 72);
        assert_eq!(wanted(2, &meter(100_000, short), 256), 256);
        assert_eq!(wanted(300, &meter(100_000, short), 256), 300, "every slot can be filled");
    }

    /// With `held` deliveries, endings of `ending` and a run of `run`, a lane completes what Little's law says.
    #[test]
    fn slots_come_to_be_busy_however_long_endings_take() {
        for (run_us, ending_ms) in [(100, 5), (100, 100), (10_000, 100), (1_000_000, 100)] {
            let (run, ending) = (Duration::from_micros(run_us), Duration::from_millis(ending_ms));
            let (slots, mut held, mut meter) = (2, 2, Meter::default());
            for _ in 0..100 {
                let by_slots = f64::from(slots) / run.as_secs_f64();
                let by_deliveries = f64::from(held) / (run + ending).as_secs_f64();
                let completed = by_slots.min(by_deliveries) * TICK.as_secs_f64();
                meter.completed = completed as u32;
                meter.ended_for = ending.mul_f64(completed);
                meter.tick(TICK);
                held = adjusted(held, wanted(slots, &meter, 256), slots).unwrap_or(held);
            }
            // What is running, ending and on its way when every slot is busy.
            let needed = f64::from(slots) * (1.0 + (ending + HOP).as_secs_f64() / run.as_secs_f64());
            let (least, most) = (needed.min(256.0) * 0.7, needed * 1.3 + 1.0);
            assert!((least..=most).contains(&f64::from(held)), "{run:?} {ending:?}: {held}, not {needed}");
        }
    }

    #[test]
    fn small_changes_are_not_worth_a_round_trip() {
        assert_eq!(adjusted(100, 105, 2), None);
        assert_eq!(adjusted(100, 113, 2), Some(113));
        assert_eq!(adjusted(100, 80, 2), None);
        assert_eq!(adjusted(100, 60, 2), Some(60));
        assert_eq!(adjusted(3, 2, 2), Some(2), "nothing extra once nothing extra is wanted");
        assert_eq!(adjusted(100, 101, 101), Some(101), "a slot more is a slot to fill");
        assert_eq!(adjusted(2, 3, 2), Some(3));
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_settles(slots in 0u32..64, rate in 0u32..10_000, ms in 0u64..1_000, current in 0u32..512) {
            let wanted = wanted(slots, &meter(rate, Duration::from_millis(ms)), 256);
            prop_assert!((slots..=256).contains(&wanted));
            let next = adjusted(current, wanted, slots).unwrap_or(current);
            prop_assert!(next >= slots);
            prop_assert_eq!(adjusted(next, wanted, slots), None, "the same wish changes nothing twice");
        }
    }
}

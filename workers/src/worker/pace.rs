//! How quickly jobs complete, and how many to ask the broker for. Pure; the clock is the caller's.

use std::time::Duration;

/// Over how long completions are averaged.
const WINDOW: Duration = Duration::from_millis(500);
/// How much completed work is asked for ahead: what a hop through the broker takes.
const AHEAD: Duration = Duration::from_millis(20);
/// Below this a rate is none.
const RATE_MIN: f64 = 0.05;

/// Completions per second, averaged exponentially.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    rate: f64,
    counted: u32,
}

impl Meter {
    /// One more completed.
    pub(crate) fn count(&mut self) {
        self.counted = self.counted.saturating_add(1);
    }

    /// `elapsed` has passed since the last tick.
    pub(crate) fn tick(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let seen = f64::from(std::mem::take(&mut self.counted)) / seconds;
        let weight = 1.0 - (-seconds / WINDOW.as_secs_f64()).exp();
        self.rate += (seen - self.rate) * weight;
        if self.rate < RATE_MIN {
            self.rate = 0.0;
        }
    }

    /// Completions per second of late.
    pub(crate) fn per_second(&self) -> f64 {
        self.rate
    }
}

/// How many deliveries to hold: the slots, and what completes while a message comes; at most `most`, but never fewer
/// than slots. Nothing extra for slow models, which would only keep jobs from other workers.
pub(crate) fn wanted(slots: u32, per_second: f64, most: u32) -> u32 {
    let ahead = (per_second.max(0.0) * AHEAD.as_secs_f64()).min(f64::from(most));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just before")]
    let ahead = ahead as u32;
    slots.saturating_add(ahead).min(most).max(slots)
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

    #[test]
    fn a_steady_rate_is_found_and_forgotten() {
        let mut meter = Meter::default();
        for _ in 0..50 {
            (0..20).for_each(|_| meter.count());
            meter.tick(TICK);
        }
        assert!((meter.per_second() - 200.0).abs() < 1.0, "{}", meter.per_second());
        (0..100).for_each(|_| meter.tick(TICK));
        assert!(meter.per_second() == 0.0, "{}", meter.per_second());
        meter.count();
        meter.tick(Duration::ZERO);
        assert!(meter.per_second().is_finite());
    }

    #[test]
    fn slow_models_get_nothing_extra_and_quick_ones_what_a_hop_takes() {
        assert_eq!(wanted(2, 1.0, 256), 2);
        assert_eq!(wanted(2, 49.9, 256), 2);
        assert_eq!(wanted(2, 1_000.0, 256), 22);
        assert_eq!(wanted(2, 1e9, 256), 256);
        assert_eq!(wanted(300, 1e9, 256), 300, "every slot can be filled");
        assert_eq!(wanted(0, f64::NAN, 256), 0);
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
        fn it_is_bounded_and_settles(slots in 0u32..64, rate in 0.0f64..1e6, current in 0u32..512) {
            let wanted = wanted(slots, rate, 256);
            prop_assert!((slots..=256).contains(&wanted));
            let next = adjusted(current, wanted, slots).unwrap_or(current);
            prop_assert!(next >= slots);
            prop_assert_eq!(adjusted(next, wanted, slots), None, "the same wish changes nothing twice");
        }
    }
}

//! Room in a lane, from what was observed. Pure; the Redis adapter's script computes the same.

use std::time::Duration;

/// What was observed of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Slots of its live workers that take jobs.
    pub slots: u32,
    /// What those workers run or have taken.
    pub busy: u32,
    /// What they completed per second, together.
    pub completed_per_s: f64,
    /// What its queue held at the last sample.
    pub ready: u64,
    /// Places claimed since that sample.
    pub claimed: u32,
}

/// Places free in the lane: slots and a short queue, less what is there already.
///
/// The queue target is what the lane completes in two sampling intervals, at most `target_max`: enough that
/// quick workers never run dry between samples, nothing for slow ones.
pub fn room(observed: &Observed, interval: Duration, target_max: u32) -> u32 {
    let target = observed.completed_per_s.max(0.0) * interval.as_secs_f64() * 2.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just before")]
    let target = target.min(f64::from(target_max)) as u64;
    let places = u64::from(observed.slots) + if observed.slots == 0 { 0 } else { target };
    let taken = u64::from(observed.busy) + observed.ready + u64::from(observed.claimed);
    u32::try_from(places.saturating_sub(taken)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    #[test]
    fn a_slow_lane_queues_nothing_and_a_quick_one_two_intervals() {
        let slow = Observed { slots: 2, completed_per_s: 1.0, ..Observed::default() };
        assert_eq!(room(&slow, INTERVAL, 256), 2);
        let quick = Observed { slots: 2, completed_per_s: 500.0, ..Observed::default() };
        assert_eq!(room(&quick, INTERVAL, 256), 102);
        assert_eq!(room(&quick, INTERVAL, 10), 12);
    }

    #[test]
    fn what_is_there_already_takes_room_and_never_more_than_there_is() {
        let mut lane = Observed { slots: 4, busy: 1, ready: 1, claimed: 1, ..Observed::default() };
        assert_eq!(room(&lane, INTERVAL, 256), 1);
        lane.ready = 1_000_000;
        assert_eq!(room(&lane, INTERVAL, 256), 0);
    }

    #[test]
    fn a_lane_without_workers_has_no_room() {
        let gone = Observed { completed_per_s: 1e9, ..Observed::default() };
        assert_eq!(room(&gone, INTERVAL, 256), 0);
        let odd = Observed { slots: 1, completed_per_s: f64::NAN, ..Observed::default() };
        assert_eq!(room(&odd, INTERVAL, 256), 1);
    }
}

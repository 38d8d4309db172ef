//! How quickly each lane takes jobs from this dispatcher, and so how many are worth keeping in hand for it. Pure; the clock
//! is the caller's.
//!
//! A job that is parked costs the broker another hop, and everybody who comes after it has to wait for the wait queue; one
//! that is kept in hand takes a place of the intake from jobs of other lanes. So those are kept that a lane comes to
//! soon: what it takes within [`SOON`], and a few for a lane that has not taken any yet. Those of a slow lane go to wait,
//! and those of a quick one stay in `jobs.*` until there is a place in hand.

use schemas::Lane;
use std::time::Duration;
use tokio::time::Instant;

/// How soon a job that is kept in hand should find its place.
const SOON: Duration = Duration::from_millis(250);
/// Jobs that may be kept for a lane however slow.
const FEW: u32 = 16;
/// Over how long rates are averaged, and how often they are looked at.
const WINDOW: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pace {
    placed: [u32; 3],
    per_second: [f64; 3],
    ticked: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { placed: [0; 3], per_second: [0.0; 3], ticked: now }
    }

    /// One more was placed in `lane`.
    pub(crate) fn placed(&mut self, lane: Lane) {
        self.placed[lane.index()] += 1;
    }

    /// Jobs to keep in hand for each lane, at most.
    pub(crate) fn keeps(&mut self, now: Instant) -> [u32; 3] {
        let elapsed = now.duration_since(self.ticked);
        if elapsed >= TICK {
            self.ticked = now;
            let weight = 1.0 - (-elapsed.as_secs_f64() / WINDOW.as_secs_f64()).exp();
            for (per_second, placed) in self.per_second.iter_mut().zip(&mut self.placed) {
                let seen = f64::from(std::mem::take(placed)) / elapsed.as_secs_f64();
                *per_second += (seen - *per_second) * weight;
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and bounded")]
        self.per_second.map(|rate| FEW.max((rate * SOON.as_secs_f64()).min(1e6) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_lane_is_kept_what_it_takes_soon_and_a_slow_one_a_few() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.keeps(now), [FEW; 3]);
        for _ in 0..100 {
            now += Duration::from_millis(100);
            (0..200).for_each(|_| pace.placed(Lane::Local));
            pace.placed(Lane::Docker);
            pace.keeps(now);
        }
        let keeps = pace.keeps(now);
        assert!((495..=500).contains(&keeps[Lane::Local.index()]), "2,000 a second: {keeps:?}");
        assert_eq!(keeps[Lane::Docker.index()], FEW, "10 a second");
        let keeps = pace.keeps(now + Duration::from_secs(10));
        assert_eq!(keeps, [FEW; 3], "what was quick once is forgotten");
    }
}

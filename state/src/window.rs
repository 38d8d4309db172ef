//! The sliding window over which a model's frequency is counted. Pure; the Redis adapter's script computes the same.
//!
//! A window is cut into [`SLICES`] slices, plus the one that is leaving. The newest slice is still filling; of the
//! leaving one only the share that lies inside the window counts. So a steady rate reads the same at every
//! moment, a burst leaves over one slice instead of at once, and no edge ever counts a job twice.

use schemas::ModelName;
use std::collections::HashMap;
use std::time::Duration;

/// Slices of a window.
pub(crate) const SLICES: u64 = 16;

/// How a window is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    slice_us: u64,
}

impl Span {
    /// Longest window: a day. What is asked for less often than that has no frequency.
    const MAX: Duration = Duration::from_secs(24 * 3600);

    /// Cuts `window`, at least 16 microseconds and at most a day long.
    pub(crate) fn of(window: Duration) -> Self {
        let window_us = u64::try_from(window.min(Self::MAX).as_micros()).unwrap_or(u64::MAX);
        Self { slice_us: window_us.div_ceil(SLICES).max(1) }
    }

    /// Length of a slice, in microseconds.
    pub(crate) fn slice_us(self) -> u64 {
        self.slice_us
    }

    /// Length of the window and its leaving slice: a count older than that is nothing.
    pub(crate) fn memory(self) -> Duration {
        Duration::from_micros(self.slice_us * (SLICES + 1))
    }

    /// What `total` jobs in the window are per second.
    #[expect(clippy::cast_precision_loss, reason = "a day in microseconds is far below 2^53")]
    pub(crate) fn per_second(self, total: f64) -> f64 {
        total / ((self.slice_us * SLICES) as f64 / 1e6)
    }
}

/// Jobs counted in the window that ends now.
#[derive(Clone, Debug, Default)]
struct Window {
    /// Number of the newest slice, counted from the clock's zero.
    newest: u64,
    /// Jobs by age of the slice, the newest first, the leaving one last.
    slices: [u64; SLICES as usize + 1],
}

impl Window {
    /// Moves the window up to `slice`. A clock that goes back moves nothing.
    fn advance(&mut self, slice: u64) {
        let passed = slice.saturating_sub(self.newest);
        if passed == 0 {
            return;
        }
        let shift = usize::try_from(passed).map_or(self.slices.len(), |passed| passed.min(self.slices.len()));
        self.slices.rotate_right(shift);
        self.slices[..shift].fill(0);
        self.newest = slice;
    }

    /// Jobs in the window, at `now_us`, which lies in the newest slice.
    #[expect(clippy::cast_precision_loss, reason = "counts and microseconds far below 2^53")]
    fn total(&self, now_us: u64, span: Span) -> f64 {
        let (leaving, whole) = self.slices.split_last().expect("there is at least one slice");
        let passed = now_us.saturating_sub(self.newest * span.slice_us) as f64 / span.slice_us as f64;
        whole.iter().sum::<u64>() as f64 + *leaving as f64 * (1.0 - passed).max(0.0)
    }
}

/// The windows of all models. Windows of different lengths are counted apart.
#[derive(Debug, Default)]
pub(crate) struct Frequencies {
    windows: HashMap<u64, HashMap<ModelName, Window>>,
    /// Windows held after the last look for stale ones.
    fresh: usize,
}

impl Frequencies {
    /// Windows held without looking for stale ones.
    const SLACK: usize = 256;

    /// Counts `jobs` more for `model` at `now` and says how many per second the window holds then.
    pub(crate) fn count(&mut self, model: &ModelName, jobs: u32, span: Span, now: Duration) -> f64 {
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let slice = now_us / span.slice_us;
        let windows = self.windows.entry(span.slice_us).or_default();
        if let Some(window) = windows.get_mut(model) {
            window.advance(slice);
            window.slices[0] += u64::from(jobs);
            return span.per_second(window.total(now_us, span));
        }
        if jobs == 0 {
            return 0.0;
        }
        let mut window = Window { newest: slice, ..Window::default() };
        window.slices[0] = u64::from(jobs);
        let total = window.total(now_us, span);
        windows.insert(model.clone(), window);
        self.prune(now_us);
        span.per_second(total)
    }

    /// Forgets windows that hold nothing any more, whenever their number has doubled: names that are asked for
    /// once must not stay for ever.
    fn prune(&mut self, now_us: u64) {
        let held: usize = self.windows.values().map(HashMap::len).sum();
        if held <= self.fresh * 2 + Self::SLACK {
            return;
        }
        self.windows.retain(|slice_us, windows| {
            windows.retain(|_, window| now_us / slice_us <= window.newest + SLICES);
            !windows.is_empty()
        });
        self.fresh = self.windows.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn model(name: &str) -> ModelName {
        ModelName::new(name).unwrap()
    }

    fn at(ms: u64) -> Duration {
        Duration::from_secs(1_000_000) + Duration::from_millis(ms)
    }

    #[test]
    fn a_steady_rate_reads_the_same_at_every_moment() {
        let (mut seen, span) = (Frequencies::default(), Span::of(WINDOW));
        for ms in (0..60_000).step_by(10) {
            let rate = seen.count(&model("m"), 1, span, at(ms));
            if ms >= 11_000 {
                assert!((rate - 100.0).abs() < 0.5, "{rate} at {ms} ms");
            }
        }
    }

    #[test]
    fn no_edge_counts_a_burst_twice_and_it_leaves_in_the_end() {
        let span = Span::of(WINDOW);
        for start in [0, 1, 311, 624, 625, 9_999] {
            let mut seen = Frequencies::default();
            assert_eq!(seen.count(&model("m"), 500, span, at(start)), 50.0);
            let mut last = 50.0;
            for later in (1..=11_000).step_by(7) {
                let rate = seen.count(&model("m"), 0, span, at(start + later));
                assert!(rate <= last, "{rate} after {last}, {later} ms later");
                last = rate;
                if later <= 9_370 {
                    assert_eq!(rate, 50.0, "whole for nearly a window");
                }
            }
            assert_eq!(last, 0.0);
        }
    }

    #[test]
    fn models_and_windows_are_counted_apart_and_looking_counts_nothing() {
        let (mut seen, span) = (Frequencies::default(), Span::of(WINDOW));
        assert_eq!(seen.count(&model("a"), 0, span, at(0)), 0.0);
        assert!(seen.windows.values().all(HashMap::is_empty), "a look leaves nothing behind");
        assert_eq!(seen.count(&model("a"), 20, span, at(0)), 2.0);
        assert_eq!(seen.count(&model("b"), 10, span, at(1)), 1.0);
        assert_eq!(seen.count(&model("a"), 0, span, at(2)), 2.0);
        assert_eq!(seen.count(&model("a"), 1, Span::of(Duration::from_secs(1)), at(2)), 1.0);
    }

    #[test]
    fn a_clock_that_goes_back_and_odd_windows_do_no_harm() {
        let (mut seen, span) = (Frequencies::default(), Span::of(WINDOW));
        seen.count(&model("a"), 10, span, at(5_000));
        assert_eq!(seen.count(&model("a"), 10, span, at(0)), 2.0);
        for odd in [Duration::ZERO, Duration::MAX] {
            assert!(seen.count(&model("a"), 1, Span::of(odd), at(1)).is_finite());
        }
    }

    #[test]
    fn names_asked_for_once_are_forgotten() {
        let (mut seen, span) = (Frequencies::default(), Span::of(Duration::from_secs(1)));
        for n in 0..20_000u64 {
            seen.count(&model(&format!("m{n}")), 1, span, at(n * 10));
        }
        let held: usize = seen.windows.values().map(HashMap::len).sum();
        assert!(held < 1_000, "{held} windows held");
    }
}

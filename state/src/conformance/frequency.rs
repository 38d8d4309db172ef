//! How often models are asked for.

use super::samples::{WINDOW, counting, observe, rate};
use super::{Fixture, open, until};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A batch's count is in its own answer, per second of the window, model by model, in the order asked; batches add up.
pub async fn a_count_is_per_second_per_model_and_includes_its_batch(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let first = observe(&*state, &counting(&[("a", 600), ("b", 1200)], WINDOW)).await;
    let rates: Vec<_> = first.models.iter().map(|model| model.per_second).collect();
    assert_eq!(rates, [1.0, 2.0]);
    let second = observe(&*state, &counting(&[("b", 600), ("c", 0), ("a", 0)], WINDOW)).await;
    let rates: Vec<_> = second.models.iter().map(|model| model.per_second).collect();
    assert_eq!(rates, [3.0, 0.0, 1.0]);
}

/// However a burst falls across the edges of slices and windows, it is never counted more than once; it is counted in
/// full for most of a window, only ever less as time goes by, and not at all in the end.
pub async fn a_burst_is_never_doubled_and_decays_to_nothing(fixture: &dyn Fixture) {
    const JOBS: u32 = 100;
    let window = Duration::from_millis(800);
    let full = f64::from(JOBS) / window.as_secs_f64();
    let state = open(fixture).await;
    for round in 0..3 {
        // Each burst begins at another place within a slice.
        sleep(Duration::from_millis(13)).await;
        let sent = Instant::now();
        let mut last = observe(&*state, &counting(&[("m", JOBS)], window)).await.models[0].per_second;
        let answered = Instant::now();
        assert!((last - full).abs() < full * 0.001, "{last} of {full} in round {round}");
        while last > 0.0 {
            let asked = Instant::now();
            let now = rate(&*state, "m", window).await;
            assert!(now <= last, "{now} after {last}");
            if sent.elapsed() < window.mul_f64(0.9) {
                assert!((now - full).abs() < full * 0.001, "{now} of {full}, still within the window");
            }
            // The leaving slice is a sixteenth of the window.
            assert!(now == 0.0 || asked - answered < window.mul_f64(1.1), "{now} long after the window");
            last = now;
            sleep(Duration::from_millis(7)).await;
        }
    }
}

/// Asking for a model's frequency with a count of zero leaves no trace in it.
pub async fn looking_up_a_frequency_counts_nothing(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    for _ in 0..50 {
        assert_eq!(rate(&*state, "m", WINDOW).await, 0.0);
    }
    observe(&*state, &counting(&[("m", 600)], WINDOW)).await;
    until("fifty looks have seen the same", || async {
        for _ in 0..50 {
            assert_eq!(rate(&*state, "m", WINDOW).await, 1.0);
        }
        true
    })
    .await;
}

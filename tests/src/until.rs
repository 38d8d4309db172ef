//! Waiting for a condition with a bound, in place of sleeping for a guess.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

thread_local! {
    /// What this thread waits for, the innermost last: a wait that is cut off from outside leaves it behind.
    static WAITS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What the scenario on this thread was waiting for when it was cut off; forgets it.
pub(crate) fn cut_off_waiting() -> String {
    let waits = WAITS.take();
    if waits.is_empty() { "not in a wait".to_owned() } else { waits.join(", ") }
}

/// Asks `probe` again and again until it succeeds, and gives back what it found.
///
/// An `Err` means "not yet, because …": the last one is the reason in the failure message, so a probe says
/// what it saw (`ensure!(left == 0, "{left} jobs left")`). A probe that hangs is cut off at the bound.
pub async fn until<T>(bound: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let depth = WAITS.with_borrow(Vec::len);
    let note = |last: &Error| {
        WAITS.with_borrow_mut(|waits| {
            waits.truncate(depth);
            waits.push(format!("waiting until {what}: {last:#}"));
        });
    };
    let deadline = Instant::now() + bound;
    let mut pause = FIRST_PAUSE;
    let mut last = anyhow!("the first look did not come back");
    let found = loop {
        note(&last);
        match timeout_at(deadline, probe()).await {
            Ok(Ok(found)) => break Ok(found),
            Ok(Err(reason)) => last = reason,
            Err(_) => break Err(last),
        }
        if Instant::now() + pause >= deadline {
            break Err(last);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    WAITS.with_borrow_mut(|waits| waits.truncate(depth));
    found.map_err(|last| last.context(format!("waited {bound:?} in vain until {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[tokio::test]
    async fn gives_back_what_the_probe_found() {
        let mut looks = 0;
        let found = until(Duration::from_secs(5), "three looks are taken", async || {
            looks += 1;
            ensure!(looks == 3, "{looks} looks");
            Ok(looks)
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn names_the_condition_and_the_last_reason() {
        let never = until(Duration::from_millis(30), "the sun rises", async || -> Result<()> {
            Err(anyhow!("still dark"))
        });
        let message = format!("{:#}", never.await.unwrap_err());
        assert_eq!(message, "waited 30ms in vain until the sun rises: still dark");
    }

    #[tokio::test]
    async fn cuts_off_a_probe_that_hangs() {
        let hangs = until(Duration::from_millis(30), "it answers", async || {
            std::future::pending::<()>().await;
            Ok(())
        });
        assert!(format!("{:#}", hangs.await.unwrap_err()).contains("the first look did not come back"));
    }

    #[tokio::test]
    async fn a_wait_cut_off_from_outside_can_still_be_told() {
        let inner =
            async || until(Duration::from_secs(9), "it dawns", async || Err::<(), _>(anyhow!("dark"))).await;
        let outer = until(Duration::from_secs(9), "the sun rises", inner);
        assert!(tokio::time::timeout(Duration::from_millis(50), outer).await.is_err());
        let told = cut_off_waiting();
        assert!(
            told.ends_with(
                "until the sun rises: the first look did not come back, waiting until it dawns: dark"
            ),
            "{told}"
        );
        assert_eq!(cut_off_waiting(), "not in a wait");
    }
}

//! Waiting for a condition with a bound, in place of sleeping for a guess.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Asks `probe` again and again until it succeeds, and gives back what it found.
///
/// An `Err` means "not yet, because …": the last one is the reason in the failure message, so a probe says
/// what it saw (`ensure!(left == 0, "{left} jobs left")`). A probe that hangs is cut off at the bound.
pub async fn until<T>(bound: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + bound;
    let mut pause = FIRST_PAUSE;
    let mut last = anyhow!("the first look did not come back");
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(reason)) => last = reason,
            Err(_) => break,
        }
        if Instant::now() + pause >= deadline {
            break;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Err(last.context(format!("waited {bound:?} in vain until {what}")))
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
}

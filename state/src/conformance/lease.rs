//! Chores that one process at a time does.

use super::samples::{KEEP, SHORT};
use super::{Fixture, open, until};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Of many who ask at once exactly one leads, and goes on leading; another role is another matter.
pub async fn one_holder_leads_at_a_time(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let mut asking = JoinSet::new();
    for holder in 0..16 {
        let state = Arc::clone(&state);
        asking
            .spawn(async move { (holder, state.lead("sampler", &holder.to_string(), KEEP).await.unwrap()) });
    }
    let leaders: Vec<i32> =
        asking.join_all().await.into_iter().filter_map(|(holder, leads)| leads.then_some(holder)).collect();
    let [leader] = leaders[..] else { panic!("{leaders:?} all lead") };
    for holder in 0..16 {
        let leads = state.lead("sampler", &holder.to_string(), KEEP).await.unwrap();
        assert_eq!(leads, holder == leader, "{holder} asks, {leader} leads");
    }
    let other = (leader + 1) % 16;
    assert!(state.lead("sweeper", &other.to_string(), KEEP).await.unwrap());
}

/// Who leads and asks again leads longer; once a lease has run out, another may lead.
pub async fn a_lease_is_renewed_and_expires(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    assert!(state.lead("sampler", "a", SHORT).await.unwrap());
    assert!(!state.lead("sampler", "b", SHORT).await.unwrap());
    assert!(state.lead("sampler", "a", KEEP).await.unwrap(), "renewed, for longer");
    // Longer than the first lease: long enough for another's short lease to come and go.
    assert!(state.lead("clock", "a", SHORT).await.unwrap());
    until("a short lease has run out", || async { state.lead("clock", "b", SHORT).await.unwrap() }).await;
    assert!(!state.lead("sampler", "b", SHORT).await.unwrap(), "the renewed lease holds");
}

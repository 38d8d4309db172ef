//! What can be said of a message whose header cannot be read.

use crate::id::JobId;
use crate::names::{ClientName, ReplyQueue};

/// Who a message says it is and where it wants its answer, by its properties alone. Enough to tell its sender what is
/// wrong, and to lay it to rest under a name; never enough to write a record: the id is only a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its id; a fresh one where it has none.
    pub id: JobId,
    /// Its sender, as far as the broker vouches for it.
    pub client: Option<ClientName>,
    /// Where its sender may be told; none where that is a queue of somebody else.
    pub reply_to: Option<ReplyQueue>,
}

impl Claim {
    /// From the properties `correlation_id`, `reply_to` and `user_id`.
    pub fn of(correlation_id: Option<&str>, reply_to: Option<&str>, user_id: Option<&str>) -> Self {
        let client = user_id.and_then(|login| ClientName::new(login).ok());
        let reply_to = reply_to.and_then(|queue| ReplyQueue::new(queue).ok());
        // A login that is no client's name has no queue at all.
        let own = |queue: &ReplyQueue| match &client {
            Some(client) => queue.belongs_to(client),
            None => user_id.is_none(),
        };
        let reply_to = reply_to.filter(own);
        let id = correlation_id.and_then(|id| id.parse().ok()).unwrap_or_else(JobId::new);
        Self { id, client, reply_to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_the_sender_s_own_queue_or_nowhere() {
        let id = "019aa0f2-5d0e-7cc1-9f5e-7a1b0c2d3e4f";
        let answers = |reply_to, user_id| Claim::of(Some(id), reply_to, user_id).reply_to.is_some();
        assert!(answers(Some("reply.alice.7"), Some("alice")));
        assert!(answers(Some("reply.alice.7"), None), "a broker without logins");
        assert!(!answers(Some("reply.bob.7"), Some("alice")));
        assert!(!answers(Some("reply.bob.7"), Some("no name @ all")));
        assert!(!answers(Some("amq.gen-x"), Some("alice")) && !answers(None, Some("alice")));
        assert_eq!(Claim::of(Some(id), None, None).id.to_string(), id);
        assert_ne!(Claim::of(Some("7"), None, None).id, Claim::of(None, None, None).id);
    }
}

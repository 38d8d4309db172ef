//! The queues there are, and the ways into them.

use schemas::retry::{DELAYS, RetryDelay};
use schemas::{Class, Lane, ReplyQueue};
use std::fmt;

/// A queue. Its [`fmt::Display`] is its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// `jobs.<class>`: submitted, or due again.
    Jobs(Class),
    /// `wait.<lane>.<class>`: the lane it wants had no room.
    Wait(Lane, Class),
    /// `lane.<lane>`: placed; kept short.
    Lane(Lane),
    /// `retry.<ms>`: failed; after the delay the broker moves it to its `jobs.<class>`.
    Retry(RetryDelay),
    /// `dead`: failed for good.
    Dead,
    /// `dead.intake`: what the broker itself gave up on.
    DeadIntake,
    /// `reply.<client>.<instance>`: results for one instance of a client.
    Reply(ReplyQueue),
}

impl Queue {
    /// Every queue but the reply queues: the fixed topology.
    pub fn fixed() -> impl Iterator<Item = Self> {
        let jobs = Class::ALL.into_iter().map(Self::Jobs);
        let wait =
            Lane::ALL.into_iter().flat_map(|lane| Class::ALL.into_iter().map(move |c| Self::Wait(lane, c)));
        let lanes = Lane::ALL.into_iter().map(Self::Lane);
        let retries = DELAYS.into_iter().map(Self::Retry);
        jobs.chain(wait).chain(lanes).chain(retries).chain([Self::Dead, Self::DeadIntake])
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jobs(class) => write!(f, "jobs.{class}"),
            Self::Wait(lane, class) => write!(f, "wait.{lane}.{class}"),
            Self::Lane(lane) => write!(f, "lane.{lane}"),
            Self::Retry(delay) => write!(f, "retry.{}", delay.millis()),
            Self::Dead => f.write_str("dead"),
            Self::DeadIntake => f.write_str("dead.intake"),
            Self::Reply(queue) => queue.fmt(f),
        }
    }
}

/// Where a message is published to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Submit a job into its class, through the exchange that clients may use.
    Submit(Class),
    /// Straight into a queue.
    To(Queue),
    /// Wait out a delay, then into `jobs.<class>`.
    Retry(RetryDelay, Class),
}

impl Route {
    /// The queue the message will rest in first.
    pub fn queue(&self) -> Queue {
        match self {
            Self::Submit(class) => Queue::Jobs(*class),
            Self::To(queue) => queue.clone(),
            Self::Retry(delay, _) => Queue::Retry(*delay),
        }
    }
}

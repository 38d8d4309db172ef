//! Everything in one lane: the baselines.

use super::{Job, Lanes, Obstacle, Policy, Reason, Row, Verdict};
use schemas::Lane;

/// Places every job in one lane, and lets it wait while that lane has no room.
#[derive(Clone, Copy, Debug)]
pub struct OneLane(pub Lane);

impl Policy for OneLane {
    fn name(&self) -> &'static str {
        self.0.as_str()
    }

    fn place(&self, job: &Job, lanes: &Lanes) -> Verdict {
        let lane = self.0;
        // With nowhere else to go, an earlier failure here is no reason to stay away.
        let job = Job { failed: schemas::LaneSet::EMPTY, ..*job };
        match lanes[lane.index()].obstacle(lane, &job) {
            None => Verdict::Place(lane, Reason::row(Row::OnlyLane)),
            Some(Obstacle::Payload) => Verdict::Never(Reason::passed(Row::OnlyLane, lane, Obstacle::Payload)),
            Some(obstacle) => Verdict::Wait(lane, Reason::passed(Row::OnlyLane, lane, obstacle)),
        }
    }
}

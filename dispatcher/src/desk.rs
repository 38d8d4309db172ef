//! What becomes of one job, given what is known: the dispatcher's decision, pure.

use crate::policy::{Job, LaneView, Lanes, Policy, Reason, Verdict};
use schemas::lifecycle::{self, Event, IllegalStep, Stage};
use schemas::{Class, Failure, FailureKind, JobHeader, Lane, Status, UnixMillis};
use state::ModelFacts;
use std::time::Duration;

/// Where a dispatcher took a job from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `jobs.<class>`: new, or due again.
    Jobs(Class),
    /// `wait.<lane>.<class>`.
    Wait(Lane, Class),
    /// `lane.<lane>`, whose workers are gone.
    TakenBack(Lane),
}

impl Source {
    /// The stage of a job that comes from there.
    pub const fn stage(self) -> Stage {
        match self {
            Self::Jobs(_) => Stage::Queued,
            Self::Wait(..) => Stage::Waiting,
            Self::TakenBack(_) => Stage::Placed,
        }
    }
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a lane's queue.
    Place(Lane, Reason),
    /// Keep it in hand a little: there may be room soon.
    Hold(Lane),
    /// Into a wait queue.
    Park(Lane, Reason),
    /// It ends here.
    End(Status, Failure),
}

/// What the desk knows when it decides.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The policy.
    pub policy: &'a dyn Policy,
    /// Room and life of each lane, already debited by what was placed before in this batch.
    pub lanes: &'a [LaneNow; 3],
    /// Largest input of each lane.
    pub payload_max: &'a [Option<u64>; 3],
    /// The clock.
    pub now: UnixMillis,
    /// Longest time in hand.
    pub hold_max: Duration,
    /// Places kept for those who wait for a lane: as many of them as may be on their way from its wait queue.
    pub reserved: u32,
}

/// A lane just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneNow {
    /// Whether a worker lives.
    pub live: bool,
    /// Places that this dispatcher may fill.
    pub room: u32,
    /// Places that there are besides.
    pub more: u32,
    /// The most urgent class that waits for this lane, as far as known: room is theirs first.
    pub waiting: Option<Class>,
    /// Newcomers that may be kept in hand for it.
    pub keeps: u32,
}

/// A job in hand.
#[derive(Clone, Copy, Debug)]
pub struct InHand<'a> {
    /// Its header.
    pub header: &'a JobHeader,
    /// Where it came from.
    pub source: Source,
    /// What is known of its model.
    pub model: ModelFacts,
    /// How long it has been in hand.
    pub held: Duration,
}

impl View<'_> {
    /// Decides.
    pub fn decide(&self, job: InHand<'_>) -> Step {
        if job.header.expired(self.now) {
            let message = format!(
                "its deadline passed {} ms ago, before it could run",
                self.now.0 - job.header.deadline.0
            );
            return Step::End(Status::Expired, Failure::new(FailureKind::DeadlineExceeded, message));
        }
        if !job.model.known && self.lanes.iter().any(|lane| lane.live) {
            let message = format!(
                "no worker runs model {}: check its name, or start a worker that has it",
                job.header.model
            );
            return Step::End(Status::Failed, Failure::new(FailureKind::UnknownModel, message));
        }
        let (facts, lanes) = self.seen(&job);
        match self.policy.place(&facts, &lanes) {
            Verdict::Place(lane, reason) => Step::Place(lane, reason),
            Verdict::Never(reason) => Step::End(Status::Failed, self.unplaceable(&job, reason)),
            Verdict::Wait(lane, _) if self.may_hold(lane, &job) => Step::Hold(lane),
            Verdict::Wait(lane, reason) => Step::Park(lane, reason),
        }
    }

    /// What came from a wait queue is held in any case: it was only taken because there was room a moment ago, there are few
    /// of it, and to put it back would cost as much as to place it.
    fn may_hold(&self, lane: Lane, job: &InHand<'_>) -> bool {
        let space = matches!(job.source, Source::Wait(..)) || self.lanes[lane.index()].keeps > 0;
        space && job.held < self.hold_max
    }

    /// What the policy is asked with.
    pub fn seen(&self, job: &InHand<'_>) -> (Job, Lanes) {
        let facts =
            Job { per_second: job.model.per_second, size: job.header.size, failed: job.header.failed_lanes };
        (facts, self.lanes_for(job))
    }

    /// The lanes as this job sees them. Those that wait for a lane go first: to a newcomer that is no more urgent,
    /// the lane has only the room that they cannot fill at once.
    fn lanes_for(&self, job: &InHand<'_>) -> Lanes {
        let view = |lane: Lane| {
            let now = self.lanes[lane.index()];
            let beyond_those_who_wait = now.room.saturating_add(now.more).saturating_sub(self.reserved);
            let after_others = matches!(job.source, Source::Jobs(_))
                && now.waiting.is_some_and(|waiting| waiting <= job.header.class);
            LaneView {
                live: now.live,
                serves: job.model.lanes.contains(lane),
                room: if after_others { now.room.min(beyond_those_who_wait) } else { now.room },
                payload_max: self.payload_max[lane.index()],
            }
        };
        [view(Lane::Serverless), view(Lane::Docker), view(Lane::Local)]
    }

    fn unplaceable(&self, job: &InHand<'_>, reason: Reason) -> Failure {
        let largest = self.payload_max.iter().flatten().max().copied().unwrap_or(0);
        let message = format!(
            "its input of {} bytes is over the payload limit of every lane, at most {largest} ({reason}): split it",
            job.header.size
        );
        Failure::new(FailureKind::Unplaceable, message)
    }
}

impl Step {
    /// Checks that the lifecycle has this step.
    pub fn check(&self, source: Source) -> Result<(), IllegalStep> {
        let mut stage = source.stage();
        if let Source::TakenBack(_) = source {
            stage = lifecycle::transition(stage, Event::TakenBack)?;
        }
        let event = match self {
            Self::Place(..) => Event::Placed,
            Self::Hold(_) => return Ok(()),
            Self::Park(..) => Event::Held,
            Self::End(status, _) => Event::Ended(*status),
        };
        lifecycle::transition(stage, event).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Straightline;
    use schemas::{ClientName, JobId, LaneSet, ModelName};

    const POLICY: Straightline = Straightline { frequency: 10.0, size: 1_000 };
    const NOW: UnixMillis = UnixMillis(1_000_000);
    const HOLD: Duration = Duration::from_secs(1);

    fn header() -> JobHeader {
        JobHeader::new(JobId::new(), ModelName::new("m").unwrap(), ClientName::new("c").unwrap(), NOW)
    }

    const NONE: [LaneNow; 3] = [LaneNow { live: false, room: 0, more: 0, waiting: None, keeps: 1 }; 3];

    fn local(room: u32, waiting: Option<Class>) -> [LaneNow; 3] {
        let mut lanes = NONE;
        lanes[Lane::Local.index()] = LaneNow { live: true, room, more: 0, waiting, keeps: 1 };
        lanes
    }

    fn decide(lanes: [LaneNow; 3], job: InHand<'_>) -> Step {
        let view = View {
            policy: &POLICY,
            lanes: &lanes,
            payload_max: &[None; 3],
            now: NOW,
            hold_max: HOLD,
            reserved: 4,
        };
        let step = view.decide(job);
        step.check(job.source).unwrap();
        step
    }

    fn in_hand(header: &JobHeader) -> InHand<'_> {
        let model = ModelFacts { per_second: 1.0, lanes: LaneSet::EMPTY.with(Lane::Local), known: true };
        let source = Source::Jobs(header.class);
        InHand { header, source, model, held: Duration::ZERO }
    }

    #[test]
    fn room_places_and_no_room_holds_then_parks() {
        let header = header();
        let job = in_hand(&header);
        assert!(matches!(decide(local(1, None), job), Step::Place(Lane::Local, _)));
        assert_eq!(decide(local(0, None), job), Step::Hold(Lane::Local));
        assert!(matches!(decide(local(0, None), InHand { held: HOLD, ..job }), Step::Park(Lane::Local, _)));
        let mut full = local(0, None);
        full[Lane::Local.index()].keeps = 0;
        assert!(matches!(decide(full, job), Step::Park(Lane::Local, _)), "as many are held as may be");
    }

    #[test]
    fn those_who_wait_go_before_newcomers_that_are_no_more_urgent() {
        let mut header = header();
        let lanes = local(4, Some(Class::Normal));
        assert_eq!(decide(lanes, in_hand(&header)), Step::Hold(Lane::Local));
        let more = local(5, Some(Class::Normal));
        assert!(
            matches!(decide(more, in_hand(&header)), Step::Place(Lane::Local, _)),
            "they cannot fill all of it"
        );
        let mut granted_one = local(1, Some(Class::Normal));
        granted_one[Lane::Local.index()].more = 4;
        assert!(matches!(decide(granted_one, in_hand(&header)), Step::Place(Lane::Local, _)));
        let waited = InHand { source: Source::Wait(Lane::Local, Class::Normal), ..in_hand(&header) };
        assert!(matches!(decide(lanes, waited), Step::Place(Lane::Local, _)));
        header.class = Class::High;
        assert!(matches!(decide(lanes, in_hand(&header)), Step::Place(Lane::Local, _)));
    }

    #[test]
    fn a_passed_deadline_and_an_unknown_model_end_here() {
        let mut header = header();
        header.deadline = NOW;
        assert!(matches!(decide(local(1, None), in_hand(&header)), Step::End(Status::Expired, _)));
        header.deadline = NOW.plus(HOLD);
        let unknown = InHand { model: ModelFacts::default(), ..in_hand(&header) };
        let Step::End(Status::Failed, failure) = decide(local(1, None), unknown) else {
            panic!("unknown model")
        };
        assert_eq!(failure.kind, FailureKind::UnknownModel);
        // With no worker at all nothing can be said about models: the job waits.
        assert!(matches!(decide(NONE, unknown), Step::Hold(_)));
    }

    #[test]
    fn a_lane_queue_taken_back_is_placed_anew() {
        let header = header();
        let back = InHand { source: Source::TakenBack(Lane::Docker), ..in_hand(&header) };
        assert!(matches!(decide(local(1, None), back), Step::Place(Lane::Local, _)));
        assert!(matches!(decide(local(0, None), InHand { held: HOLD, ..back }), Step::Park(Lane::Local, _)));
    }

    #[test]
    fn an_input_over_every_limit_is_refused_with_the_limit() {
        let mut header = header();
        header.size = 11;
        let lanes = local(1, None);
        let view = View {
            policy: &POLICY,
            lanes: &lanes,
            payload_max: &[Some(10); 3],
            now: NOW,
            hold_max: HOLD,
            reserved: 4,
        };
        let Step::End(Status::Failed, failure) = view.decide(in_hand(&header)) else {
            panic!("over the limit")
        };
        assert_eq!(failure.kind, FailureKind::Unplaceable);
        assert!(failure.message.contains("at most 10"), "{failure}");
    }
}

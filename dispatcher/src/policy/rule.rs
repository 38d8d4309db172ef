//! The rule of the StraightLine paper (arXiv 2407.18148), made total.
//!
//! | order | when | lane | reason |
//! |---|---|---|---|
//! | 1 | f_t > F and r_d < D | serverless | `frequent_small` |
//! | 2 | r_d ≥ D | docker | `large` |
//! | 3 | S_F > 0 | local | `moderate` |
//! | 4 | S_D > 0 | docker | `local_full` |
//! | 5 | otherwise | serverless | `overflow` |
//!
//! Where the published rule is silent:
//! - r_d = D is large; f_t = F is moderate.
//! - A lane with an [`Obstacle`] is passed over for the next row that matches, and the reason says so.
//! - A large job waits for docker while docker is merely full.
//! - A job that failed in every lane it could use may use them again: otherwise no retry could ever run
//!   where there is only one lane. While one that has not failed it is merely full, it waits for that one.
//! - With no lane left it waits for the first one, in the order of its rows, that lives and runs its model; and where
//!   none does, for the first one that could ever take it.

use super::{Job, Lanes, Obstacle, Policy, Reason, Row, Verdict};
use schemas::{Lane, LaneSet};

/// The rule, with its two thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Straightline {
    /// F: requests per second above which a model counts as asked for often.
    pub frequency: f64,
    /// D: bytes from which an input counts as large.
    pub size: u64,
}

impl Policy for Straightline {
    fn name(&self) -> &'static str {
        "straightline"
    }

    fn place(&self, job: &Job, lanes: &Lanes) -> Verdict {
        let (row, order) = self.rows(job);
        let obstacle = |lane: Lane| lanes[lane.index()].obstacle(lane, job);
        if let Some(verdict) = choose(row, order, &obstacle) {
            return verdict;
        }
        // One that is well is worth waiting for, before one that has failed it is tried again.
        if order.into_iter().any(|lane| obstacle(lane) == Some(Obstacle::Full)) {
            return wait(row, order, &obstacle);
        }
        // Every lane that would do has failed it: those are open to it again.
        let again = Job { failed: LaneSet::EMPTY, ..*job };
        let relaxed = |lane: Lane| lanes[lane.index()].obstacle(lane, &again);
        let first_failed = order.into_iter().find(|lane| obstacle(*lane) == Some(Obstacle::Failed));
        if let Some(failed) = first_failed
            && let Some(lane) = order.into_iter().find(|lane| relaxed(*lane).is_none())
        {
            return Verdict::Place(lane, Reason::passed(row, failed, Obstacle::Failed));
        }
        wait(row, order, &relaxed)
    }
}

impl Straightline {
    /// The first row that matches, and the lanes of it and of the rows after it, in order.
    fn rows(&self, job: &Job) -> (Row, [Lane; 3]) {
        if job.size >= self.size {
            (Row::Large, [Lane::Docker, Lane::Local, Lane::Serverless])
        } else if job.per_second > self.frequency {
            (Row::FrequentSmall, [Lane::Serverless, Lane::Local, Lane::Docker])
        } else {
            (Row::Moderate, [Lane::Local, Lane::Docker, Lane::Serverless])
        }
    }
}

/// The first lane without an obstacle, if there is one or if it is worth waiting for.
fn choose(row: Row, order: [Lane; 3], obstacle: &dyn Fn(Lane) -> Option<Obstacle>) -> Option<Verdict> {
    if row == Row::Large && obstacle(Lane::Docker) == Some(Obstacle::Full) {
        return Some(Verdict::Wait(Lane::Docker, Reason::passed(Row::Large, Lane::Docker, Obstacle::Full)));
    }
    let lane = order.into_iter().find(|lane| obstacle(*lane).is_none())?;
    Some(Verdict::Place(lane, reason(row, order, lane, obstacle)))
}

/// Names the row whose lane was taken, or the first that was passed over and why. Fullness has rows of its own for a
/// moderate job (`local_full`, `overflow`), so it is no passing over there.
fn reason(row: Row, order: [Lane; 3], taken: Lane, obstacle: &dyn Fn(Lane) -> Option<Obstacle>) -> Reason {
    let mut row = row;
    for lane in order {
        if lane == taken {
            break;
        }
        match (row, obstacle(lane)) {
            (Row::Moderate, Some(Obstacle::Full)) => row = Row::LocalFull,
            (Row::LocalFull, Some(Obstacle::Full)) => row = Row::Overflow,
            (_, Some(obstacle)) => return Reason::passed(row, lane, obstacle),
            (_, None) => {}
        }
    }
    Reason::row(row)
}

/// Which lane to wait for.
fn wait(row: Row, order: [Lane; 3], obstacle: &dyn Fn(Lane) -> Option<Obstacle>) -> Verdict {
    let first_of =
        |wanted: fn(Obstacle) -> bool| order.into_iter().find(|lane| obstacle(*lane).is_some_and(wanted));
    let full = first_of(|obstacle| obstacle == Obstacle::Full);
    let possible = full.or_else(|| first_of(|obstacle| obstacle != Obstacle::Payload));
    let first = obstacle(order[0]).unwrap_or(Obstacle::Full);
    let reason = Reason::passed(row, order[0], first);
    match possible {
        Some(lane) => Verdict::Wait(lane, reason),
        None => Verdict::Never(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LaneView;
    use proptest::prelude::*;

    const F: f64 = 10.0;
    const D: u64 = 1_000;
    const RULE: Straightline = Straightline { frequency: F, size: D };
    const OPEN: LaneView = LaneView { live: true, serves: true, room: 1, payload_max: None };
    const FULL: LaneView = LaneView { room: 0, ..OPEN };
    const DOWN: LaneView = LaneView { live: false, ..OPEN };

    fn lanes(serverless: LaneView, docker: LaneView, local: LaneView) -> Lanes {
        [serverless, docker, local]
    }

    fn job(per_second: f64, size: u64) -> Job {
        Job { per_second, size, failed: LaneSet::EMPTY }
    }

    fn verdict(job: Job, lanes: Lanes) -> String {
        match RULE.place(&job, &lanes) {
            Verdict::Place(lane, reason) => format!("{lane} {reason}"),
            Verdict::Wait(lane, reason) => format!("wait {lane} {reason}"),
            Verdict::Never(reason) => format!("never {reason}"),
        }
    }

    #[test]
    fn the_table_row_by_row() {
        let open = lanes(OPEN, OPEN, OPEN);
        assert_eq!(verdict(job(F + 0.1, D - 1), open), "serverless frequent_small");
        assert_eq!(verdict(job(0.0, D + 1), open), "docker large");
        assert_eq!(verdict(job(F + 0.1, D + 1), open), "docker large");
        assert_eq!(verdict(job(0.0, 0), open), "local moderate");
        assert_eq!(verdict(job(0.0, 0), lanes(OPEN, OPEN, FULL)), "docker local_full");
        assert_eq!(verdict(job(0.0, 0), lanes(OPEN, FULL, FULL)), "serverless overflow");
    }

    #[test]
    fn at_the_thresholds() {
        let open = lanes(OPEN, OPEN, OPEN);
        assert_eq!(verdict(job(0.0, D), open), "docker large", "r_d = D is large");
        assert_eq!(verdict(job(F, 0), open), "local moderate", "f_t = F is moderate");
    }

    #[test]
    fn a_lane_that_is_gone_is_passed_over_and_named() {
        assert_eq!(verdict(job(99.0, 0), lanes(DOWN, OPEN, OPEN)), "local frequent_small/serverless_down");
        assert_eq!(verdict(job(99.0, 0), lanes(FULL, OPEN, FULL)), "docker frequent_small/serverless_full");
        assert_eq!(verdict(job(0.0, D), lanes(OPEN, DOWN, OPEN)), "local large/docker_down");
        assert_eq!(verdict(job(0.0, D), lanes(OPEN, DOWN, FULL)), "serverless large/docker_down");
        assert_eq!(verdict(job(0.0, 0), lanes(OPEN, OPEN, DOWN)), "docker moderate/local_down");
        assert_eq!(verdict(job(0.0, 0), lanes(OPEN, DOWN, FULL)), "serverless local_full/docker_down");
        let unserved = LaneView { serves: false, ..OPEN };
        assert_eq!(verdict(job(0.0, 0), lanes(OPEN, OPEN, unserved)), "docker moderate/local_no_model");
    }

    #[test]
    fn a_large_job_waits_for_a_busy_docker_lane() {
        assert_eq!(verdict(job(0.0, D), lanes(OPEN, FULL, OPEN)), "wait docker large/docker_full");
    }

    #[test]
    fn a_failed_lane_is_avoided_until_there_is_no_other() {
        let failed = |lanes: &[Lane]| Job { failed: lanes.iter().copied().collect(), ..job(0.0, 0) };
        let local_only = lanes(DOWN, DOWN, OPEN);
        assert_eq!(verdict(failed(&[Lane::Local]), lanes(OPEN, OPEN, OPEN)), "docker moderate/local_failed");
        assert_eq!(verdict(failed(&[Lane::Local]), local_only), "local moderate/local_failed");
        assert_eq!(
            verdict(failed(&[Lane::Serverless]), lanes(OPEN, DOWN, FULL)),
            "wait local moderate/local_full",
            "it is well, and will have room"
        );
        assert_eq!(
            verdict(failed(&[Lane::Local]), lanes(DOWN, DOWN, FULL)),
            "wait local moderate/local_full"
        );
        assert_eq!(verdict(failed(&Lane::ALL), lanes(OPEN, OPEN, OPEN)), "local moderate/local_failed");
    }

    #[test]
    fn payload_limits_hold_for_ever() {
        let small = LaneView { payload_max: Some(10), ..OPEN };
        assert_eq!(
            verdict(job(99.0, 11), lanes(small, OPEN, OPEN)),
            "local frequent_small/serverless_payload"
        );
        assert_eq!(verdict(job(0.0, 11), lanes(small, small, small)), "never moderate/local_payload");
        assert_eq!(verdict(job(0.0, D), lanes(small, DOWN, FULL)), "wait local large/docker_down");
    }

    #[test]
    fn with_nobody_there_it_waits_for_the_first_that_could() {
        assert_eq!(
            verdict(job(99.0, 0), lanes(DOWN, DOWN, DOWN)),
            "wait serverless frequent_small/serverless_down"
        );
        assert_eq!(
            verdict(job(99.0, 0), lanes(DOWN, FULL, DOWN)),
            "wait docker frequent_small/serverless_down"
        );
    }

    fn lane_view() -> impl Strategy<Value = LaneView> {
        let payload_max = proptest::option::of(0u64..3_000);
        (any::<bool>(), any::<bool>(), 0u32..3, payload_max)
            .prop_map(|(live, serves, room, payload_max)| LaneView { live, serves, room, payload_max })
    }

    proptest! {
        #[test]
        fn total_deterministic_and_never_into_a_closed_lane(
            per_second in 0.0f64..30.0, size in 0u64..3_000, failed in 0u8..8,
            views in [lane_view(), lane_view(), lane_view()],
        ) {
            let job = Job { per_second, size, failed: LaneSet::from_bits(failed) };
            let verdict = RULE.place(&job, &views);
            prop_assert_eq!(verdict, RULE.place(&job, &views));
            let retried = Job { failed: LaneSet::EMPTY, ..job };
            let obstacle = |lane: Lane| views[lane.index()].obstacle(lane, &job);
            let well = Lane::ALL.into_iter().any(|lane| matches!(obstacle(lane), None | Some(Obstacle::Full)));
            match verdict {
                Verdict::Place(lane, _) => {
                    prop_assert_eq!(views[lane.index()].obstacle(lane, &retried), None);
                    prop_assert!(!well || !job.failed.contains(lane), "another lane is well");
                }
                Verdict::Wait(lane, _) => {
                    prop_assert!(views[lane.index()].obstacle(lane, &retried) != Some(Obstacle::Payload));
                }
                Verdict::Never(_) => for lane in Lane::ALL {
                    prop_assert_eq!(views[lane.index()].obstacle(lane, &job), Some(Obstacle::Payload));
                },
            }
        }

        #[test]
        fn with_every_lane_open_it_is_the_published_rule(per_second in 0.0f64..30.0, size in 0u64..3_000) {
            let lane = if per_second > F && size < D { Lane::Serverless } else if size >= D { Lane::Docker } else { Lane::Local };
            let verdict = RULE.place(&job(per_second, size), &lanes(OPEN, OPEN, OPEN));
            let Verdict::Place(placed, reason) = verdict else { return Err(TestCaseError::fail("every lane is open")) };
            prop_assert_eq!((placed, reason.passed_over), (lane, None));
        }
    }
}

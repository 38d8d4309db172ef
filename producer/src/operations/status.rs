//! How it stands: queues, lanes, workers, dispatchers, dead jobs. A service that does not answer is said to be away;
//! what the others know is still told.

use crate::now;
use broker::{Broker, Depth, Health, Queue};
use futures_util::future::BoxFuture;
use schemas::heartbeat::{DispatcherReport, LastFailure, WorkerReport};
use schemas::{Lane, UnixMillis};
use serde::{Deserialize, Serialize};
use state::{Batch, LaneFacts, State, StateError};
use std::time::Duration;

/// How it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// When this was gathered.
    pub at: UnixMillis,
    /// The broker.
    pub broker: Service,
    /// Shared state.
    pub state: Service,
    /// Whether anybody places jobs; taken to be so while shared state, which would know, is away.
    pub dispatching: Service,
    /// Every queue of the topology; empty while the broker is away.
    pub queues: Vec<QueueStatus>,
    /// What dispatchers hold of `jobs.*` and `wait.*`, which their reports do not tell apart.
    pub intake: Intake,
    /// Every lane, those without workers included.
    pub lanes: Vec<LaneStatus>,
    /// The workers alive.
    pub workers: Vec<WorkerReport>,
    /// The dispatchers alive.
    pub dispatchers: Vec<DispatcherReport>,
    /// Dead jobs in the index; none while shared state is away.
    pub dead: Option<u64>,
}

/// A service that everything leans on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Whether it answers and takes work.
    pub healthy: bool,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// Whether the broker has it.
    pub exists: bool,
    /// Messages waiting to be delivered.
    pub ready: u64,
    /// Messages delivered and not settled: the broker's own count, or for a lane's queue what its workers report.
    pub unacked: Option<u64>,
    /// Consumers the broker knows.
    pub consumers: u32,
}

/// What dispatchers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intake {
    /// Jobs in `jobs.*`, `wait.*` and `retry.*` that nobody holds.
    pub ready: u64,
    /// Jobs of `jobs.*` and `wait.*` in dispatchers' hands: the broker's count, or what dispatchers report.
    pub unacked: u64,
}

/// One lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Which.
    pub lane: Lane,
    /// Whether jobs are placed there now.
    pub available: bool,
    /// Why not, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The attempt in this lane that failed last, if that was within the last minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// Workers alive and taking jobs.
    pub workers: u32,
    /// Workers alive that take no more.
    pub draining: u32,
    /// Slots of those that take jobs.
    pub slots: u32,
    /// Jobs running.
    pub running: u32,
    /// Jobs taken and not yet started.
    pub prefetched: u32,
    /// Free places, as dispatchers see them; none while shared state is away.
    pub room: Option<u32>,
    /// Jobs completed per second of late.
    pub completed_per_s: f64,
}

/// How far back the frequency looks is of no matter to a batch without models.
const NO_WINDOW: Duration = Duration::from_secs(1);

/// For how long a failed attempt is news.
const LATELY: Duration = Duration::from_secs(60);

/// Gathers how it stands, `broker` being why it could not be opened if it is away. Never fails: what cannot be had is
/// said to be missing.
pub fn status<'a>(broker: Result<&'a dyn Broker, &'a str>, state: &'a dyn State) -> BoxFuture<'a, Status> {
    Box::pin(async move {
        let queues: Vec<_> = Queue::fixed().collect();
        // A batch without jobs that claims nothing reads the lanes' room without changing it.
        let nothing = Batch { window: NO_WINDOW, ..Batch::default() };
        let (depths, workers, dispatchers, facts, dead) = tokio::join!(
            depths(broker, &queues),
            state.workers(),
            state.dispatchers(),
            state.observe(&nothing),
            // One entry, for the total beside it.
            state.dead(0, 1),
        );
        let broker = match broker {
            Ok(broker) => service(&broker.health().borrow(), depths.as_ref().err().cloned()),
            Err(away) => Service { healthy: false, problem: Some(away.to_owned()) },
        };
        let failed: [Option<&StateError>; 4] =
            [workers.as_ref().err(), dispatchers.as_ref().err(), facts.as_ref().err(), dead.as_ref().err()];
        let problem = failed.into_iter().flatten().next().map(ToString::to_string);
        let unknown = workers.is_err().then(|| "not known while shared state is away".to_owned());
        let (workers, dispatchers) = (workers.unwrap_or_default(), dispatchers.unwrap_or_default());
        let facts = facts.ok().map(|facts| facts.lanes);
        let queues: Vec<_> = depths
            .map(|depths| {
                queues.iter().zip(depths).map(|(queue, depth)| queue_status(queue, depth, &workers)).collect()
            })
            .unwrap_or_default();
        let at = now();
        let nobody = problem.is_none() && dispatchers.iter().all(|dispatcher| dispatcher.draining);
        let nobody = nobody.then(|| {
            "no dispatcher is alive, so jobs wait: start one with `straightline dispatcher`".to_owned()
        });
        Status {
            at,
            broker,
            state: Service { healthy: problem.is_none(), problem },
            dispatching: Service { healthy: nobody.is_none(), problem: nobody },
            intake: intake(&queues, &dispatchers),
            lanes: Lane::ALL
                .into_iter()
                .map(|lane| lane_status(lane, &workers, facts.map(|lanes| lanes[lane.index()]), at))
                .map(|lane| LaneStatus { note: unknown.clone().or(lane.note), ..lane })
                .collect(),
            queues,
            workers,
            dispatchers,
            dead: dead.ok().map(|(_, total)| total),
        }
    })
}

async fn depths(broker: Result<&dyn Broker, &str>, queues: &[Queue]) -> Result<Vec<Option<Depth>>, String> {
    broker?.depths(queues).await.map_err(|error| error.to_string())
}

fn service(health: &Health, error: Option<String>) -> Service {
    let problem = match health {
        Health::Connected => error,
        Health::Blocked(reason) => Some(format!("takes no messages just now: {reason}")),
        Health::Disconnected(reason) => Some(format!("cannot be reached: {reason}")),
    };
    Service { healthy: problem.is_none(), problem }
}

fn queue_status(queue: &Queue, depth: Option<Depth>, workers: &[WorkerReport]) -> QueueStatus {
    let exists = depth.is_some();
    let depth = depth.unwrap_or_default();
    let reported = match queue {
        Queue::Lane(lane) => {
            let on_lane = workers.iter().filter(|worker| worker.lane == *lane);
            Some(on_lane.map(|worker| u64::from(worker.running) + u64::from(worker.prefetched)).sum())
        }
        _ => None,
    };
    QueueStatus {
        name: queue.to_string(),
        exists,
        ready: depth.ready,
        unacked: depth.unacked.or(reported),
        consumers: depth.consumers,
    }
}

fn intake(queues: &[QueueStatus], dispatchers: &[DispatcherReport]) -> Intake {
    let held = |queue: &&QueueStatus| queue.name.starts_with("jobs.") || queue.name.starts_with("wait.");
    let counted: Option<u64> = queues.iter().filter(held).map(|queue| queue.unacked).sum();
    let reported = dispatchers.iter().map(|dispatcher| u64::from(dispatcher.held)).sum();
    let waiting = queues.iter().filter(|queue| held(queue) || queue.name.starts_with("retry."));
    Intake {
        ready: waiting.map(|queue| queue.ready).sum(),
        // With no queue at all the sum is zero and says nothing.
        unacked: counted.filter(|_| !queues.is_empty()).unwrap_or(reported),
    }
}

fn lane_status(
    lane: Lane,
    workers: &[WorkerReport],
    facts: Option<LaneFacts>,
    now: UnixMillis,
) -> LaneStatus {
    let alive: Vec<_> = workers.iter().filter(|worker| worker.lane == lane).collect();
    let taking: Vec<_> = alive.iter().copied().filter(|worker| !worker.draining).collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let draining = count(alive.len() - taking.len());
    let slots: u32 = taking.iter().map(|worker| worker.slots).sum();
    let start = format!(
        "start one with `straightline worker --lane {lane}`, or have it among `up --lanes` where broker and state are \
         embedded; its jobs go to the rule's next lane"
    );
    let note = match (slots, taking.len(), draining) {
        (1.., ..) => None,
        (0, 0, 0) => Some(format!("no worker is alive: {start}")),
        (0, 0, _) => Some(format!("its last workers are draining: {start}")),
        (0, ..) => Some(no_slots(lane, &taking)),
    };
    let failures = alive.iter().filter_map(|worker| worker.last_failure.as_ref());
    let lately = failures.filter(|failure| now.since(failure.at) < LATELY);
    LaneStatus {
        lane,
        available: note.is_none(),
        note,
        last_failure: lately.max_by_key(|failure| failure.at).cloned(),
        workers: count(taking.len()),
        draining,
        slots,
        running: alive.iter().map(|worker| worker.running).sum(),
        prefetched: alive.iter().map(|worker| worker.prefetched).sum(),
        room: facts.map(|facts| facts.left),
        // Not `sum`: of nothing that is -0.0.
        completed_per_s: alive.iter().fold(0.0, |sum, worker| sum + worker.completed_per_s),
    }
}

/// Why a lane whose workers live has no slots, and what to do about it.
fn no_slots(lane: Lane, workers: &[&WorkerReport]) -> String {
    let backends = workers.iter().filter_map(|worker| worker.backend.as_ref());
    let told = backends.filter_map(|backend| Some((&backend.name, backend.problem.as_ref()?))).next();
    let Some((backend, problem)) = told else {
        return "its workers have no slots: every run of theirs hangs; see their logs".to_owned();
    };
    let remedy = match lane {
        Lane::Docker => "; install Docker, start it, or set docker.host",
        Lane::Local => "; start the server, or correct worker.server.url",
        Lane::Serverless => "",
    };
    format!("{backend}: {problem}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::heartbeat::{Backend, Resources};
    use schemas::wire::WIRE_VERSION;
    use schemas::{Failure, FailureKind, ModelName};

    fn worker(lane: Lane, running: u32, draining: bool) -> WorkerReport {
        WorkerReport {
            version: WIRE_VERSION,
            worker: "w".into(),
            lane,
            queue: Queue::Lane(lane).to_string(),
            slots: 2,
            running,
            prefetched: 1,
            completed_per_s: 10.0,
            models: Vec::new(),
            draining,
            abandoned: 0,
            last_failure: None,
            backend: None,
            resources: Resources::default(),
            started: UnixMillis(0),
            build: "test".into(),
        }
    }

    #[test]
    fn a_lane_without_workers_says_what_to_do() {
        let workers =
            [worker(Lane::Local, 2, false), worker(Lane::Local, 1, true), worker(Lane::Docker, 0, true)];
        let local = lane_status(Lane::Local, &workers, None, UnixMillis(0));
        assert!(local.available && local.note.is_none());
        assert_eq!((local.workers, local.draining, local.slots, local.running), (1, 1, 2, 3));
        let docker = lane_status(Lane::Docker, &workers, None, UnixMillis(0));
        assert!(!docker.available && docker.note.unwrap().contains("draining"));
        let serverless = lane_status(Lane::Serverless, &workers, None, UnixMillis(0));
        assert!(serverless.note.unwrap().contains("straightline worker --lane serverless"));
        let away = Backend {
            name: "Docker at unix:///d.sock".into(),
            problem: Some("cannot be reached".into()),
            ..Backend::default()
        };
        let away = [WorkerReport { slots: 0, backend: Some(away), ..worker(Lane::Docker, 0, false) }];
        let docker = lane_status(Lane::Docker, &away, None, UnixMillis(0));
        assert!(!docker.available);
        let note = docker.note.unwrap();
        assert!(note.starts_with("Docker at unix:///d.sock: cannot be reached; install Docker"), "{note}");
        let local = lane_status(Lane::Local, &[], None, UnixMillis(0));
        assert!(local.note.unwrap().contains("straightline worker --lane local"));
    }

    #[test]
    fn the_latest_failure_of_a_lane_is_told_while_it_is_news() {
        let failed = |at: u64, words: &str| WorkerReport {
            last_failure: Some(LastFailure {
                at: UnixMillis(at),
                model: ModelName::new("m").unwrap(),
                failure: Failure::new(FailureKind::ModelError, words),
                total: 3,
            }),
            ..worker(Lane::Local, 0, false)
        };
        let workers = [failed(1_000, "first"), failed(5_000, "second"), worker(Lane::Local, 0, false)];
        let told = |now| lane_status(Lane::Local, &workers, None, UnixMillis(now)).last_failure;
        assert_eq!(told(64_999).unwrap().failure.message, "second");
        assert_eq!(told(65_000), None);
        assert_eq!(lane_status(Lane::Docker, &workers, None, UnixMillis(5_000)).last_failure, None);
    }

    #[test]
    fn unsettled_messages_are_the_brokers_count_or_else_the_reports() {
        let workers = [worker(Lane::Local, 2, false), worker(Lane::Local, 3, true)];
        let queue = Queue::Lane(Lane::Local);
        let counted = Depth { ready: 4, unacked: Some(9), consumers: 2 };
        assert_eq!(queue_status(&queue, Some(counted), &workers).unacked, Some(9));
        let silent = Depth { unacked: None, ..counted };
        assert_eq!(queue_status(&queue, Some(silent), &workers).unacked, Some(2 + 3 + 1 + 1));
        let gone = queue_status(&Queue::Dead, None, &workers);
        assert!(!gone.exists && gone.unacked.is_none());

        let dispatcher = DispatcherReport {
            version: WIRE_VERSION,
            dispatcher: "d".into(),
            held: 7,
            placed_per_s: 0.0,
            policy: "straightline".into(),
            draining: false,
            started: UnixMillis(0),
            build: "test".into(),
        };
        let silent =
            Queue::fixed().map(|queue| queue_status(&queue, Some(silent), &workers)).collect::<Vec<_>>();
        assert_eq!(intake(&silent, &[dispatcher.clone(), dispatcher.clone()]).unacked, 14);
        let told =
            Queue::fixed().map(|queue| queue_status(&queue, Some(counted), &workers)).collect::<Vec<_>>();
        assert_eq!(
            intake(&told, std::slice::from_ref(&dispatcher)).unacked,
            9 * 12,
            "3 classes and 9 wait queues"
        );
        assert_eq!(intake(&[], &[dispatcher]).unacked, 7);
    }
}

//! A task's side of the lane: getting a container, asking it, and telling how it was.

use super::Config;
use super::engine::{Engine, Look};
use super::keeper::Event;
use super::pool::Key;
use super::starter::{absent, cause, obituary};
use crate::lane::{Ran, Task};
use crate::remote::ModelServer;
use schemas::{Failure, FailureKind, ModelName};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

/// How long after a connection broke the engine may take to see that the container is dead.
const AUTOPSY: Duration = Duration::from_secs(2);
/// Pause between two looks at it.
const AUTOPSY_PAUSE: Duration = Duration::from_millis(25);
/// How long the engine may take to say how the container is.
const LOOK: Duration = Duration::from_secs(5);
/// How long a server that failed a task may take to say that it is well.
const READY_CALL: Duration = Duration::from_secs(1);

/// The keeper, as tasks see it.
#[derive(Clone)]
pub(super) struct Client {
    config: Arc<Config>,
    engine: Arc<dyn Engine>,
    /// Bounded by the tasks that the worker has under way and by the containers.
    events: UnboundedSender<Event>,
}

/// A slot in a container. Dropped before it is settled, its run was given up: nobody knows what still runs in there,
/// so the container takes no more tasks.
pub(super) struct Lease {
    key: Key,
    id: String,
    server: ModelServer,
    died: watch::Receiver<Option<Look>>,
    events: UnboundedSender<Event>,
    began: SystemTime,
    end: End,
}

/// How a lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The container is as good as before.
    Fit,
    /// It is to take no more tasks; why, as a metric label.
    Unfit(&'static str),
    /// It is dead; why, as a metric label.
    Dead(&'static str),
}

/// What was found out about a container that did not answer.
struct Examined {
    failure: Failure,
    /// Whether the task may have been run: not if nobody was reached, or the container was dead before.
    it_ran: bool,
}

impl Lease {
    pub(super) fn new(
        key: Key,
        id: String,
        server: ModelServer,
        died: watch::Receiver<Option<Look>>,
        events: UnboundedSender<Event>,
    ) -> Self {
        Self { key, id, server, died, events, began: SystemTime::now(), end: End::Unfit("given_up") }
    }

    /// Asks its server; one that dies before it has answered is as good as a connection that breaks.
    async fn infer(&mut self, task: &Task) -> Result<Ran, Failure> {
        let Self { server, died, .. } = self;
        let died = async {
            if died.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ran = server.infer(task) => ran,
            () = died => Err(Failure::new(FailureKind::ModelError, "container died")),
        }
    }

    pub(super) fn settle(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A keeper that is gone has removed the container.
        let _ = self.events.send(Event::Done { key: self.key, end: self.end.clone() });
    }
}

impl Client {
    pub(super) fn new(config: Arc<Config>, engine: Arc<dyn Engine>, events: UnboundedSender<Event>) -> Self {
        Self { config, engine, events }
    }

    pub(super) fn events(&self) -> UnboundedSender<Event> {
        self.events.clone()
    }

    /// Runs `task` in a container of its model.
    pub(super) async fn run(&self, task: &Task) -> Result<Ran, Failure> {
        let mut again = true;
        loop {
            let mut lease = self.lease(&task.model).await?;
            let failure = match lease.infer(task).await {
                Ok(ran) => {
                    lease.settle(End::Fit);
                    return Ok(ran);
                }
                Err(failure) => failure,
            };
            match failure.kind {
                // Our own limit: that a server itself gave up is an answer, and another kind.
                FailureKind::Timeout => {
                    lease.settle(End::Unfit("hung"));
                    let message = format!("{}; its container is replaced", failure.message);
                    return Err(Failure::new(FailureKind::Timeout, message));
                }
                FailureKind::LaneUnavailable | FailureKind::ModelError => {
                    let found = self.examine(lease, &task.model, failure).await;
                    // A container that died in its sleep costs its next task nothing.
                    if found.it_ran || !std::mem::take(&mut again) {
                        return Err(found.failure);
                    }
                }
                _ => {
                    lease.settle(End::Fit);
                    return Err(failure);
                }
            }
        }
    }

    /// The images that are configured, not there and not to be fetched.
    pub(super) async fn missing(&self) -> Vec<Failure> {
        let mut missing = Vec::new();
        for (model, spec) in self.config.images.iter().filter(|_| !self.config.pull) {
            let problem = match self.engine.has_image(&spec.image).await {
                Ok(true) => continue,
                Ok(false) => absent(model, &spec.image),
                Err(error) => error.to_string(),
            };
            missing.push(Failure::new(FailureKind::LaneUnavailable, problem));
        }
        missing
    }

    /// Ends the keeper, and with it all containers.
    pub(super) async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.events.send(Event::Stop { done: Some(done) }).is_ok() {
            // Gone without an answer, it is stopped as well.
            let _ = stopped.await;
        }
    }

    /// The same without waiting.
    pub(super) fn abandon(&self) {
        let _ = self.events.send(Event::Stop { done: None });
    }

    async fn lease(&self, model: &ModelName) -> Result<Lease, Failure> {
        let stopped = || Failure::new(FailureKind::LaneUnavailable, "docker lane is stopped");
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Ask { model: model.clone(), answer }).map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// What became of a container that did not answer, or with an error: the failure, with the cause of death if it
    /// is dead. One that says it is ready is as good as before: it refused the task, failed it, or lost a connection.
    async fn examine(&self, lease: Lease, model: &ModelName, failure: Failure) -> Examined {
        let as_it_was = |failure| Examined { failure, it_ran: true };
        let until = Instant::now() + AUTOPSY;
        loop {
            let looked = self.look(&lease).await;
            if let Ok(ended @ (Look::Ended { .. } | Look::Gone)) = looked {
                let reached = failure.kind != FailureKind::LaneUnavailable;
                let it_ran = reached && !ended.before(lease.began);
                lease.settle(End::Dead(cause(&ended)));
                let message = obituary(model, self.config.memory_of(model), &ended, "while it ran the job");
                return Examined { failure: Failure::new(FailureKind::ModelError, message), it_ran };
            }
            if lease.server.ready(READY_CALL).await.is_ok() {
                lease.settle(End::Fit);
                return as_it_was(failure);
            }
            match looked {
                Ok(_) if Instant::now() < until => sleep(AUTOPSY_PAUSE).await,
                Ok(_) => {
                    lease.settle(End::Unfit("unreachable"));
                    return as_it_was(failure);
                }
                Err(error) => {
                    lease.settle(End::Unfit("unreachable"));
                    return as_it_was(Failure::new(failure.kind, format!("{}; {error}", failure.message)));
                }
            }
        }
    }

    /// How the container is, or was when the keeper found it dead: it may be removed already.
    async fn look(&self, lease: &Lease) -> Result<Look, String> {
        let looked = match timeout(LOOK, self.engine.look(&lease.id)).await {
            Ok(looked) => looked.map_err(|error| error.to_string()),
            Err(_) => Err(format!("docker engine did not say within {} ms how it is", LOOK.as_millis())),
        };
        let found = lease.died.borrow().clone();
        found.map_or(looked, Ok)
    }
}

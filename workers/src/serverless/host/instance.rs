//! One instance of a function: a process, and the listener of its own on which it asks for events.
//!
//! One task owns both. The function's requests arrive as [`Event`]s from [`super::api`], invocations as [`Order`]s from the
//! host; nothing here is shared but the host's table. The instance goes through [`Phase`]s: starting until it first asks,
//! waiting for an order, working on one, and finishing between its answer and the moment it asks again. The table has a
//! finishing one as idle: its next order waits in the channel, or every caller in a hurry would start another instance.
//!
//! Invariants: an order that was handed to the function is always answered; one that was not is dropped, which tells the
//! host to try another instance, unless the instance could not start. However the task ends, the process group ends with it.

use super::api::{self, Event, Heard, Invocation};
use super::process::{Process, Words};
use super::{Failed, Shared, measure};
use crate::serverless::InvokeError;
use bytes::Bytes;
use schemas::ModelName;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

/// One invocation, on its way to a function.
pub(super) struct Order {
    pub(super) request_id: String,
    pub(super) event: Bytes,
    /// When nobody wants the answer any more, on both clocks.
    pub(super) deadline: (Instant, SystemTime),
    /// What the caller says of itself and its trace, passed on as it came.
    pub(super) client_context: Option<String>,
    pub(super) trace: Option<String>,
    /// Closed once the caller has left, at the deadline at the latest.
    pub(super) answer: oneshot::Sender<Result<Bytes, Failed>>,
}

pub(super) struct Instance {
    pub(super) id: super::pool::Id,
    pub(super) function: ModelName,
    pub(super) shared: Arc<Shared>,
    pub(super) orders: mpsc::Receiver<Order>,
}

enum Phase {
    Starting,
    Waiting(oneshot::Sender<Invocation>),
    Working { request_id: String, deadline: Instant, answer: oneshot::Sender<Result<Bytes, Failed>> },
    Finishing { deadline: Instant },
}

/// Why an instance ends.
#[derive(Debug)]
enum End {
    /// It was idle for long, made room for another, or the host ends.
    LetGo,
    /// Its process ended.
    Exited(ExitStatus),
    /// It says that it cannot start.
    InitError(Failed),
    /// It has not asked for an event in time.
    InitTimedOut,
    /// Its caller has left, or it did not come back from an answered event in time.
    Overdue,
    /// It could not even be tried.
    NotStarted(String),
}

/// How long a function may take from its answer to its next question. Until then an order may wait for it in vain, and
/// one that was to make room still runs.
const FINISHING_MAX: Duration = Duration::from_secs(5);

fn finishing(deadline: Instant) -> Phase {
    Phase::Finishing { deadline: deadline.min(Instant::now() + FINISHING_MAX) }
}

impl Instance {
    /// The instance's whole life.
    pub(super) async fn live(mut self) {
        let began = Instant::now();
        let (end, phase, words) = match self.start().await {
            Ok((mut process, events, listening)) => {
                let (end, phase) = self.serve(began, &mut process, events).await;
                listening.abort();
                let words = process.end().await;
                (end, phase, words)
            }
            Err(problem) => (End::NotStarted(problem), Phase::Starting, Words::default()),
        };
        self.close(end, phase, &words);
    }

    async fn start(&self) -> Result<(Process, mpsc::Receiver<Event>, tokio::task::JoinHandle<()>), String> {
        let no_port = |error| format!("no port for it: {error}");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        let (sender, events) = mpsc::channel(4);
        let process = Process::start(&self.shared.config, &self.function, self.id, address)?;
        let listening = tokio::spawn(api::serve(listener, sender, self.shared.config.payload_bytes_max));
        Ok((process, events, listening))
    }

    async fn serve(
        &mut self,
        began: Instant,
        process: &mut Process,
        mut events: mpsc::Receiver<Event>,
    ) -> (End, Phase) {
        let mut halting = self.shared.halting.subscribe();
        let mut phase = Phase::Starting;
        let mut alarm = began + self.shared.config.init_timeout;
        loop {
            let end = tokio::select! {
                status = process.exited() => Some(End::Exited(status)),
                _ = halting.wait_for(|halting| *halting) => Some(End::LetGo),
                Some(event) = events.recv() => match event {
                    Event::Next(asked) => {
                        if matches!(phase, Phase::Starting) {
                            self.shared.started(&self.function, began.elapsed());
                        }
                        phase = self.asked(phase, asked);
                        alarm = Instant::now() + self.shared.config.idle_timeout;
                        None
                    }
                    Event::Answer { request_id, answer, heard } => {
                        phase = self.answered(phase, &request_id, answer, heard);
                        None
                    }
                    Event::InitError(failed) if matches!(phase, Phase::Starting) => Some(End::InitError(failed)),
                    Event::InitError(_) => None,
                },
                order = self.orders.recv(), if matches!(phase, Phase::Waiting(_)) => match order {
                    Some(order) => {
                        phase = self.hand_over(phase, order);
                        None
                    }
                    None => Some(End::LetGo),
                },
                () = caller_left(&mut phase) => Some(End::Overdue),
                () = sleep_until(alarm.into()), if !matches!(phase, Phase::Working { .. }) => match phase {
                    Phase::Starting => Some(End::InitTimedOut),
                    Phase::Finishing { .. } => Some(End::Overdue),
                    // Not retired: an order is in the channel by now, and the next turn takes it.
                    _ => self.shared.table().pool.retire(self.id).then_some(End::LetGo),
                },
            };
            if let Phase::Finishing { deadline } = phase {
                alarm = deadline;
            }
            if let Some(end) = end {
                return (end, phase);
            }
        }
    }

    /// The function asks for an event.
    fn asked(&mut self, phase: Phase, asked: oneshot::Sender<Invocation>) -> Phase {
        // The table has one that was waiting or finishing as idle already, and may have given it an order since.
        let starting = matches!(phase, Phase::Starting);
        if let Phase::Working { answer, .. } = phase {
            self.idle();
            let words = "asked for the next event and had not answered this one";
            let _ = answer.send(Err(Failed::function("Runtime.NoAnswer", words)));
        }
        match self.orders.try_recv() {
            // Of a cold start, there since before the process began; or of a caller in a hurry.
            Ok(order) => self.hand_over(Phase::Waiting(asked), order),
            Err(_) => {
                if starting {
                    self.idle();
                }
                Phase::Waiting(asked)
            }
        }
    }

    /// The function answers an event.
    fn answered(
        &self,
        phase: Phase,
        request_id: &str,
        result: Result<Bytes, Failed>,
        heard: oneshot::Sender<Heard>,
    ) -> Phase {
        match phase {
            Phase::Working { request_id: expected, deadline, answer } if expected == request_id => {
                // Before the caller knows, who may come back at once.
                self.idle();
                let _ = answer.send(result);
                let _ = heard.send(Heard::Taken);
                finishing(deadline)
            }
            other => {
                let _ = heard.send(Heard::NotAwaited);
                other
            }
        }
    }

    fn idle(&self) {
        self.shared.table().pool.idle(self.id, Instant::now());
    }

    /// Gives `order` to the function that waits for one.
    fn hand_over(&self, phase: Phase, order: Order) -> Phase {
        let Phase::Waiting(asked) = phase else { return phase };
        if order.answer.is_closed() {
            self.idle();
            return Phase::Waiting(asked);
        }
        let Order { request_id, event, deadline: (deadline, deadline_told), client_context, trace, answer } =
            order;
        let invocation = Invocation {
            request_id: request_id.clone(),
            deadline: deadline_told,
            function_arn: self.shared.config.arn(&self.function),
            client_context,
            trace,
            event,
        };
        match asked.send(invocation) {
            Ok(()) => {
                self.shared.table().pool.busy(self.id);
                Phase::Working { request_id, deadline, answer }
            }
            // Its connection is gone, and most likely so is the function; if not, it asks again in time. The order is
            // dropped, and the host tries another instance.
            Err(_) => {
                self.idle();
                finishing(deadline)
            }
        }
    }

    /// What is owed to callers when the instance is no more.
    fn close(mut self, end: End, phase: Phase, words: &Words) {
        {
            let mut table = self.shared.table();
            table.pool.gone(self.id);
            table.handles.remove(&self.id);
        }
        let failed = self.told(&end, matches!(phase, Phase::Starting), words);
        measure::ended(&self.function, end.word());
        if let Some(failed) = failed {
            tracing::warn!(function = %self.function, instance = self.id, reason = %failed.error, "instance ended badly");
            match phase {
                Phase::Working { answer, .. } => drop(answer.send(Err(failed))),
                Phase::Starting => {
                    self.shared.start_failed(&self.function, &failed.error);
                    // What comes behind the first was put there by nobody: a starting instance is given no more.
                    while let Ok(order) = self.orders.try_recv() {
                        let _ = order.answer.send(Err(failed.clone()));
                    }
                }
                Phase::Waiting(_) | Phase::Finishing { .. } => {}
            }
        } else {
            tracing::debug!(function = %self.function, instance = self.id, "instance ended");
        }
        self.shared.ended();
    }

    fn told(&self, end: &End, starting: bool, words: &Words) -> Option<Failed> {
        let last = words.last();
        match end {
            End::LetGo => None,
            End::InitError(failed) => Some(failed.clone()),
            End::Exited(status) => {
                let when = if starting { "before it asked for its first event" } else { "while it ran" };
                Some(Failed::function("Runtime.ExitError", &format!("ended {when} ({status}){last}")))
            }
            End::InitTimedOut => {
                let limit = self.shared.config.init_timeout.as_millis();
                let words = format!("did not ask for an event within {limit} ms of its start{last}");
                Some(Failed::function("Sandbox.InitTimedout", &words))
            }
            End::Overdue => Some(Failed::from(InvokeError::TimedOut(
                "was killed: nobody waited for it any more".to_owned(),
            ))),
            End::NotStarted(problem) => {
                Some(Failed::from(InvokeError::Unreachable(format!("cannot be started: {problem}"))))
            }
        }
    }
}

impl End {
    /// The word used in labels.
    fn word(&self) -> &'static str {
        match self {
            Self::LetGo => "let_go",
            Self::Exited(_) => "exited",
            Self::InitError(_) | Self::InitTimedOut | Self::NotStarted(_) => "init_failed",
            Self::Overdue => "overdue",
        }
    }
}

/// Comes back when whoever waits for the work under way has left.
async fn caller_left(phase: &mut Phase) {
    match phase {
        Phase::Working { answer, .. } => answer.closed().await,
        _ => std::future::pending().await,
    }
}

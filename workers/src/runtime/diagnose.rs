//! Models that are not models: for drills, benchmarks and tests. Off unless configured.
//!
//! | name | does | parameters |
//! |---|---|---|
//! | `diagnose.echo` | gives back its input | |
//! | `diagnose.sleep` | holds its thread, then gives back its input | `ms`, default 100 |
//! | `diagnose.fail` | fails while the attempt is at most `times`; always, without it | `times` |
//! | `diagnose.hang` | never ends while the lane lives | |
//! | `diagnose.panic` | panics | |
//! | `diagnose.abort` | kills the worker's process | |

use schemas::body::Parameter;
use schemas::{Failure, FailureKind, ModelName, Payload};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells every diagnostic model that waits to stop waiting.
#[derive(Default)]
pub(crate) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until stopped, or until `limit` has passed.
    fn wait(&self, limit: Option<Duration>) {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        while !*stopped {
            // Without a limit an hour is as good as for ever: the loop comes round again.
            let left =
                until.map_or(Duration::from_secs(3600), |t| t.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            stopped = self.changed.wait_timeout(stopped, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Diagnostic {
    Echo,
    Sleep,
    Fail,
    Hang,
    Panic,
    Abort,
}

impl Diagnostic {
    const ALL: [(&'static str, Self); 6] = [
        ("diagnose.echo", Self::Echo),
        ("diagnose.sleep", Self::Sleep),
        ("diagnose.fail", Self::Fail),
        ("diagnose.hang", Self::Hang),
        ("diagnose.panic", Self::Panic),
        ("diagnose.abort", Self::Abort),
    ];

    /// Each, with its name.
    pub(crate) fn all() -> impl Iterator<Item = (ModelName, Self)> {
        Self::ALL
            .into_iter()
            .map(|(name, this)| (ModelName::new(name).expect("a name that is allowed"), this))
    }

    pub(crate) fn run(
        self,
        attempt: u8,
        input: Payload,
        parameters: &BTreeMap<String, Parameter>,
        stop: &Stop,
    ) -> Result<Payload, Failure> {
        match self {
            Self::Echo => {}
            Self::Sleep => {
                stop.wait(Some(Duration::from_millis(number(parameters, "ms")?.unwrap_or(100))));
            }
            Self::Fail => match number(parameters, "times")? {
                Some(times) if u64::from(attempt) > times => {}
                _ => {
                    return Err(Failure::new(
                        FailureKind::ModelError,
                        "diagnose.fail fails, as it was asked to",
                    ));
                }
            },
            Self::Hang => {
                stop.wait(None);
                return Err(Failure::new(FailureKind::LaneUnavailable, "diagnose.hang was told to stop"));
            }
            Self::Panic => panic!("diagnose.panic panics, as it was asked to"),
            Self::Abort => std::process::abort(),
        }
        Ok(input)
    }
}

fn number(parameters: &BTreeMap<String, Parameter>, name: &str) -> Result<Option<u64>, Failure> {
    let refuse =
        || Failure::new(FailureKind::InvalidInput, format!("parameter {name} is not a whole number from 0"));
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Integer(number)) => u64::try_from(*number).map(Some).map_err(|_| refuse()),
        Some(_) => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> Payload {
        Payload::Tensors(Vec::new())
    }

    #[test]
    fn fail_fails_as_often_as_it_is_told() {
        let run = |attempt, parameters: &[(&str, Parameter)]| {
            let parameters =
                parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            Diagnostic::Fail.run(attempt, input(), &parameters, &Stop::default()).map_err(|f| f.kind)
        };
        let twice = [("times", Parameter::Integer(2))];
        assert_eq!(run(2, &twice), Err(FailureKind::ModelError));
        assert_eq!(run(3, &twice), Ok(input()));
        assert_eq!(run(20, &[]), Err(FailureKind::ModelError));
        assert_eq!(run(1, &[("times", Parameter::Integer(-1))]), Err(FailureKind::InvalidInput));
        assert_eq!(run(1, &[("times", Parameter::Text("2".into()))]), Err(FailureKind::InvalidInput));
    }

    #[test]
    fn what_waits_stops_when_told() {
        let stop = Stop::default();
        stop.stop();
        let day = BTreeMap::from([("ms".to_owned(), Parameter::Integer(86_400_000))]);
        assert_eq!(Diagnostic::Sleep.run(1, input(), &day, &stop), Ok(input()));
        let hung = Diagnostic::Hang.run(1, input(), &BTreeMap::new(), &stop).unwrap_err();
        assert_eq!(hung.kind, FailureKind::LaneUnavailable);
    }
}

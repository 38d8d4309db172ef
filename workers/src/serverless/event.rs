//! A task as an event, an answer as a run, and what a failed call means for the job.

use super::{Call, InvokeError};
use crate::lane::{Ran, Task};
use crate::worker::offload::offload;
use bytes::Bytes;
use schemas::{Failure, FailureKind, ModelName, Payload, oip};
use std::time::Duration;

/// Longest part of a function's own words that is passed on, in characters.
const WORDS_MAX: usize = 400;

/// The call that runs `task`, unless its event would be longer than `bytes_max`.
pub(super) async fn of(task: Task, bytes_max: usize) -> Result<Call, Failure> {
    let too_large = move |model: &ModelName, size: &str| {
        let message =
            format!("input of {model} makes an event of {size} bytes: functions take at most {bytes_max}");
        // This lane's limit, not the job's fault: another lane may take it.
        Failure::new(FailureKind::LaneUnavailable, message)
    };
    let raw = task.input.data_bytes();
    // Some input is shorter as JSON than as raw bytes (zeros, say), but never shorter than a quarter of it.
    if raw / 4 > bytes_max as u64 {
        return Err(too_large(&task.model, &format!("more than {}", raw / 4)));
    }
    offload(raw, move || {
        let invalid = |problem: String| Err(Failure::new(FailureKind::InvalidInput, problem));
        let Payload::Tensors(inputs) = &task.input else {
            return invalid(format!(
                "model {} is a function: it takes tensors, not opaque bytes",
                task.model
            ));
        };
        let id = task.id.to_string();
        let event = match oip::event(&task.model, &id, inputs, &task.outputs, &task.parameters) {
            Ok(event) if event.len() > bytes_max => {
                return Err(too_large(&task.model, &event.len().to_string()));
            }
            Ok(event) => event,
            Err(error) => return invalid(format!("model {} is a function: {error}", task.model)),
        };
        Ok(Call { model: task.model, event, limit: task.limit })
    })
    .await
}

/// What `answer` says, which took so long.
pub(super) async fn ran(model: ModelName, answer: Bytes, took: Duration) -> Result<Ran, Failure> {
    offload(answer.len() as u64, move || {
        let answer = oip::answer(None, answer).map_err(|error| {
            let message = format!("function of {model} answered what is no answer: {error}");
            Failure::new(FailureKind::ModelError, message)
        })?;
        // What the model itself took, where the function says so; else all of it.
        let told = answer.parameters.get("run_us").and_then(serde_json::Value::as_u64);
        let run_time = told.map_or(took, |us| Duration::from_micros(us).min(took));
        Ok(Ran { output: Payload::Tensors(answer.outputs), run_time })
    })
    .await
}

/// Whose fault it is that `model`'s function gave no answer.
pub(super) fn failure(model: &ModelName, error: InvokeError) -> Failure {
    let mut pause = None;
    let (kind, words) = match error {
        InvokeError::Function { type_, message } => {
            (kind_of(&type_), format!("failed with {}: {}", plain(&type_), plain(&message)))
        }
        InvokeError::Throttled { words, retry_after } => {
            pause = retry_after;
            (FailureKind::Busy, words)
        }
        InvokeError::TooLarge(words) => (FailureKind::LaneUnavailable, words),
        InvokeError::TimedOut(words) => (FailureKind::Timeout, words),
        InvokeError::Unreachable(words) => (FailureKind::LaneUnavailable, words),
    };
    Failure { retry_after: pause, ..Failure::new(kind, format!("function of {model} {}", plain(&words))) }
}

/// What a function's own word for its error means. A function that knows ours may say that the input is to blame, which
/// spares the job further attempts; one that lacks the model only says that this lane is the wrong place.
fn kind_of(type_: &str) -> FailureKind {
    match type_ {
        "invalid_input" => FailureKind::InvalidInput,
        "too_large" => FailureKind::TooLarge,
        "timeout" => FailureKind::Timeout,
        "unknown_model" | "lane_unavailable" => FailureKind::LaneUnavailable,
        "busy" => FailureKind::Busy,
        _ => FailureKind::ModelError,
    }
}

/// One line, not too long.
fn plain(words: &str) -> String {
    let start: String = words.chars().take(4 * WORDS_MAX).collect();
    start.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(WORDS_MAX).collect()
}

//! The function in ours: asks the Lambda Runtime API for events, runs each through a lane in this process and answers. Whoever
//! speaks that API can host it: [`super::host`], AWS Lambda, or an emulator of it.
//!
//! One event at a time. A failure is reported as `{"errorType", "errorMessage"}`, the type being our word for its kind.

use crate::lane::{Executor, Task};
use crate::remote::http::{Http, HttpError, Parts, Reply};
use crate::worker::offload::offload;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{Method, Request, StatusCode};
use schemas::body::Parameter;
use schemas::oip::{self, About, Input, Parameters, Selection};
use schemas::{Failure, FailureKind, JobId, ModelContract, ModelName, Payload};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long it waits for one event before it asks again.
const NEXT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How long a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest event taken, in bytes; hosts have limits of their own below it.
const EVENT_BYTES_MAX: usize = 64 << 20;
/// How long before the deadline a run is given up, so that the reason still arrives.
const REPORT_MARGIN: Duration = Duration::from_millis(50);
/// A host that names no deadline means this.
const LIMIT_DEFAULT: Duration = Duration::from_secs(60);

/// Why a function ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// Its models could not be loaded; the host was told.
    #[error("{0}")]
    Load(String),
    /// No address of a Runtime API.
    #[error("AWS_LAMBDA_RUNTIME_API {0:?} is no address: a function is started by its host, which sets it")]
    Address(String),
    /// A run outlived its limit and cannot be ended but with its process, which starts anew.
    #[error("a run hangs: ending with it")]
    Hung,
    /// The Runtime API is not there, or not one.
    #[error("runtime interface {0}")]
    Runtime(String),
}

/// The lane that runs events, and the contracts of its models.
pub type Loaded = (Arc<dyn Executor>, Vec<ModelContract>);

/// Serves events from the Runtime API at `api` (`host:port`) with what was `loaded`; the host is told why if nothing
/// was. Comes back only with what ended it: a host that is done with a function kills it.
pub fn serve(api: String, loaded: Result<Loaded, String>) -> BoxFuture<'static, FunctionError> {
    Box::pin(async move {
        let base = format!("http://{api}/2018-06-01/runtime");
        let Ok(uri) = base.parse::<hyper::Uri>() else { return FunctionError::Address(api) };
        if uri.host().is_none_or(str::is_empty) {
            return FunctionError::Address(api);
        }
        let runtime = Runtime { http: Http::new(), base };
        let (lane, contracts) = match loaded {
            Ok(loaded) => loaded,
            Err(words) => {
                if let Err(unheard) = runtime.post("/init/error", report("Runtime.ModelLoad", &words)).await {
                    tracing::warn!(reason = %unheard, "the host could not be told why the function does not start");
                }
                return FunctionError::Load(words);
            }
        };
        loop {
            if let Err(end) = runtime.one(&*lane, &contracts).await {
                return end;
            }
        }
    })
}

struct Runtime {
    http: Http,
    base: String,
}

/// An event, understood.
struct Asked {
    task: Task,
    selection: Selection,
    id: Option<String>,
}

impl Runtime {
    /// The next event, from asking for it to its answer.
    async fn one(&self, lane: &dyn Executor, contracts: &[ModelContract]) -> Result<(), FunctionError> {
        let request = Request::get(format!("{}/invocation/next", self.base)).body(Parts::default());
        let request = request.expect("a checked address and a plain path");
        let next = match self.http.send(request, NEXT_TIMEOUT, EVENT_BYTES_MAX).await {
            Ok(next) if next.status == StatusCode::OK => next,
            Ok(next) => return Err(FunctionError::Runtime(format!("answered {}", next.status))),
            Err(HttpError::TimedOut(_)) => return Ok(()),
            Err(error) => return Err(FunctionError::Runtime(error.to_string())),
        };
        let header = |name: &str| next.headers.get(name).and_then(|value| value.to_str().ok());
        // The path to answer it on; the API's ids are plain.
        let id =
            header("lambda-runtime-aws-request-id").filter(|id| id.bytes().all(|b| b.is_ascii_graphic()));
        let Some(id) = id.map(str::to_owned) else {
            return Err(FunctionError::Runtime("sent an event without an id".to_owned()));
        };
        let deadline = header("lambda-runtime-deadline-ms").and_then(|ms| ms.parse().ok());
        let limit = limit(deadline, SystemTime::now());
        let answered = answer(next.body, limit, lane, contracts).await;
        // An idle thread is free again; one that hangs would fail, or slow, every event from here on.
        let hung = lane.capacity().borrow().abandoned > 0;
        let (path, body) = match answered {
            Ok(answer) => (format!("/invocation/{id}/response"), answer),
            Err(failure) => {
                (format!("/invocation/{id}/error"), report(failure.kind.as_str(), &failure.message))
            }
        };
        let posted = self.post(&path, body).await;
        if hung {
            return Err(FunctionError::Hung);
        }
        match posted {
            Ok(reply) if reply.status == StatusCode::ACCEPTED => Ok(()),
            // Too long an answer, or one that nobody waits for: the host knows, and the next event is another.
            Ok(reply) => {
                tracing::warn!(status = reply.status.as_u16(), "the host did not take an answer");
                Ok(())
            }
            Err(error) => Err(FunctionError::Runtime(error.to_string())),
        }
    }

    async fn post(&self, path: &str, body: Bytes) -> Result<Reply, HttpError> {
        let request = Request::builder().method(Method::POST).uri(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/json").body(Parts::from_iter([body]));
        let request = request.map_err(|error| HttpError::Unreachable(error.to_string()))?;
        self.http.send(request, REPORT_TIMEOUT, EVENT_BYTES_MAX).await
    }
}

/// Runs the event and encodes what came of it.
async fn answer(
    event: Bytes,
    limit: Duration,
    lane: &dyn Executor,
    contracts: &[ModelContract],
) -> Result<Bytes, Failure> {
    let only = match contracts {
        [one] => Some(one.name.clone()),
        _ => None,
    };
    let length = event.len() as u64;
    let Asked { task, selection, id } = offload(length, move || read(&event, only, limit)).await?;
    let model = task.model.clone();
    let contract = contracts.iter().find(|contract| contract.name == model);
    let version = contract.map(|contract| contract.version.clone()).unwrap_or_default();
    let ran = lane.run(task).await?;
    let run_us = u64::try_from(ran.run_time.as_micros()).unwrap_or(u64::MAX);
    let bytes = ran.output.data_bytes();
    let Payload::Tensors(outputs) = ran.output else {
        let message = format!("model {model} gave opaque bytes, which an answer cannot carry");
        return Err(Failure::new(FailureKind::ModelError, message));
    };
    let about = About {
        model_name: model.to_string(),
        model_version: version,
        id,
        parameters: Parameters::from([("run_us".to_owned(), run_us.into())]),
    };
    let encoded = offload(bytes, move || oip::respond(&about, &outputs, &selection)).await;
    encoded.map(|encoded| encoded.head).map_err(|error| {
        Failure::new(FailureKind::ModelError, format!("model {model} gave what JSON cannot carry: {error}"))
    })
}

/// Reads an event. It may leave out the model where there is `only` one.
fn read(event: &[u8], only: Option<ModelName>, limit: Duration) -> Result<Asked, Failure> {
    let invalid = |problem: String| Failure::new(FailureKind::InvalidInput, format!("event: {problem}"));
    let request: oip::Request = serde_json::from_slice(event).map_err(|error| invalid(error.to_string()))?;
    let model = match request.model_name {
        Some(name) => ModelName::new(&name).map_err(|error| invalid(error.to_string()))?,
        None => {
            only.ok_or_else(|| invalid("model_name is missing, and there are several models".to_owned()))?
        }
    };
    let parameter = |(name, value): (String, Value)| match serde_json::from_value::<Parameter>(value) {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(invalid(format!("parameters.{name} must be text, a number, true or false"))),
    };
    let parameters = request.parameters.into_iter().map(parameter).collect::<Result<_, _>>()?;
    let selection = Selection::of(request.outputs, false).map_err(|error| invalid(error.to_string()))?;
    let input = Input::tensors(request.inputs, Bytes::new()).map_err(|error| invalid(error.to_string()))?;
    let task = Task {
        id: JobId::new(),
        model,
        attempt: 1,
        input: Payload::Tensors(input),
        outputs: selection.names.clone(),
        parameters,
        limit,
    };
    Ok(Asked { task, selection, id: request.id })
}

/// How long a run may take that must be answered by `deadline_ms`, a time since 1970.
fn limit(deadline_ms: Option<u64>, now: SystemTime) -> Duration {
    let Some(deadline_ms) = deadline_ms else { return LIMIT_DEFAULT };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(deadline_ms).saturating_sub(now).saturating_sub(REPORT_MARGIN)
}

fn report(type_: &str, message: &str) -> Bytes {
    json!({ "errorType": type_, "errorMessage": message }).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_leaves_time_to_tell() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(limit(Some(1_003_000), now), Duration::from_millis(2_950));
        assert_eq!(limit(Some(900_000), now), Duration::ZERO);
        assert_eq!(limit(None, now), LIMIT_DEFAULT);
    }

    #[test]
    fn an_event_may_leave_out_the_model_where_there_is_one() {
        let event = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}"#;
        let only = ModelName::new("m").unwrap();
        let asked = read(event.as_bytes(), Some(only.clone()), LIMIT_DEFAULT).unwrap();
        assert_eq!(asked.task.model, only);
        for (event, expected) in [
            (event, "model_name is missing"),
            ("{}", "missing field `inputs`"),
            (r#"{"model_name": "M!", "inputs": []}"#, "not allowed"),
            (r#"{"model_name": "m", "inputs": [], "parameters": {"a": []}}"#, "parameters.a must be"),
            (
                r#"{"model_name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1]}]}"#,
                "\"x\"",
            ),
        ] {
            let failure = read(event.as_bytes(), None, LIMIT_DEFAULT).err().unwrap();
            assert_eq!(failure.kind, FailureKind::InvalidInput);
            assert!(failure.message.contains(expected), "{failure}");
        }
    }

    #[tokio::test]
    async fn without_a_host_it_says_so() {
        let loaded = Err("no such file".to_owned());
        assert_eq!(serve(String::new(), loaded).await, FunctionError::Address(String::new()));
    }
}

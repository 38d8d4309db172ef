//! Functions that are HTTP servers of their own, as on Knative, OpenFaaS or Cloud Run, and that speak the Open Inference
//! Protocol. They scale behind their address, to zero and back, and that is their platform's business: 429 and 503 say "come
//! back later", which costs no attempt.

use super::Away;
use crate::lane::{Capacity, Executor, InvalidConfig, Ran, Task};
use crate::remote::http::Http;
use crate::remote::{Form, ModelServer};
use async_trait::async_trait;
use schemas::heartbeat::Backend;
use schemas::{Failure, FailureKind, Lane, ModelName};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// Where [`Config::url`] has the model's name.
const PLACE: &str = "{model}";

/// Settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A function's address without `/v2`, `{model}` being the model's name: `http://{model}.default.example.com`.
    pub url: String,
    /// The models that have a function.
    pub models: Vec<ModelName>,
    /// Jobs it runs at once, over all functions. Default 10.
    pub concurrency_max: u32,
    /// Whether tensors travel as raw bytes (the protocol's binary extension) or, which every server reads, as JSON.
    /// Default: as JSON.
    pub binary: bool,
    /// Largest input, in bytes of its tensors; a job with a larger one fails without being sent. Default 32 MiB, which is
    /// Cloud Run's.
    pub payload_bytes_max: usize,
    /// Longest answer, in bytes. Default 32 MiB.
    pub answer_bytes_max: usize,
}

impl Config {
    /// Defaults for all but where and what.
    pub fn new(url: &str, models: Vec<ModelName>) -> Self {
        Self {
            url: url.to_owned(),
            models,
            concurrency_max: 10,
            binary: false,
            payload_bytes_max: 32 << 20,
            answer_bytes_max: 32 << 20,
        }
    }
}

/// The lane.
pub struct HttpFunctions {
    url: String,
    servers: BTreeMap<ModelName, ModelServer>,
    payload_bytes_max: usize,
    capacity: watch::Sender<Capacity>,
    away: Away,
}

impl HttpFunctions {
    /// Checks the settings. Nothing is asked yet.
    pub fn new(config: &Config) -> Result<Self, InvalidConfig> {
        let invalid = |field, problem: String| InvalidConfig::new(field, problem);
        if config.concurrency_max == 0 {
            let problem = "is 0: use the number of jobs that may run there at once".to_owned();
            return Err(invalid("serverless.concurrency_max", problem));
        }
        if config.models.is_empty() {
            let problem = "is empty: name the models that have a function".to_owned();
            return Err(invalid("serverless.http.models", problem));
        }
        let http = Http::new();
        let form = if config.binary { Form::Binary } else { Form::Json };
        let server = |model: &ModelName| {
            let url = config.url.replace(PLACE, model.as_str());
            let server = ModelServer::new(http.clone(), &url, form, config.answer_bytes_max);
            let server = server.map_err(|error| invalid("serverless.http.url", error.to_string()))?;
            Ok((model.clone(), server))
        };
        Ok(Self {
            url: config.url.clone(),
            servers: config.models.iter().map(server).collect::<Result<_, _>>()?,
            payload_bytes_max: config.payload_bytes_max,
            capacity: watch::Sender::new(Capacity { slots: config.concurrency_max, abandoned: 0 }),
            away: Away::default(),
        })
    }
}

#[async_trait]
impl Executor for HttpFunctions {
    fn lane(&self) -> Lane {
        Lane::Serverless
    }

    fn models(&self) -> Vec<ModelName> {
        self.servers.keys().cloned().collect()
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.subscribe()
    }

    fn backend(&self) -> Option<Backend> {
        let name = format!("HTTP functions at {}", self.url);
        Some(self.away.told(Backend { name, ..Backend::default() }))
    }

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let Some(server) = self.servers.get(&task.model) else {
            let message = format!("model {} has no HTTP function: see serverless.http.models", task.model);
            return Err(Failure::new(FailureKind::LaneUnavailable, message));
        };
        let (bytes, bytes_max) = (task.input.data_bytes(), self.payload_bytes_max);
        if bytes > bytes_max as u64 {
            let message =
                format!("input of {} has {bytes} bytes: HTTP functions take at most {bytes_max}", task.model);
            return Err(Failure::new(FailureKind::LaneUnavailable, message));
        }
        let ran = server.infer(&task).await;
        let away = ran.as_ref().err().filter(|failure| failure.kind == FailureKind::LaneUnavailable);
        self.away.note(&task.model, away.map(|failure| failure.message.clone()));
        ran
    }

    async fn stop(&self) {
        self.capacity.send_replace(Capacity::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::Path;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::routing::post;
    use schemas::{JobId, Payload, Tensor};
    use std::time::Duration;
    use tokio::net::TcpListener;

    const ANSWER: &str = r#"{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1]}]}"#;

    /// A platform that is busy for one model, scaled to nothing for another, and well for the rest.
    async fn platform() -> String {
        let infer = async |Path(model): Path<String>| match model.as_str() {
            "busy" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "2")], "slow down").into_response(),
            "none" => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            _ => ANSWER.into_response(),
        };
        let router = Router::new().route("/fn/v2/models/{model}/infer", post(infer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/fn", listener.local_addr().unwrap());
        let limits = serving::Limits { connections_max: 64, head_timeout: None, grace: Duration::ZERO };
        tokio::spawn(serving::serve(listener, router, limits, Box::pin(std::future::pending())));
        url
    }

    fn task(model: &str, values: usize) -> Task {
        Task {
            id: JobId::new(),
            model: ModelName::new(model).unwrap(),
            attempt: 1,
            input: Payload::Tensors(vec![Tensor::fp32("x", [values as u64], &vec![0.0; values]).unwrap()]),
            outputs: Vec::new(),
            parameters: BTreeMap::new(),
            limit: Duration::from_secs(20),
        }
    }

    #[tokio::test]
    async fn busy_is_no_failure_of_the_job_and_too_much_is_not_sent() {
        let models = ["well", "busy", "none"].map(|name| ModelName::new(name).unwrap()).to_vec();
        let mut config = Config::new(&platform().await, models);
        config.payload_bytes_max = 1_000;
        let lane = HttpFunctions::new(&config).unwrap();
        assert_eq!((lane.lane(), lane.capacity().borrow().slots), (Lane::Serverless, 10));
        let ran = lane.run(task("well", 1)).await.unwrap();
        assert_eq!(ran.output, Payload::Tensors(vec![Tensor::fp32("y", [1], &[1.0]).unwrap()]));
        for (task, kind, words) in [
            (task("busy", 1), FailureKind::Busy, "slow down"),
            (task("none", 1), FailureKind::Busy, "503"),
            (task("well", 251), FailureKind::LaneUnavailable, "1004 bytes"),
            (task("other", 1), FailureKind::LaneUnavailable, "has no HTTP function"),
        ] {
            let failure = lane.run(task).await.unwrap_err();
            assert_eq!((failure.kind, failure.message.contains(words)), (kind, true), "{failure}");
            let asked = failure.message.contains("slow down").then_some(Duration::from_secs(2));
            assert_eq!(failure.retry_after, asked, "{failure}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let model = ModelName::new("m").unwrap();
        let nothing = Config { concurrency_max: 0, ..Config::new("http://h", vec![model.clone()]) };
        for (config, expected) in [
            (Config::new("{model}.example.com", vec![model]), "http://host:port"),
            (Config::new("http://h", Vec::new()), "models is empty"),
            (nothing, "concurrency_max is 0"),
        ] {
            let error = HttpFunctions::new(&config).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

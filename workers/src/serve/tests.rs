use super::*;
use crate::catalog::Catalog;
use crate::lane::{Capacity, Ran, Task};
use crate::local::{self, Local};
use crate::remote::http::{Http, Parts, Reply};
use crate::remote::{Form, ModelServer};
use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Method, Request};
use schemas::body::Parameter;
use schemas::{Failure, FailureKind, JobId, Lane, Payload, Tensor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const TOML: &str = include_str!("../../../models/digits/model.toml");
const ONNX: &[u8] = include_bytes!("../../../models/digits/model.onnx");
/// No test waits longer for what must happen.
const BOUND: Duration = Duration::from_secs(20);

struct Running {
    url: String,
    drain: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl Running {
    async fn start(config: Config, executor: Arc<dyn Executor>, models: Vec<ModelContract>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (drain, drained) = oneshot::channel::<()>();
        let drained = Box::pin(async { drained.await.unwrap_or_default() });
        let ended = tokio::spawn(serve(config, listener, executor, models, drained));
        Self { url, drain, ended }
    }

    /// Digits and the diagnostic models, on one slot.
    async fn digits() -> Self {
        let catalog = Catalog::builtin(&[(TOML, ONNX)]).unwrap().with_diagnostics();
        let lane = Local::start(local::Config { slots: 1, abandoned_max: 8 }, &catalog).unwrap();
        let config = Config { body_bytes_max: 100_000, json_bytes_max: 10_000, ..Config::default() };
        Self::start(config, Arc::new(lane), catalog.contracts()).await
    }

    async fn ask(&self, method: Method, path: &str, head_length: Option<usize>, body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(length) = head_length {
            request = request.header(schemas::oip::HEAD_LENGTH, length);
        }
        let body: Parts = [Bytes::from(body.to_owned())].into_iter().collect();
        Http::new().send(request.body(body).unwrap(), BOUND, 1 << 20).await.unwrap()
    }

    fn client(&self, form: Form) -> ModelServer {
        ModelServer::new(Http::new(), &self.url, form, 1 << 20).unwrap()
    }
}

fn json(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap()
}

fn task(model: &str, input: Vec<Tensor>, parameters: &[(&str, i64)]) -> Task {
    let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), Parameter::Integer(*value)));
    Task {
        id: JobId::new(),
        model: ModelName::new(model).unwrap(),
        attempt: 1,
        input: Payload::Tensors(input),
        outputs: Vec::new(),
        parameters: parameters.collect(),
        limit: BOUND,
    }
}

fn image() -> Vec<Tensor> {
    vec![Tensor::fp32("image", [1, 64], &[1.0; 64]).unwrap()]
}

#[tokio::test]
async fn what_the_lane_answers_the_server_answers_in_both_forms() {
    let catalog = Catalog::builtin(&[(TOML, ONNX)]).unwrap();
    let lane = Local::start(local::Config { slots: 1, abandoned_max: 0 }, &catalog).unwrap();
    let expected = lane.run(task("digits", image(), &[])).await.unwrap().output;
    let server = Running::digits().await;
    for form in [Form::Json, Form::Binary] {
        let ran = server.client(form).infer(&task("digits", image(), &[])).await.unwrap();
        assert_eq!(ran.output, expected, "{form:?}");
        assert!(ran.run_time > Duration::ZERO);
        let mut one = task("digits", image(), &[]);
        one.outputs = vec!["label".to_owned()];
        let ran = server.client(form).infer(&one).await.unwrap().output;
        assert_eq!((ran.tensor("label"), ran.tensor("probabilities")), (expected.tensor("label"), None));
    }
}

#[tokio::test]
async fn it_says_what_it_is_and_what_its_models_take() {
    let server = Running::digits().await;
    let get = async |path: &str| server.ask(Method::GET, path, None, "").await;
    assert_eq!(json(&get("/v2").await)["name"], "straightline");
    assert_eq!(json(&get("/v2/health/live").await)["live"], true);
    assert_eq!(json(&get("/v2/health/ready").await)["ready"], true);
    let digits = json(&get("/v2/models/digits").await);
    assert_eq!((&digits["platform"], &digits["inputs"][0]["shape"]), (&"onnx".into(), &json!([-1, 64])));
    assert_eq!(json(&get("/v2/models/digits/ready").await)["ready"], true);
    for (path, status) in [("/v2/models/fish", 404), ("/v1", 404), ("/v2/models/digits/infer", 405)] {
        let reply = get(path).await;
        assert_eq!(reply.status.as_u16(), status);
        assert!(json(&reply)["error"].is_string());
    }
}

#[tokio::test]
async fn a_request_that_is_wrong_is_told_how() {
    let server = Running::digits().await;
    let long = "x".repeat(20_000);
    for (path, head_length, body, status, words) in [
        ("digits", None, "rubbish", 400, "request: expected value"),
        ("digits", None, r#"{"inputs":[]}"#, 400, "misses tensor \"image\""),
        ("digits", None, r#"{"inputs":[],"parameters":{"x":[]}}"#, 400, "parameters.x"),
        ("digits", None, r#"{"inputs":[],"parameters":{"binary_data_output":1}}"#, 400, "true or false"),
        ("digits", None, &long, 413, "over 10000 bytes"),
        ("digits", Some(20_000), &long, 413, "JSON"),
        ("digits", Some(30_000), &long, 400, "but the body has"),
        ("Fish", None, "{}", 404, "there are diagnose.abort"),
        ("diagnose.fail", None, r#"{"inputs":[]}"#, 500, "as it was asked to"),
    ] {
        let reply = server.ask(Method::POST, &format!("/v2/models/{path}/infer"), head_length, body).await;
        let told = json(&reply)["error"].as_str().unwrap().to_owned();
        assert_eq!(reply.status.as_u16(), status, "{told}");
        assert!(told.contains(words), "{told}");
    }
}

#[tokio::test]
async fn a_body_refused_in_the_middle_is_read_to_its_end_and_the_connection_lives() {
    let server = Running::digits().await;
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    for _ in 0..2 {
        let head = "POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 3_000_000]).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    }
}

/// A lane whose runs say that they have begun and end when told.
struct Held {
    began: mpsc::UnboundedSender<oneshot::Sender<()>>,
    capacity: watch::Sender<Capacity>,
}

#[async_trait]
impl Executor for Held {
    fn lane(&self) -> Lane {
        Lane::Local
    }
    fn models(&self) -> Vec<ModelName> {
        Vec::new()
    }
    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.subscribe()
    }
    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let (end, ended) = oneshot::channel();
        self.began.send(end).unwrap();
        ended.await.map_err(|_| Failure::new(FailureKind::Busy, "told to"))?;
        Ok(Ran { output: task.input, run_time: Duration::from_millis(1) })
    }
    async fn stop(&self) {
        self.capacity.send_replace(Capacity::default());
    }
}

#[tokio::test]
async fn beyond_slots_and_queue_callers_are_told_to_come_back_and_draining_ends_what_runs() {
    let (began, mut runs) = mpsc::unbounded_channel();
    let capacity = watch::Sender::new(Capacity { slots: 1, abandoned: 0 });
    let lane = Arc::new(Held { began, capacity });
    let models = Catalog::builtin(&[(TOML, ONNX)]).unwrap().contracts();
    let config = Config { slots: 1, queue: 1, ..Config::default() };
    let server = Running::start(config, lane.clone(), models).await;
    let client = server.client(Form::Binary);
    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.infer(&task("digits", image(), &[])).await })
    };
    let first = ask();
    let end_first = runs.recv().await.unwrap();
    // Whichever of the two comes first waits for the slot; the other finds no place, and says so first.
    let (mut second, mut third) = (ask(), ask());
    let (refused, waiting) = tokio::select! {
        refused = &mut second => (refused, third),
        refused = &mut third => (refused, second),
    };
    let failure = refused.unwrap().unwrap_err();
    assert_eq!((failure.kind, failure.retry_after), (FailureKind::Busy, Some(Duration::from_secs(1))));
    assert!(failure.message.contains("2 places"), "{failure}");

    server.drain.send(()).unwrap();
    let not_ready = async || loop {
        let reply = Http::new()
            .send(
                Request::get(format!("{}/v2/health/ready", server.url)).body(Parts::default()).unwrap(),
                BOUND,
                1_000,
            )
            .await
            .unwrap();
        if reply.status == StatusCode::SERVICE_UNAVAILABLE {
            return json(&reply)["error"].as_str().unwrap().to_owned();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(timeout(BOUND, not_ready()).await.unwrap(), "this server is draining");
    end_first.send(()).unwrap();
    first.await.unwrap().unwrap();
    runs.recv().await.unwrap().send(()).unwrap();
    waiting.await.unwrap().unwrap();
    timeout(BOUND, server.ended).await.unwrap().unwrap();
    assert_eq!(lane.capacity.borrow().slots, 0, "the lane is stopped last");
}

#[tokio::test]
async fn a_caller_that_leaves_gives_its_run_up() {
    let (began, mut runs) = mpsc::unbounded_channel();
    let capacity = watch::Sender::new(Capacity { slots: 1, abandoned: 0 });
    let models = Catalog::builtin(&[(TOML, ONNX)]).unwrap().contracts();
    let config = Config { slots: 1, queue: 0, ..Config::default() };
    let server = Running::start(config, Arc::new(Held { began, capacity }), models).await;
    let client = server.client(Form::Json);
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.infer(&task("digits", image(), &[])).await }
    });
    let mut run = runs.recv().await.unwrap();
    leaving.abort();
    timeout(BOUND, run.closed()).await.unwrap();
    let next = tokio::spawn(async move { client.infer(&task("digits", image(), &[])).await });
    timeout(BOUND, runs.recv()).await.unwrap().unwrap().send(()).unwrap();
    next.await.unwrap().unwrap();
}

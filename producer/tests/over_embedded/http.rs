//! The Open Inference Protocol over a real socket: what works, and every bad request a stranger would try.

use crate::rig::{Act, Station, sum};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use producer::http::{Face, Limits, router, serve};
use schemas::{Class, Datatype, FailureKind, ModelContract, Opaque, Payload, Tensor};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A face on a port of its own, and a client of it.
pub(crate) struct Site {
    pub(crate) address: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    _stop: oneshot::Sender<()>,
    _server: JoinHandle<()>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        let lines = self.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    /// The error, which every answer of this status must have.
    pub(crate) fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{:?}", self.body);
        self.json()["error"].as_str().expect("an error says why").to_owned()
    }
}

impl Site {
    pub(crate) async fn open(station: &Station) -> Self {
        Self::with_limits(station, Limits::default()).await
    }

    pub(crate) async fn with_limits(station: &Station, limits: Limits) -> Self {
        Self::of(face(station, limits).await).await
    }

    pub(crate) async fn of(face: Face) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(
            listener,
            router(face),
            crate::rig::PATIENCE,
            Box::pin(async {
                let _ = stopped.await;
            }),
        ));
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Self { address, http, _stop: stop, _server: server }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let answer = crate::rig::bounded(self.http.request(request)).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = crate::rig::bounded(body.collect()).await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    async fn post_text(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }
}

async fn face(station: &Station, limits: Limits) -> Face {
    Face {
        client: station.client().await,
        broker: station.broker.clone(),
        state: station.state.clone(),
        models: models(),
        limits,
        metrics_text: Arc::new(|| "straightline_up 1\n".to_owned()),
        obstacle: Arc::new(|| None),
    }
}

fn models() -> Vec<ModelContract> {
    let digits = json!({"name": "digits", "version": "2", "description": "sums", "platform": "onnx", "batch": true,
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1]}, {"name": "half", "datatype": "FP16", "shape": [-1]}]});
    let raw = json!({"name": "raw", "version": "1", "platform": "onnx", "inputs": [], "outputs": []});
    vec![serde_json::from_value(digits).unwrap(), serde_json::from_value(raw).unwrap()]
}

pub(crate) fn request() -> Value {
    json!({"id": "mine", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3.5, 4]]}]})
}

/// A request with a binary input, and the length of its head.
fn binary_request(outputs: &Value) -> (String, Vec<u8>) {
    let head = json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [2, 4],
        "parameters": {"binary_data_size": 32}}], "outputs": outputs})
    .to_string();
    let data = (0..8).flat_map(|n: u8| f32::from(n).to_le_bytes());
    (head.len().to_string(), head.bytes().chain(data).collect())
}

const INFER: &str = "/v2/models/digits/infer";

#[tokio::test]
async fn the_server_and_its_models_describe_themselves() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let server = site.get("/v2").await.json();
    assert_eq!(
        (&server["name"], &server["extensions"]),
        (&json!("straightline"), &json!(["binary_tensor_data"]))
    );
    assert_eq!(site.get("/v2/health/live").await.status, 200);
    assert_eq!(site.get("/v2/models").await.json(), json!({"models": ["digits", "raw"]}));
    let metadata = site.get("/v2/models/digits").await.json();
    assert_eq!(metadata["versions"], json!(["2"]));
    assert_eq!(metadata["inputs"], json!([{"name": "image", "datatype": "FP32", "shape": [-1, 4]}]));
    assert_eq!(metadata["outputs"][0], json!({"name": "sum", "datatype": "FP32", "shape": [-1]}));
    assert_eq!(site.get("/v2/models/digits/versions/2").await.json(), metadata);
    assert!(site.get("/v2/models/digits/versions/3").await.error(404).contains("there is 2"));
    assert!(site.get("/v2/models/digitz").await.error(404).contains("there are digits, raw"));
    assert!(site.get("/v2/models/A%2FB").await.error(404).contains("model"));
}

#[tokio::test]
async fn readiness_needs_a_dispatcher_and_a_worker() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    assert!(site.get("/v2/health/ready").await.error(503).contains("straightline dispatcher"));
    assert!(
        site.get("/v2/models/digits/ready").await.error(503).contains("no live worker runs model digits")
    );
    station.pretend_alive().await;
    assert_eq!(site.get("/v2/health/ready").await.json(), json!({"ready": true}));
    assert_eq!(site.get("/v2/models/digits/ready").await.status, 200);
    assert_eq!(site.get("/v2/models/digits/versions/2/ready").await.status, 200);
    assert_eq!(site.get("/v2/models/raw/ready").await.status, 503);
    station.state.forget_worker("worker-1").await.unwrap();
    assert!(site.get("/v2/health/ready").await.error(503).contains("no worker"));
}

#[tokio::test]
async fn an_inference_waits_for_its_result() {
    let station = Station::open().await;
    let responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    let site = Site::open(&station).await;
    let mut asked = request();
    asked["parameters"] = json!({"priority": "low", "deadline_ms": 5000, "temperature": 0.5});
    asked["outputs"] = json!([{"name": "sum"}]);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("content-type", "application/json"), ("traceparent", trace)];
    let answer = site.send(Method::POST, INFER, &headers, asked.to_string()).await;
    let body = answer.json();
    assert_eq!((answer.status, &body["id"]), (200, &json!("mine")));
    assert_eq!((&body["model_name"], &body["model_version"]), (&json!("digits"), &json!("2")));
    assert_eq!(body["outputs"], json!([{"name": "sum", "datatype": "FP32", "shape": [1], "data": [10.5]}]));
    assert_eq!(body["parameters"]["lane"], "local");
    assert_eq!(body["parameters"]["job_id"], answer.header("straightline-job"));

    let seen = responder.seen().remove(0);
    assert_eq!((seen.header.class, seen.header.trace.as_deref()), (Class::Low, Some(trace)));
    assert_eq!(seen.header.deadline.since(seen.header.submitted).as_millis(), 5000);
    assert_eq!(seen.body.outputs, ["sum"]);
    assert_eq!(seen.body.parameters.len(), 1, "ours are not the model's: {:?}", seen.body.parameters);

    assert_eq!(site.post("/v2/models/digits/versions/2/infer", &request()).await.status, 200);
    assert_eq!(responder.seen()[1].header.class, Class::High, "someone is waiting");
    assert_eq!(site.post("/v2/models/digits/versions/1/infer", &request()).await.status, 404);
}

#[tokio::test]
async fn binary_tensors_go_in_and_come_out() {
    let station = Station::open().await;
    let _responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    let site = Site::open(&station).await;
    let wanted = json!([{"name": "sum", "parameters": {"binary_data": true}}]);
    let (length, body) = binary_request(&wanted);
    let headers =
        [("content-type", "application/octet-stream"), ("inference-header-content-length", length.as_str())];
    let answer = site.send(Method::POST, INFER, &headers, body).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/octet-stream"));
    let head: usize = answer.header("inference-header-content-length").parse().unwrap();
    let (head, data) = answer.body.split_at(head);
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 4);
    assert_eq!(data, 28f32.to_le_bytes());
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());

    let (length, body) = binary_request(&json!([]));
    let headers = [("inference-header-content-length", length.as_str())];
    let answer = site.send(Method::POST, INFER, &headers, body).await;
    assert_eq!(answer.json()["outputs"][0]["data"], json!([28.0]), "JSON unless asked otherwise");
}

#[tokio::test]
async fn what_json_cannot_carry_is_said_so_and_comes_as_binary() {
    let station = Station::open().await;
    let half = Tensor::new("half", Datatype::Fp16, [1], vec![0, 0x3c]).unwrap();
    let _responder = station.respond(move |_, _| Act::Answer(Payload::Tensors(vec![half.clone()]))).await;
    let site = Site::open(&station).await;
    assert!(site.post(INFER, &request()).await.error(400).contains("ask for binary data"));
    let mut asked = request();
    asked["parameters"] = json!({"binary_data_output": true});
    let answer = site.post(INFER, &asked).await;
    assert_eq!((answer.status, answer.body.ends_with(&[0, 0x3c])), (200, true));
}

#[tokio::test]
async fn opaque_outputs_come_as_they_are() {
    let station = Station::open().await;
    let image = Opaque { content_type: "image/png".into(), data: Bytes::from_static(b"\x89PNG") };
    let large =
        Payload::Opaque(Opaque { content_type: "text/plain".into(), data: vec![b'x'; 300_000].into() });
    let large = Payload::Blob(station.blobs.put(&large).await.unwrap());
    let _responder = station
        .respond(move |header, _| match header.class {
            Class::Low => Act::Answer(large.clone()),
            _ => Act::Answer(Payload::Opaque(image.clone())),
        })
        .await;
    let site = Site::open(&station).await;
    let answer = site.post(INFER, &request()).await;
    assert_eq!(
        (answer.status, answer.header("content-type"), &answer.body[..]),
        (200, "image/png", &b"\x89PNG"[..])
    );
    let mut asked = request();
    asked["parameters"] = json!({"priority": 3});
    let answer = site.post(INFER, &asked).await;
    assert_eq!((answer.header("content-type"), answer.body.len()), ("text/plain", 300_000));
}

#[tokio::test]
async fn every_bad_request_has_its_clear_error() {
    let station = Station::open().await;
    let site = Site::with_limits(
        &station,
        Limits { json_bytes_max: 4096, body_bytes_max: 8192, ..Limits::default() },
    )
    .await;
    let with = |path: &str, value: Value| {
        let mut request = request();
        *request.pointer_mut(path).unwrap() = value;
        request.to_string()
    };
    let input = |value: Value| json!({"inputs": [value]}).to_string();
    let cases = [
        ("hello".to_owned(), 400, "not the JSON it should be"),
        (String::new(), 400, "EOF"),
        ("[]".into(), 400, "invalid"),
        ("{}".into(), 400, "missing field `inputs`"),
        (with("/inputs", json!(7)), 400, "inputs: invalid type: integer `7`"),
        (with("/inputs/0/datatype", json!("FP99")), 400, "inputs[0].datatype: unknown variant `FP99`"),
        (with("/inputs/0/shape", json!("4")), 400, "inputs[0].shape: invalid type: string"),
        (with("/inputs/0/shape", json!([1, -4])), 400, "inputs[0].shape[1]: invalid value: integer `-4`"),
        (with("/inputs/0/shape", json!([2, 4])), 400, "takes 8 elements"),
        (with("/inputs/0/data", json!(["a", "b", "c", "d"])), 400, "does not fit datatype FP32"),
        (with("/inputs/0/data", json!([null])), 400, "inputs[0].data[0]: null is not a value"),
        (with("/inputs/0/name", json!("picture")), 400, "takes no tensor \"picture\""),
        (with("/inputs", json!([])), 400, "misses tensor \"image\""),
        (
            input(json!({"name": "image", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]})),
            400,
            "of shape [-1, 4], not [4]",
        ),
        (
            input(json!({"name": "image", "datatype": "INT8", "shape": [1, 4], "data": [1, 2, 3, 4]})),
            400,
            "as FP32, not INT8",
        ),
        (input(json!({"name": "image", "datatype": "FP32", "shape": [1, 4]})), 400, "neither data nor"),
        (
            input(json!({"datatype": "FP32", "shape": [1, 4], "data": [1]})),
            400,
            "inputs[0]: missing field `name`",
        ),
        (with("/id", json!(7)), 400, "id: invalid type"),
        (
            json!({"inputs": request()["inputs"], "outputs": [{"name": "product"}]}).to_string(),
            400,
            "gives no output \"product\"",
        ),
        (
            json!({"inputs": request()["inputs"], "parameters": {"deadline_ms": 0}}).to_string(),
            400,
            "deadline_ms is 0 ms",
        ),
        (
            json!({"inputs": request()["inputs"], "parameters": {"priority": "now"}}).to_string(),
            400,
            "priority",
        ),
        (" ".repeat(5000), 413, "body is over 4096 bytes"),
    ];
    for (body, status, expected) in cases {
        let answer = site.post_text(INFER, body.clone()).await;
        let error = answer.error(status);
        assert!(error.contains(expected), "{body}\n{error}");
    }
    let gzip = [("content-encoding", "gzip"), ("content-type", "application/x-ndjson")];
    for path in [INFER, "/v1/jobs"] {
        let error = site.send(Method::POST, path, &gzip, "\x1f").await.error(415);
        assert!(error.contains("content encoding \"gzip\" is not supported"), "{error}");
    }
    let headers = [("inference-header-content-length", "99999")];
    let error = site.send(Method::POST, INFER, &headers, "{}").await.error(400);
    assert!(error.contains("Inference-Header-Content-Length is 99999"), "{error}");
    let headers = [("inference-header-content-length", "5000")];
    let error = site.send(Method::POST, INFER, &headers, vec![b' '; 6000]).await.error(413);
    assert!(error.contains("send large tensors as binary data"), "{error}");

    assert!(
        site.post("/v2/models/cats/infer", &request()).await.error(404).contains("model cats is not known")
    );
    assert!(site.get(INFER).await.error(405).contains("does not take GET"));
    let none = site.get("/v3").await.error(404);
    assert!(none.contains("no route /v3") && none.contains("/v1/results"), "{none}");
    assert_eq!(station.ready(broker::Queue::Jobs(Class::High)).await, 0, "nothing of it became a job");
}

/// The whole body, then the answer, as most callers do it; a refusal must not break the pipe under them.
#[tokio::test]
async fn a_refused_body_is_read_to_its_end() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let mut caller = TcpStream::connect(&site.address).await.unwrap();
    let body = vec![b' '; 80 << 20];
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: it\r\ncontent-length: {}\r\n\r\n", body.len());
    caller.write_all(head.as_bytes()).await.unwrap();
    caller.write_all(&body).await.unwrap();
    let mut answer = [0; 12];
    crate::rig::bounded(caller.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn how_a_job_ends_shows_in_the_status() {
    let station = Station::open().await;
    let _responder = station
        .respond(|header, _| match header.class {
            Class::High => Act::Die(FailureKind::ModelError),
            Class::Normal => Act::Die(FailureKind::Unplaceable),
            Class::Low => Act::Swallow,
        })
        .await;
    let site = Site::open(&station).await;
    let ask = |parameters: Value| json!({"inputs": request()["inputs"], "parameters": parameters});
    assert!(site.post(INFER, &ask(json!({}))).await.error(500).contains("as told"));
    assert!(site.post(INFER, &ask(json!({"priority": "normal"}))).await.error(422).contains("as told"));
    let passed = site.post(INFER, &ask(json!({"priority": "low", "deadline_ms": 1}))).await;
    assert!(passed.error(504).contains("has not ended within"), "{:?}", passed.body);
    assert!(!passed.header("straightline-job").is_empty(), "the job can still be looked for");
}

#[tokio::test]
async fn an_inference_is_not_waited_for_beyond_the_limit() {
    let station = Station::open().await;
    let limits = Limits { wait_max: Duration::from_millis(50), ..Limits::default() };
    let site = Site::with_limits(&station, limits).await;
    let mut asked = request();
    asked["parameters"] = json!({"deadline_ms": 24 * 3_600_000});
    let late = site.post(INFER, &asked).await;
    let job = late.header("straightline-job").to_owned();
    assert!(late.error(504).ends_with(&format!("look for it at /v1/jobs/{job}")), "{:?}", late.body);
    assert_eq!(site.get(&format!("/v1/jobs/{job}")).await.status, 202, "it is as it was");
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_keep_the_face_from_ending() {
    let station = Station::open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let router = router(face(&station, Limits::default()).await);
    let server = tokio::spawn(serve(
        listener,
        router,
        Duration::from_millis(20),
        Box::pin(async {
            let _ = stopped.await;
        }),
    ));
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: it\r\ntransfer-encoding: chunked\r\n").await.unwrap();
    caller.write_all(b"content-type: application/x-ndjson\r\n\r\n").await.unwrap();
    // It is being answered, and says nothing more.
    caller.read_exact(&mut [0; 12]).await.unwrap();
    stop.send(()).unwrap();
    crate::rig::bounded(server).await.unwrap();
}

#[tokio::test]
async fn a_process_that_does_not_do_its_part_is_not_ready() {
    let station = Station::open().await;
    station.pretend_alive().await;
    let mut face = face(&station, Limits::default()).await;
    face.obstacle = Arc::new(|| Some("this process's worker takes no jobs"));
    let site = Site::of(face).await;
    assert!(site.get("/v2/health/ready").await.error(503).contains("takes no jobs"));
    assert_eq!(site.get("/v2/health/live").await.status, 200);
}

#[tokio::test]
async fn at_a_limit_the_caller_is_told_to_come_back() {
    let limits = broker::Limits { queue_messages_max: 1, ..broker::Limits::default() };
    let station = Station::with_limits(limits).await;
    let config = producer::Config { patience: Duration::from_millis(50), ..station.config() };
    let mut face = face(&station, Limits { waits_max: 1, ..Limits::default() }).await;
    face.client = station.client_of(config).await;
    let site = Site::of(face).await;

    let asked = request();
    let first = site.post(INFER, &asked);
    let mut first = std::pin::pin!(first);
    crate::rig::bounded(async {
        while station.ready(broker::Queue::Jobs(Class::High)).await == 0 {
            tokio::select! {
                _ = &mut first => panic!("nobody answers it"),
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
    let refused = site.post(INFER, &request()).await;
    assert!(refused.error(429).contains("1 requests are waiting"), "{:?}", refused.body);
    assert_eq!(refused.header("retry-after"), "1");
    let mut job = request();
    job.as_object_mut().unwrap().remove("id");
    job["model"] = json!("digits");
    job["class"] = json!("high");
    let full = site.post("/v1/jobs", &job).await;
    assert!(full.error(503).contains("queue jobs.high was full"), "{:?}", full.body);
    assert_eq!(full.header("retry-after"), "1");
}

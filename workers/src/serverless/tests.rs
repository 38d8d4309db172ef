use super::*;
use schemas::tensor::Datatype;
use schemas::{FailureKind, JobId, Payload, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Answers every event the same, and keeps what it was asked.
struct Canned {
    answer: Result<&'static str, InvokeError>,
    calls: Mutex<Vec<Call>>,
}

#[async_trait]
impl Functions for Canned {
    fn backend(&self) -> Backend {
        Backend::default()
    }

    async fn invoke(&self, call: Call) -> Result<Bytes, InvokeError> {
        self.calls.lock().unwrap().push(call);
        self.answer.clone().map(|answer| Bytes::from_static(answer.as_bytes()))
    }

    async fn stop(&self) {}
}

fn lane(answer: Result<&'static str, InvokeError>) -> (Serverless, Arc<Canned>) {
    let functions = Arc::new(Canned { answer, calls: Mutex::default() });
    let config = Config { concurrency_max: 3, payload_bytes_max: 1_000 };
    let models = vec![ModelName::new("m").unwrap()];
    (Serverless::new(&config, Arc::clone(&functions) as Arc<dyn Functions>, models).unwrap(), functions)
}

fn task(input: Payload) -> Task {
    Task {
        id: JobId::new(),
        model: ModelName::new("m").unwrap(),
        attempt: 1,
        input,
        outputs: vec!["label".to_owned()],
        parameters: BTreeMap::new(),
        limit: Duration::from_secs(7),
    }
}

fn image(values: &[f32]) -> Payload {
    Payload::Tensors(vec![Tensor::fp32("image", [values.len() as u64], values).unwrap()])
}

const ANSWER: &str = r#"{"model_name":"m","outputs":[{"name":"label","datatype":"FP32","shape":[1],"data":[3]}],"parameters":{"run_us":1}}"#;

#[tokio::test]
async fn a_job_is_one_event_and_an_answer_is_its_run() {
    let (lane, functions) = lane(Ok(ANSWER));
    let task = task(image(&[0.5, 2.0]));
    let id = task.id.to_string();
    let ran = lane.run(task).await.unwrap();
    assert_eq!(ran.output, Payload::Tensors(vec![Tensor::fp32("label", [1], &[3.0]).unwrap()]));
    assert_eq!(ran.run_time, Duration::from_micros(1));
    let calls = functions.calls.lock().unwrap();
    let event = json!({"model_name": "m", "id": id, "outputs": [{"name": "label"}],
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [2], "data": [0.5, 2.0]}]});
    assert_eq!(serde_json::from_slice::<Value>(&calls[0].event).unwrap(), event);
    assert_eq!((calls[0].model.as_str(), calls[0].limit), ("m", Duration::from_secs(7)));
}

#[tokio::test]
async fn what_cannot_be_an_event_is_not_invoked() {
    let (lane, functions) = lane(Ok(ANSWER));
    let half = Tensor::new("half", Datatype::Fp16, [1], vec![0, 0x3c]).unwrap();
    let opaque = Payload::Opaque(schemas::payload::Opaque {
        content_type: "image/png".into(),
        data: Bytes::from_static(b"x"),
    });
    for (input, kind, words) in [
        (Payload::Tensors(vec![half]), FailureKind::InvalidInput, "FP16"),
        (opaque, FailureKind::InvalidInput, "not opaque bytes"),
        // As JSON it is longer than as raw bytes, and the other is hopeless from the start.
        (image(&[0.123_456; 150]), FailureKind::LaneUnavailable, "functions take at most 1000"),
        (image(&[0.0; 2_000]), FailureKind::LaneUnavailable, "more than 2000 bytes"),
    ] {
        let failure = lane.run(task(input)).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
    assert!(functions.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn whose_fault_it_is_shows_in_the_kind() {
    let function =
        |type_: &str| InvokeError::Function { type_: type_.to_owned(), message: "a\n  b".to_owned() };
    for (error, kind, words) in [
        (function("ValueError"), FailureKind::ModelError, "function of m failed with ValueError: a b"),
        (function("invalid_input"), FailureKind::InvalidInput, "a b"),
        (function("unknown_model"), FailureKind::LaneUnavailable, "a b"),
        (function("busy"), FailureKind::Busy, "a b"),
        (
            InvokeError::Throttled { words: "waits".into(), retry_after: None },
            FailureKind::Busy,
            "function of m waits",
        ),
        (InvokeError::TooLarge("is small".into()), FailureKind::LaneUnavailable, "is small"),
        (InvokeError::TimedOut("hung".into()), FailureKind::Timeout, "hung"),
        (InvokeError::Unreachable("is away".into()), FailureKind::LaneUnavailable, "is away"),
    ] {
        let failure = lane(Err(error)).0.run(task(image(&[1.0]))).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
    for rubbish in ["", "rubbish", "null", r#"{"error":"no"}"#] {
        let failure = lane(Ok(rubbish)).0.run(task(image(&[1.0]))).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ModelError, "{failure}");
        assert!(failure.message.contains("no answer"), "{failure}");
    }
}

#[tokio::test]
async fn its_slots_are_the_concurrency_limit_until_it_stops() {
    let (lane, _) = lane(Ok(ANSWER));
    assert_eq!((lane.lane(), lane.capacity().borrow().slots), (Lane::Serverless, 3));
    lane.stop().await;
    assert_eq!(lane.capacity().borrow().slots, 0);
    for (slots, models, expected) in
        [(0, vec![ModelName::new("m").unwrap()], "concurrency_max is 0"), (1, Vec::new(), "models is empty")]
    {
        let functions = Arc::new(Canned { answer: Ok(""), calls: Mutex::default() });
        let config = Config { concurrency_max: slots, ..Config::default() };
        let error = Serverless::new(&config, functions, models).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

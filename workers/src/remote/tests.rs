use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Response};
use hyper_util::rt::TokioIo;
use schemas::{JobId, Tensor};
use std::collections::BTreeMap;
use std::convert::Infallible;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(20);

/// A server that answers everything so.
async fn server(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: impl Into<Bytes>,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = body.into();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let body = body.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let body = body.clone();
                async move {
                    request.into_body().collect().await.unwrap();
                    let mut response = Response::builder().status(status);
                    for (name, value) in headers {
                        response = response.header(*name, *value);
                    }
                    Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    url
}

fn task(limit: Duration) -> Task {
    Task {
        id: JobId::new(),
        model: ModelName::new("m").unwrap(),
        attempt: 1,
        input: Payload::Tensors(vec![Tensor::fp32("image", [1, 2], &[0.5, 2.0]).unwrap()]),
        outputs: Vec::new(),
        parameters: BTreeMap::new(),
        limit,
    }
}

fn at(url: &str) -> ModelServer {
    ModelServer::new(Http::new(), url, Form::Binary, 1_000).unwrap()
}

#[tokio::test]
async fn an_answer_becomes_tensors_and_the_model_s_own_time_is_believed_up_to_the_whole() {
    let body = r#"{"model_name":"m","outputs":[{"name":"p","datatype":"FP32","shape":[1],"data":[0.25]}],"parameters":{"run_us":1}}"#;
    let ran = at(&server(200, &[], body).await).infer(&task(LIMIT)).await.unwrap();
    assert_eq!(ran.output, Payload::Tensors(vec![Tensor::fp32("p", [1], &[0.25]).unwrap()]));
    assert_eq!(ran.run_time, Duration::from_micros(1));
}

#[tokio::test]
async fn whose_fault_it_is_shows_in_the_kind() {
    for (status, headers, body, kind, words) in [
        (400, &[][..], r#"{"error":"no tensor named x"}"#, FailureKind::InvalidInput, "no tensor named x"),
        (404, &[], "", FailureKind::LaneUnavailable, "without a word"),
        (429, &[("retry-after", "7")], "slow\n  down", FailureKind::Busy, "429: slow down"),
        (503, &[], "", FailureKind::Busy, "503"),
        // Limits and settings of this server: another may do.
        (413, &[], "", FailureKind::LaneUnavailable, "413"),
        (415, &[], "", FailureKind::LaneUnavailable, "415"),
        // It gave up, and is well.
        (504, &[], "", FailureKind::ModelError, "504"),
        (500, &[], "Traceback", FailureKind::ModelError, "Traceback"),
        (200, &[], "rubbish", FailureKind::ModelError, "no answer"),
        (200, &[("inference-header-content-length", "x")], "{}", FailureKind::ModelError, "whole number"),
    ] {
        let failure = at(&server(status, headers, body).await).infer(&task(LIMIT)).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert_eq!(failure.retry_after, (status == 429).then_some(Duration::from_secs(7)), "{failure}");
    }
    let long = at(&server(200, &[], vec![b'x'; 2_000]).await).infer(&task(LIMIT)).await.unwrap_err();
    assert_eq!((long.kind, long.message.contains("more than 1000 bytes")), (FailureKind::ModelError, true));
    let words = refused(
        &ModelName::new("m").unwrap(),
        &Reply { status: StatusCode::BAD_GATEWAY, headers: HeaderMap::new(), body: vec![b'y'; 9_000].into() },
    );
    assert!(words.message.len() < 400, "{words}");
}

#[tokio::test]
async fn who_is_not_there_who_hangs_and_who_leaves_are_told_apart() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = at(&format!("http://{nobody}")).infer(&task(LIMIT)).await.unwrap_err();
    assert_eq!(gone.kind, FailureKind::LaneUnavailable, "{gone}");

    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at_hanging = at(&format!("http://{}", hanging.local_addr().unwrap()));
    let hung = at_hanging.infer(&task(Duration::from_millis(100))).await.unwrap_err();
    assert_eq!(hung.kind, FailureKind::Timeout, "{hung}");

    let leaving = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at_leaving = at(&format!("http://{}", leaving.local_addr().unwrap()));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = leaving.accept().await.unwrap();
            // Until all of it has come: a connection that ends before is asked again on another.
            let mut request = Vec::new();
            while !request.windows(4).any(|four| four == [0, 0, 0, 0x40]) {
                tokio::io::AsyncReadExt::read_buf(&mut stream, &mut request).await.unwrap();
            }
        }
    });
    let left = at_leaving.infer(&task(LIMIT)).await.unwrap_err();
    assert_eq!(left.kind, FailureKind::ModelError, "our worker is well: {left}");
}

#[tokio::test]
async fn readiness_is_what_the_server_says() {
    assert_eq!(at(&server(200, &[], "").await).ready(LIMIT).await, Ok(()));
    let told = at(&server(503, &[], r#"{"error":"still loading"}"#).await).ready(LIMIT).await.unwrap_err();
    assert_eq!(told, "it answers 503: still loading");
}

#[test]
fn an_address_that_cannot_be_one_is_refused() {
    for url in ["", "localhost:80", "ftp://host", "http://", "http://h?x=1", "unix:/x"] {
        let error = ModelServer::new(Http::new(), url, Form::Json, 1).unwrap_err().to_string();
        assert!(error.contains("http://host:port"), "{error}");
    }
    assert_eq!(ModelServer::new(Http::new(), "http://h:1/x/", Form::Json, 1).unwrap().base, "http://h:1/x");
}

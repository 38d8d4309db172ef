//! `/v1/jobs` and `/v1/results` over a real socket.

use crate::http::{Answer, Site, request};
use crate::rig::{Act, Station, bounded, sum};
use broker::Queue;
use bytes::Bytes;
use hyper::Method;
use producer::http::{Limits, read_job};
use schemas::{Class, FailureKind, JobId, Opaque, Payload};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn job() -> Value {
    json!({"model": "digits", "inputs": request()["inputs"]})
}

async fn accepted(answer: Answer) -> String {
    assert_eq!(answer.status, 202, "{:?}", answer.body);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"));
    id
}

#[tokio::test]
async fn a_job_is_accepted_looked_at_and_its_result_waited_for() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let mut asked = job();
    asked["class"] = json!("low");
    asked["deadline_ms"] = json!(60_000);
    asked["outputs"] = json!([{"name": "sum"}]);
    asked["parameters"] = json!({"top": 3});
    let id = accepted(site.post("/v1/jobs", &asked).await).await;
    let pending = site.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((pending.status, pending.json()), (202, json!({"id": id, "status": "pending"})));
    assert_eq!(pending.header("retry-after"), "1");
    let still = site.get(&format!("/v1/jobs/{id}?wait_ms=20")).await;
    assert_eq!(still.status, 202);

    let path = format!("/v1/jobs/{id}?wait_ms=60000");
    let (result, responder) =
        tokio::join!(site.get(&path), station.respond(|_, body| Act::Answer(sum(body))));
    let body = result.json();
    assert_eq!((result.status, &body["status"], &body["id"]), (200, &json!("succeeded"), &json!(id)));
    assert_eq!(body["output"]["tensors"][0]["data"], json!([10.5]));
    let seen = responder.seen().remove(0);
    assert_eq!((seen.header.class, seen.header.reply_to), (Class::Low, None));
    assert_eq!(seen.body.outputs, ["sum"]);
    assert_eq!(seen.body.parameters.len(), 1);

    let output = site.get(&format!("/v1/jobs/{id}/output")).await.json();
    assert_eq!((&output["model_name"], &output["model_version"]), (&json!("digits"), &json!("2")));
    assert_eq!(output["outputs"][0]["data"], json!([10.5]));
    let accept = [("accept", "application/octet-stream")];
    let binary = site.send(Method::GET, &format!("/v1/jobs/{id}/output"), &accept, "").await;
    assert!(binary.body.ends_with(&10.5f32.to_le_bytes()) && binary.status == 200);
}

#[tokio::test]
async fn what_says_nothing_of_its_content_is_taken_for_json() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    for headers in [&[][..], &[("content-type", "application/x-www-form-urlencoded")]] {
        accepted(site.send(Method::POST, "/v1/jobs", headers, job().to_string()).await).await;
    }
}

#[tokio::test]
async fn an_id_that_cannot_be_pending_is_not_found() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    // Version 7, made in 1970.
    let old = "00000000-0000-7000-8000-000000000000";
    assert!(site.get(&format!("/v1/jobs/{old}")).await.error(404).contains("is not known"));
    assert_eq!(site.get(&format!("/v1/jobs/{old}/output")).await.status, 404);
    assert!(site.get("/v1/jobs/job-7").await.error(400).contains("job id \"job-7\" is not a UUID"));
    let wrong = site.get(&format!("/v1/jobs/{old}?wait_ms=soon")).await.error(400);
    assert!(wrong.contains("wait_ms"), "{wrong}");
    let unknown = site.get(&format!("/v1/jobs/{old}?wait=1")).await.error(400);
    assert!(unknown.contains("wait"), "{unknown}");
}

#[tokio::test]
async fn one_key_is_one_job() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "order 7")];
    let one = accepted(site.send(Method::POST, "/v1/jobs", &headers, job().to_string()).await).await;
    let two = accepted(site.send(Method::POST, "/v1/jobs", &headers, job().to_string()).await).await;
    assert_eq!(one, two);
    assert_eq!(site.get(&format!("/v1/jobs/{one}")).await.status, 202, "an id made from a key tells no time");
    let mut other = job();
    other["inputs"][0]["data"] = json!([9, 9, 9, 9]);
    let conflict = site.send(Method::POST, "/v1/jobs", &headers, other.to_string()).await;
    assert!(conflict.error(409).contains("another input"));

    let id = JobId::new().to_string();
    let mut named = job();
    named["id"] = json!(id);
    assert_eq!(accepted(site.post("/v1/jobs", &named).await).await, id);
    named["key"] = json!("k");
    assert!(site.post("/v1/jobs", &named).await.error(400).contains("not both"));
}

#[tokio::test]
async fn opaque_bytes_go_in_by_content_type() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let headers = [("content-type", "Image/PNG; q=1")];
    let path = "/v1/jobs?model=raw&class=high&attempts_max=1";
    accepted(site.send(Method::POST, path, &headers, Bytes::from_static(b"\x89PNG")).await).await;
    let answer = Payload::Opaque(Opaque { content_type: "text/plain".into(), data: "a cat".into() });
    let responder = station.respond(move |_, _| Act::Answer(answer.clone())).await;
    responder.handled(1).await;
    let seen = responder.seen().remove(0);
    let opaque = Opaque { content_type: "image/png".into(), data: Bytes::from_static(b"\x89PNG") };
    assert_eq!(seen.body.input, Payload::Opaque(opaque));
    assert_eq!((seen.header.class, seen.header.attempts_max), (Class::High, Some(1)));
    let output = site.get(&format!("/v1/jobs/{}/output?wait_ms=60000", seen.header.id)).await;
    assert_eq!((output.header("content-type"), &output.body[..]), ("text/plain", &b"a cat"[..]));

    let long = site.send(Method::POST, "/v1/jobs?model=raw&attempts_max=300", &headers, "x").await;
    assert!(long.error(400).contains("attempts_max is 300: use 1 to 20"), "{:?}", long.body);
    let late = site.send(Method::POST, "/v1/jobs?model=raw&deadline_ms=0", &headers, "x").await;
    assert!(late.error(400).contains("deadline_ms is 0 ms"), "{:?}", late.body);
    let refused = site.send(Method::POST, "/v1/jobs?model=digits", &headers, "x").await;
    assert!(refused.error(400).contains("takes tensors"), "{:?}", refused.body);
    let strange = site.send(Method::POST, "/v1/jobs", &[("content-type", "text/html")], "x").await;
    assert!(strange.error(415).contains("?model=NAME"), "{:?}", strange.body);
    let query = site.send(Method::POST, "/v1/jobs?model=raw&class=urgent", &headers, "x").await;
    assert!(query.error(400).contains("urgent"), "{:?}", query.body);
}

#[tokio::test]
async fn bad_jobs_are_told_what_is_wrong() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let with = |field: &str, value: Value| {
        let mut job = job();
        job[field] = value;
        job
    };
    for (job, status, expected) in [
        (json!({"inputs": []}), 400, "missing field `model`"),
        (with("model", json!("Digits")), 400, "model \"Digits\" is not allowed"),
        (with("model", json!("cats")), 404, "model cats is not known"),
        (with("dead_line_ms", json!(5)), 400, "unknown field `dead_line_ms`"),
        (with("class", json!("urgent")), 400, "unknown variant `urgent`"),
        (with("deadline_ms", json!(-1)), 400, "deadline_ms: invalid value"),
        (with("deadline_ms", json!(0)), 400, "deadline_ms is 0 ms"),
        (with("run_timeout_ms", json!(0)), 400, "run_timeout_ms is 0 ms"),
        (with("attempts_max", json!(1000)), 400, "attempts_max is 1000: use 1 to 20"),
        (with("attempts_max", json!(21)), 400, "attempts_max must be 1 to 20"),
        (with("id", json!("x")), 400, "id: job id \"x\" is not a UUID"),
        (with("key", json!("")), 400, "key has 0 bytes"),
    ] {
        let error = site.post("/v1/jobs", &job).await.error(status);
        assert!(error.contains(expected), "{job}\n{error}");
    }
    assert!(read_job(b"{").unwrap_err().contains("JSON"));
    assert_eq!(read_job(job().to_string().as_bytes()).unwrap().model.as_str(), "digits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_lines_become_jobs_and_their_results_come_as_lines() {
    const LINES: usize = 3_000;
    let station = Station::open().await;
    let _responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    let site = Site::open(&station).await;
    let mut lines = String::new();
    for n in 0..LINES {
        let mut job = job();
        job["inputs"][0]["data"] = json!([n, 0, 0, 0]);
        lines += &format!("{job}\n");
        if n % 1000 == 0 {
            lines += "\n  \n";
        }
    }
    lines += "{\"model\":\"cats\",\"inputs\":[]}\nnonsense";
    let headers = [("content-type", "application/x-ndjson")];
    let answer = site.send(Method::POST, "/v1/jobs", &headers, lines).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-ndjson"));
    let mut answers = answer.lines();
    answers.sort_by_key(|answer| answer["index"].as_u64());
    assert_eq!(answers.len(), LINES + 2, "blank lines do not count");
    assert_eq!(
        (answers[LINES]["status"].as_u64(), answers[LINES + 1]["status"].as_u64()),
        (Some(404), Some(400))
    );
    assert!(answers[LINES + 1]["error"].as_str().unwrap().contains("JSON"));

    let ids: Vec<_> = answers[..LINES].iter().map(|answer| answer["id"].clone()).collect();
    let mut found = std::collections::HashMap::new();
    for ids in ids.chunks(1_000) {
        let results = site.post("/v1/results", &json!({"ids": ids, "wait_ms": 60_000})).await;
        assert_eq!(results.header("content-type"), "application/x-ndjson");
        for result in results.lines() {
            let id = result["id"].as_str().unwrap().to_owned();
            assert!(found.insert(id, result["output"]["tensors"][0]["data"][0].clone()).is_none());
        }
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(found[id.as_str().unwrap()].as_f64(), Some(f64::from(u32::try_from(n).unwrap())));
    }
}

#[tokio::test]
async fn lines_over_a_limit_end_the_reading_and_say_so() {
    let station = Station::open().await;
    let limits = Limits {
        line_bytes_max: 1024,
        unread_max: 1,
        body_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let site = Site::with_limits(&station, limits).await;
    let headers = [("content-type", "application/x-ndjson")];
    let answer =
        site.send(Method::POST, "/v1/jobs", &headers, format!("{}\n{}", job(), " ".repeat(70_000))).await;
    let mut lines = answer.lines();
    lines.sort_by_key(|answer| answer["index"].as_u64());
    assert!(lines[0]["id"].is_string(), "what came before it is taken");
    assert_eq!((lines[1]["index"].as_u64(), lines[1]["status"].as_u64()), (Some(1), Some(413)));
    assert!(lines[1]["error"].as_str().unwrap().contains("line is over 1024 bytes"));
}

#[tokio::test]
async fn many_results_are_fetched_at_once() {
    let station = Station::open().await;
    let _responder = station
        .respond(|header, body| match header.class {
            Class::Low => Act::Swallow,
            _ => Act::Answer(sum(body)),
        })
        .await;
    let site = Site::with_limits(&station, Limits { ids_max: 3, ..Limits::default() }).await;
    let done = accepted(site.post("/v1/jobs", &job()).await).await;
    let mut never = job();
    never["class"] = json!("low");
    let never = accepted(site.post("/v1/jobs", &never).await).await;
    assert_eq!(site.get(&format!("/v1/jobs/{done}?wait_ms=60000")).await.status, 200);

    let both = site.get(&format!("/v1/results?ids={never},{done}")).await.json();
    assert_eq!((&both["results"][0], &both["results"][1]["id"]), (&Value::Null, &json!(done)));
    let lines = site.post("/v1/results", &json!({"ids": [never, done], "wait_ms": 30})).await.lines();
    assert_eq!((lines.len(), &lines[0]["id"]), (1, &json!(done)));
    let lines = site.post("/v1/results", &json!({"ids": [never]})).await;
    assert_eq!((lines.status, lines.body.len()), (200, 0));

    for (body, expected) in [
        (json!({"ids": []}), "send 1 to 3 at once"),
        (json!({"ids": [never, never, never, never]}), "ids has 4"),
        (json!({"ids": ["x"]}), "ids[0]: job id \"x\" is not a UUID"),
        (json!({}), "missing field `ids`"),
    ] {
        let error = site.post("/v1/results", &body).await.error(400);
        assert!(error.contains(expected), "{error}");
    }
    assert!(site.get("/v1/results?ids=x").await.error(400).contains("is not a UUID"));
    assert!(site.get("/v1/results").await.error(400).contains("ids"));
}

/// A caller that asks for much and reads nothing has a bounded part of it held for it, and gets all when it reads.
#[tokio::test]
async fn results_that_nobody_reads_are_held_within_what_may_be_in_hand() {
    const OUTPUTS: usize = 32;
    let station = Station::open().await;
    let large = Payload::Opaque(Opaque { content_type: "t".into(), data: vec![7; 1 << 20].into() });
    let large = station.blobs.put(&large).await.unwrap();
    let _responder = station.respond(move |_, _| Act::Answer(Payload::Blob(large.clone()))).await;
    let limits = Limits {
        body_bytes_max: 1 << 20,
        json_bytes_max: 1 << 20,
        line_bytes_max: 1 << 20,
        bodies_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let site = Site::with_limits(&station, limits).await;
    let mut ids = Vec::new();
    for _ in 0..OUTPUTS {
        ids.push(accepted(site.post("/v1/jobs", &job()).await).await);
    }
    for id in &ids {
        let done = site.post("/v1/results", &json!({"ids": [id], "wait_ms": 60_000})).await;
        assert_eq!(done.lines()[0]["status"], "succeeded");
    }
    let mut caller = TcpStream::connect(&site.address).await.unwrap();
    let request =
        format!("GET /v1/results?ids={} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n", ids.join(","));
    caller.write_all(request.as_bytes()).await.unwrap();
    // Once as much is on its way as the sockets take, the next output is in hand, and so nothing else may be.
    bounded(async {
        loop {
            let refused = site.post("/v1/jobs", &job()).await;
            match refused.status {
                503 => return assert!(refused.error(503).contains("bodies in hand are at their limit")),
                status => assert_eq!(status, 202),
            }
        }
    })
    .await;
    let mut answer = Vec::new();
    bounded(caller.read_to_end(&mut answer)).await.unwrap();
    let succeeded = String::from_utf8(answer).unwrap().matches("\"status\":\"succeeded\"").count();
    assert_eq!(succeeded, OUTPUTS);
    accepted(site.post("/v1/jobs", &job()).await).await;
}

#[tokio::test]
async fn many_results_come_in_order_and_whether_large_or_small() {
    let station = Station::open().await;
    let _responder = station
        .respond(|header, body| match header.class {
            Class::Low => {
                Act::Answer(Payload::Opaque(Opaque { content_type: "t".into(), data: vec![7; 9_000].into() }))
            }
            _ => Act::Answer(sum(body)),
        })
        .await;
    let site = Site::open(&station).await;
    let mut ids = Vec::new();
    for n in 0..40 {
        let mut job = job();
        job["class"] = json!(if n % 2 == 0 { "low" } else { "high" });
        ids.push(accepted(site.post("/v1/jobs", &job).await).await);
    }
    let lines = site.post("/v1/results", &json!({"ids": ids, "wait_ms": 60_000})).await.lines();
    assert_eq!(lines.len(), ids.len());
    let outputs = |of: &[Value]| of.iter().filter(|result| result["output"].is_object()).count();
    assert_eq!(outputs(&lines), ids.len());
    let mut asked = ids.clone();
    asked.push(JobId::new().to_string());
    let all = site.get(&format!("/v1/results?ids={}", asked.join(","))).await.json();
    let results = all["results"].as_array().unwrap();
    assert_eq!(results.len(), asked.len());
    assert!(results.iter().zip(&ids).all(|(result, id)| result["id"] == id.as_str()));
    assert_eq!((outputs(results), &results[40]), (ids.len(), &Value::Null));
}

#[tokio::test]
async fn an_output_that_is_gone_does_not_spoil_other_results() {
    let station = Station::open().await;
    let large = Payload::Opaque(Opaque { content_type: "t".into(), data: vec![1; 9].into() });
    let mut lost = station.blobs.put(&large).await.unwrap();
    lost.id = "0".repeat(32);
    let _responder = station
        .respond(move |header, body| match header.class {
            Class::Low => Act::Answer(Payload::Blob(lost.clone())),
            _ => Act::Answer(sum(body)),
        })
        .await;
    let site = Site::open(&station).await;
    let good = accepted(site.post("/v1/jobs", &job()).await).await;
    let mut bad = job();
    bad["class"] = json!("low");
    let bad = accepted(site.post("/v1/jobs", &bad).await).await;
    let lines = site.post("/v1/results", &json!({"ids": [bad, good], "wait_ms": 60_000})).await.lines();
    let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
    assert!(of(&bad)["error"]["message"].as_str().unwrap().contains("not in the store"), "{}", of(&bad));
    assert_eq!(of(&good)["status"], "succeeded");
    assert!(site.get(&format!("/v1/jobs/{bad}")).await.error(410).contains("not in the store"));
}

#[tokio::test]
async fn a_job_is_cancelled_once_and_an_ended_one_is_not() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let id = accepted(site.post("/v1/jobs", &job()).await).await;
    let path = format!("/v1/jobs/{id}");
    for _ in 0..2 {
        let cancelled = site.send(Method::DELETE, &path, &[], "").await;
        assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
    }
    assert_eq!(site.get(&format!("{path}/output")).await.error(499), format!("job {id} was cancelled"));

    let responder = station.respond(|_, _| Act::Die(FailureKind::ModelError)).await;
    let ended = accepted(site.post("/v1/jobs", &job()).await).await;
    responder.handled(2).await;
    let late = site.send(Method::DELETE, &format!("/v1/jobs/{ended}"), &[], "").await;
    assert_eq!((late.status, &late.json()["status"]), (409, &json!("failed")));
    assert_eq!(site.send(Method::DELETE, "/v1/jobs/x", &[], "").await.status, 400);
}

#[tokio::test]
async fn a_caller_that_goes_away_changes_nothing() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    {
        let asked = request();
        let waiting = site.post("/v2/models/digits/infer", &asked);
        let mut waiting = std::pin::pin!(waiting);
        bounded(async {
            while station.ready(Queue::Jobs(Class::High)).await == 0 {
                tokio::select! {
                    _ = &mut waiting => panic!("nobody answers it"),
                    () = tokio::task::yield_now() => {}
                }
            }
        })
        .await;
    }
    let responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    responder.handled(1).await;
    let id = responder.seen()[0].header.id;
    assert_eq!(site.get(&format!("/v1/jobs/{id}")).await.json()["status"], "succeeded");
}

//! Against a server that plays its part badly.

use super::*;
use crate::cli;
use axum::Json;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use clap::Parser;
use schemas::{ClientName, JobHeader, ModelName, Status, UnixMillis};
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

#[derive(Deserialize)]
struct Ask {
    ids: Vec<JobId>,
}

/// Serves `/v1/results` on `listener` as `answer` says, given the number of the call and the ids asked for.
fn serve(listener: TcpListener, answer: impl Fn(usize, &[JobId]) -> Response + Send + Sync + 'static) {
    let (answer, calls) = (Arc::new(answer), Arc::new(Mutex::new(0)));
    let handler = move |Json(ask): Json<Ask>| async move {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        answer(*calls, &ask.ids)
    };
    let router = axum::Router::new().route("/v1/results", post(handler));
    let limits = serving::Limits { connections_max: 64, head_timeout: None, grace: Duration::ZERO };
    tokio::spawn(serving::serve(listener, router, limits, Box::pin(std::future::pending())));
}

fn line(id: JobId) -> String {
    let header =
        JobHeader::new(id, ModelName::new("m").unwrap(), ClientName::new("c").unwrap(), UnixMillis(0));
    serde_json::to_string(&JobResult::of(&header, Status::Succeeded, UnixMillis(1))).unwrap() + "\n"
}

fn lines(ids: &[JobId]) -> Response {
    ids.iter().map(|id| line(*id)).collect::<String>().into_response()
}

fn jobs(count: usize) -> HashMap<JobId, usize> {
    (0..count).map(|index| (JobId::new(), index)).collect()
}

fn sink(output: &Path) -> Sink {
    let arguments =
        ["straightline", "submit", "-", "--wait", "--quiet", "--output", output.to_str().unwrap()];
    let cli::Command::Submit(options) = cli::Cli::parse_from(arguments).command else { unreachable!() };
    Sink::new(&options, None).unwrap()
}

/// Gathers the results of `ids`; how it ended, and the lines written.
async fn gathered(
    address: &str,
    ids: &HashMap<JobId, usize>,
    patience: Duration,
) -> (Result<()>, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    let mut sink = sink(&output);
    let http = Http::new(&format!("http://{address}")).unwrap();
    let gathering = gather(&http, ids.clone(), &mut sink, patience, watch::channel(Stop::No).1);
    let ended = timeout(Duration::from_secs(60), gathering).await.expect("done in time");
    sink.finish().unwrap();
    let text = std::fs::read_to_string(&output).unwrap();
    (ended, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn assert_each_once(lines: &[Value], ids: &HashMap<JobId, usize>) {
    assert_eq!(lines.len(), ids.len());
    for line in lines {
        let id: JobId = serde_json::from_value(line["id"].clone()).unwrap();
        assert_eq!(line["index"], ids[&id]);
        assert_eq!(line["status"], "succeeded");
    }
}

#[tokio::test]
async fn results_come_although_the_server_is_away_refuses_and_breaks_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let ids = jobs(3);
    let starting = async {
        // Polled after the first question, which found nobody.
        serve(TcpListener::bind(address).await.unwrap(), |call, ids| match call {
            1 => (StatusCode::SERVICE_UNAVAILABLE, "{\"error\":\"starting\"}").into_response(),
            2 => {
                let parts = [Ok(line(ids[0])), Err(std::io::Error::other("killed"))];
                Body::from_stream(stream::iter(parts)).into_response()
            }
            _ => lines(ids),
        });
    };
    let named = address.to_string();
    let ((ended, lines), ()) = tokio::join!(gathered(&named, &ids, PATIENCE), starting);
    ended.unwrap();
    assert_each_once(&lines, &ids);
}

#[tokio::test]
async fn jobs_that_do_not_end_keep_no_others_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ids = jobs(IDS_MAX + 1);
    let last = *ids.iter().find(|(_, index)| **index == IDS_MAX).unwrap().0;
    let asked_for_last = Mutex::new(false);
    serve(listener, move |_, ids| {
        let mut asked_for_last = asked_for_last.lock().unwrap();
        *asked_for_last |= ids.contains(&last);
        // The first ones end only after the last.
        if *asked_for_last { lines(ids) } else { lines(&[]) }
    });
    let (ended, lines) = gathered(&address, &ids, PATIENCE).await;
    ended.unwrap();
    assert_each_once(&lines, &ids);
}

#[tokio::test]
async fn ids_that_are_left_are_told_when_there_is_no_more_waiting() {
    let ids = jobs(2);
    let outstanding = |lines: &[Value]| {
        assert_eq!(lines.len(), 2);
        for line in lines {
            let id: JobId = serde_json::from_value(line["id"].clone()).unwrap();
            assert_eq!(line["index"], ids[&id]);
            assert!(line["error"].as_str().unwrap().contains("did not come"), "{line}");
        }
    };
    let (ended, lines) = gathered("127.0.0.1:1", &ids, Duration::from_millis(1)).await;
    ended.unwrap();
    outstanding(&lines);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    serve(listener, |_, _| (StatusCode::NOT_FOUND, "{\"error\":\"no route\"}").into_response());
    let (ended, lines) = gathered(&address, &ids, PATIENCE).await;
    assert_eq!(ended.unwrap_err().to_string(), "no route", "asking again would not help");
    outstanding(&lines);
}

#[tokio::test]
async fn ids_that_are_left_are_told_as_pending_on_a_signal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ids = jobs(2);
    let done = *ids.iter().find(|(_, index)| **index == 0).unwrap().0;
    let (tell, stop) = watch::channel(Stop::No);
    // One has ended; the signal comes while the other is waited for.
    serve(listener, move |call, ids| {
        if call == 1 {
            return line(done).into_response();
        }
        assert!(!ids.contains(&done));
        tell.send_replace(Stop::Drain);
        Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()).into_response()
    });
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    let mut sink = sink(&output);
    let http = Http::new(&format!("http://{address}")).unwrap();
    let gathering = gather(&http, ids.clone(), &mut sink, PATIENCE, stop);
    timeout(Duration::from_secs(60), gathering).await.expect("done in time").unwrap();
    assert!(sink.finish().unwrap(), "a job that runs on has not failed");
    let text = std::fs::read_to_string(&output).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|line| (line["index"].as_u64(), line["status"].as_str())).collect();
    assert_eq!(told, [(Some(0), Some("succeeded")), (Some(1), Some("pending"))]);
    assert_ne!(lines[1]["id"], serde_json::to_value(done).unwrap());
}

#[tokio::test]
async fn a_pipe_that_stands_still_sends_blank_lines() {
    let (lines, to_send) = mpsc::channel(1);
    let mut sent = Box::pin(never_still(to_send, Duration::from_millis(10)));
    assert_eq!(sent.next().await.unwrap(), "\n");
    assert_eq!(sent.next().await.unwrap(), "\n");
    lines.send(Bytes::from_static(b"{}\n")).await.unwrap();
    drop(lines);
    let rest: Vec<_> = sent.collect().await;
    assert!(rest.contains(&Bytes::from_static(b"{}\n")), "{rest:?}");
}

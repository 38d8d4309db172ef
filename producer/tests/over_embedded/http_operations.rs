//! Status, dead jobs and metrics over a real socket.

use crate::http::{Site, request};
use crate::rig::{Act, Station};
use schemas::{FailureKind, JobId};
use serde_json::{Value, json};

async fn die(site: &Site, station: &Station, count: usize) -> Vec<String> {
    let responder = station.respond(|_, _| Act::Die(FailureKind::ModelError)).await;
    let mut ids = Vec::new();
    for n in 1..=count {
        let job = json!({"model": "digits", "inputs": request()["inputs"]});
        ids.push(site.post("/v1/jobs", &job).await.json()["id"].as_str().unwrap().to_owned());
        responder.handled(n).await;
    }
    ids
}

#[tokio::test]
async fn dead_jobs_are_listed_shown_requeued_and_dropped() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    let ids = die(&site, &station, 4).await;
    let page = site.get("/v1/dead?offset=1&limit=2").await.json();
    assert_eq!((&page["total"], &page["entries"][0]["id"]), (&json!(4), &json!(ids[2])));
    assert_eq!(page["entries"].as_array().unwrap().len(), 2);
    let shown = site.get(&format!("/v1/dead/{}", ids[0])).await.json();
    assert_eq!(
        (&shown["entry"]["failure"]["kind"], &shown["result"]["status"]),
        (&json!("model_error"), &json!("failed"))
    );
    let stranger = JobId::new().to_string();
    assert!(site.get(&format!("/v1/dead/{stranger}")).await.error(404).contains("not among the dead"));

    let requeued = site.post("/v1/dead/requeue", &json!({"ids": [ids[1], stranger]})).await.json();
    assert_eq!(
        (&requeued["jobs"][0]["origin"], &requeued["not_found"]),
        (&json!(ids[1]), &json!([stranger]))
    );
    let dropped = site.post("/v1/dead/drop", &json!({"ids": [ids[0]]})).await.json();
    assert_eq!(dropped["jobs"], 1);
    let dropped = site.post("/v1/dead/drop", &json!({"all": true})).await.json();
    assert_eq!(dropped["jobs"], 2);
    assert_eq!(site.get("/v1/dead").await.json()["total"], 0);
}

#[tokio::test]
async fn a_request_about_dead_jobs_must_say_which() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    for body in
        [json!({}), json!({"ids": []}), json!({"all": false}), json!({"ids": [JobId::new()], "all": true})]
    {
        assert!(site.post("/v1/dead/requeue", &body).await.error(400).contains("say which"), "{body}");
    }
    assert!(site.post("/v1/dead/drop", &json!({"everything": 1})).await.error(400).contains("everything"));
    assert!(site.get("/v1/dead?limit=0").await.error(400).contains("use 1 to 1000"));
    assert!(site.get("/v1/dead/x").await.error(400).contains("is not a UUID"));
}

#[tokio::test]
async fn status_and_metrics_are_there() {
    let station = Station::open().await;
    let site = Site::open(&station).await;
    station.pretend_alive().await;
    let status = site.get("/v1/status").await.json();
    assert_eq!(status["broker"]["healthy"], true);
    let local =
        status["lanes"].as_array().unwrap().iter().find(|lane| lane["lane"] == "local").unwrap().clone();
    assert_eq!((&local["available"], &local["note"]), (&json!(true), &Value::Null));
    let metrics = site.get("/metrics").await;
    assert_eq!(
        (metrics.header("content-type"), &metrics.body[..]),
        ("text/plain; version=0.0.4", &b"straightline_up 1\n"[..])
    );
}

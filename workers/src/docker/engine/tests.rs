use super::*;
use crate::docker::plan::{Owner, plan};
use crate::docker::{Config, Gpu, ImageSpec, Limits};
use schemas::ModelName;
use serde_json::json;

fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

fn made(config: &Config) -> serde_json::Value {
    let owner = Owner { instance: "i1".to_owned(), process: "p1".to_owned() };
    serde_json::to_value(body(&plan(config, &owner, &digits(), "an-image:1", 7))).unwrap()
}

#[test]
fn a_container_of_ours_is_confined_labelled_and_published_on_loopback_only() {
    let config = Config {
        worker: "w1".to_owned(),
        limits: Limits { memory_bytes: 256 << 20, cpus: 0.5, pids_max: 64 },
        models: vec![digits()],
        ..Config::default()
    };
    let made = made(&config);
    let host = &made["HostConfig"];
    for (key, expected) in [
        ("Memory", json!(256 << 20)),
        ("MemorySwap", json!(256 << 20)),
        ("NanoCpus", json!(500_000_000)),
        ("PidsLimit", json!(64)),
        ("ReadonlyRootfs", json!(true)),
        ("CapDrop", json!(["ALL"])),
        ("SecurityOpt", json!(["no-new-privileges"])),
        ("RestartPolicy", json!({"Name": "no"})),
        ("PortBindings", json!({"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]})),
    ] {
        assert_eq!(host[key], expected, "{key}");
    }
    assert!(host.get("DeviceRequests").is_none() && host.get("Privileged").is_none());
    assert_eq!((&made["User"], &made["Image"]), (&json!("65534:65534"), &json!("an-image:1")));
    assert_eq!(made["Cmd"][1], "--model=digits");
    let labels = json!({"straightline.worker": "w1", "straightline.model": "digits",
        "straightline.owner": "i1", "straightline.process": "p1"});
    assert_eq!(made["Labels"], labels);
}

#[test]
fn another_image_has_its_own_settings_and_may_ask_for_gpus() {
    let spec = ImageSpec {
        port: 9000,
        gpu: Some(Gpu::Count(2)),
        command: vec!["serve".to_owned()],
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        user: Some("1000".to_owned()),
        memory_bytes: Some(1 << 30),
        ..ImageSpec::new("theirs:1")
    };
    let config = |spec| Config {
        images: BTreeMap::from([(digits(), spec)]),
        network: Some("models".to_owned()),
        ..Config::default()
    };
    let two = made(&config(spec.clone()));
    assert_eq!(
        (&two["Cmd"], &two["Env"], &two["User"]),
        (&json!(["serve"]), &json!(["A=b"]), &json!("1000"))
    );
    let host = &two["HostConfig"];
    assert_eq!((&host["Memory"], &host["NetworkMode"]), (&json!(1 << 30), &json!("models")));
    assert!(host.get("PortBindings").is_none(), "reached in its network");
    assert_eq!(host["DeviceRequests"], json!([{"Count": 2, "Capabilities": [["gpu"]]}]));
    let named = ImageSpec { gpu: Some(Gpu::Ids(vec!["0".to_owned()])), ..spec.clone() };
    let requests = &made(&config(named))["HostConfig"]["DeviceRequests"];
    assert_eq!(*requests, json!([{"DeviceIDs": ["0"], "Capabilities": [["gpu"]]}]));
    let all = ImageSpec { gpu: Some(Gpu::All), ..spec };
    assert_eq!(made(&config(all))["HostConfig"]["DeviceRequests"][0]["Count"], -1);
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let engine = Docker::new("unix:///nowhere/docker.sock");
    let error = engine.hello().await.unwrap_err();
    assert!(matches!(error, EngineError::Away { .. }), "{error:?}");
    let words = error.to_string();
    assert!(words.contains("docker engine at unix:///nowhere/docker.sock cannot be reached"), "{words}");
    assert!(matches!(engine.list("x").await, Err(EngineError::Away { .. })));
    assert!(matches!(
        engine.deaths("x", SystemTime::now()).next().await,
        Some(Err(EngineError::Away { .. }))
    ));
}

use super::engine::{EngineError, Found, Look};
use super::plan::{LABEL_MODEL, LABEL_OWNER, LABEL_PROCESS, LABEL_WORKER, Plan};
use super::*;
use crate::catalog::Catalog;
use crate::local::{self, Local};
use crate::serve;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use schemas::body::Parameter;
use schemas::{FailureKind, JobId, Payload, Tensor};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;

mod faults;

const TOML: &str = include_str!("../../../models/digits/model.toml");
const ONNX: &[u8] = include_bytes!("../../../models/digits/model.onnx");
/// No test waits longer for what must happen.
const BOUND: Duration = Duration::from_secs(30);

/// A stand-in for an engine: its containers are model servers in this process.
#[derive(Default)]
struct StandIn {
    shop: Mutex<Shop>,
}

#[derive(Default)]
struct Shop {
    away: bool,
    /// Models whose container does something else than serve.
    odd: BTreeMap<String, Odd>,
    images: Vec<String>,
    containers: BTreeMap<String, Cage>,
    created: u32,
    /// The most containers there ever were at once.
    most: usize,
    pulled: Vec<String>,
    /// How often the engine still refuses to remove a container, by model.
    stuck: BTreeMap<String, u32>,
    /// How often somebody began to watch.
    watched: u32,
    deaths: Vec<mpsc::UnboundedSender<Result<String, EngineError>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Odd {
    NeverReady,
    Exits,
    NoImage,
    /// Serves only once it is let.
    Late,
    /// Is ready, and answers each task with these bytes and the end of the connection.
    Says(&'static str),
}

struct Cage {
    name: String,
    labels: BTreeMap<String, String>,
    look: Look,
    serving: Option<Serving>,
    waiting: Option<std::net::TcpListener>,
}

/// A server with a runtime of its own, so that its connections end with it.
struct Serving(Option<Runtime>);

impl Serving {
    fn start(listener: std::net::TcpListener) -> Self {
        let catalog = Catalog::builtin(&[(TOML, ONNX)]).unwrap().with_diagnostics();
        let slots = 2;
        let lane = Local::start(local::Config { slots, abandoned_max: 8 }, &catalog).unwrap();
        let config = serve::Config { slots, ..serve::Config::default() };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            serve::serve(
                config,
                listener,
                Arc::new(lane),
                catalog.contracts(),
                Box::pin(std::future::pending()),
            )
            .await;
        });
        Self(Some(runtime))
    }

    fn saying(words: &'static str, listener: std::net::TcpListener) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut start = [0; 4096];
                let read = stream.read(&mut start).await.unwrap();
                let ready = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let words = if start[..read].starts_with(b"GET") { ready } else { words };
                stream.write_all(words.as_bytes()).await.unwrap();
            }
        });
        Self(Some(runtime))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

impl StandIn {
    fn shop(&self) -> MutexGuard<'_, Shop> {
        self.shop.lock().unwrap()
    }

    fn here(&self) -> Result<MutexGuard<'_, Shop>, EngineError> {
        let shop = self.shop();
        match shop.away {
            true => Err(EngineError::Away { host: "stand-in".to_owned(), reason: "stopped".to_owned() }),
            false => Ok(shop),
        }
    }

    fn models(&self) -> Vec<String> {
        self.shop().containers.values().map(|one| one.labels[LABEL_MODEL].clone()).collect()
    }

    /// Ends the only container of `model`; the engine tells only if `told`.
    fn kill(&self, model: &str, over_memory: bool, told: bool) {
        let mut shop = self.shop();
        let (id, one) = shop.containers.iter_mut().find(|(_, one)| one.labels[LABEL_MODEL] == model).unwrap();
        one.serving = None;
        one.look = Look::Ended {
            status: 137,
            over_memory,
            words: "its last words".to_owned(),
            at: Some(SystemTime::now()),
        };
        let id = id.clone();
        if told {
            shop.deaths.retain(|deaths| deaths.send(Ok(id.clone())).is_ok());
        }
    }

    /// Lets the containers that wait for it serve.
    fn let_serve(&self) {
        for one in self.shop().containers.values_mut() {
            one.serving = one.waiting.take().map(Serving::start).or(one.serving.take());
        }
    }

    /// The engine goes, and its containers with it.
    fn leave(&self) {
        let mut shop = self.shop();
        shop.away = true;
        shop.deaths.clear();
        for one in shop.containers.values_mut() {
            one.serving = None;
            one.look = Look::Ended { status: 0, over_memory: false, words: String::new(), at: None };
        }
    }
}

#[async_trait]
impl Engine for StandIn {
    async fn hello(&self) -> Result<String, EngineError> {
        self.here().map(|_| "1".to_owned())
    }

    async fn has_image(&self, image: &str) -> Result<bool, EngineError> {
        Ok(self.here()?.images.iter().any(|one| one == image))
    }

    /// From a registry that never answers.
    async fn pull(&self, image: &str) -> Result<(), EngineError> {
        self.here()?.pulled.push(image.to_owned());
        std::future::pending().await
    }

    async fn import(
        &self,
        image: &str,
        _: Vec<String>,
        tar: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), EngineError> {
        let parts: Vec<_> = tar.map(Result::unwrap).collect().await;
        assert!(parts.concat().len() > 100_000, "a program, its loader and libraries");
        self.here()?.images.push(image.to_owned());
        Ok(())
    }

    async fn create(&self, plan: &Plan) -> Result<String, EngineError> {
        let mut shop = self.here()?;
        if shop.odd.get(plan.model.as_str()) == Some(&Odd::NoImage) {
            return Err(EngineError::NoImage(plan.image.clone()));
        }
        shop.created += 1;
        let id = format!("c{}", shop.created);
        let (name, labels) = (plan.name.clone(), plan.labels.clone());
        let cage = Cage { name, labels, look: Look::Running, serving: None, waiting: None };
        shop.containers.insert(id.clone(), cage);
        shop.most = shop.most.max(shop.containers.len());
        Ok(id)
    }

    async fn start(&self, id: &str, plan: &Plan) -> Result<Option<SocketAddr>, EngineError> {
        let odd = self.here()?.odd.get(plan.model.as_str()).copied();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut shop = self.here()?;
        let one = shop.containers.get_mut(id).unwrap();
        match odd {
            Some(Odd::NeverReady) => drop(listener),
            Some(Odd::Exits) => {
                one.look = Look::Ended {
                    status: 3,
                    over_memory: false,
                    words: "no model here".to_owned(),
                    at: None,
                };
            }
            Some(Odd::Late) => one.waiting = Some(listener),
            Some(Odd::Says(words)) => one.serving = Some(Serving::saying(words, listener)),
            Some(Odd::NoImage) | None => one.serving = Some(Serving::start(listener)),
        }
        Ok(Some(address))
    }

    async fn look(&self, id: &str) -> Result<Look, EngineError> {
        Ok(self.here()?.containers.get(id).map_or(Look::Gone, |one| one.look.clone()))
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let mut shop = self.here()?;
        let Shop { containers, stuck, .. } = &mut *shop;
        let model = containers.get(id).and_then(|one| one.labels.get(LABEL_MODEL));
        match model.and_then(|model| stuck.get_mut(model)).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                Err(EngineError::Refused("device or resource busy".to_owned()))
            }
            None => {
                containers.remove(id);
                Ok(())
            }
        }
    }

    async fn list(&self, label: &str) -> Result<Vec<Found>, EngineError> {
        let (name, value) = label.split_once('=').map_or((label, None), |(name, value)| (name, Some(value)));
        let shop = self.here()?;
        let labelled = shop.containers.iter().filter(|(_, one)| {
            one.labels.get(name).is_some_and(|found| value.is_none_or(|value| value == found))
        });
        let found = labelled.map(|(id, one)| Found {
            id: id.clone(),
            name: one.name.clone(),
            labels: one.labels.clone(),
            running: one.look == Look::Running,
        });
        Ok(found.collect())
    }

    fn deaths(&self, _: &str, _: SystemTime) -> BoxStream<'static, Result<String, EngineError>> {
        let (sender, received) = mpsc::unbounded_channel();
        let mut shop = self.shop();
        shop.deaths.push(sender);
        shop.watched += 1;
        futures_util::stream::unfold(received, async |mut received| Some((received.recv().await?, received)))
            .boxed()
    }
}

fn name(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

fn config() -> Config {
    Config {
        models: ["digits", "diagnose.echo", "diagnose.sleep", "diagnose.hang"].map(name).to_vec(),
        program: Some("/bin/true".into()),
        containers_max: 2,
        ready_timeout: Duration::from_millis(300),
        patience: Duration::from_millis(20),
        ..Config::default()
    }
}

fn task(model: &str, ms: i64) -> Task {
    Task {
        id: JobId::new(),
        model: name(model),
        attempt: 1,
        input: Payload::Tensors(vec![Tensor::fp32("image", [1, 64], &[1.0; 64]).unwrap()]),
        outputs: Vec::new(),
        parameters: BTreeMap::from([("ms".to_owned(), Parameter::Integer(ms))]),
        limit: BOUND,
    }
}

async fn lane(engine: &Arc<StandIn>, config: Config) -> Docker {
    let lane = Docker::start_on(Arc::clone(engine) as Arc<dyn Engine>, config).unwrap();
    slots(&lane, |slots| slots > 0).await;
    lane
}

async fn slots(lane: &Docker, wanted: impl Fn(u32) -> bool) {
    let mut capacity = lane.capacity();
    timeout(BOUND, capacity.wait_for(|now| wanted(now.slots))).await.unwrap().unwrap();
}

async fn shown(lane: &Docker, wanted: impl Fn(&Summary) -> bool) {
    let mut summary = lane.summary();
    let reached = timeout(BOUND, summary.wait_for(wanted)).await.map(|shown| shown.map(drop));
    reached.unwrap_or_else(|_| panic!("{:?}", lane.summary().borrow())).unwrap();
}

fn serving(summary: &Summary) -> usize {
    summary.containers.iter().filter(|one| one.stage == Stage::Serving).count()
}

#[tokio::test]
async fn a_container_is_kept_warm_and_the_least_recently_used_makes_room() {
    let engine = Arc::new(StandIn::default());
    let lane = lane(&engine, config()).await;
    assert_eq!((lane.lane(), lane.capacity().borrow().slots), (Lane::Docker, 2));
    let ran = lane.run(task("digits", 0)).await.unwrap();
    assert!(ran.output.tensor("label").is_some());
    lane.run(task("digits", 0)).await.unwrap();
    assert_eq!(engine.shop().created, 1, "the second run is warm");
    lane.run(task("diagnose.echo", 0)).await.unwrap();
    lane.run(task("digits", 0)).await.unwrap();
    lane.run(task("diagnose.sleep", 0)).await.unwrap();
    let mut left = engine.models();
    left.sort();
    assert_eq!(left, ["diagnose.sleep", "digits"]);
    assert_eq!(engine.shop().images.len(), 1, "our image is made once");
    lane.stop().await;
    assert_eq!(engine.models(), Vec::<String>::new());
    let failure = lane.run(task("digits", 0)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::LaneUnavailable, "{failure}");
}

#[tokio::test]
async fn a_container_that_dies_at_work_fails_its_job_with_the_cause_and_is_replaced() {
    let engine = Arc::new(StandIn::default());
    let lane = Arc::new(lane(&engine, config()).await);
    for (over_memory, told, words) in [
        (true, true, "container of diagnose.sleep was killed: over its memory limit of 512 MiB"),
        (
            false,
            false,
            "container of diagnose.sleep ended with status 137 while it ran the job: its last words",
        ),
    ] {
        let running = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { lane.run(task("diagnose.sleep", 60_000)).await }
        });
        shown(&lane, |summary| summary.containers.iter().any(|one| one.running == 1)).await;
        engine.kill("diagnose.sleep", over_memory, told);
        let failure = timeout(BOUND, running).await.unwrap().unwrap();
        let failure = failure.unwrap_err();
        assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::ModelError, words));
        shown(&lane, |summary| summary.containers.is_empty()).await;
    }
    lane.run(task("diagnose.sleep", 0)).await.unwrap();
}

#[tokio::test]
async fn one_that_died_in_its_sleep_costs_the_next_job_nothing() {
    let engine = Arc::new(StandIn::default());
    let lane = lane(&engine, config()).await;
    lane.run(task("digits", 0)).await.unwrap();
    engine.kill("digits", false, true);
    shown(&lane, |summary| summary.containers.is_empty()).await;
    lane.run(task("digits", 0)).await.unwrap();
    // Not told, it finds out as the connection breaks, or cannot be made.
    engine.kill("digits", false, false);
    lane.run(task("digits", 0)).await.unwrap();
    assert_eq!(engine.shop().created, 3);
}

#[tokio::test]
async fn one_that_hangs_or_whose_run_is_given_up_is_replaced() {
    let engine = Arc::new(StandIn::default());
    let lane = lane(&engine, config()).await;
    let short = Task { limit: Duration::from_millis(200), ..task("diagnose.hang", 0) };
    let failure = lane.run(short.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(
        failure.message.ends_with("did not answer within 200 ms; its container is replaced"),
        "{failure}"
    );
    shown(&lane, |summary| summary.containers.is_empty()).await;
    {
        let given_up = lane.run(task("diagnose.hang", 0));
        tokio::pin!(given_up);
        let busy = shown(&lane, |summary| summary.containers.iter().any(|one| one.running == 1));
        tokio::select! {
            ran = &mut given_up => panic!("{ran:?}"),
            () = busy => {}
        }
    }
    shown(&lane, |summary| summary.containers.is_empty()).await;
}

#[tokio::test]
async fn what_will_not_start_says_why_and_is_cleared_away() {
    let engine = Arc::new(StandIn::default());
    engine.shop().odd = BTreeMap::from([
        ("diagnose.echo".to_owned(), Odd::Exits),
        ("diagnose.hang".to_owned(), Odd::NeverReady),
    ]);
    engine.shop().images.push("there:1".to_owned());
    let images = [("missing", "not/there:1"), ("vanished", "there:1")];
    engine.shop().odd.insert("vanished".to_owned(), Odd::NoImage);
    let images = images.map(|(model, image)| (name(model), ImageSpec::new(image))).into();
    let lane = lane(&engine, Config { images, ..config() }).await;
    let obstacles = lane.obstacles().await;
    assert!(
        matches!(&obstacles[..], [one] if one.message.starts_with("image not/there:1 of model missing is not on"))
    );
    for (model, words) in [
        ("diagnose.echo", "ended with status 3 before it was ready: no model here"),
        ("diagnose.hang", "container of diagnose.hang was not ready within 300 ms: it cannot be reached"),
        (
            "missing",
            "image not/there:1 of model missing is not on this machine: run `docker pull not/there:1`",
        ),
        ("vanished", "image there:1 is not there"),
    ] {
        // The second time it is left alone, which costs no attempt, and the words are the same.
        for kind in [FailureKind::LaneUnavailable, FailureKind::Busy] {
            let failure = lane.run(task(model, 0)).await.unwrap_err();
            assert_eq!(failure.kind, kind);
            assert!(failure.message.contains(words), "{failure}");
        }
    }
    assert_eq!(engine.models(), Vec::<String>::new());
    assert_eq!(engine.shop().created, 2);
}

#[tokio::test]
async fn while_the_engine_is_away_there_are_no_slots_and_all_goes_on_when_it_is_back() {
    let engine = Arc::new(StandIn::default());
    let lane = lane(&engine, config()).await;
    lane.run(task("digits", 0)).await.unwrap();
    engine.leave();
    slots(&lane, |slots| slots == 0).await;
    let failure = lane.run(task("digits", 0)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::LaneUnavailable);
    assert!(failure.message.contains("cannot be reached: stopped"), "{failure}");
    assert!(lane.summary().borrow().away.is_some());
    engine.shop().away = false;
    slots(&lane, |slots| slots == 2).await;
    lane.run(task("digits", 0)).await.unwrap();
    shown(&lane, |summary| serving(summary) == 1 && summary.engine.as_deref() == Some("1")).await;
    assert_eq!(engine.models(), ["digits"], "what was left of the first is gone");
}

fn left_behind(labels: [(&str, &str); 3]) -> Cage {
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Cage { name: "left-behind".to_owned(), labels, look: Look::Running, serving: None, waiting: None }
}

#[tokio::test]
async fn what_a_dead_worker_of_this_name_left_is_removed_and_another_s_is_not() {
    let engine = Arc::new(StandIn::default());
    for (id, worker) in [("old", "worker"), ("other", "neighbour")] {
        let labels = [(LABEL_WORKER, worker), (LABEL_OWNER, id), (LABEL_MODEL, id)];
        engine.shop().containers.insert(id.to_owned(), left_behind(labels));
    }
    let lane = lane(&engine, config()).await;
    assert_eq!(engine.models(), ["other"]);
    lane.stop().await;
    assert_eq!(engine.models(), ["other"]);
}

use super::*;
use schemas::body::Parameter;
use schemas::{JobId, Payload, Tensor};

const TOML: &str = include_str!("../../../models/digits/model.toml");
const ONNX: &[u8] = include_bytes!("../../../models/digits/model.onnx");
/// No test waits longer for what must happen.
const BOUND: Duration = Duration::from_secs(20);

fn lane(slots: u32, abandoned_max: u32) -> Local {
    let catalog = Catalog::builtin(&[(TOML, ONNX)]).unwrap().with_diagnostics();
    Local::start(Config { slots, abandoned_max }, &catalog).unwrap()
}

fn task(model: &str, parameters: &[(&str, i64)], limit: Duration) -> Task {
    let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), Parameter::Integer(*value)));
    Task {
        id: JobId::new(),
        model: ModelName::new(model).unwrap(),
        attempt: 1,
        input: Payload::Tensors(vec![Tensor::fp32("image", [1, 64], &[1.0; 64]).unwrap()]),
        outputs: Vec::new(),
        parameters: parameters.collect(),
        limit,
    }
}

async fn reaches(lane: &Local, slots: u32, abandoned: u32) {
    let wanted = Capacity { slots, abandoned };
    let mut capacity = lane.capacity();
    let reached = tokio::time::timeout(BOUND, capacity.wait_for(|capacity| *capacity == wanted)).await;
    reached.unwrap_or_else(|_| panic!("{:?} never became {wanted:?}", lane.capacity().borrow())).unwrap();
}

#[tokio::test]
async fn many_tasks_run_on_few_threads() {
    let lane = lane(2, 0);
    let runs = (0..50).map(|_| lane.run(task("digits", &[], BOUND)));
    for ran in futures_util::future::join_all(runs).await {
        let ran = ran.unwrap();
        assert!(ran.output.tensor("label").is_some() && ran.run_time > Duration::ZERO);
    }
    assert_eq!(*lane.capacity().borrow(), Capacity { slots: 2, abandoned: 0 });
}

#[tokio::test]
async fn tasks_in_turn_end_in_their_order_and_one_that_hangs_fails_alone() {
    let lane = lane(1, 1);
    let (short, long) = (Duration::from_millis(200), BOUND * 2);
    let tasks = [
        ("digits", long),
        ("diagnose.panic", long),
        ("diagnose.hang", short),
        ("nope", long),
        ("diagnose.echo", long),
    ];
    let tasks = tasks.map(|(model, limit)| task(model, &[], limit)).to_vec();
    let ends = lane.run_in_turn(tasks);
    let ends = tokio::time::timeout(BOUND, ends).await.expect("each has its own limit");
    let kinds: Vec<_> = ends.iter().map(|end| end.as_ref().map(drop).map_err(|f| f.kind)).collect();
    let expected = [
        Ok(()),
        Err(FailureKind::ModelError),
        Err(FailureKind::Timeout),
        Err(FailureKind::UnknownModel),
        Ok(()),
    ];
    assert_eq!(kinds, expected);
    reaches(&lane, 1, 1).await;
    assert!(lane.run_in_turn(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn a_panic_fails_its_run_and_costs_no_thread() {
    let lane = lane(1, 0);
    for _ in 0..3 {
        let failure = lane.run(task("diagnose.panic", &[], BOUND)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::ModelError);
        assert!(failure.message.contains("panicked: diagnose.panic"), "{failure}");
    }
    assert!(lane.run(task("digits", &[], BOUND)).await.is_ok());
    assert_eq!(*lane.capacity().borrow(), Capacity { slots: 1, abandoned: 0 });
}

#[tokio::test]
async fn an_unknown_model_is_named() {
    let failure = lane(1, 0).run(task("nope", &[], BOUND)).await.unwrap_err();
    assert_eq!(
        (failure.kind, &failure.message[..]),
        (FailureKind::UnknownModel, "this worker has no model nope")
    );
}

#[tokio::test]
async fn a_run_that_outlives_its_limit_is_left_and_its_thread_replaced() {
    let lane = lane(1, 1);
    let failure = lane.run(task("diagnose.hang", &[], Duration::from_millis(20))).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(failure.message.contains("20 ms"), "{failure}");
    assert_eq!(*lane.capacity().borrow(), Capacity { slots: 1, abandoned: 1 });
    assert!(lane.run(task("digits", &[], BOUND)).await.is_ok(), "another thread has its place");
}

#[tokio::test]
async fn an_abandoned_thread_that_comes_back_ends() {
    let lane = lane(1, 1);
    let late = task("diagnose.sleep", &[("ms", 60)], Duration::from_millis(10));
    assert_eq!(lane.run(late).await.unwrap_err().kind, FailureKind::Timeout);
    reaches(&lane, 1, 0).await;
    assert_eq!(*lane.threads.alive_now(), 1);
}

#[tokio::test]
async fn too_many_abandoned_threads_close_the_lane_until_they_come_back() {
    let lane = lane(2, 1);
    let short = Duration::from_millis(10);
    assert!(lane.run(task("diagnose.hang", &[], short)).await.is_err());
    let late = task("diagnose.sleep", &[("ms", 200)], short);
    assert!(lane.run(late).await.is_err());
    assert_eq!(*lane.capacity().borrow(), Capacity { slots: 0, abandoned: 2 });
    reaches(&lane, 2, 1).await;
    assert!(lane.run(task("digits", &[], BOUND)).await.is_ok());
}

#[tokio::test]
async fn a_caller_that_leaves_gives_the_run_up() {
    let lane = lane(1, 1);
    let mut left = Box::pin(lane.run(task("diagnose.hang", &[], BOUND)));
    assert!(futures_util::poll!(&mut left).is_pending());
    drop(left);
    assert_eq!(*lane.capacity().borrow(), Capacity { slots: 1, abandoned: 1 });
    assert!(lane.run(task("digits", &[], BOUND)).await.is_ok());
}

#[tokio::test]
async fn a_stopped_lane_ends_its_threads_and_takes_nothing() {
    let lane = Arc::new(lane(2, 1));
    let other = Arc::clone(&lane);
    let hung = tokio::spawn(async move { other.run(task("diagnose.hang", &[], BOUND)).await });
    let busy = async {
        while lane.threads.idle_now() == 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, busy).await.unwrap();
    lane.stop().await;
    assert_eq!(hung.await.unwrap().unwrap_err().kind, FailureKind::LaneUnavailable);
    assert_eq!(lane.run(task("digits", &[], BOUND)).await.unwrap_err().kind, FailureKind::LaneUnavailable);
    reaches(&lane, 0, 0).await;
    assert_eq!(*lane.threads.alive_now(), 0);
}

#[test]
fn a_lane_that_cannot_work_does_not_start() {
    let start = |config, catalog| Local::start(config, &catalog).map(|_| ()).unwrap_err().to_string();
    assert!(start(Config::default(), Catalog::new()).contains("--models"));
    let none = Config { slots: 0, ..Config::default() };
    assert!(start(none, Catalog::new().with_diagnostics()).contains("worker.slots is 0"));
}

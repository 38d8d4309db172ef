//! The docker lane in real containers, on a private engine.

use anyhow::{Context as _, Result, bail, ensure};
use schemas::body::Parameter;
use schemas::{Failure, FailureKind, JobId, ModelName, Payload, Tensor};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tests::process::{build, workspace};
use tests::scenario::{Need, Scenario};
use tests::services;
use tests::stage::Context;
use tests::until::until;
use workers::catalog::Catalog;
use workers::docker::{Config, Docker, Gpu, ImageSpec, Limits, Stage};
use workers::lane::{Executor, Ran, Task};
use workers::local::Local;

/// How long a lane may take to see its engine, with an image to be made.
const BOUND: Duration = Duration::from_secs(90);
/// Longest run.
const RUN: Duration = Duration::from_secs(60);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let needs = [Need::Binary, Need::Docker];
    vec![
        Scenario::new("docker/a_digit_is_recognised_in_a_container_kept_warm", &needs, warm),
        Scenario::new("docker/at_the_limit_one_makes_room", &needs, eviction),
        Scenario::new("docker/what_dies_or_hangs_is_replaced", &needs, deaths),
        Scenario::new("docker/what_cannot_start_says_why", &needs, refusals),
        Scenario::new("docker/the_engine_goes_and_comes_and_orphans_are_removed", &needs, engine),
    ]
}

fn name(name: &str) -> Result<ModelName> {
    Ok(ModelName::new(name)?)
}

async fn start_engine(context: &Context) -> Result<services::Docker> {
    services::Docker::start(&context.folder().join("d")).await
}

async fn config(engine: &services::Docker) -> Result<Config> {
    let models =
        ["digits", "digits-conv", "diagnose.echo", "diagnose.abort", "diagnose.hang", "diagnose.sleep"];
    Ok(Config {
        host: engine.host(),
        worker: "tested".to_owned(),
        models: models.into_iter().map(name).collect::<Result<_>>()?,
        program: Some(build().await?),
        containers_max: 2,
        limits: Limits { memory_bytes: 256 << 20, ..Limits::default() },
        ..Config::default()
    })
}

/// The lane, once it takes jobs.
async fn start(config: Config) -> Result<Docker> {
    let lane = Docker::start(config)?;
    takes_jobs(&lane, true).await?;
    Ok(lane)
}

async fn takes_jobs(lane: &Docker, wanted: bool) -> Result<()> {
    until(BOUND, "the lane notices its engine", async || {
        let slots = lane.capacity().borrow().slots;
        ensure!((slots > 0) == wanted, "{slots} slots");
        Ok(())
    })
    .await
}

fn digit(images: u64) -> Result<Payload> {
    let pixels: Vec<f32> = (0..images * 64).map(|at| f32::from(u8::try_from(at % 17).unwrap_or(0))).collect();
    Ok(Payload::Tensors(vec![Tensor::fp32("image", [images, 64], &pixels)?]))
}

fn task(model: &str, input: Payload) -> Result<Task> {
    Ok(Task {
        id: JobId::new(),
        model: name(model)?,
        attempt: 1,
        input,
        outputs: Vec::new(),
        parameters: BTreeMap::new(),
        limit: RUN,
    })
}

async fn run(lane: &Docker, model: &str) -> Result<Ran> {
    lane.run(task(model, digit(1)?)?).await.with_context(|| format!("{model} in a container"))
}

async fn failure(lane: &Docker, task: Task) -> Result<Failure> {
    let model = task.model.clone();
    match lane.run(task).await {
        Ok(_) => bail!("{model} ran"),
        Err(failure) => Ok(failure),
    }
}

/// Ids of all containers, running or not.
async fn containers(engine: &services::Docker) -> Result<Vec<String>> {
    let printed = engine.cli(&["ps", "--all", "--quiet", "--no-trunc"]).await?;
    Ok(printed.lines().map(str::to_owned).collect())
}

async fn only_container(engine: &services::Docker) -> Result<String> {
    let mut all = containers(engine).await?;
    ensure!(all.len() == 1, "{} containers in place of one", all.len());
    Ok(all.remove(0))
}

async fn warm(context: &Context) -> Result<()> {
    let engine = start_engine(context).await?;
    let lane = start(config(&engine).await?).await?;
    let catalog = Catalog::new().with_folder(&workspace().join("models"))?;
    let local = Local::start(workers::local::Config { slots: 1, abandoned_max: 0 }, &catalog)?;

    let began = Instant::now();
    let first = run(&lane, "digits").await?;
    let cold = began.elapsed();
    ensure!(first.output == local.run(task("digits", digit(1)?)?).await?.output, "{:?}", first.output);
    let container = only_container(&engine).await?;
    let began = Instant::now();
    run(&lane, "digits").await?;
    let warm = began.elapsed();
    eprintln!("docker: cold start {} ms, warm run {} us", cold.as_millis(), warm.as_micros());
    ensure!(warm < cold / 2, "a warm run took {warm:?}, a cold one {cold:?}");
    ensure!(only_container(&engine).await? == container, "it was not kept");

    let inspect = async |what: &str| engine.cli(&["inspect", "--format", what, &container]).await;
    for (what, expected) in [
        (
            "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}",
            "268435456 256 1000000000",
        ),
        ("{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}}", "true [ALL] 65534:65534"),
        ("{{.HostConfig.SecurityOpt}} {{.HostConfig.RestartPolicy.Name}}", "[no-new-privileges] no"),
        (r#"{{(index (index .NetworkSettings.Ports "8080/tcp") 0).HostIp}}"#, "127.0.0.1"),
        (r#"{{index .Config.Labels "straightline.worker"}}"#, "tested"),
    ] {
        let found = inspect(what).await?;
        ensure!(found == expected, "{what} is {found}");
    }
    // The server is asked to end as any container is, and does.
    engine.cli(&["stop", "--time", "30", &container]).await?;
    lane.stop().await;
    ensure!(containers(&engine).await?.is_empty(), "containers are left");

    // A second lane finds the image made, and another image of the same is somebody else's to the lane.
    let images = engine.cli(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).await?;
    ensure!(images.lines().count() == 1 && images.starts_with("straightline-serve:"), "images: {images}");
    engine.cli(&["tag", &images, "theirs:1"]).await?;
    let command = ["--listen=0.0.0.0:9000", "--model=digits"].map(str::to_owned).into();
    let theirs = ImageSpec { port: 9000, command, ..ImageSpec::new("theirs:1") };
    let images = BTreeMap::from([(name("digits")?, theirs)]);
    let lane = start(Config { images, ..config(&engine).await? }).await?;
    ensure!(run(&lane, "digits").await?.output == first.output, "another answer as JSON");
    lane.stop().await;
    Ok(())
}

async fn eviction(context: &Context) -> Result<()> {
    let engine = start_engine(context).await?;
    let lane = start(config(&engine).await?).await?;
    for model in ["digits", "digits-conv", "digits", "diagnose.echo"] {
        run(&lane, model).await?;
    }
    let printed = engine.cli(&["ps", "--format", r#"{{.Label "straightline.model"}}"#]).await?;
    let mut models: Vec<&str> = printed.lines().collect();
    models.sort_unstable();
    ensure!(models == ["diagnose.echo", "digits"], "{models:?}");
    lane.stop().await;
    Ok(())
}

async fn deaths(context: &Context) -> Result<()> {
    let engine = start_engine(context).await?;
    let tight = Limits { memory_bytes: 48 << 20, ..Limits::default() };
    let lane = start(Config { limits: tight, ..config(&engine).await? }).await?;

    // In its sleep: whether or not the lane has heard of it, the next job is none the worse.
    for _ in 0..3 {
        run(&lane, "diagnose.echo").await?;
        engine.cli(&["kill", &only_container(&engine).await?]).await?;
    }
    run(&lane, "diagnose.echo").await?;

    let aborted = failure(&lane, task("diagnose.abort", digit(1)?)?).await?;
    ensure!(aborted.kind == FailureKind::ModelError, "{aborted}");
    ensure!(aborted.message.contains("container of diagnose.abort ended with status"), "{aborted}");

    let fat = failure(&lane, task("diagnose.echo", digit(200_000)?)?).await?;
    let expected = "container of diagnose.echo was killed: over its memory limit of 48 MiB";
    ensure!(fat.kind == FailureKind::ModelError && fat.message == expected, "{fat}");
    run(&lane, "diagnose.echo").await?;

    let hanging = Task { limit: Duration::from_secs(2), ..task("diagnose.hang", digit(1)?)? };
    let hung = failure(&lane, hanging).await?;
    ensure!(
        hung.kind == FailureKind::Timeout && hung.message.ends_with("its container is replaced"),
        "{hung}"
    );
    let sleep = Task {
        parameters: BTreeMap::from([("ms".to_owned(), Parameter::Integer(600_000))]),
        ..task("diagnose.sleep", digit(1)?)?
    };
    let running = lane.run(sleep);
    let kill = async {
        until(BOUND, "it runs", async || {
            let busy =
                |one: &workers::docker::Container| one.running == 1 && one.model.as_str() == "diagnose.sleep";
            let id = lane
                .summary()
                .borrow()
                .containers
                .iter()
                .find(|one| busy(one))
                .and_then(|one| one.id.clone());
            id.context("nothing does")
        })
        .await
    };
    let killed = async { engine.cli(&["kill", &kill.await?]).await };
    let (ran, killed) = tokio::join!(running, killed);
    killed?;
    let Err(died) = ran else { bail!("it outlived its container") };
    ensure!(died.kind == FailureKind::ModelError && died.message.contains("status 137"), "{died}");
    until(BOUND, "the dead are removed", async || {
        let shown = lane.summary().borrow().containers.len();
        let found = containers(&engine).await?.len();
        ensure!(shown == found && shown == 1, "{shown} known, {found} there");
        Ok(())
    })
    .await?;
    lane.stop().await;
    Ok(())
}

async fn refusals(context: &Context) -> Result<()> {
    let engine = start_engine(context).await?;
    // Our image, made by a first lane, in the place of images that do not serve what is asked of them.
    let lane = start(config(&engine).await?).await?;
    run(&lane, "digits").await?;
    lane.stop().await;
    let ours = engine.cli(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).await?;
    let with = |command: &[&str]| ImageSpec {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..ImageSpec::new(&ours)
    };
    let images = [
        ("missing", ImageSpec::new("not/there:1")),
        ("broken", with(&["--model=fish"])),
        ("deaf", ImageSpec { port: 1, ..with(&[]) }),
        ("gpu", ImageSpec { gpu: Some(Gpu::Count(1)), ..with(&[]) }),
    ];
    let images = images.into_iter().map(|(model, spec)| Ok((name(model)?, spec))).collect::<Result<_>>()?;
    let ready_timeout = Duration::from_secs(3);
    let lane = start(Config { images, ready_timeout, ..config(&engine).await? }).await?;
    for (model, words) in [
        (
            "missing",
            "image not/there:1 of model missing is not on this machine: run `docker pull not/there:1`",
        ),
        ("broken", "container of broken ended with status 1 before it was ready"),
        ("broken", "model fish is not here"),
        ("deaf", "container of deaf was not ready within 3000 ms"),
        ("gpu", "container of gpu (it asks for a GPU) cannot be started"),
        ("gpu", "capabilities: [[gpu]]"),
    ] {
        let failure = failure(&lane, task(model, digit(1)?)?).await?;
        // While its model is left alone nothing is tried, which costs no attempt.
        ensure!(matches!(failure.kind, FailureKind::LaneUnavailable | FailureKind::Busy), "{failure}");
        ensure!(failure.message.contains(words), "{failure}");
    }
    ensure!(containers(&engine).await?.is_empty(), "what did not start is left");
    run(&lane, "digits").await?;
    lane.stop().await;
    Ok(())
}

async fn engine(context: &Context) -> Result<()> {
    let engine = start_engine(context).await?;
    let config = config(&engine).await?;
    // There before the engine is: it waits for it.
    engine.stop().await?;
    let lane = Docker::start(config.clone())?;
    let early = failure(&lane, task("digits", digit(1)?)?).await?;
    ensure!(early.kind == FailureKind::LaneUnavailable && early.message.contains(&engine.host()), "{early}");
    engine.resume().await?;
    takes_jobs(&lane, true).await?;
    run(&lane, "digits").await?;

    engine.stop().await?;
    takes_jobs(&lane, false).await?;
    let away = failure(&lane, task("digits", digit(1)?)?).await?;
    ensure!(
        away.kind == FailureKind::LaneUnavailable && away.message.contains("cannot be reached"),
        "{away}"
    );
    engine.resume().await?;
    takes_jobs(&lane, true).await?;
    run(&lane, "digits").await?;
    only_container(&engine).await?;

    // What a worker that was killed would have left: containers with its labels and nobody to own them.
    let image = engine.cli(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).await?;
    for worker in ["tested", "neighbour"] {
        let labels = [format!("straightline.worker={worker}"), "straightline.owner=gone".to_owned()];
        let mut args = vec!["run", "--detach"];
        args.extend(labels.iter().flat_map(|label| ["--label", label.as_str()]));
        args.push(&image);
        engine.cli(&args).await?;
    }
    let second = start(Config { worker: "tested".to_owned(), ..config }).await?;
    let printed = engine.cli(&["ps", "--all", "--format", r#"{{.Label "straightline.worker"}}"#]).await?;
    ensure!(printed == "neighbour", "left over: {printed}");
    // The first lane had the second one's name, which no two live workers share: it has lost its container.
    until(BOUND, "the first lane sees it", async || {
        let shown = lane.summary().borrow().containers.clone();
        ensure!(shown.iter().all(|one| one.stage != Stage::Serving), "{shown:?}");
        Ok(())
    })
    .await?;
    second.stop().await;
    lane.stop().await;
    Ok(())
}

//! Jobs from client to result, through real processes, and through their deaths.

use crate::deployment::{Production, Up, each_once, jobs_file, more_results, results_of};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tests::process::{Program, python, workspace};
use tests::scenario::{Need, Scenario};
use tests::services::{Docker, RabbitVersion};
use tests::stage::Context;

const LONG: Duration = Duration::from_secs(600);

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Python, Redis};
    let mut all = vec![
        Scenario::new("pipeline/demo", &[Binary, Need::Docker], demo),
        Scenario::new("pipeline/demo_without_docker", &[Binary], demo_without_docker),
        Scenario::new("pipeline/up_killed_with_9_loses_nothing", &[Binary], up_killed),
        Scenario::new("pipeline/up_drains_on_sigterm", &[Binary], up_drains),
    ];
    all.extend(Scenario::on_each_rabbit("pipeline/production", &[Binary, Redis], production));
    all.extend(Scenario::on_each_rabbit("pipeline/python_client", &[Binary, Redis, Python], python_client));
    all.extend(Scenario::on_each_rabbit("pipeline/deaths_under_load", &[Binary, Redis], deaths));
    all.into_iter().map(|scenario| scenario.within(LONG)).collect()
}

/// The demo as a newcomer runs it where an engine answers at `host`; its report.
async fn demo_at(context: &Context, host: &str) -> Result<Value> {
    let demo = context.straightline("demo").await?.env("STRAIGHTLINE_DOCKER__HOST", host);
    let report = demo.args(["demo", "--json"]).run(LONG).await?.expect(0)?.json()?;
    ensure!(report["submitted"].as_u64() >= Some(2_000), "{report}");
    ensure!(report["succeeded"] == report["submitted"], "{report}");
    for none in ["failed", "lost", "duplicates"] {
        ensure!(report[none] == 0, "{none}: {report}");
    }
    ensure!(report["accuracy"].as_f64() >= Some(0.95), "{report}");
    Ok(report)
}

fn lane_ran(report: &Value, lane: &str) -> Result<()> {
    let of = &report["lanes"][lane];
    let ran = of["available"] == true && of["jobs"].as_u64() >= Some(1) && of["p99_ms"].is_number();
    ensure!(ran, "lane {lane}: {report}");
    Ok(())
}

fn gave_reasons(report: &Value, reasons: &[&str]) -> Result<()> {
    for reason in reasons {
        ensure!(report["reasons"][reason].as_u64() >= Some(1), "{reason}: {report}");
    }
    Ok(())
}

/// Over all three lanes: threads, containers and functions.
async fn demo(context: &Context) -> Result<()> {
    let engine = Docker::start(&context.folder().join("d")).await?;
    let report = demo_at(context, &engine.host()).await?;
    for lane in ["local", "docker", "serverless"] {
        lane_ran(&report, lane)?;
    }
    gave_reasons(&report, &["moderate", "large", "frequent_small"])?;
    let left = engine.cli(&["ps", "--all", "--quiet"]).await?;
    ensure!(left.trim().is_empty(), "it leaves containers behind: {left}");
    Ok(())
}

async fn demo_without_docker(context: &Context) -> Result<()> {
    let nowhere = context.folder().join("nowhere.sock");
    let report = demo_at(context, &format!("unix://{}", nowhere.display())).await?;
    lane_ran(&report, "local")?;
    lane_ran(&report, "serverless")?;
    let docker = &report["lanes"]["docker"];
    ensure!(docker["available"] == false && docker["jobs"] == 0, "{report}");
    gave_reasons(&report, &["moderate", "large/docker_down", "frequent_small"])
}

/// Two dispatchers, two workers, a file of jobs: a file of results, each once.
async fn production(context: &Context, version: RabbitVersion) -> Result<()> {
    let deployment = Production::shared(context, version).await?;
    let _workers = [deployment.worker(context, "w1").await?, deployment.worker(context, "w2").await?];
    let _dispatchers =
        [deployment.dispatcher(context, "d1").await?, deployment.dispatcher(context, "d2").await?];
    let (jobs, results) = (context.folder().join("jobs.jsonl"), context.folder().join("results.jsonl"));
    let labels = jobs_file(&jobs, 10_000)?;
    deployment.submit(context, &jobs, &results).await?.finish(LONG).await?.expect(0)?;
    let results = results_of(&results)?;
    each_once(&results, &labels)?;
    for worker in ["w1", "w2"] {
        ensure!(results.iter().any(|result| result["worker"] == worker), "{worker} ran nothing");
    }
    let status = deployment.status(context).await?;
    ensure!(status["dispatchers"].as_array().is_some_and(|found| found.len() == 2), "{status}");
    ensure!(status["workers"].as_array().is_some_and(|found| found.len() == 2), "{status}");
    ensure!(status["dead"] == 0, "{status}");
    Ok(())
}

/// The example in plain Python, with pika and msgpack only.
async fn python_client(context: &Context, version: RabbitVersion) -> Result<()> {
    let deployment = Production::shared(context, version).await?;
    let _worker = deployment.worker(context, "w1").await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;
    let jobs = context.folder().join("jobs.jsonl");
    let labels = jobs_file(&jobs, 10_000)?;
    let script = workspace().join("producer/examples/client.py");
    let client = Program::new("client", &python(), context.folder());
    let client = client.args([&script]).args([deployment.broker_url()]).args([&jobs]);
    let finished = client.run(LONG).await?.expect(0)?;
    each_once(&finished.json_lines()?, &labels)
}

/// `up` dies in the middle of 5,000 jobs, and is started again over its data.
async fn up_killed(context: &Context) -> Result<()> {
    let data = context.folder().join("data");
    let mut up = Up::start(context, "up-1", &data).await?;
    let (jobs, ids) = (context.folder().join("jobs.jsonl"), context.folder().join("ids.jsonl"));
    let labels = jobs_file(&jobs, 5_000)?;
    let submit = context.straightline("submit").await?;
    let submit = submit
        .args([Path::new("submit"), &jobs, Path::new("--output"), &ids])
        .args(["--quiet", "--server", &up.url]);
    submit.run(LONG).await?.expect(0)?;
    let accepted = results_of(&ids)?;
    ensure!(accepted.len() == labels.len(), "{} ids of {} jobs", accepted.len(), labels.len());
    up.process.kill9().await?;

    let mut up = Up::start(context, "up-2", &data).await?;
    let mut found = Vec::new();
    let all: Vec<_> = labels.keys().map(String::as_str).collect();
    for some in all.chunks(500) {
        let result =
            context.straightline("result").await?.args(["result", "--wait", "300s", "--server", &up.url]);
        found.extend(result.args(some).run(LONG).await?.expect(0)?.json_lines()?);
    }
    each_once(&found, &labels)?;
    up.process.term()?;
    let finished = up.process.finish(LONG).await?.expect(0)?;
    ensure!(!finished.stderr.contains("ERROR"), "{}", finished.stderr);
    Ok(())
}

/// SIGTERM: nothing new, what runs is finished, exit 0; what waits is there after the next start.
async fn up_drains(context: &Context) -> Result<()> {
    let data = context.folder().join("data");
    let mut up = Up::start(context, "up-1", &data).await?;
    let jobs = context.folder().join("jobs.jsonl");
    let labels = jobs_file(&jobs, 1_000)?;
    let submit = context.straightline("submit").await?;
    let submit = submit.args([Path::new("submit"), &jobs]).args(["--quiet", "--server", &up.url]);
    submit.run(LONG).await?.expect(0)?;
    up.process.term()?;
    up.process.finish(LONG).await?.expect(0)?;

    let up = Up::start(context, "up-2", &data).await?;
    let all: Vec<_> = labels.keys().map(String::as_str).collect();
    let mut found = Vec::new();
    for some in all.chunks(500) {
        let result =
            context.straightline("result").await?.args(["result", "--wait", "300s", "--server", &up.url]);
        found.extend(result.args(some).run(LONG).await?.expect(0)?.json_lines()?);
    }
    each_once(&found, &labels)
}

/// Under load a worker and a dispatcher are killed with -9 and RabbitMQ is restarted three times: nothing is lost, and
/// consumption resumes.
async fn deaths(context: &Context, version: RabbitVersion) -> Result<()> {
    let rabbit = context.own_rabbit(version).await?;
    let redis = context.redis().await?;
    let deployment = Production::on(context, rabbit.url(), redis.url());
    let mut workers = vec![deployment.worker(context, "w1").await?, deployment.worker(context, "w2").await?];
    let mut dispatchers =
        vec![deployment.dispatcher(context, "d1").await?, deployment.dispatcher(context, "d2").await?];
    let (jobs, results) = (context.folder().join("jobs.jsonl"), context.folder().join("results.jsonl"));
    let labels = jobs_file(&jobs, 10_000)?;
    let mut submit = deployment.submit(context, &jobs, &results).await?;

    more_results(&mut submit, &results, 200).await?;
    workers[0].kill9().await?;
    workers.push(deployment.worker(context, "w3").await?);
    more_results(&mut submit, &results, 200).await?;
    dispatchers[0].kill9().await?;
    dispatchers.push(deployment.dispatcher(context, "d3").await?);
    for _ in 0..3 {
        more_results(&mut submit, &results, 200).await?;
        rabbit.restart().await?;
    }
    submit.finish(LONG).await?.expect(0)?;
    each_once(&results_of(&results)?, &labels)
}

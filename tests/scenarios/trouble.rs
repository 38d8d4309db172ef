//! What goes wrong around a deployment, and what its jobs make of it.

use crate::deployment::{Production, each_once, jobs_file, results_of};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::scenario::{Need, Scenario};
use tests::services::RabbitVersion;
use tests::stage::Context;
use tests::until::until;

const LONG: Duration = Duration::from_secs(600);

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Redis};
    let mut all = Scenario::on_each_rabbit("trouble/redis_away", &[Binary, Redis], redis_away);
    all.extend(Scenario::on_each_rabbit("trouble/a_job_that_kills", &[Binary, Redis], a_job_that_kills));
    all.into_iter().map(|scenario| scenario.within(LONG)).collect()
}

/// Jobs flow without Redis, on what the dispatcher sees itself, and with it again. One after the other, so that every look
/// at the lane's queue sees the same: nothing.
async fn redis_away(context: &Context, version: RabbitVersion) -> Result<()> {
    let rabbit = context.rabbit(version).await?;
    let redis = context.own_redis().await?;
    let state = format!("redis://127.0.0.1:{}/0", redis.port());
    let deployment = Production::on(context, rabbit.url(), state);
    let _worker = deployment.worker(context, "w1").await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;

    let [file, pipe, results] =
        ["jobs.jsonl", "pipe.jsonl", "results.jsonl"].map(|name| context.folder().join(name));
    let labels = jobs_file(&file, 160)?;
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "no pipe");
    let submit = deployment.submit(context, &pipe, &results).await?;
    let writer = pipe.clone();
    let mut pipe = tokio::task::spawn_blocking(move || File::options().write(true).open(writer)).await??;
    for (at, line) in fs::read_to_string(&file)?.lines().enumerate() {
        match at {
            5 => redis.kill9().await?,
            150 => redis.resume().await?,
            _ => {}
        }
        pipe.write_all(format!("{line}\n").as_bytes())?;
        until(Duration::from_secs(60), "the job has its result", async || {
            let done = fs::read(&results).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
            ensure!(done > at, "{done} results of {} jobs", at + 1);
            Ok(())
        })
        .await?;
    }
    drop(pipe);
    submit.finish(LONG).await?.expect(0)?;
    each_once(&results_of(&results)?, &labels)?;
    // What could not be recorded meanwhile is by now: whoever asks again later finds it.
    let result = deployment.command(context, "result").await?.args(["result", "--wait", "60s"]);
    let found = result.args(labels.keys()).run(LONG).await?.expect(0)?;
    each_once(&found.json_lines()?, &labels)
}

/// Waits as a slow supervisor does: until a dispatcher has found the local lane without workers and consumes its queue.
async fn taken_back(context: &Context, deployment: &Production) -> Result<()> {
    until(Duration::from_secs(60), "the lane is taken back", async || {
        let status = deployment.status(context).await?;
        let queue =
            status["queues"].as_array().into_iter().flatten().find(|queue| queue["name"] == "lane.local");
        let consumed = queue.is_some_and(|queue| queue["consumers"] == 1);
        ensure!(status["workers"] == json!([]) && consumed, "{status}");
        Ok(())
    })
    .await
}

/// A job that kills its worker each time ends in `dead` after its attempts; its neighbours do not suffer, though the
/// lane has one worker and is taken back each time it dies.
async fn a_job_that_kills(context: &Context, version: RabbitVersion) -> Result<()> {
    let deployment = Production::shared(context, version).await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;
    let (jobs, results) = (context.folder().join("jobs.jsonl"), context.folder().join("results.jsonl"));
    let labels = jobs_file(&jobs, 300)?;
    let killer = json!({ "id": "01a0aaaa-0000-7000-8000-000000000000", "model": "diagnose.abort", "class": "high",
        "attempts_max": 3, "inputs": [] });
    let file = context.folder().join("killer.jsonl");
    fs::write(&file, format!("{killer}\n"))?;
    let mut submit = deployment.submit(context, &jobs, &results).await?;
    let doomed = deployment.command(context, "doomed").await?;
    let doomed = doomed.args([Path::new("submit"), &file, Path::new("--wait"), Path::new("--quiet")]);
    let mut doomed = doomed.start()?;

    let mut deaths = 0;
    loop {
        let mut worker = deployment.worker(context, &format!("w{deaths}")).await?;
        until(LONG, "the worker has died, or everything has ended", async || {
            let ended = doomed.exited()?.is_some() && submit.exited()?.is_some();
            ensure!(ended || worker.exited()?.is_some(), "{deaths} deaths so far");
            Ok(())
        })
        .await?;
        if worker.exited()?.is_none() {
            break;
        }
        deaths += 1;
        ensure!(deaths < 12, "the job has killed its worker {deaths} times and is still about");
        taken_back(context, &deployment).await?;
    }
    let told = doomed.finish(LONG).await?;
    let told: Value = serde_json::from_str(told.stdout.trim()).context("a result of the killer")?;
    ensure!(told["status"] == "failed" && told["error"]["kind"] == "worker_lost", "{told}");
    ensure!(told["attempts"] == 3, "{told}");
    ensure!(deaths >= 3, "it killed {deaths} times in 3 attempts");
    submit.finish(LONG).await?.expect(0)?;
    each_once(&results_of(&results)?, &labels)?;
    let dead = deployment.command(context, "dead").await?.args(["dead", "list", "--json"]);
    let dead = dead.run(Duration::from_secs(30)).await?.expect(0)?;
    ensure!(
        dead.stdout.contains("01a0aaaa-0000-7000-8000-000000000000"),
        "not among the dead: {}",
        dead.stdout
    );
    Ok(())
}

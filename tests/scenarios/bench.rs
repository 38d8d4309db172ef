//! `straightline bench`: that it measures what it says, loses nothing, and disturbs nobody. How quick anything is, no test
//! says: figures are for people, and for `docs/BENCH.md`.

use crate::deployment::Production;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;
use tests::process::Program;
use tests::scenario::{Need, Scenario};
use tests::services::{RabbitVersion, Vhost};
use tests::stage::Context;
use tests::until::until;

const LONG: Duration = Duration::from_secs(300);
/// Enough for every figure to be there, and for everything to come after everything else.
const SHORT: [&str; 8] = ["--rounds", "3", "--jobs", "1500", "--rate-for", "1s", "--rate", "100"];

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Redis};
    let mut all = vec![Scenario::new("bench/embedded", &[Binary], embedded)];
    all.extend(Scenario::on_each_rabbit("bench/against_the_pumps", &[Binary, Redis], pumps));
    all.extend(Scenario::on_each_rabbit("bench/what_runs_already", &[Binary, Redis], deployment));
    all.into_iter().map(|scenario| scenario.within(LONG)).collect()
}

async fn measured(bench: Program) -> Result<Value> {
    bench.args(SHORT).args(["--json"]).run(LONG).await?.expect(0)?.json()
}

/// Every figure of a report or of one of its parts is there, and makes sense.
fn has_figures(report: &Value) -> Result<()> {
    for figure in ["jobs_per_s", "p50_ms", "p95_ms", "p99_ms", "max_ms"] {
        ensure!(report[figure].as_f64() > Some(0.0), "{figure}: {report}");
    }
    ensure!(report["p50_ms"].as_f64() <= report["p99_ms"].as_f64(), "{report}");
    ensure!(report["saturated"]["p50_ms"].as_f64() > Some(0.0), "{report}");
    ensure!(report["cpu_s_per_10k"].is_number(), "{report}");
    Ok(())
}

fn lost_nothing(report: &Value) -> Result<()> {
    ensure!(report["lost"] == 0 && report["failed"] == 0, "{report}");
    Ok(())
}

async fn embedded(context: &Context) -> Result<()> {
    let bench = context.straightline("bench").await?.args(["bench", "--spawn"]);
    let report = measured(bench).await?;
    has_figures(&report)?;
    lost_nothing(&report)?;
    ensure!(report["config"]["broker"] == "embedded", "{report}");
    for hop in ["dispatcher", "worker", "model"] {
        ensure!(report["hops_mean_ms"][hop].is_number(), "{hop}: {report}");
    }
    let ceiling = context.straightline("ceiling").await?.args(["bench", "--spawn", "--ceiling"]);
    let refused = ceiling.run(LONG).await?.expect(64)?;
    ensure!(refused.stderr.contains("broker.url"), "{}", refused.stderr);
    let nothing = context.straightline("nothing").await?.args(["bench"]).run(LONG).await?.expect(64)?;
    ensure!(nothing.stderr.contains("--spawn"), "{}", nothing.stderr);
    Ok(())
}

/// With a Redis of its own, since none is configured; in the end its virtual host is as it was.
async fn pumps(context: &Context, version: RabbitVersion) -> Result<()> {
    let vhost = context.rabbit(version).await?;
    let bench = context.straightline("bench").await?.env("STRAIGHTLINE_BROKER__URL", vhost.url());
    let report = measured(bench.args(["bench", "--spawn", "--ceiling"])).await?;
    lost_nothing(&report)?;
    for part in [&report, &report["ceiling"], &report["bare"]] {
        has_figures(part)?;
    }
    for pump in ["ceiling", "bare"] {
        let (ratio, own, pumped) =
            (&report[pump]["ratio"], &report["jobs_per_s"], &report[pump]["jobs_per_s"]);
        let expected = own.as_f64().zip(pumped.as_f64()).map(|(own, pumped)| own / pumped);
        let off = ratio.as_f64().zip(expected).map(|(ratio, expected)| (ratio - expected).abs());
        ensure!(off < Some(0.01), "{pump}: {report}");
    }
    for process in ["client", "dispatcher", "worker", "state"] {
        ensure!(report["cpu_s_per_10k_by_process"][process].is_number(), "{process}: {report}");
    }
    ensure!(!report.to_string().contains(vhost.url().as_str()), "the report shows the login");
    no_pumps_left(&vhost).await?;

    let broken_off = context.straightline("broken-off").await?.env("STRAIGHTLINE_BROKER__URL", vhost.url());
    let jobs = ["--jobs", "30000", "--rate", "0"];
    let mut bench = broken_off.args(["bench", "--spawn", "--ceiling"]).args(jobs).start()?;
    until(LONG, "a pump is at work", async || {
        ensure!(no_pumps_left(&vhost).await.is_err(), "no pump has queues yet");
        Ok(())
    })
    .await?;
    bench.term()?;
    bench.finish(LONG).await?.expect(130)?;
    no_pumps_left(&vhost).await
}

async fn no_pumps_left(vhost: &Vhost) -> Result<()> {
    let queues = vhost.queues().await?;
    ensure!(!queues.iter().any(|queue| queue.name.starts_with("pump.")), "{queues:?}");
    Ok(())
}

/// A deployment that runs is measured as it is; and it is not measured with processes beside its own, which would run its
/// jobs.
async fn deployment(context: &Context, version: RabbitVersion) -> Result<()> {
    let deployment = Production::shared(context, version).await?;
    let _worker = deployment.worker(context, "w1").await?;
    let mut dispatcher = deployment.dispatcher(context, "d1").await?;
    let report = measured(deployment.command(context, "bench").await?.args(["bench"])).await?;
    has_figures(&report)?;
    lost_nothing(&report)?;
    ensure!(report["config"]["spawn"] == false && report["first_job_ms"].is_null(), "{report}");
    let beside = deployment.command(context, "beside").await?.args(["bench", "--spawn"]);
    let refused = beside.run(LONG).await?.expect(64)?;
    ensure!(refused.stderr.contains("in use"), "{}", refused.stderr);

    // Interrupted, it says so and leaves nobody behind: the deployment goes on.
    let mut bench =
        deployment.command(context, "interrupted").await?.args(["bench", "--rounds", "100"]).start()?;
    until(LONG, "it measures", async || {
        let status = deployment.status(context).await?;
        ensure!(status["lanes"].to_string().contains("completed_per_s"), "{status}");
        ensure!(dispatcher.exited()?.is_none(), "the dispatcher ended");
        Ok(())
    })
    .await?;
    bench.term()?;
    bench.finish(LONG).await?.expect(130)?;
    ensure!(dispatcher.exited()?.is_none(), "the dispatcher ended");
    Ok(())
}

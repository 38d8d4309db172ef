//! The harness itself: services keep what they promised over a stop and over a crash, and nothing outlives the
//! runner that owns it.
//!
//! The last is seen from outside: a scenario starts this very program again as a *probe*, a second runner whose
//! one scenario hangs, fails or lacks what it needs.

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::ports;
use tests::process::{Finished, Program, python};
use tests::scenario::{Need, Scenario};
use tests::services::{Rabbit, RabbitVersion};
use tests::stage::Context;
use tests::until::until;

/// Names the probe that this program shall be.
const PROBE: &str = "STRAIGHTLINE_TESTS_PROBE";
const BOUND: Duration = Duration::from_secs(75);

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Python, Rabbit310, Redis};
    let mut all = vec![
        Scenario::new("harness/the_binary_is_the_one_built_now", &[Binary], the_binary_is_built_now),
        Scenario::new("harness/redis_keeps_its_data", &[Redis], redis_keeps_its_data),
        Scenario::new("harness/sharers_of_a_service_do_not_meet", &[Rabbit310, Redis], sharers_do_not_meet),
        Scenario::new("harness/nothing_outlives_a_killed_runner", &[Rabbit310, Redis], nothing_outlives),
        Scenario::new("harness/a_panic_fails_and_shows_the_logs", &[], a_panic_fails_and_shows_the_logs),
        Scenario::new("harness/what_is_missing_is_left_out_by_name", &[], what_is_missing_is_left_out),
    ];
    all.extend(Scenario::on_each_rabbit("harness/rabbit_keeps_its_data", &[Python], rabbit_keeps_its_data));
    all
}

/// The scenario of the probe that this program was started as, if it was.
pub(crate) fn probe() -> Option<Vec<Scenario>> {
    let scenario = match env::var(PROBE).ok()?.as_str() {
        "hang" => Scenario::new("probe", &[], hang),
        "panic" => Scenario::new("probe", &[], panic),
        "lack" => {
            Scenario::new("probe", &[Need::Rabbit40], async |_: &Context| bail!("ran without its need"))
        }
        _ => return None,
    };
    Some(vec![scenario])
}

async fn the_binary_is_built_now(context: &Context) -> Result<()> {
    let program = context.straightline("version").await?.args(["--version"]);
    let finished = program.run(BOUND).await?.expect(0)?;
    let version = format!("straightline {}", env!("CARGO_PKG_VERSION"));
    ensure!(finished.stdout.trim() == version, "it calls itself {:?}", finished.stdout);
    Ok(())
}

async fn redis_keeps_its_data(context: &Context) -> Result<()> {
    let redis = context.own_redis().await?;
    redis.cli(0, &["SET", "job", "done"]).await?;
    redis.kill9().await?;
    ensure!(redis.cli(0, &["PING"]).await.is_err(), "a killed Redis answers");
    redis.resume().await?;
    ensure!(redis.cli(0, &["GET", "job"]).await?.trim() == "done", "lost by a crash");
    redis.restart().await?;
    ensure!(redis.cli(0, &["GET", "job"]).await?.trim() == "done", "lost by a stop");
    Ok(())
}

async fn rabbit_keeps_its_data(context: &Context, version: RabbitVersion) -> Result<()> {
    let rabbit = context.own_rabbit(version).await?;
    let publish = "import pika, sys\n\
        channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()\n\
        channel.queue_declare('kept', durable=True, arguments={'x-queue-type': 'quorum'})\n\
        channel.confirm_delivery()\n\
        channel.basic_publish('', 'kept', b'job', pika.BasicProperties(delivery_mode=2), mandatory=True)\n";
    let client = Program::new("publish", &python(), context.folder()).args(["-c", publish, &rabbit.url()]);
    client.run(BOUND).await?.expect(0)?;
    rabbit.flush().await?;
    rabbit.kill9().await?;
    ensure!(ports::is_free(rabbit.port()), "a killed RabbitMQ holds its port");
    rabbit.resume().await?;
    holds_one(&rabbit).await.context("lost by a crash")?;
    rabbit.restart().await?;
    holds_one(&rabbit).await.context("lost by a stop")
}

async fn holds_one(rabbit: &Rabbit) -> Result<()> {
    until(BOUND, "the queue holds its message", async || {
        let queues = rabbit.queues("/").await?;
        let ready: Vec<_> = queues.iter().map(|queue| (queue.name.as_str(), queue.ready)).collect();
        ensure!(ready == [("kept", 1)], "queues are {ready:?}");
        Ok(())
    })
    .await
}

async fn sharers_do_not_meet(context: &Context) -> Result<()> {
    let (one, other) = (context.redis().await?, context.redis().await?);
    one.cli(&["SET", "job", "done"]).await?;
    ensure!(other.cli(&["GET", "job"]).await?.trim().is_empty(), "two scenarios share a database");

    let (one, other) =
        (context.rabbit(RabbitVersion::V3_10).await?, context.rabbit(RabbitVersion::V3_10).await?);
    ensure!(one.url() != other.url(), "two scenarios share a virtual host");
    ensure!(one.rabbit().port() == other.rabbit().port(), "two brokers run where one would do");
    ensure!(one.queues().await?.is_empty() && other.queues().await?.is_empty(), "a new one holds queues");
    Ok(())
}

async fn nothing_outlives(context: &Context) -> Result<()> {
    let mut runner = runner(context, "hang")?.start()?;
    let held = context.folder().join("held");
    let ports = until(BOUND, "the probe holds its services", async || {
        let text = fs::read_to_string(&held)?;
        let ports: Vec<u16> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(ports.len() == 2 && text.ends_with('\n'), "it wrote {text:?}");
        Ok(ports)
    });
    let ports = ports.await.with_context(|| runner.stderr().unwrap_or_default())?;
    ensure!(ports.iter().all(|&port| !ports::is_free(port)), "a service of the probe does not listen");
    runner.kill9().await?;
    until(BOUND, "all services of a killed runner are gone", async || {
        let left: Vec<_> = ports.iter().filter(|&&port| !ports::is_free(port)).collect();
        ensure!(left.is_empty(), "ports {left:?} are still in use");
        Ok(())
    })
    .await
}

async fn a_panic_fails_and_shows_the_logs(context: &Context) -> Result<()> {
    let finished = runner(context, "panic")?.run(BOUND).await?.expect(101)?;
    for words in ["test result: FAILED. 0 passed; 1 failed", "speaker.err", "said before the end"] {
        ensure!(finished.stdout.contains(words), "no {words:?} in\n{}", finished.stdout);
    }
    Ok(())
}

async fn what_is_missing_is_left_out(context: &Context) -> Result<()> {
    let lack = async |ci: &str| -> Result<Finished> {
        let runner = runner(context, "lack")?.env("STRAIGHTLINE_TEST_CACHE", "/nonexistent").env("CI", ci);
        runner.run(BOUND).await
    };
    let reason = "RabbitMQ 4.0 is not in /nonexistent/rabbitmq-4.0";
    let finished = lack("").await?.expect(0)?;
    ensure!(finished.stderr.contains(&format!("left out: probe: {reason}")), "it said {}", finished.stderr);
    ensure!(finished.stdout.contains("0 passed; 0 failed; 1 ignored"), "it said {}", finished.stdout);
    let finished = lack("true").await?.expect(101)?;
    ensure!(finished.stdout.contains(reason), "it said {}", finished.stdout);
    Ok(())
}

fn runner(context: &Context, probe: &str) -> Result<Program> {
    let this = env::current_exe().context("failed to find this program")?;
    Ok(Program::new(probe, &this, context.folder()).env(PROBE, probe).env("TMPDIR", context.folder()))
}

/// Started in the folder of the scenario that asked for it, where it writes the ports of its services.
async fn hang(context: &Context) -> Result<()> {
    let (rabbit, redis) = (context.own_rabbit(RabbitVersion::V3_10).await?, context.redis().await?);
    fs::write("held", format!("{} {}\n", rabbit.port(), redis.redis().port()))?;
    std::future::pending().await
}

async fn panic(context: &Context) -> Result<()> {
    let speaker = Program::new("speaker", Path::new("/bin/sh"), context.folder());
    speaker.args(["-c", "echo said before the end >&2"]).run(BOUND).await?.expect(0)?;
    panic!("as asked");
}

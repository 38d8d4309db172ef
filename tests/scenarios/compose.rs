//! The deployment of `compose/`: its files by themselves, and all of it on a private engine.
//!
//! No registry is asked: the images it names are replaced, through the variables it offers for that, by ones made of what
//! `tests/run` has prepared. One image stands in for the base, the broker and Redis.

use crate::deployment::{each_once, jobs_file, results_of};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::owned::{command, printed};
use tests::process::{build, workspace};
use tests::scenario::{Need, Scenario};
use tests::services::{self, RabbitVersion, cache};
use tests::stage::Context;
use tests::until::until;

/// For one step on a busy machine.
const STEP: Duration = Duration::from_secs(240);

const FILES: [&str; 4] =
    ["dispatcher.toml", "worker-local.toml", "worker-docker.toml", "worker-serverless.toml"];

/// Ours, in the order that their exit codes are looked at.
const ROLES: [&str; 4] = ["dispatcher", "worker-local", "worker-docker", "worker-serverless"];

/// Makes the image `substitute` in folder $2: the root of RabbitMQ in $1, and this machine's Redis with its own loader
/// and libraries, since the root may be of another Debian.
const SUBSTITUTE: &str = r#"
root=$1 folder=$2
tar -C "$root" --exclude='./proc/*' --exclude='./mnt/*' --exclude='./var/lib/rabbitmq/*' --exclude='./var/cache/*' \
    --exclude='./var/lib/apt/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*' -c . |
    docker import - substitute-root
mkdir -p "$folder/redis"
for program in redis-server redis-cli; do
    path=$(readlink -f "$(command -v $program)")
    cp "$path" "$folder/redis/$program"
    ldd "$path" | grep -o '/[^ ]*' | while read -r library; do cp -L "$library" "$folder/redis/"; done
    printf '#!/bin/sh\nexec /opt/redis/ld-linux-* --library-path /opt/redis /opt/redis/%s "$@"\n' $program \
        >"$folder/redis/$program.sh"
done
cat >"$folder/Dockerfile" <<'END'
FROM substitute-root
COPY redis /opt/redis
RUN cd /opt/redis && chmod +x * && mv redis-server.sh /usr/local/bin/redis-server && mv redis-cli.sh /usr/local/bin/redis-cli \
    && useradd --system redis && install -d -o redis /data \
    && install -d -o rabbitmq -g rabbitmq /var/lib/rabbitmq /var/log/rabbitmq /etc/rabbitmq/conf.d
ENV PATH=/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/bin:/bin HOME=/var/lib/rabbitmq LANG=C.UTF-8
CMD ["rabbitmq-server"]
END
docker build --quiet --tag substitute "$folder"
"#;

/// As `compose/README.md` says, of the binary in folder $1.
const OURS: &str = r#"
tar -c -C "$2/compose" Dockerfile -C "$1" straightline |
    docker build --quiet --build-arg BASE=substitute --tag straightline:tested -
"#;

/// Looks at the broker more often than an operator would, who has time.
const IMPATIENT: &str = "services: {rabbitmq: {healthcheck: {interval: 3s}}}\n";

pub(crate) fn scenarios() -> Vec<Scenario> {
    let all = [Need::Binary, Need::Docker, Need::Compose, Need::Rabbit40, Need::Redis];
    vec![
        Scenario::new("compose/its_files_are_accepted", &all, files),
        Scenario::new("compose/jobs_are_answered_and_a_stop_drains", &all, deployment)
            .within(Duration::from_secs(600)),
    ]
}

async fn files(context: &Context) -> Result<()> {
    let broker = context.rabbit(RabbitVersion::V4_0).await?.url();
    let state = context.redis().await?.url();
    let folder = workspace().join("compose");
    for file in FILES {
        let program = context.straightline(file).await?.args(["config", "check", "--config"]);
        let program = program.args([folder.join(file)]).env("STRAIGHTLINE_STORAGE__DIR", context.folder());
        let program = program.env("STRAIGHTLINE_BROKER__URL", &broker).env("STRAIGHTLINE_STATE__URL", &state);
        let checked = program.run(STEP).await?.expect(0)?;
        ensure!(checked.stdout.contains("the configuration works"), "{file}: {}", checked.stdout);
    }
    let compose = Compose::new(context, "unix:///nowhere")?;
    let shown = compose.run(&["config"], None).await?;
    for file in FILES.iter().chain(&["rabbitmq.conf", "prometheus.yml"]) {
        ensure!(shown.contains(&format!("compose/{file}:")), "{file} is mounted nowhere in {shown}");
    }
    fs::write(&compose.settings, "")?;
    let Err(refused) = compose.run(&["config", "--quiet"], None).await else {
        bail!("accepted without passwords")
    };
    ensure!(format!("{refused:#}").contains("copy example.env to .env and set it"), "{refused:#}");
    Ok(())
}

async fn deployment(context: &Context) -> Result<()> {
    let engine = services::Docker::start(&context.folder().join("d")).await?;
    make_images(context, &engine).await?;
    let compose = Compose::new(context, &engine.host())?;
    compose.run(&["up", "-d"], None).await?;
    until(STEP, "all are there", async || {
        let status = compose.run(&["run", "--rm", "-T", "cli", "status", "--json"], None).await?;
        let status: Value = serde_json::from_str(&status).context("status")?;
        let lanes = status["lanes"].as_array().context("no lanes")?;
        ensure!(lanes.iter().all(|lane| lane["slots"].as_u64() > Some(0)), "{lanes:?}");
        let found = status["dispatchers"].as_array().map_or(0, Vec::len);
        ensure!(found == 2, "{found} dispatchers");
        Ok(())
    })
    .await?;

    let lanes = answered(context, &compose, "first", 1000).await?;
    let all = BTreeSet::from(["docker", "local", "serverless"].map(str::to_owned));
    ensure!(lanes == all, "{lanes:?}");

    // One dispatcher will do. Killed by hand, it is not started again.
    let dispatchers = compose.containers("dispatcher").await?;
    let killed = dispatchers.first().context("no dispatcher")?;
    engine.cli(&["kill", killed]).await?;
    answered(context, &compose, "second", 300).await?;

    let mut ours = Vec::new();
    for role in ROLES {
        ours.extend(compose.containers(role).await?);
    }
    ensure!(ours.len() == 5, "{} containers of ours", ours.len());
    compose.run(&["stop"], None).await?;
    for id in ours {
        let code = engine.cli(&["inspect", "--format", "{{.State.ExitCode}}", &id]).await?;
        let expected = if id == *killed { "137" } else { "0" };
        ensure!(code == expected, "{id} ended with {code}: {}", engine.cli(&["logs", &id]).await?);
    }
    let left = engine.cli(&["ps", "--all", "--quiet", "--filter", "label=straightline.worker"]).await?;
    ensure!(left.is_empty(), "model containers are left: {left}");
    Ok(())
}

/// Submits jobs and checks that each has its one right result; the lanes that ran them.
async fn answered(
    context: &Context,
    compose: &Compose<'_>,
    name: &str,
    count: usize,
) -> Result<BTreeSet<String>> {
    let [file, found] = ["jobs", "results"].map(|what| context.folder().join(format!("{name}.{what}.jsonl")));
    let labels = jobs_file(&file, count)?;
    let submit = ["run", "--rm", "-T", "cli", "submit", "-", "--wait", "--quiet"];
    fs::write(&found, compose.run(&submit, Some(&file)).await?)?;
    let results = results_of(&found)?;
    each_once(&results, &labels)?;
    Ok(results.iter().filter_map(|result| result["lane"].as_str()).map(str::to_owned).collect())
}

async fn make_images(context: &Context, engine: &services::Docker) -> Result<()> {
    let program = build().await?;
    let folder = program.parent().context("the binary lies in a folder")?;
    for (name, script, from, to) in [
        ("substitute", SUBSTITUTE, cache().join("rabbitmq-4.0"), context.folder().join("substitute")),
        ("straightline", OURS, folder.to_owned(), workspace().to_owned()),
    ] {
        let mut shell = command("sh");
        shell.env("DOCKER_HOST", engine.host()).env("DOCKER_BUILDKIT", "0");
        shell.args(["-ec", script, "sh"]).arg(from).arg(to);
        printed(&format!("making the image {name}"), shell, STEP).await?;
    }
    Ok(())
}

/// The deployment on an engine; taken down, with its networks and volumes, when dropped.
struct Compose<'a> {
    context: &'a Context,
    engine: String,
    /// In place of `.env`.
    settings: PathBuf,
}

impl<'a> Compose<'a> {
    fn new(context: &'a Context, engine: &str) -> Result<Self> {
        let socket = engine.trim_start_matches("unix://");
        let group = fs::metadata(socket).map_or(0, |socket| socket.gid());
        let settings = context.folder().join("env");
        let lines = [
            "COMPOSE_PROJECT_NAME=straightline".to_owned(),
            "RABBITMQ_PASSWORD=one2three".to_owned(),
            "REDIS_PASSWORD=four5six".to_owned(),
            "STRAIGHTLINE_IMAGE=straightline:tested".to_owned(),
            "RABBITMQ_IMAGE=substitute".to_owned(),
            "REDIS_IMAGE=substitute".to_owned(),
            format!("DOCKER_SOCKET={socket}"),
            format!("DOCKER_GID={group}"),
        ];
        fs::write(&settings, lines.join("\n") + "\n")?;
        fs::write(context.folder().join("impatient.yaml"), IMPATIENT)?;
        Ok(Self { context, engine: engine.to_owned(), settings })
    }

    fn command(&self) -> Command {
        let mut compose = command("docker-compose");
        compose.env("DOCKER_HOST", &self.engine).env("COMPOSE_ANSI", "never").arg("--env-file");
        compose.arg(&self.settings).arg("--file").arg(workspace().join("compose/compose.yaml"));
        compose.arg("--file").arg(self.context.folder().join("impatient.yaml"));
        compose
    }

    /// Runs it with `input`, or nothing, on its standard input; what it printed on standard output.
    async fn run(&self, args: &[&str], input: Option<&Path>) -> Result<String> {
        let mut compose = self.command();
        compose.args(args);
        if let Some(input) = input {
            compose.stdin(File::open(input)?);
        }
        printed(&format!("docker-compose {}", args.join(" ")), compose, STEP).await
    }

    /// Ids of a service's containers.
    async fn containers(&self, service: &str) -> Result<Vec<String>> {
        Ok(self.run(&["ps", "-q", service], None).await?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        // The engine's end would leave the networks' bridges behind. Without an engine there is nothing to take down.
        if Path::new(self.engine.trim_start_matches("unix://")).exists() {
            let down = self.command().args(["down", "--volumes", "--timeout", "1"]).output();
            if !down.is_ok_and(|down| down.status.success()) {
                eprintln!("a deployment could not be taken down");
            }
        }
    }
}

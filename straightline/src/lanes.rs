//! The executor of each lane, as configured.

use crate::config::lanes::{Function, Provider, Server};
use crate::config::{ConfigError, Settings};
use crate::roles;
use anyhow::{Context, Result, bail};
use schemas::{Lane, ModelName};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use workers::catalog::Catalog;
use workers::docker::{self, Docker};
use workers::lane::{Executor, Held};
use workers::local::beside::{self, Beside};
use workers::serverless::host::{self, Host};
use workers::serverless::http::{self, HttpFunctions};
use workers::serverless::lambda::{self, Credentials, Lambda};
use workers::serverless::{self, Functions, Serverless};

/// How long a lane may take until it is ready, when it is only asked.
const ASKED: Duration = Duration::from_secs(10);
/// Longest answer of a model server beside the worker.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Starts the executor of `lane` for the worker of that name.
pub async fn start(
    settings: &Settings,
    lane: Lane,
    catalog: Catalog,
    worker: &str,
) -> Result<Arc<dyn Executor>> {
    let elsewhere: Arc<dyn Executor> = match (lane, &settings.worker.server) {
        // Models in this process are held to their contracts by their runtime.
        (Lane::Local, None) => return Ok(Arc::new(roles::load(settings, catalog).await?)),
        (Lane::Local, Some(server)) => Arc::new(Beside::start(beside_config(settings, server))?),
        (Lane::Docker, _) => Arc::new(Docker::start(docker_config(settings, &catalog, worker))?),
        (Lane::Serverless, _) => serverless(settings, &catalog).await?,
    };
    Ok(Arc::new(Held::new(elsewhere, catalog.known().cloned())))
}

/// Starts `lane` as its worker would, and says what keeps it from running jobs here.
pub async fn ask(settings: &Settings, lane: Lane, catalog: Catalog) -> Result<()> {
    let mut settings = settings.clone();
    // A worker of this machine may have it.
    settings.serverless.host.invoke_listen = None;
    let executor = start(&settings, lane, catalog, &roles::process_name("check")).await?;
    let mut capacity = executor.capacity();
    let ready = timeout(ASKED, capacity.wait_for(|capacity| capacity.slots > 0)).await.is_ok();
    let problem =
        executor.backend().and_then(|backend| Some(format!("{}: {}", backend.name, backend.problem?)));
    let mut problems: Vec<String> = problem.into_iter().collect();
    if ready {
        problems.extend(executor.obstacles().await.into_iter().map(|obstacle| obstacle.message));
    } else if problems.is_empty() {
        problems.push(format!("it was not ready within {} s", ASKED.as_secs()));
    }
    executor.stop().await;
    match problems.is_empty() {
        true => Ok(()),
        false => bail!("a {lane} worker could not run every job here: {}", problems.join("; ")),
    }
}

/// Checks what is set about the lanes, as far as that goes without starting one.
pub fn check(settings: &Settings, catalog: &Catalog) -> Result<()> {
    if let Some(server) = &settings.worker.server {
        beside_config(settings, server).check()?;
    }
    docker_config(settings, catalog, "worker").check()?;
    match settings.serverless.provider {
        Provider::Http => drop(http_functions(settings)?),
        Provider::Lambda => drop(lambda(settings)?),
        Provider::Host => host_config(settings, catalog)?.check()?,
    }
    Ok(())
}

fn docker_config(settings: &Settings, catalog: &Catalog, worker: &str) -> docker::Config {
    let models = models(catalog).filter(|model| !settings.docker.images.contains_key(model));
    settings.docker.config(worker, models.collect(), settings.worker.models.clone())
}

/// The models that this program can run.
fn models(catalog: &Catalog) -> impl Iterator<Item = ModelName> {
    catalog.entries().map(|entry| entry.contract.name.clone())
}

fn beside_config(settings: &Settings, server: &Server) -> beside::Config {
    beside::Config {
        url: server.url.clone(),
        slots: settings.worker.slots.unwrap_or(workers::local::Config::default().slots),
        models: server.models.clone(),
        binary: server.binary,
        answer_bytes_max: ANSWER_BYTES_MAX,
    }
}

async fn serverless(settings: &Settings, catalog: &Catalog) -> Result<Arc<dyn Executor>> {
    let ours = &settings.serverless;
    let (functions, models): (Arc<dyn Functions>, Vec<ModelName>) = match ours.provider {
        Provider::Http => return Ok(Arc::new(http_functions(settings)?)),
        Provider::Lambda => {
            let named = ours.lambda.models.clone();
            let models = if named.is_empty() { models(catalog).collect() } else { named };
            (Arc::new(lambda(settings)?), models)
        }
        Provider::Host => {
            let host = Host::start(host_config(settings, catalog)?).await?;
            let models = host.models();
            (Arc::new(host), models)
        }
    };
    let config =
        serverless::Config { concurrency_max: ours.concurrency_max, ..serverless::Config::default() };
    Ok(Arc::new(Serverless::new(&config, functions, models)?))
}

fn http_functions(settings: &Settings) -> Result<HttpFunctions> {
    let ours = &settings.serverless;
    let config = http::Config {
        concurrency_max: ours.concurrency_max,
        binary: ours.http.binary,
        ..http::Config::new(&ours.http.url, ours.http.models.clone())
    };
    Ok(HttpFunctions::new(&config)?)
}

fn lambda(settings: &Settings) -> Result<Lambda> {
    let ours = &settings.serverless.lambda;
    let credentials = Credentials::from_environment(|name| std::env::var(name).ok());
    let credentials = credentials.ok_or_else(|| {
        let problem = "serverless.provider is lambda, but AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set: \
                       set both in this process's environment, and AWS_SESSION_TOKEN for keys that are lent";
        ConfigError::Value(problem.to_owned())
    })?;
    let config = lambda::Config {
        endpoint: ours.endpoint.clone(),
        region: ours.region.clone(),
        function: ours.function.clone(),
        functions: ours.functions.clone(),
        qualifier: ours.qualifier.clone(),
        ..lambda::Config::new(credentials)
    };
    Ok(Lambda::new(config)?)
}

/// Functions of this program for every model that has none of its own.
fn host_config(settings: &Settings, catalog: &Catalog) -> Result<host::Config> {
    let ours = &settings.serverless.host;
    let program = std::env::current_exe().context("failed to find this program")?.into_os_string();
    let limited = |mut function: host::Function, memory: Option<bytesize::ByteSize>| {
        function.limits.memory_bytes = memory.unwrap_or(ours.memory).as_u64();
        function
    };
    // A function's working folder is not ours.
    let dir = settings.worker.models.as_ref().map(std::path::absolute).transpose();
    let dir = dir.context("failed to find the folder worker.models")?;
    let built_in = models(catalog).map(|model| {
        let mut command = vec![program.clone(), "function".into(), "--model".into(), model.as_str().into()];
        if let Some(dir) = &dir {
            command.extend([OsString::from("--models"), dir.clone().into_os_string()]);
        }
        (model, limited(host::Function::new(command), None))
    });
    let configured = ours.functions.iter().map(|(model, function)| {
        let Function { command, handler, task_root, env, memory } = function.clone();
        let function = host::Function {
            handler,
            task_root,
            environment: env,
            ..host::Function::new(command.into_iter().map(OsString::from).collect())
        };
        (model.clone(), limited(function, memory))
    });
    Ok(host::Config {
        // What is configured replaces what is built in.
        functions: built_in.chain(configured).collect(),
        keeper: vec![program.clone(), "keep".into()],
        concurrency_max: settings.serverless.concurrency_max,
        function_concurrency_max: ours
            .function_concurrency_max
            .unwrap_or(settings.serverless.concurrency_max),
        idle_timeout: ours.idle_timeout,
        init_timeout: ours.init_timeout,
        invoke_listen: ours.invoke_listen,
        ..host::Config::default()
    })
}

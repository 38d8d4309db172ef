//! The executor of each lane, as configured.

use crate::config::Settings;
use crate::config::lanes::{Function, Provider, Server};
use crate::roles;
use anyhow::{Context, Result};
use schemas::{Lane, ModelName};
use std::ffi::OsString;
use std::sync::Arc;
use workers::catalog::Catalog;
use workers::docker::Docker;
use workers::lane::Executor;
use workers::local::beside::{self, Beside};
use workers::serverless::host::{self, Host};
use workers::serverless::http::{self, HttpFunctions};
use workers::serverless::lambda::{self, Credentials, Lambda};
use workers::serverless::{self, Functions, Serverless};

/// Longest answer of a model server beside the worker.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Starts the executor of `lane` for the worker of that name.
pub async fn start(
    settings: &Settings,
    lane: Lane,
    catalog: Catalog,
    worker: &str,
) -> Result<Arc<dyn Executor>> {
    Ok(match (lane, &settings.worker.server) {
        (Lane::Local, Some(server)) => Arc::new(beside(settings, server)?),
        (Lane::Local, None) => Arc::new(roles::load(settings, catalog).await?),
        (Lane::Docker, _) => {
            let models = models(&catalog).filter(|model| !settings.docker.images.contains_key(model));
            let (models, dir) = (models.collect(), settings.worker.models.clone());
            Arc::new(Docker::start(settings.docker.config(worker, models, dir))?)
        }
        (Lane::Serverless, _) => serverless(settings, &catalog).await?,
    })
}

fn models(catalog: &Catalog) -> impl Iterator<Item = ModelName> {
    catalog.entries().map(|entry| entry.contract.name.clone())
}

fn beside(settings: &Settings, server: &Server) -> Result<Beside> {
    let config = beside::Config {
        url: server.url.clone(),
        slots: settings.worker.slots.unwrap_or(workers::local::Config::default().slots),
        models: server.models.clone(),
        binary: server.binary,
        answer_bytes_max: ANSWER_BYTES_MAX,
    };
    Ok(Beside::start(config)?)
}

async fn serverless(settings: &Settings, catalog: &Catalog) -> Result<Arc<dyn Executor>> {
    let ours = &settings.serverless;
    let (functions, models): (Arc<dyn Functions>, Vec<ModelName>) = match ours.provider {
        Provider::Http => {
            let config = http::Config {
                concurrency_max: ours.concurrency_max,
                binary: ours.http.binary,
                ..http::Config::new(&ours.http.url, ours.http.models.clone())
            };
            return Ok(Arc::new(HttpFunctions::new(&config)?));
        }
        Provider::Lambda => {
            let credentials = Credentials::from_environment(|name| std::env::var(name).ok());
            let credentials = credentials.context(
                "serverless.provider is lambda, but AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set",
            )?;
            let config = lambda::Config {
                endpoint: ours.lambda.endpoint.clone(),
                region: ours.lambda.region.clone(),
                function: ours.lambda.function.clone(),
                functions: ours.lambda.functions.clone(),
                qualifier: ours.lambda.qualifier.clone(),
                ..lambda::Config::new(credentials)
            };
            let named = ours.lambda.models.clone();
            let models = if named.is_empty() { models(catalog).collect() } else { named };
            (Arc::new(Lambda::new(config)?), models)
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
        function_concurrency_max: settings.serverless.concurrency_max,
        idle_timeout: ours.idle_timeout,
        init_timeout: ours.init_timeout,
        invoke_listen: ours.invoke_listen,
        ..host::Config::default()
    })
}

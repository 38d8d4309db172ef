//! Settings of the host.

use super::keeper;
use crate::lane::InvalidConfig;
use crate::serverless::LAMBDA_PAYLOAD_BYTES_MAX;
use schemas::ModelName;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The functions, by the name of the model each of them runs. Default: none, which is refused.
    pub functions: BTreeMap<ModelName, Function>,
    /// How [`keeper::keep`] is called: a program and its first arguments, such as this executable and `keep`.
    /// Default: none, which is refused.
    pub keeper: Vec<OsString>,
    /// Most instances of all functions together. Default 10.
    pub concurrency_max: u32,
    /// Most instances of one function. Default 10.
    pub function_concurrency_max: u32,
    /// An instance that was not used for so long ends. Default 5 minutes.
    pub idle_timeout: Duration,
    /// How long a function may take until it asks for its first event. Default 10 s, as on AWS Lambda.
    pub init_timeout: Duration,
    /// Longest event and longest answer, in bytes. Default: AWS Lambda's 6 MiB.
    pub payload_bytes_max: usize,
    /// The region that functions are told. Default `us-east-1`.
    pub region: String,
    /// Where AWS Lambda's Invoke API is answered, on the loopback interface. Default: nowhere.
    pub invoke_listen: Option<SocketAddr>,
    /// How long an invocation through that API may run. Default 60 s.
    pub invoke_timeout: Duration,
}

/// A program that asks the Lambda Runtime API for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The program and its arguments; nothing of it goes through a shell.
    pub command: Vec<OsString>,
    /// What it finds in `_HANDLER`. Default `handler`.
    pub handler: String,
    /// Its working folder, and what it finds in `LAMBDA_TASK_ROOT`. Default `/`.
    pub task_root: PathBuf,
    /// Further variables of its environment, which else is that of a Lambda function and nothing more.
    pub environment: BTreeMap<String, String>,
    /// What each of its processes may use. Default 512 MiB, 4,096 processes and threads, 1,024 open files.
    pub limits: keeper::Limits,
}

impl Function {
    /// A function with defaults for all but its command.
    pub fn new(command: Vec<OsString>) -> Self {
        Self {
            command,
            handler: "handler".to_owned(),
            task_root: PathBuf::from("/"),
            environment: BTreeMap::new(),
            limits: keeper::Limits { memory_bytes: 512 << 20, processes_max: 4096, files_max: 1024 },
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            functions: BTreeMap::new(),
            keeper: Vec::new(),
            concurrency_max: 10,
            function_concurrency_max: 10,
            idle_timeout: Duration::from_secs(300),
            init_timeout: Duration::from_secs(10),
            payload_bytes_max: LAMBDA_PAYLOAD_BYTES_MAX,
            region: "us-east-1".to_owned(),
            invoke_listen: None,
            invoke_timeout: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// What a function's name is in full, where one is asked for. There is no account here.
    pub(super) fn arn(&self, function: &ModelName) -> String {
        format!("arn:aws:lambda:{}:000000000000:function:{function}", self.region)
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let invalid = |field, problem: &str| Err(InvalidConfig::new(field, problem));
        if self.functions.is_empty() {
            return invalid("serverless.host.functions", "is empty: name at least one model");
        }
        if self.functions.values().any(|function| function.command.is_empty()) {
            return invalid("serverless.host.functions", "has one without a command: use a program's path");
        }
        if self.functions.values().any(|function| function.limits.memory_bytes < 16 << 20) {
            return invalid(
                "serverless.host.functions",
                "has one with too little memory: use at least 16 MiB",
            );
        }
        if self.keeper.is_empty() {
            return invalid("serverless.host.keeper", "is empty: use the program that calls keep()");
        }
        for (field, limit) in [
            ("serverless.host.concurrency_max", self.concurrency_max),
            ("serverless.host.function_concurrency_max", self.function_concurrency_max),
        ] {
            if limit == 0 {
                return invalid(field, "is 0: use the number of instances that may run at once");
            }
        }
        if self.init_timeout.is_zero() {
            return invalid(
                "serverless.host.init_timeout",
                "is 0: use the time a function may take to start",
            );
        }
        match self.invoke_listen {
            Some(address) if !address.ip().is_loopback() => invalid(
                "serverless.host.invoke_listen",
                "is not on the loopback interface: nobody is asked for a login there",
            ),
            _ => Ok(()),
        }
    }
}

//! Settings of the host.

use super::keeper;
use crate::lane::InvalidConfig;
use crate::serverless::LAMBDA_PAYLOAD_BYTES_MAX;
use schemas::ModelName;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a function's program is looked for.
pub(super) const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Least memory of a function's process, in bytes.
const MEMORY_MIN: u64 = 16 << 20;

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

impl Function {
    /// The first field that cannot work, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let Some(program) = self.command.first() else {
            return Err(("command", "is empty: use a program's path, and its arguments".to_owned()));
        };
        if !self.task_root.is_absolute() || !self.task_root.is_dir() {
            let problem = "is no folder: use the full path of one that is there";
            return Err(("task_root", format!("{} {problem}", self.task_root.display())));
        }
        let is_program =
            |path: &Path| path.metadata().is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
        // One without a folder is looked for where the function's own PATH says.
        let found = match program.to_str().is_some_and(|name| !name.is_empty() && !name.contains('/')) {
            true => PATH.split(':').any(|folder| is_program(&Path::new(folder).join(program))),
            false => is_program(&self.task_root.join(program)),
        };
        if !found {
            let program = Path::new(program).display();
            return Err(("command", format!("begins with \"{program}\", which is no program here")));
        }
        let ours = |name: &&String| {
            name.starts_with("AWS_LAMBDA_") || ["_HANDLER", "LAMBDA_TASK_ROOT"].contains(&name.as_str())
        };
        if let Some(name) = self.environment.keys().find(ours) {
            return Err(("env", format!("sets {name}, which the host sets: leave it out")));
        }
        if self.limits.memory_bytes < MEMORY_MIN {
            let problem = format!("is {} bytes: use at least 16 MiB", self.limits.memory_bytes);
            return Err(("memory", problem));
        }
        Ok(())
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
        for (model, function) in &self.functions {
            function.check().map_err(|(field, problem)| {
                InvalidConfig::new(format!("serverless.host.functions.{model}.{field}"), problem)
            })?;
        }
        if self.keeper.is_empty() {
            return invalid("serverless.host.keeper", "is empty: use the program that calls keep()");
        }
        for (field, limit) in [
            ("serverless.concurrency_max", self.concurrency_max),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_cannot_work_is_named_with_its_field() {
        let command = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let good = || Function::new(command(&["/bin/sh", "-c", "true"]));
        let config = |function| Config {
            functions: [(ModelName::new("m.1").unwrap(), function)].into(),
            keeper: command(&["keep"]),
            ..Config::default()
        };
        assert_eq!(config(good()).check(), Ok(()));
        assert_eq!(config(Function { command: command(&["sh"]), ..good() }).check(), Ok(()));
        let in_folder = Function { command: command(&["./sh"]), task_root: "/bin".into(), ..good() };
        assert_eq!(config(in_folder).check(), Ok(()));
        let mut small = good();
        small.limits.memory_bytes = 1;
        for (function, expected) in [
            (Function { command: Vec::new(), ..good() }, "command is empty"),
            (
                Function { command: command(&["/nowhere/sh"]), ..good() },
                "command begins with \"/nowhere/sh\", which is no program",
            ),
            (
                Function { command: command(&["/etc/passwd"]), ..good() },
                "command begins with \"/etc/passwd\", which is no program",
            ),
            (
                Function { command: command(&["bin/sh"]), task_root: "/usr/nowhere".into(), ..good() },
                "task_root /usr/nowhere is no folder",
            ),
            (Function { task_root: "/nowhere".into(), ..good() }, "task_root /nowhere is no folder"),
            (Function { task_root: "bin".into(), ..good() }, "task_root bin is no folder"),
            (Function { command: command(&[""]), ..good() }, "command begins with \"\""),
            (Function { command: command(&["nosuchprogram"]), ..good() }, "command begins with \"nosuch"),
            (
                Function {
                    environment: [("AWS_LAMBDA_RUNTIME_API".to_owned(), "x".to_owned())].into(),
                    ..good()
                },
                "env sets AWS_LAMBDA_RUNTIME_API",
            ),
            (small, "memory is 1 bytes: use at least 16 MiB"),
        ] {
            let problem = config(function).check().unwrap_err().to_string();
            assert!(problem.starts_with(&format!("serverless.host.functions.m.1.{expected}")), "{problem}");
        }
        let problem = Config { concurrency_max: 0, ..config(good()) }.check().unwrap_err().to_string();
        assert!(problem.starts_with("serverless.concurrency_max is 0"), "{problem}");
    }
}

//! The command line.

use bytesize::ByteSize;
use clap::{ArgGroup, Args, Parser, Subcommand};
use schemas::{Class, JobId, Lane, ModelName};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Runs machine-learning inference jobs where they finish soonest.
///
/// Jobs wait in queues; a dispatcher places each one in a lane (serverless functions, containers, this machine) by
/// how often its model is asked for, how large its input is and what room the lanes have; workers run them and
/// send the results back. With nothing configured, one process does it all, durably.
#[derive(Debug, Parser)]
#[command(name = "straightline", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Start with `straightline demo`, then `straightline up`.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// Configuration file (TOML).
    #[arg(long, global = true, env = "STRAIGHTLINE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the embedded broker and state, and of blobs.
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How logs on standard error look.
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<crate::config::LogFormat>,
    /// Which logs to show: info, debug, warn,workers=debug, …
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch real handwritten digits being recognised: everything in one process, for 10 to 20 seconds.
    Demo(Demo),
    /// Run everything in one process: durable queues, dispatcher, workers, HTTP face.
    Up(Up),
    /// Run a dispatcher over the configured broker and state.
    Dispatcher(Dispatcher),
    /// Run a worker of one lane over the configured broker and state.
    Worker(Worker),
    /// Serve models over HTTP (Open Inference Protocol), without queues: what runs in a model container.
    Serve(Serve),
    /// Run as a Lambda-style function: answers the events of whoever speaks the Lambda Runtime API and started it.
    Function(Function),
    /// Hold a function to its limits and end it with its worker: how the function host starts every function.
    #[command(hide = true)]
    Keep(Keep),
    /// Submit jobs from files, folders, JSON Lines or standard input.
    Submit(Submit),
    /// Fetch results by job id.
    Result(ResultOf),
    /// Take jobs back.
    Cancel(Cancel),
    /// Show queues, lanes, workers and rates.
    Status(Status),
    /// Look after jobs that failed for good.
    #[command(subcommand)]
    Dead(Dead),
    /// Measure throughput and latency, and compare them with what the broker could carry.
    Bench(Bench),
    /// Pass messages on as a part of the pump that `bench --ceiling` compares with.
    #[command(hide = true)]
    Relay(Relay),
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(Config),
}

#[derive(Args, Debug)]
pub struct Demo {
    /// Jobs to run.
    #[arg(long, default_value_t = 2_400, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub jobs: u32,
    /// Print one JSON object on standard output in place of the table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Up {
    /// Lanes to run a worker of: local, docker, serverless, with commas between; default: local.
    #[arg(long, value_name = "LANES", value_delimiter = ',')]
    pub lanes: Vec<Lane>,
    /// Where the HTTP face listens.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub listen: Option<SocketAddr>,
    /// Folder with one folder per model, each with its model.onnx and model.toml.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Dispatcher {
    /// Where metrics and health listen.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// Name in status and logs; default: host name and process id.
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args, Debug)]
pub struct Worker {
    /// The lane to serve: local, docker or serverless.
    #[arg(long)]
    pub lane: Lane,
    /// Jobs to run at once in the local lane; default: the processors of this machine.
    #[arg(long)]
    pub slots: Option<u32>,
    /// Folder with one folder per model, each with its model.onnx and model.toml.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Where metrics and health listen.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// Name in status and logs; default: host name and process id.
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args, Debug)]
pub struct Serve {
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// A model to serve, and only those named; default: all.
    #[arg(long = "model", value_name = "NAME")]
    pub only: Vec<ModelName>,
    /// Folder with one folder per model, each with its model.onnx and model.toml.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Runs at once; default: the processors of this machine.
    #[arg(long)]
    pub slots: Option<u32>,
    /// Requests that may wait for a slot.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub queue: u32,
    /// Largest request body, such as 64MiB.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub body_max: ByteSize,
    /// Offers the models diagnose.* for drills and tests.
    #[arg(long)]
    pub diagnostics: bool,
}

#[derive(Args, Debug)]
pub struct Function {
    /// A model to run, and only those named; default: all.
    #[arg(long = "model", value_name = "NAME")]
    pub only: Vec<ModelName>,
    /// Folder with one folder per model, each with its model.onnx and model.toml.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Keep {
    /// Memory in bytes, processes, open files, the program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub arguments: Vec<OsString>,
}

/// Where commands find the system.
#[derive(Args, Debug, Clone)]
pub struct Server {
    /// Address of a running `up`, used while no broker is configured.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Each input is one or more jobs:
  FILE.jsonl   one job a line: {\"model\": …, \"inputs\": [{\"name\", \"datatype\", \"shape\", \"data\"}], …},
               optionally \"id\", \"class\", \"deadline_ms\", \"run_timeout_ms\", \"attempts_max\", \"outputs\", \"parameters\"
  FILE.json    one job, the same object
  FOLDER       every .json and .jsonl file in it, by name
  FILE         any other file: its bytes as an opaque input of --model
  -            JSON Lines from standard input
Results come as JSON Lines on standard output, in the order they arrive.")]
pub struct Submit {
    /// Files, folders, or - for standard input.
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Model of jobs that name none.
    #[arg(long)]
    pub model: Option<ModelName>,
    /// Class of jobs that name none: high, normal or low.
    #[arg(long, default_value_t)]
    pub class: Class,
    /// Time from now until the answer of a job that names no deadline is no longer wanted, such as 30s or 10m.
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub deadline: Option<Duration>,
    /// Wait for the results and print them; without it the ids are printed.
    #[arg(long)]
    pub wait: bool,
    /// Write results (or ids) to this file in place of standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// No progress bar.
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct ResultOf {
    /// Job ids.
    #[arg(required = true)]
    pub ids: Vec<JobId>,
    /// Wait this long for results that are not there yet.
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub wait: Option<Duration>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Cancel {
    /// Job ids.
    #[arg(required = true)]
    pub ids: Vec<JobId>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Status {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Show it again every second until interrupted.
    #[arg(long)]
    pub watch: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List dead jobs, newest first.
    List {
        /// How many to show.
        #[arg(long, default_value_t = 50)]
        limit: u64,
        /// How many to pass over.
        #[arg(long, default_value_t = 0)]
        offset: u64,
        /// Print JSON Lines.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Show one with the history of its attempts.
    Show {
        /// The job.
        id: JobId,
        #[command(flatten)]
        server: Server,
    },
    /// Submit dead jobs again, as new jobs that name their origin.
    Requeue(Which),
    /// Forget dead jobs.
    Drop(Which),
}

/// Which dead jobs.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("jobs").required(true).args(["ids", "all"]))]
pub struct Which {
    /// Job ids.
    pub ids: Vec<JobId>,
    /// All of them.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Every round measures each system in turn: throughput with --window jobs outstanding, then latency at --rate jobs a second.
Figures are medians over the rounds. With --spawn nobody else may use the broker's virtual host.")]
pub struct Bench {
    /// Start dispatchers and workers for it, as processes of their own; without a configured broker, everything in this
    /// process over the embedded one. Without it, the deployment that is configured has to run.
    #[arg(long)]
    pub spawn: bool,
    /// Compare with two pumps, three hops over the same broker with nothing in between: one that carries what we carry,
    /// in processes as ours are (ceiling in the JSON), and a bare one.
    #[arg(long, requires = "spawn")]
    pub ceiling: bool,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Jobs of each throughput measurement.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub jobs: u32,
    /// Jobs outstanding while throughput is measured.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub window: u32,
    /// Jobs a second while latency is measured; 0 leaves that out.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub rate: u32,
    /// How long latency is measured.
    #[arg(long, default_value = "5s", value_parser = span, value_name = "TIME")]
    pub rate_for: Duration,
    /// Size of each job's input.
    #[arg(long, default_value = "1KiB", value_name = "SIZE")]
    pub size: ByteSize,
    /// The model asked for, which has to take opaque bytes; diagnose.echo does nothing.
    #[arg(long, default_value = "diagnose.echo")]
    pub model: ModelName,
    /// Dispatchers to start.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), requires = "spawn")]
    pub dispatchers: u32,
    /// Workers to start in each lane.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), requires = "spawn")]
    pub workers: u32,
    /// Lanes to start workers of: local, docker, serverless, with commas between.
    #[arg(long, value_name = "LANES", value_delimiter = ',', default_value = "local", requires = "spawn")]
    pub lanes: Vec<Lane>,
    /// Print one JSON object on standard output in place of the table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Relay {
    /// Which hop.
    #[arg(long)]
    pub hop: RelayHop,
    /// The pump's name.
    #[arg(long)]
    pub run: String,
    /// The model in the header.
    #[arg(long)]
    pub model: ModelName,
    /// Length of an answer, in bytes.
    #[arg(long)]
    pub answer_bytes: usize,
}

/// A hop of the equal pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RelayHop {
    /// As a dispatcher does.
    Place,
    /// As a worker does.
    Answer,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print every setting with its value; passwords are hidden.
    Show,
    /// Check the configuration, and whether broker and state can be reached where they are not embedded.
    Check(Check),
}

#[derive(Args, Debug)]
pub struct Check {
    /// Ask too whether workers of these lanes could run jobs on this machine: local, docker, serverless, with commas
    /// between. That is the engine with its images, and the server beside the worker; functions are not called.
    #[arg(long, value_name = "LANES", value_delimiter = ',')]
    pub lanes: Vec<Lane>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|error| format!("{error}: use an address and a port, such as 127.0.0.1:8080"))
}

fn span(text: &str) -> Result<Duration, String> {
    humantime_serde::re::humantime::parse_duration(text)
        .map_err(|error| format!("{error}: use a time such as 30s or 10m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, String> {
        Cli::try_parse_from([&["straightline"], arguments].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn dead_jobs_are_named_or_all_are_meant() {
        let id = "019aa0f2-0000-7000-8000-000000000000";
        for command in ["requeue", "drop"] {
            parse(&["dead", command, "--all"]).unwrap();
            parse(&["dead", command, id, id, "--server", "http://h:1"]).unwrap();
            assert!(parse(&["dead", command]).unwrap_err().contains("--all"));
            assert!(parse(&["dead", command, id, "--all"]).is_err());
        }
    }

    #[test]
    fn an_address_that_is_none_is_told_what_one_looks_like() {
        for wrong in ["18082", "localhost:8080"] {
            for arguments in [&["up", "--listen", wrong][..], &["serve", "--listen", wrong]] {
                assert!(parse(arguments).unwrap_err().contains("such as 127.0.0.1:8080"));
            }
        }
        parse(&["up", "--listen", "[::1]:8080"]).unwrap();
    }
}

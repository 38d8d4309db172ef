//! The one integration binary: every scenario by name. `tests/run` prepares what they need.

mod bad_input;
mod bench;
mod compose;
mod conformance;
mod deployment;
mod docker;
mod harness;
mod lanes;
mod layering;
mod pipeline;
mod serverless;
mod trouble;

use std::process::ExitCode;

use anyhow::Result;
use tests::scenario::{self, Scenario};

fn main() -> Result<ExitCode> {
    if let Some(probe) = harness::probe() {
        return scenario::run(probe);
    }
    let rooms: [Vec<Scenario>; _] = [
        layering::scenarios(),
        harness::scenarios(),
        conformance::scenarios(),
        pipeline::scenarios(),
        serverless::scenarios(),
        trouble::scenarios(),
        bad_input::scenarios(),
        docker::scenarios(),
        compose::scenarios(),
        lanes::scenarios(),
        bench::scenarios(),
    ];
    scenario::run(rooms.into_iter().flatten().collect())
}

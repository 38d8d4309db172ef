//! The function host against real processes. This program plays every part: the keeper, functions that behave and functions
//! that do not, a worker that is killed, and the tests themselves.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed unwrap is a failed test")]

mod acting;
mod ends;
mod faced;
mod hosting;
mod stage;

use libtest_mimic::Arguments;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().and_then(|part| part.into_string().ok()).as_deref() {
        Some("keep") => workers::serverless::host::keeper::keep(arguments),
        Some("function") => acting::function(arguments.next().unwrap().to_str().unwrap()),
        Some("host") => ends::host_to_be_killed(),
        _ => {
            let trials = [hosting::trials(), ends::trials(), faced::trials()];
            libtest_mimic::run(&Arguments::from_args(), trials.into_iter().flatten().collect()).exit_code()
        }
    }
}

//! Jobs that run in the daemon itself, on a real daemon and a real server. The daemon under test is this very
//! program, started with another role, because it embeds handlers.

#[path = "../common/mod.rs"]
mod common;
mod handlers;
mod http;
mod server;

use std::process::ExitCode;

use common::{Daemon, Setup};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

/// The argument that makes this program the daemon.
const ROLE: &str = "--as-daemon";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|role| role == ROLE) {
        return handlers::serve(&arguments[2..]);
    }
    let trials = handlers::TESTS.iter().chain(http::TESTS);
    let trials = trials.map(|(name, test)| {
        Trial::test(*name, || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Tests by their names.
macro_rules! tests {
    ($($name:ident)+) => {
        pub(crate) const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name)),+];
    };
}
use tests;

fn setup() -> Setup {
    let program = std::env::current_exe().expect("this program");
    Setup::of(program, ROLE).set("JOBS__MAX_RUNNING", 1000)
}

fn start() -> Daemon {
    setup().start()
}

/// The last attempt of a Runner.
fn attempt(runner: &Value) -> &Value {
    let attempts = runner["runs"][0]["attempts"].as_array().expect("attempts");
    attempts.last().expect("an attempt")
}

fn result(runner: &Value) -> &Value {
    &runner["runs"][0]["result"]
}

/// The kind of the failure, and what was said of it.
fn failure(runner: &Value) -> (&str, &str) {
    let error = &attempt(runner)["error"];
    (error["kind"].as_str().unwrap_or_default(), error["message"].as_str().unwrap_or_default())
}

//! The rows of the Runner's contract that the parity tests leave open. A test is named after what
//! it shows; its row is in its comment.

#[macro_use]
#[path = "../runner_support/mod.rs"]
mod runner_support;

mod cancel;
mod closing;
mod debugging;
mod executor;
mod hosting;
mod inheriting;
mod leaks;
mod lifecycle;
mod signals;
mod structured;

use std::process::ExitCode;

fn main() -> ExitCode {
    let trials = [
        lifecycle::trials(),
        cancel::trials(),
        closing::trials(),
        executor::trials(),
        inheriting::trials(),
        debugging::trials(),
        structured::trials(),
        hosting::trials(),
        signals::trials(),
        leaks::trials(),
    ];
    runner_support::main(trials.into_iter().flatten().collect(), scenario)
}

/// What runs in a process of its own, on its main thread.
fn scenario(name: &str) {
    let known = signals::scenario(name) || leaks::scenario(name);
    assert!(known, "no scenario {name:?}");
}

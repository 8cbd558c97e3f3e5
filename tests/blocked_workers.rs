//! Hard case 13: somebody's code blocks every worker of the loop it shares. The daemon under test is this very
//! program, started with another role, because it embeds code that blocks.

mod common;

use std::{
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{Setup, processes_of, until};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::Signal;
use runward::{daemon::Daemon, settings::Flags};
use serde_json::json;

/// The argument that makes this program the daemon.
const ROLE: &str = "--as-daemon";

/// When this file appears in the state directory every worker is blocked, for ever.
const TRIGGER: &str = "block";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|role| role == ROLE) {
        return serve(&arguments[2..]);
    }
    let name = "case_13_a_second_sigterm_ends_the_daemon_though_every_worker_is_blocked";
    let trial = Trial::test(name, || {
        a_second_sigterm_ends_it();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn a_second_sigterm_ends_it() {
    let program = std::env::current_exe().expect("this program");
    let mut daemon = Setup::of(program, ROLE).start();
    let job = json!({"script": "trap '' TERM; (setsid sleep 600 &); echo ready; while :; do sleep 1; done"});
    let runner = daemon.submit(json!({"job": job}));
    daemon.output_with(&runner, "ready");
    std::fs::write(daemon.state_dir().join(TRIGGER), "").expect("written");
    daemon.logged("every worker is blocked");

    daemon.signal(Signal::SIGTERM);
    daemon.logged("every job is being cancelled");
    let second = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(81));
    // The contract names this time.
    assert!(second.elapsed() < Duration::from_millis(500), "{:?}", second.elapsed());
    until("the tree is dead", || processes_of(&runner).is_empty());
    let daemon = daemon.restart();
    assert_eq!(daemon.runner(&runner)["outcome"], "killed", "and it was recorded");
}

/// The daemon, with something on its loop that blocks.
fn serve(arguments: &[String]) -> ExitCode {
    let values = |name: &str| -> Vec<String> {
        arguments.windows(2).filter(|pair| pair[0] == name).map(|pair| pair[1].clone()).collect()
    };
    let state_dir = values("--state-dir").remove(0);
    let flags = Flags {
        config: None,
        state_dir: Some(state_dir.clone().into()),
        listen: values("--listen"),
        ..Flags::default()
    };
    let block = |handle: &tokio::runtime::Handle| {
        let handle = handle.clone();
        thread::spawn(move || block_when_told(&handle, &Path::new(&state_dir).join(TRIGGER)));
    };
    let code = Daemon::new(flags).on_loop(block).serve();
    ExitCode::from(code as u8)
}

fn block_when_told(handle: &tokio::runtime::Handle, trigger: &Path) {
    static BLOCKED: AtomicUsize = AtomicUsize::new(0);
    while !trigger.exists() {
        thread::park_timeout(Duration::from_millis(3));
    }
    std::fs::remove_file(trigger).expect("removed");
    let workers = handle.metrics().num_workers();
    for _ in 0..workers {
        drop(handle.spawn(async {
            BLOCKED.fetch_add(1, Ordering::SeqCst);
            loop {
                thread::park();
            }
        }));
    }
    while BLOCKED.load(Ordering::SeqCst) < workers {
        thread::park_timeout(Duration::from_millis(3));
    }
    eprintln!("every worker is blocked");
}

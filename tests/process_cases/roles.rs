//! What else this program is: a small daemon to be killed, a chain of forks, a parent of orphans.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::unistd::{ForkResult, fork};
use runward::process::containment::Tier;
use runward::process::reap::strays;
use runward::process::{KeeperSetup, fork_keeper};

use crate::world::{eventually, launch, slots, take_lock};

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("say a line");
}

/// Launches the jobs, numbered from 0, and tells all that it sees; never acknowledges. Ends by being killed.
/// A job is a script; one that begins with `nogo:` is only launched.
pub(crate) fn daemon(tier: &str, base: &str, dir: &Path, jobs: &[&str]) -> ExitCode {
    let tier = match tier {
        "cgroup2" => Tier::Cgroup { base: PathBuf::from(base) },
        _ => Tier::Subreaper,
    };
    let setup = KeeperSetup { children_lock: take_lock(dir), tier, slots: slots(dir) };
    let link = fork_keeper(setup).expect("fork the keeper");
    say(&format!("keeper {}", link.pid()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (launcher, watch) = link.attach().expect("attach");
        let mut tasks = tokio::task::JoinSet::new();
        for (number, script) in jobs.iter().enumerate() {
            let attempt = number as u128;
            // A mark of its own: the id with the daemon's pid, not to meet that of another world.
            let marked = attempt | u128::from(std::process::id()) << 64;
            let mut spec = launch(marked, dir, &["sh", "-c", script.trim_start_matches("nogo:")]);
            if *script == "missing" {
                spec.argv = vec!["/does/not/exist".into()];
            }
            let mut shim = launcher.launch(&spec).await.expect("launch");
            say(&format!("ready {number} {marked:032x}"));
            if !script.starts_with("nogo:") {
                shim.go().await;
            }
            tasks.spawn(async move {
                loop {
                    let event = shim.next().await;
                    say(&format!("event {number} {event:?}"));
                    if matches!(event, runward::process::ShimEvent::Gone { .. }) {
                        return shim;
                    }
                }
            });
        }
        say(&format!("keeper-ended {:?}", watch.ended().await.ending));
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

/// Forks and exits for ever, each link the only one alive.
#[expect(unsafe_code, reason = "a fork is what this is about")]
pub(crate) fn fork_chain() -> ExitCode {
    if let Some(gate) = std::env::var_os("GATE") {
        std::fs::write(&gate, "ready\n").expect("open the gate");
        std::fs::remove_file(&gate).expect("tell that it runs");
    }
    loop {
        // SAFETY: this process has one thread.
        if matches!(unsafe { fork() }, Ok(ForkResult::Parent { .. })) {
            // SAFETY: ends the process, as a chain of forks does.
            unsafe { nix::libc::_exit(0) };
        }
    }
}

/// Adopts orphans, as PID 1 does, beside a child whose status is waited for.
pub(crate) fn strays_role() -> ExitCode {
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    // The orphans end at once; the known child ends too, and stays unreaped.
    let mut known =
        Command::new("sh").args(["-c", "(true &); (true &); (true &); exit 7"]).spawn().expect("spawn");
    let pid = known.id() as i32;
    let mut reaped = 0;
    eventually("three strays are reaped", || {
        reaped += strays(&[pid]).expect("reap");
        assert!(reaped <= 3, "reaped {reaped}");
        reaped == 3 && crate::world::stat(pid).is_some_and(|(state, _)| state == 'Z')
    });
    assert_eq!(strays(&[pid]).expect("reap"), 0);
    assert_eq!(known.wait().expect("the known child's status").code(), Some(7));
    ExitCode::SUCCESS
}

//! Hard cases of the process floor, on real processes, in each tier and as each user that this machine allows.
//!
//! A keeper is forked before any thread exists, which the usual harness has already: so this one is its own. It
//! runs itself once for each world, that is tier and user, and in it one case after another.

#[path = "process_cases/death.rs"]
mod death;
#[path = "process_cases/exec.rs"]
mod exec;
#[path = "process_cases/output.rs"]
mod output;
#[path = "process_cases/reuse.rs"]
mod reuse;
#[path = "process_cases/roles.rs"]
mod roles;
#[path = "process_cases/trees.rs"]
mod trees;
#[path = "process_cases/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, ExitCode};

use runward::process::containment::{Tier, probe};

use crate::world::{Identity, World};

type Case = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! cases {
    ($($module:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($module::$name(world)))),+),+]
    };
}

const CASES: &[(&str, Case)] = cases! {
    trees: runs_and_reports, nothing_before_go, kill_before_go, signal_before_go, held_until_ack,
        case_01_grandchild_holds_the_pipe, case_01_pipe_held_from_outside, case_02_escape, case_03_fork_exit_chain,
        case_04_stopped_child, case_05_term_ignored, case_05_uninterruptible, many_at_once, wide_tree;
    exec: case_08_inherited_dispositions, case_09_sigchld_ignored, case_11_descriptors_run_out,
        case_11_no_more_processes, case_17_exec_errors, case_18_too_big, case_19_descriptor_leak,
        case_22_environment, case_23_user_switch, limits_are_the_jobs,
        case_14_who_killed_it, limits_of_a_tree_hold_or_it_does_not_start;
    output: case_21_stdin, case_24_quota, case_25_bytes, case_26_no_space, case_26_full_disk, both_streams_in_order,
        tail_and_follow;
    reuse: nothing_of_an_attempt_is_there_for_the_next, a_failed_start_and_a_killed_job_leave_a_shim_that_works,
        a_changed_cgroup_is_not_the_next_ones, a_killed_idle_shim_harms_nothing, no_more_idle_than_allowed,
        a_job_whose_shim_is_killed_before_it_reads_it_goes_to_another, a_job_that_has_begun_goes_to_no_other_shim;
    death: case_15_shim_killed, case_16_keeper_killed, daemon_killed_while_running, daemon_killed_after_exit,
        daemon_killed_before_go, daemon_killed_after_failed_start, dropping_the_shim_kills, all_killed_at_once,
        case_10_strays;
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--world", tier, user, rest @ ..] => run_world(tier, user, rest.first().copied()),
        ["--daemon", tier, base, dir, jobs @ ..] => roles::daemon(tier, base, Path::new(dir), jobs),
        ["--fork-chain"] => roles::fork_chain(),
        ["--strays"] => roles::strays_role(),
        ["--list", ..] => {
            CASES.iter().for_each(|(name, _)| println!("{name}: test"));
            ExitCode::SUCCESS
        }
        _ => run_worlds(words.iter().find(|word| !word.starts_with('-')).copied()),
    }
}

/// One process for each world; all share a copy of this program, in a place that every user may enter.
fn run_worlds(filter: Option<&str>) -> ExitCode {
    let root = nix::unistd::geteuid().is_root();
    let users: &[&str] = if root { &["root", "nobody"] } else { &["self"] };
    let dir = tempfile::Builder::new().prefix("runward-cases-").tempdir().expect("a temporary directory");
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open_to_all).expect("open the directory to all");
    let program = dir.path().join("cases");
    std::fs::copy(std::env::current_exe().expect("own path"), &program).expect("copy the program");

    let (best, why) = probe(std::process::id());
    let mut failed = Vec::new();
    let mut worlds = 0;
    for user in users {
        for tier in ["cgroup2", "subreaper"] {
            let mut world = match &best {
                Tier::Subreaper if tier == "cgroup2" => {
                    println!(
                        "world {tier}/{user}: not there: {}",
                        why.as_ref().map_or(String::new(), ToString::to_string)
                    );
                    continue;
                }
                // Another user has a cgroup where one is delegated to it, and starts in it.
                Tier::Cgroup { base } if tier == "cgroup2" && *user == "nobody" => delegated(base, &program),
                Tier::Cgroup { .. } | Tier::Subreaper => Command::new(&program),
            };
            worlds += 1;
            let status = world.args(["--world", tier, user]).args(filter).status().expect("run a world");
            if !status.success() {
                failed.push(format!("{tier}/{user}"));
            }
        }
    }
    best.remove().expect("remove the base");
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {worlds} worlds; failed: {failed:?}");
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The program, in a cgroup that user 65534 owns, as a service manager delegates it.
fn delegated(group: &Path, program: &Path) -> Command {
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        std::os::unix::fs::chown(group.join(file), Some(65534), Some(65534)).expect("delegate");
    }
    let mut command = Command::new("sh");
    command.args(["-c", "echo 0 > \"$0\"/cgroup.procs && exec \"$@\""]).arg(group).arg(program);
    command
}

fn run_world(tier: &str, user: &str, filter: Option<&str>) -> ExitCode {
    let identity = if user == "nobody" { Identity::Nobody } else { Identity::Own };
    let (world, runtime) = World::enter(tier, identity);
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter))) {
        let run = || {
            runtime.block_on(case(&world));
            world.assert_clean(name);
        };
        let result = catch_unwind(AssertUnwindSafe(run));
        println!("test {tier}/{user}/{name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_ok() { passed += 1 } else { failed += 1 }
    }
    let left = catch_unwind(AssertUnwindSafe(|| world.leave(&runtime)));
    println!(
        "world {tier}/{user}: {passed} passed, {failed} failed{}",
        if left.is_ok() { "" } else { ", left FAILED" }
    );
    if failed == 0 && left.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

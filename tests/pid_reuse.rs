//! Hard case 6: a number on record that belongs to another process by now is left alone.

mod common;

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use common::{Setup, alive, children, processes_of, until};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Pid, geteuid},
};
use serde_json::{Value, json};

/// Set in the namespace.
const INSIDE: &str = "RUNWARD_TEST_IN_NAMESPACE";
const NAME: &str = "case_06_a_recorded_number_that_another_process_has_by_now_is_never_signalled";

/// Runs a test of this program in a PID namespace of its own, where the next number can be chosen.
fn in_namespace(test: &str) {
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    if !geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let program = std::env::current_exe().expect("own path");
    let output = unshare
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs; if it is missing: apt-get install util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "in the namespace (it takes root, or user namespaces):\n{said}\n{complained}"
    );
}

/// A process with this number, in a group of the same number: somebody who has nothing to do with runward.
fn take_number(number: i32) -> Child {
    let mut taken = None;
    until("the number is taken again", || {
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string())
            .expect("the next number can be chosen");
        let mut sleep = Command::new("sleep");
        let mut child =
            sleep.arg("600").env_clear().process_group(0).stdin(Stdio::null()).spawn().expect("sleep");
        if child.id().cast_signed() == number {
            taken = Some(child);
            return true;
        }
        // Another was faster, or it is not free yet.
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        false
    });
    taken.expect("taken")
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let after_name = stat.rsplit_once(") ").expect("a stat line").1;
    after_name.split(' ').nth(1).expect("a parent").parse().expect("a pid")
}

fn pid(runner: &Value) -> i32 {
    let attempts = runner["runs"][0]["attempts"].as_array().expect("attempts");
    i32::try_from(attempts.last().expect("one")["pid"].as_i64().expect("a pid")).expect("a pid")
}

#[test]
fn case_06_a_recorded_number_that_another_process_has_by_now_is_never_signalled() {
    if std::env::var_os(INSIDE).is_none() {
        return in_namespace(NAME);
    }
    let mut daemon = Setup::new().start();
    let mut bystanders = Vec::new();
    // The daemon alone dies, and then all that watches over the job at once.
    for all in [false, true] {
        let runner = daemon.submit(json!({"job": {"command": ["sleep", "600"]}, "on_lost": "requeue"}));
        let main = pid(&daemon.running(&runner));
        let (keeper, shim) = (daemon.keeper(), parent(main));
        assert!(children(keeper).contains(&shim));
        if all {
            // Standing still first, so that none can do for the others what they are for.
            for end in [Signal::SIGSTOP, Signal::SIGKILL] {
                for process in [daemon.pid(), keeper, shim] {
                    kill(Pid::from_raw(process), end).expect("it is there");
                }
            }
        } else {
            daemon.signal(Signal::SIGKILL);
        }
        until("the job is dead", || processes_of(&runner).is_empty());
        if all {
            // Its number is free when it is reaped: handed to PID 1, which this test is.
            until("the job is reaped", || waitpid(Pid::from_raw(main), None).is_ok());
        }
        let mut bystander = take_number(main);
        daemon = daemon.restart();
        let again = daemon.runner_when(&runner, "its second attempt runs", |record| {
            record["state"] == "running" && record["runs"][0]["attempts"].as_array().map(Vec::len) == Some(2)
        });
        assert_eq!(again["runs"][0]["attempts"][0]["pid"], main, "the record has the number still");
        assert_eq!(again["runs"][0]["attempts"][0]["outcome"], "lost");
        assert_ne!(pid(&again), main);
        // Stopped in each way there is: none goes by the number of the first attempt.
        daemon.cancel(&runner);
        daemon.cancel(&runner);
        daemon.closed(&runner);
        assert_eq!(
            bystander.try_wait().expect("a child of ours"),
            None,
            "recovery or cancel reached a stranger"
        );
        bystanders.push(bystander);
    }
    assert_eq!(daemon.stop(), Some(0));
    for mut bystander in bystanders {
        assert!(alive(bystander.id().cast_signed()), "the daemon's end reached a stranger");
        bystander.kill().expect("a child of ours");
        bystander.wait().expect("a child of ours");
    }
}

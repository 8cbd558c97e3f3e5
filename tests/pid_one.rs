//! Hard case 10: the daemon as PID 1 of a PID namespace, as in a container.

mod common;

use std::process::Command;

use common::{Setup, alive, children, processes_of, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::json;

/// `unshare` as this user may use it.
fn namespace() -> Vec<&'static str> {
    let mut arguments = vec!["--pid", "--fork", "--mount-proc", "--kill-child"];
    if !geteuid().is_root() {
        arguments.extend(["--user", "--map-root-user"]);
    }
    let tried = Command::new("unshare").args(&arguments).arg("true").output();
    let works = tried.as_ref().is_ok_and(|output| output.status.success());
    assert!(
        works,
        "unshare makes no PID namespace here; install util-linux, allow user namespaces, or run as root: {tried:?}"
    );
    arguments
}

fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn case_10_as_pid_1_it_reaps_what_it_is_handed_keeps_exit_codes_and_leaves_nothing() {
    let daemon = Setup::through("unshare", &namespace()).start();
    let init = children(daemon.pid())[0];
    let record = daemon.run(json!({"job": {"command": ["sh", "-c", "exit 5"]}}));
    assert_eq!(record["runs"][0]["attempts"][0]["exit"], json!({"code": 5}));

    // Enters the namespace, leaves an orphan there, and goes: the kernel hands the orphan to PID 1.
    let mut enter = Command::new("nsenter");
    if !geteuid().is_root() {
        enter.args(["--user", "--preserve-credentials"]);
    }
    let entered = enter
        .args(["--target", &init.to_string(), "--pid", "sh", "-c", "(sleep 0.05 &) ; (sleep 600 &)"])
        .status()
        .expect("nsenter runs; if it is missing: apt-get install util-linux");
    assert!(entered.success());
    until("the orphan that ended is reaped, the one that lives stays", || {
        let orphans: Vec<i32> = children(init).into_iter().skip(1).collect();
        orphans.len() == 1 && state_of(orphans[0]) != Some('Z')
    });
    let orphan = children(init)[1];

    let runner = daemon.submit(json!({"job": {"script": "(setsid sleep 600 &); exec sleep 600"}}));
    daemon.running(&runner);
    kill(Pid::from_raw(init), Signal::SIGTERM).expect("it is there");
    let mut daemon = daemon;
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(processes_of(&runner), [] as [i32; 0]);
    assert!(!alive(orphan), "nothing outlives PID 1");
}

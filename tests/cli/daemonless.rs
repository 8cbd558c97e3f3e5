//! Without a daemon: what is said then, settings, and `run --local`.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    common::{self, Setup, processes_with},
    program::{client, masked, program, said, snapshot},
    terminal::Terminal,
};

#[test]
fn without_a_daemon_it_is_said_where_was_looked_and_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().display().to_string();
    let none = said(program().args(["ps", "--state-dir", &place]));
    assert_eq!((none.code, none.out.as_str()), (Some(69), ""), "{none:?}");
    snapshot("error-no-daemon", &masked(&none.err, &[(&place, "DIR")]));
    // The same by way of the environment, and where it is by default.
    let by_variable = said(program().arg("ps").env("RUNWARD_STATE_DIR", &place));
    assert_eq!(by_variable.err, none.err);
    let by_default = said(program().arg("ps").env("STATE_DIRECTORY", &place));
    assert_eq!(by_default.err, none.err);
}

#[test]
fn what_a_killed_daemon_left_is_seen_through() {
    let mut daemon = Setup::new().start();
    let pid = daemon.pid().to_string();
    daemon.crash();
    let stale = said(&mut client(&daemon, &["ps"]));
    assert_eq!(stale.code, Some(69), "{stale:?}");
    assert!(stale.err.contains(&format!("pid {pid} that is gone")), "{stale:?}");
    let health = said(&mut client(&daemon, &["health"]));
    assert_eq!(health.code, Some(1), "a probe knows 0 and 1: {health:?}");
}

#[test]
fn an_address_that_is_none_is_refused_with_what_would_do() {
    for (url, text) in [
        ("localhost:7711", "http://HOST:PORT or unix:PATH"),
        ("https://example.com", "has no TLS"),
        ("unix:/nowhere/api.sock", "no daemon answers at unix:/nowhere/api.sock"),
        ("http://127.0.0.1:1", "no daemon answers at http://127.0.0.1:1"),
    ] {
        let refused = said(program().args(["ps", "--url", url]));
        assert!(matches!(refused.code, Some(2 | 69)), "{refused:?}");
        assert!(refused.err.contains(text), "{refused:?}");
    }
}

#[test]
fn settings_are_printed_with_where_they_come_from() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("runward.toml");
    fs::write(&file, "[jobs]\nmax_running = 3\n[queues.backups]\npaused = true\n").expect("written");
    let place = file.display().to_string();
    let printed = said(
        program()
            .args(["config", "print", "--config", &place, "--listen", "unix:x"])
            .env("RUNWARD__JOBS__MAX_QUEUED", "9"),
    );
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let line = |key: &str| {
        printed.out.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{printed:?}"))
    };
    for (key, value, origin) in [
        ("jobs.max_running", "3", place.as_str()),
        ("jobs.max_queued", "9", "the environment"),
        ("listen", "unix:x", "the command line"),
        ("jobs.cancel_grace", "30s", "built-in defaults"),
        ("queues.backups.paused", "true", place.as_str()),
    ] {
        let words: Vec<&str> = line(key).split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words, [key, value, origin]);
    }
    let valid = said(program().args(["config", "check", "--config", &place]));
    assert_eq!(valid.code, Some(0), "{valid:?}");
    fs::write(&file, "[jobs]\nmax_runing = 3\n").expect("written");
    let wrong = said(program().args(["config", "check", "--config", &place]));
    assert_eq!(wrong.code, Some(78), "{wrong:?}");
    snapshot("error-settings", &masked(&wrong.err, &[(&place, "FILE")]));
}

#[test]
fn a_local_run_needs_no_daemon_and_leaves_nothing() {
    let temporary = tempfile::tempdir().expect("a directory");
    let here = tempfile::tempdir().expect("a directory");
    let run = said(
        program()
            .args(["run", "--local", "--", "sh", "-c", "pwd; echo $SEEN >&2; exit 4"])
            .current_dir(here.path())
            .env("TMPDIR", temporary.path())
            .env("SEEN", "as here"),
    );
    assert_eq!(run.code, Some(4), "{run:?}");
    assert_eq!(run.out.trim(), here.path().canonicalize().expect("there").display().to_string());
    assert_eq!(run.err, "as here\n");
    assert_eq!(fs::read_dir(temporary.path()).expect("readable").count(), 0, "the directory is gone");
    let socket = temporary.path().display().to_string();
    assert_eq!(processes_with(|environment| environment.contains(&socket)), [] as [i32; 0]);
}

#[test]
fn ctrl_c_on_a_local_run_is_a_cancellation() {
    let temporary = tempfile::tempdir().expect("a directory");
    let mut command = program();
    command
        .args([
            "run",
            "--local",
            "--",
            "sh",
            "-c",
            "trap 'echo cleaned; exit' INT TERM; echo up; while :; do sleep 0.05; done",
        ])
        .env("TMPDIR", temporary.path());
    let mut terminal = Terminal::start(command);
    terminal.wait_for("up\r\n");
    terminal.press("\x03");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(shown.contains("cleaned"), "{shown}");
    assert_eq!(fs::read_dir(temporary.path()).expect("readable").count(), 0);
}

#[test]
fn a_local_run_that_is_killed_takes_its_job_with_it() {
    let temporary = tempfile::tempdir().expect("a directory");
    let place = temporary.path().display().to_string();
    let mut command = program();
    command.args(["run", "--local", "--", "sh", "-c", "echo up; exec sleep 600"]).env("TMPDIR", &place);
    let mut terminal = Terminal::start(command);
    terminal.wait_for("up\r\n");
    let all = || processes_with(|environment| environment.contains(&place));
    assert!(all().len() >= 4, "the command, its daemon, keeper, shim, job");
    kill(Pid::from_raw(terminal.pid()), Signal::SIGKILL).expect("it is there");
    common::until("all of them are gone", || all().is_empty());
    terminal.end();
}

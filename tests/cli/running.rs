//! `run`: output, Ctrl-C, exit codes.

use std::{
    io::{Read, Write},
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    common::{Setup, processes_of},
    program::{client, done, masked, said, snapshot},
    terminal::Terminal,
};

/// Cleans up when it is asked to stop, and says so.
const TIDY: &str = "trap 'echo tidy; exit 3' TERM; echo up; while :; do sleep 0.05; done";
/// Does not stop when it is asked to; with a grace longer than a test waits, only force ends it.
const DEAF: &str = "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done";

#[test]
fn a_whole_session_at_a_terminal() {
    let daemon = Setup::new().start();
    // Submit, follow, Ctrl-C.
    let mut terminal = Terminal::start(client(&daemon, &["run", "--name", "tidy", "--", "sh", "-c", TIDY]));
    terminal.wait_for("up\r\n");
    terminal.press("\x03");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    let order = ["up", "runward: cancelling; Ctrl-C again kills it", "tidy", "It was cancelled"];
    let places: Vec<_> =
        order.iter().map(|text| shown.find(text).unwrap_or_else(|| panic!("{text}: {shown}"))).collect();
    assert!(places.is_sorted(), "{shown}");
    let id = done(&daemon, &["ps", "-a", "--ids", "--name", "tidy"]).trim().to_owned();
    let record = daemon.runner(&id);
    assert_eq!((&record["outcome"], &record["cancel"]["survivors"]), (&json!("cancelled"), &json!(0)));

    // The second Ctrl-C.
    let mut terminal = Terminal::start(client(
        &daemon,
        &["run", "--name", "deaf", "--grace", "10m", "--", "sh", "-c", DEAF],
    ));
    terminal.wait_for("up\r\n");
    terminal.press("\x03");
    terminal.wait_for("no\r\n");
    terminal.press("\x03");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(137), "{shown}");
    assert!(shown.contains("runward: killing"), "{shown}");
    let id = done(&daemon, &["ps", "-a", "--ids", "--name", "deaf"]).trim().to_owned();
    assert_eq!(daemon.runner(&id)["outcome"], "killed");
    assert!(processes_of(&id).is_empty());

    // And one that ends by itself: its own exit code.
    let mut terminal = Terminal::start(client(&daemon, &["run", "--", "sh", "-c", "echo done; exit 9"]));
    let (code, shown) = terminal.end();
    assert_eq!((code, shown.as_str()), (Some(9), "done\r\n"));
}

#[test]
fn the_two_streams_come_apart_and_as_they_were() {
    let daemon = Setup::new().start();
    let script = r"printf 'a\033[31mb\377\000c'; printf 'oops\r' >&2; printf ' d\n'";
    let output = client(&daemon, &["run", "--", "sh", "-c", script]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"a\x1b[31mb\xff\0c d\n", "no terminal: bytes as they came");
    assert_eq!(output.stderr, b"oops\r");
}

#[test]
fn case_25_control_characters_do_not_reach_a_terminal_unless_asked() {
    let daemon = Setup::new().start();
    let script =
        r"printf 'a\033[2Jb\a\302\233c\xff\r\n'; printf 'd\033]0;title\a\n' >&2; printf '\342\200\256e\n'";
    let run = ["run", "--", "bash", "-c", script];
    let (code, shown) = Terminal::start(client(&daemon, &run)).end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains(['\x1b', '\x07', '\u{9b}', '\u{202e}']), "{shown:?}");
    assert!(
        shown.contains("a^[[2Jb^G\\u{9b}c\u{fffd}\r\n") && shown.contains("d^[]0;title^G\r\n"),
        "{shown:?}"
    );
    // Whoever asks gets them, from `logs` too.
    for raw in [&["run", "--raw", "--", "bash", "-c", script][..], &["logs", "--raw", "-"]] {
        let (_, shown) = Terminal::start(client(&daemon, raw)).end();
        assert!(shown.contains("a\x1b[2Jb\x07"), "{raw:?}: {shown:?}");
    }
    let (_, shown) = Terminal::start(client(&daemon, &["logs", "-"])).end();
    assert!(!shown.contains('\x1b'), "{shown:?}");
    // What the job is made of is no way around it.
    daemon.submit(json!({"job": {"command": ["echo", "x\u{1b}[31my"]}}));
    for arguments in [&["ps", "-a"][..], &["show", "-"], &["events", "-"]] {
        let mut command = client(&daemon, arguments);
        command.env("NO_COLOR", "1");
        let (_, shown) = Terminal::start(command).end();
        assert!(!shown.contains('\x1b') && shown.contains("x^[[31my"), "{arguments:?}: {shown:?}");
    }
}

#[test]
fn what_became_of_it_is_the_exit_code() {
    let daemon = Setup::new().start();
    for (arguments, code) in [
        (&["run", "--", "true"][..], 0),
        (&["run", "--", "sh", "-c", "exit 77"], 77),
        (&["run", "--success-code", "0,3", "--", "sh", "-c", "exit 3"], 3),
        (&["run", "--", "sh", "-c", "kill -SEGV $$"], 139),
        (&["run", "--timeout", "100ms", "--", "sleep", "600"], 124),
        (&["run", "--", "/no/such/program"], 127),
        (&["run", "--", "/etc/passwd"], 126),
        (&["run", "-C", "/no/such/directory", "--", "true"], 1),
        (&["run", "--handler", "echo", "--args", "5"], 0),
        (&["submit", "--wait", "--", "sh", "-c", "exit 5"], 5),
        (&["run", "--priority", "high", "--", "true"], 2),
        (&["run", "--user", "no such user", "--", "true"], 65),
        (&["show", "nobody"], 66),
    ] {
        let said = said(&mut client(&daemon, arguments));
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
    }
    assert_eq!(said(&mut client(&daemon, &["wait", "-"])).code, Some(5), "as the job did");
}

#[test]
fn sigterm_is_a_cancellation_too_and_two_of_them_kill() {
    let daemon = Setup::new().start();
    for (script, signals, code) in [(TIDY, 1, 130), (DEAF, 2, 137)] {
        let mut run = client(&daemon, &["run", "--grace", "10m", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut out = run.stdout.take().expect("piped");
        let mut first = [0; 3];
        out.read_exact(&mut first).expect("up");
        let pid = Pid::from_raw(i32::try_from(run.id()).expect("a pid"));
        for signal in 0..signals {
            kill(pid, Signal::SIGTERM).expect("it is there");
            if signal == 0 {
                out.read_exact(&mut first).expect("the job was asked to stop");
            }
        }
        drop(out);
        assert_eq!(run.wait().expect("it ends").code(), Some(code));
    }
}

#[test]
fn scripts_programs_and_standard_input_are_taken_from_files_and_pipes() {
    let daemon = Setup::new().start();
    let dir = tempfile::tempdir().expect("a directory");
    let script = dir.path().join("job.sh");
    std::fs::write(&script, "#!/bin/sh\necho \"$1 $FROM_HERE $GIVEN\"; pwd\n").expect("written");
    let path = script.display().to_string();
    let run = said(
        client(&daemon, &["run", "--env", "FROM_HERE", "-e", "GIVEN=2", "--script", &path, "--", "one"])
            .env("FROM_HERE", "1")
            .current_dir(dir.path()),
    );
    let here = dir.path().canonicalize().expect("there");
    assert_eq!((run.code, run.out), (Some(0), format!("one 1 2\n{}\n", here.display())));

    let mut cat = client(&daemon, &["run", "--stdin", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    cat.stdin.take().expect("piped").write_all("grüße\n".as_bytes()).expect("taken");
    assert_eq!(cat.wait_with_output().expect("it ends").stdout, "grüße\n".as_bytes());

    let unset = said(&mut client(&daemon, &["run", "-e", "NOT_SET_HERE", "--", "true"]));
    assert_eq!(unset.code, Some(2), "{unset:?}");
    assert!(unset.err.contains("say NOT_SET_HERE=VALUE"), "{unset:?}");
}

#[test]
fn a_coroutine_of_python_is_run_and_cancelled_as_by_asyncio() {
    let daemon = Setup::new().start();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("job.py");
    let source = "import asyncio\nasync def main(name='nobody'):\n    print('hello', name, flush=True)\n    \
                  if name == 'sleeper':\n        try:\n            await asyncio.sleep(600)\n        finally:\n            \
                  print('tidy', flush=True)\n    return 42\n";
    std::fs::write(&path, source).expect("written");
    let file = path.display().to_string();
    assert_eq!(done(&daemon, &["run", "--python", &file, "--", "Ada"]), "hello Ada\n");
    assert!(done(&daemon, &["show", "-"]).contains("42"), "its result is shown");
    let mut terminal = Terminal::start(client(&daemon, &["run", "--python", &file, "--", "sleeper"]));
    terminal.wait_for("hello sleeper\r\n");
    terminal.press("\x03");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(shown.contains("tidy\r\n"), "{shown}");
    let python_path = format!("PYTHONPATH={}", dir.path().display());
    assert_eq!(done(&daemon, &["run", "--target", "job:main", "-e", &python_path]), "hello nobody\n");
}

#[test]
fn a_closed_pipe_ends_the_job_as_it_would_end_a_command() {
    let daemon = Setup::new().start();
    let mut run = client(&daemon, &["run", "--name", "yes", "--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let mut some = [0; 4];
    run.stdout.take().expect("piped").read_exact(&mut some).expect("some");
    assert_eq!(run.wait().expect("it ends").code(), Some(130));
    let id = done(&daemon, &["ps", "-a", "--ids", "--name", "yes"]).trim().to_owned();
    assert_eq!(daemon.runner(&id)["outcome"], "cancelled");
}

#[test]
fn output_that_nobody_takes_does_not_keep_it_from_being_interrupted() {
    let daemon = Setup::new().start();
    let mut run = client(&daemon, &["run", "--name", "flood", "--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let mut some = [0; 4];
    run.stdout.as_mut().expect("piped").read_exact(&mut some).expect("some");
    let pid = Pid::from_raw(i32::try_from(run.id()).expect("a pid"));
    // The pipe is full, and stays so.
    crate::common::until("three signals are enough", || {
        kill(pid, Signal::SIGTERM).expect("not waited for yet");
        run.try_wait().expect("a child").is_some()
    });
    assert_eq!(run.wait().expect("it ended").code(), Some(130));
    let id = done(&daemon, &["ps", "-a", "--ids", "--name", "flood"]).trim().to_owned();
    daemon.closed(&id);
}

#[test]
fn a_runner_that_is_kept_open_takes_further_runs() {
    let daemon = Setup::new().start();
    assert_eq!(done(&daemon, &["run", "--name", "open", "--keep-open", "--", "echo", "1"]), "1\n");
    assert_eq!(done(&daemon, &["run", "--on", "open", "--", "echo", "2"]), "2\n");
    let third = said(&mut client(&daemon, &["run", "--on", "open", "--", "sh", "-c", "echo 3; exit 6"]));
    assert_eq!((third.code, third.out.as_str()), (Some(6), "3\n"));
    assert_eq!(done(&daemon, &["logs", "open", "--run", "1"]), "1\n");
    assert!(done(&daemon, &["close", "--wait", "open"]).ends_with(" failed\n"));
    let closed = said(&mut client(&daemon, &["run", "--on", "open", "--", "true"]));
    assert_eq!(closed.code, Some(65), "{closed:?}");
}

#[test]
fn json_is_what_the_api_says() {
    let daemon = Setup::new().start();
    let lines = done(&daemon, &["run", "--json", "--", "sh", "-c", "echo a; echo b >&2"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [first, second, record] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&first["text"], &first["stream"]), (&json!("a\n"), &json!("stdout")));
    assert_eq!((&second["text"], &second["stream"]), (&json!("b\n"), &json!("stderr")));
    assert_eq!(record["outcome"], "succeeded");
    let refused = said(&mut client(&daemon, &["run", "--json", "--timeout", "soon", "--", "true"]));
    assert_eq!(refused.code, Some(65));
    let problem: Value = serde_json::from_str(&refused.err).expect("a problem");
    assert_eq!(problem["field"], "timeout");
}

#[test]
fn a_refusal_names_the_field_and_what_would_do() {
    let daemon = Setup::new().start();
    let mut all = String::new();
    for arguments in [
        &["run", "--timeout", "soon", "--", "true"][..],
        &["submit", "--delay", "5s", "--at", "2030-01-01T00:00:00Z", "--", "true"],
        &["submit", "--at", "tomorrow", "--", "true"],
        &["submit", "--on-lost", "retry", "--", "true"],
        &["submit", "--handler", "ehco"],
        &["submit", "--http", "ftp://example.com"],
        &["submit", "--http", "http://example.com", "--cwd", "/tmp"],
        &["submit", "--retry", "3", "--backoff", "1ms", "--", "true"],
        &["submit", "--rlimit", "nofiles=3", "--", "true"],
        &["submit", "--script", "/no/such/file"],
        &["run"],
        &["run", "--label", "data", "--", "true"],
        &["context", "set", "A=B", "x"],
        &["context", "set", "RUNWARD_X", "x"],
        &["context", "set", "--secret", "A", "x"],
        &["context", "get", "NOBODY"],
        &["queue", "pause", "a b\u{7f}"],
        &["show", "nobody"],
        &["ps", "--state", "runing"],
        &["cancel"],
        &["wait", "-"],
    ] {
        let said = said(&mut client(&daemon, arguments));
        assert!(!said.err.is_empty() && said.code != Some(0), "{arguments:?}: {said:?}");
        all += &format!(
            "$ runward {}\n{}exit code {}\n\n",
            arguments.join(" "),
            said.err,
            said.code.unwrap_or(-1)
        );
    }
    // Exit codes are numbers that matter.
    let all: Vec<String> = all
        .lines()
        .map(|line| if line.starts_with("exit code") { line.to_owned() } else { masked(line, &[]) })
        .collect();
    snapshot("errors", &(all.join("\n") + "\n"));
}

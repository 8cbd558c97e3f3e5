//! The options of `command` and `script`, each seen from inside a real job, and each refusal by its field.

mod common;

use std::{fs, path::PathBuf};

use common::{Daemon, Setup, id, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::{Value, json};

/// Runs a job to its end and gives its record and what it wrote on its standard output.
fn run(daemon: &Daemon, job: Value) -> (Value, String) {
    let runner = daemon.run(json!({"job": job}));
    let output = daemon.text(&format!("/v1/runners/{}/logs?stream=stdout", id(&runner)));
    (runner, output)
}

fn attempt(runner: &Value) -> &Value {
    &runner["runs"][0]["attempts"][0]
}

/// The source as a script and as a command, with the same options.
fn both(source: &str, options: &Value) -> [Value; 2] {
    let (mut script, mut command) = (options.clone(), options.clone());
    script["source"] = source.into();
    command["argv"] = json!(["sh", "-c", source]);
    [json!({"script": script}), json!({"command": command})]
}

/// Whether this test has to be left out because only root may do what it shows.
fn only_root_may(what: &str) -> bool {
    let ordinary = !geteuid().is_root();
    if ordinary {
        println!("left out: only root may {what}");
    }
    ordinary
}

#[test]
fn umask_nice_and_rlimits_are_the_jobs_own() {
    let daemon = Setup::new().start();
    let options =
        json!({"umask": "27", "nice": 19, "rlimits": {"nofile": {"soft": 64, "hard": 128}, "core": 0}});
    let source = "umask; nice; ulimit -Sn; ulimit -Hn; ulimit -c; sh -c umask";
    for job in both(source, &options) {
        let (runner, output) = run(&daemon, job);
        assert_eq!(output, "0027\n19\n64\n128\n0\n0027\n", "{runner}");
        let shown = runner["job"].as_object().and_then(|job| job.values().next()).expect("a job");
        assert_eq!((&shown["umask"], &shown["nice"]), (&json!("0027"), &json!(19)));
        let rlimits = json!({"core": {"soft": 0, "hard": 0}, "nofile": {"soft": 64, "hard": 128}});
        assert_eq!(shown["rlimits"], rlimits);
    }
    for job in both("umask", &json!({})) {
        assert_eq!(run(&daemon, job).1, "0022\n");
    }
}

#[test]
fn each_rlimit_is_the_one_of_its_name() {
    let daemon = Setup::new().start();
    for (name, line) in [
        ("as", "Max address space"),
        ("core", "Max core file size"),
        ("cpu", "Max cpu time"),
        ("data", "Max data size"),
        ("fsize", "Max file size"),
        ("memlock", "Max locked memory"),
        ("nofile", "Max open files"),
        ("nproc", "Max processes"),
        ("stack", "Max stack size"),
    ] {
        // Enough for the program to start, less than any system has.
        let limit = if name == "as" || name == "data" { 987_654_144 } else { 7_000 };
        let limit = if matches!(name, "stack" | "fsize") { 4_096_000 } else { limit };
        let command = json!({"argv": ["cat", "/proc/self/limits"], "rlimits": {name: limit}});
        let (runner, output) = run(&daemon, json!({"command": command}));
        let shown =
            output.lines().find_map(|shown| shown.strip_prefix(line)).unwrap_or_else(|| panic!("{runner}"));
        let numbers: Vec<_> = shown.split_whitespace().take(2).collect();
        assert_eq!(numbers, [limit.to_string(), limit.to_string()], "{name}");
    }
}

#[test]
fn options_outlive_a_crash_of_the_daemon() {
    let mut daemon = Setup::new().set("JOBS__MAX_RUNNING", 1).start();
    let blocker = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    daemon.running(&blocker);
    let rlimits = json!({"nofile": {"soft": 64, "hard": 128}, "core": 0});
    let options = json!({"umask": "0077", "nice": 19, "rlimits": rlimits, "success_exit_codes": [5]});
    let [script, _] = both("umask; nice; ulimit -Hn; exit 5", &options);
    let runner = daemon.submit(json!({"job": script}));
    daemon.crash();
    let daemon = daemon.restart();
    assert_eq!(daemon.closed(&runner)["outcome"], "succeeded");
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs")), "0077\n19\n128\n");
}

#[test]
fn a_script_runs_as_another_user_though_the_state_directory_is_closed() {
    if only_root_may("run jobs as another user") {
        return;
    }
    let daemon = Setup::new().start();
    let token = daemon.state_dir().join("token");
    let source = format!(
        "id -un\nid -gn\ncat <<'END' | tr a-z A-Z\nmany lines\nEND\necho \"$1:$2\"\ncat \"$0\" | head -1\n\
         cat {} 2>/dev/null || echo closed\nstat -c '%U %a' \"$0\"\necho \"$0\"\nls /proc/$$/fd\n",
        token.display()
    );
    let script = json!({"source": source, "args": ["one", "two words"], "user": "daemon", "stdin": "unread"});
    let (runner, output) = run(&daemon, json!({"script": script}));
    let lines: Vec<_> = output.lines().collect();
    let expected = ["daemon", "daemon", "MANY LINES", "one:two words", "id -un", "closed"];
    assert_eq!(lines[..6], expected, "{runner}");
    assert_eq!(lines[6], "daemon 400", "nobody else reads it");
    // The shell itself holds its script open, at a number above 9; nothing else is there but the standard streams.
    let mut fds: Vec<i32> = lines[8..].iter().filter_map(|fd| fd.parse().ok()).collect();
    fds.sort_unstable();
    assert_eq!(fds[..3], [0, 1, 2]);
    assert!(fds[3..].iter().all(|fd| *fd >= 10), "{fds:?}");
    let file = PathBuf::from(lines[7]);
    assert!(file.starts_with("/run"), "{}", file.display());
    until("the copy goes with the job", || !file.parent().is_some_and(|dir| dir.exists()));
    let place = file.ancestors().nth(2).expect("where the copies are").to_owned();
    assert_eq!(daemon.stop(), Some(0));
    assert!(!place.exists(), "and their place with the daemon");
}

#[test]
fn scripts_of_any_interpreter_run_as_another_user() {
    if only_root_may("run jobs as another user") {
        return;
    }
    let daemon = Setup::new().start();
    let python = "#!/usr/bin/env python3\nimport getpass, os, sys\n\ndef main():\n    print(getpass.getuser(), \
                  os.path.basename(__file__), sys.argv[1:], sorted(map(int, os.listdir('/proc/self/fd')))[:3])\n\n\
                  main()\n";
    let (runner, output) =
        run(&daemon, json!({"script": {"source": python, "args": ["x"], "user": "daemon"}}));
    assert_eq!(output, "daemon script ['x'] [0, 1, 2]\n", "{runner}");
    let shell =
        "#!/bin/bash -e\n[[ -n $BASH_VERSION ]] && echo bash as \"$(id -un)\"\nfalse\necho not reached\n";
    let (runner, output) = run(&daemon, json!({"script": {"source": shell, "user": "daemon"}}));
    assert_eq!((output.as_str(), &attempt(&runner)["exit"]), ("bash as daemon\n", &json!({"code": 1})));
}

#[test]
fn what_a_crash_leaves_of_a_script_for_another_user_goes_with_the_next_start() {
    if only_root_may("run jobs as another user") {
        return;
    }
    let mut daemon = Setup::new().start();
    let source = "echo \"at $0\"; exec sleep 600";
    let script = json!({"source": source, "user": "daemon"});
    let runner = daemon.submit(json!({"job": {"script": script}}));
    let output = daemon.output_with(&runner, "/script\n");
    let file = PathBuf::from(output.trim().strip_prefix("at ").expect("its place"));
    assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some(source), "it is there while the job runs");
    daemon.crash();
    let daemon = daemon.restart();
    assert!(!file.exists());
    assert_eq!(daemon.closed(&runner)["outcome"], "lost");
}

#[test]
fn groups_are_the_users_own_or_the_one_that_is_named() {
    if only_root_may("run jobs as another group") {
        return;
    }
    let daemon = Setup::new().start();
    for (options, ids) in [
        (json!({"user": "daemon"}), "daemon daemon daemon\n"),
        (json!({"user": "daemon", "group": "mail"}), "daemon mail mail daemon\n"),
        (json!({"group": "mail"}), "root mail mail\n"),
    ] {
        for job in both("echo $(id -un) $(id -gn) $(id -Gn)", &options) {
            let (runner, output) = run(&daemon, job);
            // The user's supplementary groups follow; which they are is the system's matter.
            let named: Vec<_> = output.split_whitespace().take(3).collect();
            assert_eq!(named, ids.split_whitespace().take(3).collect::<Vec<_>>(), "{runner}");
        }
    }
}

#[test]
fn exit_codes_that_count_as_success_are_the_jobs_to_say() {
    let daemon = Setup::new().start();
    for (codes, exit, outcome) in [
        (json!(null), 0, "succeeded"),
        (json!(null), 3, "failed"),
        (json!([0, 3]), 3, "succeeded"),
        (json!([3]), 0, "failed"),
    ] {
        for job in both(&format!("exit {exit}"), &json!({"success_exit_codes": codes})) {
            let (runner, _) = run(&daemon, job);
            assert_eq!(runner["outcome"], outcome, "{exit} with {codes}");
            assert_eq!(attempt(&runner)["exit"], json!({"code": exit}));
        }
    }
}

#[test]
fn an_exit_that_is_adopted_after_a_crash_is_judged_by_the_same_codes() {
    let mut daemon = Setup::new().start();
    let source = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let [script, _] = both(source, &json!({"success_exit_codes": [3]}));
    let runner = daemon.submit(json!({"job": script, "cancel_grace": "60s"}));
    daemon.output_with(&runner, "ready");
    let pid = attempt(&daemon.running(&runner))["pid"].as_i64().expect("a pid");
    // The daemon stands still while the job ends, and dies before it has heard of it.
    daemon.signal(Signal::SIGSTOP);
    let main = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(main, Signal::SIGTERM).expect("it runs");
    until("the job has ended", || !common::alive(main.as_raw()));
    daemon.crash();
    let daemon = daemon.restart();
    let record = daemon.closed(&runner);
    assert_eq!((&record["outcome"], &attempt(&record)["exit"]), (&json!("succeeded"), &json!({"code": 3})));
}

#[test]
fn case_14_signal_9_of_somebody_else_is_called_so_and_ours_is_not() {
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    let pid = attempt(&daemon.running(&runner))["pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("it runs");
    let record = daemon.closed(&runner);
    assert_eq!(record["outcome"], "failed");
    let error = &attempt(&record)["error"];
    assert_eq!(error["kind"], "killed_by_other", "{record}");
    assert!(error["message"].as_str().is_some_and(|text| text.starts_with("signal 9, not ours")), "{error}");

    let runner =
        daemon.submit(json!({"job": {"script": "trap '' TERM; echo up; while :; do sleep 0.05; done"}}));
    daemon.output_with(&runner, "up");
    daemon.cancel(&runner);
    daemon.cancel(&runner);
    let record = daemon.closed(&runner);
    assert_eq!((&record["outcome"], &attempt(&record)["exit"]), (&json!("killed"), &json!({"signal": 9})));
    assert_eq!(attempt(&record)["error"], Value::Null, "it was ours");
    let timed = json!({"job": {"script": "trap '' TERM; while :; do sleep 0.05; done"}, "timeout": "200ms", "cancel_grace": 0});
    let record = daemon.run(timed);
    assert_eq!((&record["outcome"], &attempt(&record)["error"]), (&json!("timed_out"), &Value::Null));
}

#[test]
fn case_17_each_stage_of_a_start_that_fails_is_told_with_what_it_failed_on() {
    let daemon = Setup::new().start();
    let file = |name: &str, content: &str, mode: u32| {
        let path = daemon.state_dir().join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("allowed");
        path.display().to_string()
    };
    let no_interpreter = file("no-interpreter", "#!/does/not/exist -x\n", 0o755);
    let no_format = file("no-format", "echo\n", 0o755);
    let not_executable = file("not-executable", "#!/bin/sh\n", 0o644);
    let interpreter = format!("{no_interpreter} is there, but its interpreter /does/not/exist is not");
    for (job, stage, errno, message) in [
        (json!({"command": ["/does/not/exist"]}), "exec", 2, "its program /does/not/exist does not exist"),
        (
            json!({"command": ["no-such-program"]}),
            "exec",
            2,
            "no-such-program is in no directory of its PATH",
        ),
        (json!({"command": [no_interpreter]}), "exec", 2, interpreter.as_str()),
        (json!({"command": [no_format]}), "exec", 8, "begins with `#!/bin/sh`"),
        (json!({"command": [not_executable]}), "exec", 13, "Permission denied"),
        (
            json!({"script": "#!/no/such/sh -e\ntrue"}),
            "exec",
            2,
            "its interpreter /no/such/sh does not exist",
        ),
        (
            json!({"script": "#! /does/not/exist\n"}),
            "exec",
            2,
            "its interpreter /does/not/exist does not exist",
        ),
        (
            json!({"command": {"argv": ["true"], "cwd": "/does/not/exist"}}),
            "cwd",
            2,
            "its working directory /does/not/exist could not be entered: No such file",
        ),
        (
            json!({"script": {"source": "true", "cwd": "/etc/passwd"}}),
            "cwd",
            20,
            "/etc/passwd could not be entered: Not a",
        ),
    ] {
        let (runner, _) = run(&daemon, job);
        let error = &attempt(&runner)["error"];
        assert_eq!(
            (&runner["outcome"], &error["kind"]),
            (&json!("failed"), &json!("start_failed")),
            "{runner}"
        );
        assert_eq!((&error["stage"], &error["errno"]), (&json!(stage), &json!(errno)), "{error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!(attempt(&runner)["exit"], Value::Null);
    }
}

#[test]
fn case_17_a_user_that_may_not_enter_its_directory_is_told_so() {
    if only_root_may("run jobs as another user") {
        return;
    }
    let daemon = Setup::new().start();
    for job in both("true", &json!({"user": "daemon", "cwd": daemon.state_dir()})) {
        let (runner, _) = run(&daemon, job);
        let error = &attempt(&runner)["error"];
        assert_eq!((&error["stage"], &error["errno"]), (&json!("cwd"), &json!(13)), "{runner}");
    }
}

/// The problem that a submission is refused with.
fn refusal(daemon: &Daemon, options: &Value, field: &str) -> Value {
    for (kind, job) in ["script", "command"].into_iter().zip(both("true", options)) {
        let (status, problem) = daemon.post("/v1/runners", json!({"job": job}));
        assert_eq!((status, &problem["field"]), (422, &json!(format!("job.{kind}.{field}"))), "{problem}");
        if kind == "command" {
            return problem;
        }
    }
    unreachable!("a command was refused")
}

#[test]
fn what_cannot_be_done_is_refused_by_name_before_it_is_accepted() {
    let daemon = Setup::new().start();
    refusal(&daemon, &json!({"user": "no such user"}), "user");
    refusal(&daemon, &json!({"group": "no such group"}), "group");
    refusal(&daemon, &json!({"umask": 27}), "umask");
    refusal(&daemon, &json!({"nice": -21}), "nice");
    refusal(&daemon, &json!({"rlimits": {"nofile": "unlimited"}}), "rlimits.nofile");
    assert_eq!(daemon.get("/v1/runners")["items"], json!([]));
}

#[test]
fn a_daemon_without_the_rights_refuses_what_takes_them() {
    // Root without these two rights, or an ordinary user, who has none.
    let (program, arguments): (_, &[&str]) = if geteuid().is_root() {
        ("setpriv", &["--bounding-set=-sys_nice,-sys_resource", "prlimit", "--nofile=512:1024"])
    } else {
        ("prlimit", &["--nofile=512:1024"])
    };
    let daemon = Setup::through(program, arguments).start();
    let problem = refusal(&daemon, &json!({"nice": -1}), "nice");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("or more")), "{problem}");
    let problem = refusal(&daemon, &json!({"rlimits": {"nofile": 1025}}), "rlimits.nofile");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("1024 at the most")), "{problem}");
    // What the daemon has it may give.
    let options = json!({"rlimits": {"nofile": {"soft": 100, "hard": 1024}}, "nice": 19});
    for job in both("ulimit -Hn; nice", &options) {
        assert_eq!(run(&daemon, job).1, "1024\n19\n");
    }
    if !geteuid().is_root() {
        refusal(&daemon, &json!({"user": "root"}), "user");
        refusal(&daemon, &json!({"group": "daemon"}), "group");
    }
}

#[test]
fn limits_of_a_whole_job_hold_where_info_offers_them_and_are_refused_elsewhere() {
    let daemon = Setup::new().start();
    let info = daemon.get("/v1/info");
    let containment = &info["containment"];
    let offered: Vec<_> =
        containment["limits"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for (name, limit) in [("memory", json!("32M")), ("cpu", json!(0.5)), ("pids", json!(1))] {
        let options = json!({"limits": {name: limit}});
        if !offered.contains(&name) {
            let why =
                containment["limits_missing"][name].as_str().unwrap_or_else(|| panic!("no reason: {info}"));
            let problem = refusal(&daemon, &options, &format!("limits.{name}"));
            assert_eq!(problem["type"], "urn:runward:problem:unavailable");
            let detail = problem["detail"].as_str().expect("a detail");
            assert!(detail.contains(why) && detail.contains("/v1/info"), "{detail}");
            continue;
        }
        let source = match name {
            "memory" => "head -c 200M /dev/zero | tail -c 100M | wc -c",
            "pids" => "(true) || exit 9",
            _ => "cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/cpu.max",
        };
        let [script, _] = both(source, &options);
        let (runner, output) = run(&daemon, script);
        match name {
            "memory" => assert_eq!(attempt(&runner)["error"]["kind"], "oom", "case 14: {runner}"),
            "pids" => assert_eq!(runner["outcome"], "failed", "{runner}"),
            _ => assert_eq!(output, "50000 100000\n", "{runner}"),
        }
    }
}

#[test]
fn what_a_job_does_to_its_shim_and_to_shared_places_is_not_for_the_next() {
    let daemon = Setup::new().start();
    let run = |script: &str| daemon.run(json!({"job": {"script": script}}));
    for spoil in [
        "echo 500 > /proc/$PPID/oom_score_adj",
        "echo 0 > /proc/$PPID/coredump_filter",
        r#"rm -rf "$(dirname "$RUNWARD_RESULT")""#,
        r#"rm -rf "$(dirname "$RUNWARD_RESULT")/../slots""#,
    ] {
        assert_eq!(run(spoil)["outcome"], "succeeded", "{spoil}");
        let next = run(
            r#"test "$(cat /proc/self/oom_score_adj)" != 500 && ! grep -q '^00000000$' /proc/self/coredump_filter &&
               echo '{}' > "$RUNWARD_RESULT""#,
        );
        assert_eq!(next["outcome"], "succeeded", "after {spoil}: {next}");
        // Where the next start finds what was executed.
        let slots = fs::read_dir(daemon.state_dir().join("slots")).expect("it is there");
        assert!(slots.count() > 0, "after {spoil}");
    }
}

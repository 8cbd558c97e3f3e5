//! Coroutines of Python as jobs, and the files in which any process job leaves a result and variables.

mod common;

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::Command,
};

use common::{Daemon, Setup, id, python_is_there, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::{Value, json};

fn attempt(runner: &Value) -> &Value {
    &runner["runs"][0]["attempts"][0]
}

fn run_python(daemon: &Daemon, python: Value) -> Value {
    daemon.run(json!({"job": {"python": python}}))
}

fn stream(daemon: &Daemon, runner: &Value, stream: &str) -> String {
    daemon.text(&format!("/v1/runners/{}/logs?stream={stream}", id(runner)))
}

/// Cancels when the job has written this.
fn cancel_at(daemon: &Daemon, runner: &str, text: &str) {
    daemon.output_with(runner, text);
    assert_eq!(daemon.cancel(runner).0, 202);
}

/// Everything of the attempt but its output is removed with its end.
fn files_left(daemon: &Daemon) -> Vec<String> {
    let names = fs::read_dir(daemon.state_dir().join("files")).expect("the files of jobs that run").flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_source_file_sent_with_curl_runs_with_its_arguments_and_gives_a_result() {
    python_is_there();
    let daemon = Setup::new().start();
    let source = "import asyncio\n\nasync def main(name, again='no'):\n    await asyncio.sleep(0)\n    print('hello', name)\n    return {'name': name, 'again': again, 'ü': [1, None, 2.5]}\n";
    let path = daemon.state_dir().join("job.py");
    fs::write(&path, source).expect("written");
    let data = format!("@{}", path.display());
    let url = "http://localhost/v1/runners?wait=30s&name=greet&arg=Ada";
    let answer = daemon.curl(&["--data-binary", &data, "-H", "content-type: text/x-python", url]);
    let runner: Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!((&runner["outcome"], &runner["name"]), (&json!("succeeded"), &json!("greet")), "{runner}");
    assert_eq!(runner["runs"][0]["result"], json!({"name": "Ada", "again": "no", "ü": [1, null, 2.5]}));
    assert_eq!(runner["job"]["python"]["source"], source);
    assert_eq!(stream(&daemon, &runner, "stdout"), "hello Ada\n");
    assert_eq!(stream(&daemon, &runner, "stderr"), "");
    let runner =
        run_python(&daemon, json!({"source": source, "args": [7], "kwargs": {"again": {"a": true}}}));
    assert_eq!(runner["runs"][0]["result"]["again"], json!({"a": true}), "{runner}");
    assert_eq!(files_left(&daemon), [] as [&str; 0]);
}

#[test]
fn a_function_of_a_module_is_found_in_the_working_directory_and_on_the_path() {
    python_is_there();
    let daemon = Setup::new().start();
    let package = daemon.state_dir().join("code/tools");
    fs::create_dir_all(&package).expect("made");
    fs::write(
        package.join("jobs.py"),
        "class Jobs:\n    @staticmethod\n    async def main(n):\n        return n + 1\n",
    )
    .expect("written");
    let target = "tools.jobs:Jobs.main";
    let code = package.parent().expect("a parent");
    for place in [json!({"cwd": code}), json!({"env": {"PYTHONPATH": code}})] {
        let mut python = json!({"target": target, "args": [41]});
        python.as_object_mut().expect("an object").extend(place.as_object().expect("an object").clone());
        let runner = run_python(&daemon, python);
        assert_eq!(runner["runs"][0]["result"], 42, "{runner}");
    }
    let runner = run_python(&daemon, json!({"target": target}));
    assert_eq!(attempt(&runner)["error"]["exception"], "ModuleNotFoundError", "{runner}");
    let runner = run_python(&daemon, json!({"target": "tools.jobs:start", "cwd": code}));
    let error = &attempt(&runner)["error"];
    assert_eq!(error["message"], "the module `tools.jobs` has no `start`", "{runner}");
}

#[test]
fn an_exception_is_reported_with_type_message_and_the_lines_of_the_source() {
    python_is_there();
    let daemon = Setup::new().start();
    let source = "class Full(Exception):\n    pass\n\nasync def main():\n    try:\n        1 / 0\n    except ZeroDivisionError as e:\n        raise Full('no room') from e\n";
    let runner = run_python(&daemon, json!(source));
    assert_eq!((&runner["outcome"], &attempt(&runner)["exit"]), (&json!("failed"), &json!({"code": 1})));
    let error = &attempt(&runner)["error"];
    assert_eq!(
        (&error["kind"], &error["exception"], &error["message"]),
        (&json!("exception"), &json!("Full"), &json!("no room"))
    );
    let traceback = error["traceback"].as_str().expect("a traceback");
    assert!(
        traceback.starts_with(
            "Traceback (most recent call last):\n  File \"<job>\", line 6, in main\n    1 / 0\n"
        ),
        "{traceback}"
    );
    assert!(traceback.ends_with("Full: no room\n"), "{traceback}");
    assert!(!traceback.contains("runward-job.py"), "nothing of the bootstrap: {traceback}");
    assert_eq!(stream(&daemon, &runner, "stderr"), traceback);

    let deep = "async def main():\n    raise ValueError('x' * 100_000)\n";
    let error = attempt(&run_python(&daemon, json!(deep)))["error"].clone();
    assert_eq!(error["message"].as_str().map(str::len), Some(4096));
    assert!(error["traceback"].as_str().is_some_and(|text| text.len() <= 16384 && text.ends_with("x\n")));

    let error = attempt(&run_python(&daemon, json!("async def main(:\n")))["error"].clone();
    assert_eq!(error["exception"], "SyntaxError", "{error}");
    assert!(error["traceback"].as_str().is_some_and(|text| text.contains("async def main(:")), "{error}");
}

#[test]
fn what_is_no_coroutine_and_what_is_no_result_is_said_in_a_sentence() {
    python_is_there();
    let daemon = Setup::new().start();
    for (source, kind, message) in [
        ("pass", "start_failed", "the source defines no `main`; it needs `async def main(): ...`"),
        (
            "def main(): return 3",
            "start_failed",
            "`main` is not asynchronous, it returned a value of the type int; write `async def`",
        ),
        (
            "async def main():\n yield 3",
            "start_failed",
            "`main` is an asynchronous generator: it has a `yield`; return the result instead",
        ),
        (
            "async def main(): return {1}",
            "bad_result",
            "the result can't be written as JSON: Object of type set is not JSON serializable",
        ),
        (
            "async def main(): return float('nan')",
            "bad_result",
            "the result can't be written as JSON: Out of range float values are not JSON compliant",
        ),
        (
            "async def main(): return 'x' * 65535",
            "bad_result",
            "the result is 65537 bytes of JSON, and 65536 can be kept: write it to a file and return the path",
        ),
    ] {
        let runner = run_python(&daemon, json!(source));
        let error = &attempt(&runner)["error"];
        assert_eq!(
            (&runner["outcome"], &error["kind"]),
            (&json!("failed"), &json!(kind)),
            "{source}: {runner}"
        );
        let told = error["message"].as_str().expect("a message");
        assert!(told.starts_with(message), "{source}: {told}");
        assert!(stream(&daemon, &runner, "stderr").contains(told), "{source}");
        assert_eq!(runner["runs"][0]["result"], Value::Null);
    }
    let most = run_python(&daemon, json!("async def main(): return 'x' * 65534"));
    assert_eq!(most["runs"][0]["result"].as_str().map(str::len), Some(65534));
}

#[test]
fn an_interpreter_that_is_missing_or_too_old_is_said_with_what_to_install() {
    python_is_there();
    let daemon = Setup::new().start();
    let missing =
        run_python(&daemon, json!({"source": "async def main(): pass", "interpreter": "python3.99"}));
    // A newer one that says it is older.
    let old = daemon.state_dir().join("old-python");
    let pretence = "#!/usr/bin/env python3\nimport runpy, sys\nsys.version_info = (3, 9, 2, 'final', 0)\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n";
    fs::write(&old, pretence).expect("written");
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).expect("set");
    let old = run_python(&daemon, json!({"source": "async def main(): pass", "interpreter": old}));
    for (runner, words) in [
        (missing, ["python3.99 is in no directory of its PATH", "install Python 3.11 or later"]),
        (old, ["is Python 3.9.2", "needs 3.11 or later"]),
    ] {
        let error = &attempt(&runner)["error"];
        assert_eq!(
            (&runner["outcome"], &error["kind"]),
            (&json!("failed"), &json!("start_failed")),
            "{runner}"
        );
        let message = error["message"].as_str().expect("a message");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn the_request_is_in_no_argument_and_no_variable_and_stdin_is_the_jobs() {
    python_is_there();
    let daemon = Setup::new().start();
    let source = "import os, sys\nasync def main(secret):\n    seen = open('/proc/self/cmdline').read() + open('/proc/self/environ').read()\n    fds = sorted(int(fd) for fd in os.listdir('/proc/self/fd'))\n    return [secret in seen, 'async def' in seen, sys.stdin.read(), os.listdir('.'), fds]\n";
    let empty = daemon.state_dir().join("empty");
    fs::create_dir(&empty).expect("made");
    let python = json!({"source": source, "args": ["s3cret"], "stdin": "given", "cwd": empty});
    let runner = run_python(&daemon, python);
    // The last descriptors are those that listing the directory and the loop itself take.
    let result = &runner["runs"][0]["result"];
    assert_eq!(
        result.as_array().expect("a list")[..4],
        [json!(false), json!(false), json!("given"), json!([])]
    );
}

#[test]
fn context_variables_are_contextvars_in_the_main_task() {
    python_is_there();
    let daemon = Setup::new().start();
    let source = "import asyncio, contextvars, runward\nhost = runward.var('PGHOST')\nasync def child():\n    old = host.get()\n    host.set('lost')\n    return old\nasync def main():\n    seen = [host.get(), runward.var('OWN').get(), host is runward.var('PGHOST'), isinstance(host, contextvars.ContextVar)]\n    seen.append(await asyncio.create_task(child()))\n    host.set('db2')\n    return seen + [dict(runward.context()), contextvars.copy_context()[host]]\n";
    let job = json!({"python": {"source": source, "env": {"OWN": "1"}}});
    let runner = daemon.run(json!({"job": job, "context": {"PGHOST": "db1"}}));
    let expected = json!(["db1", "1", true, true, "db1", {"OWN": "1", "PGHOST": "db2"}, "db2"]);
    assert_eq!(runner["runs"][0]["result"], expected, "{runner}");
}

#[test]
fn debug_is_asyncios() {
    python_is_there();
    let daemon = Setup::new().start();
    let source = "import asyncio\nasync def main():\n    return asyncio.get_running_loop().get_debug()\n";
    for (debug, expected) in [(json!(true), true), (json!(false), false), (json!(null), false)] {
        let runner = daemon.run(json!({"job": {"python": source}, "debug": debug}));
        assert_eq!(runner["runs"][0]["result"], expected, "{runner}");
    }
}

const CLEANS_UP: &str = "import asyncio\nasync def main():\n    try:\n        print('ready')\n        await asyncio.sleep(600)\n    finally:\n        await asyncio.sleep(0)\n        print('clean')\n";

#[test]
fn a_cancel_is_an_interrupt_and_finally_blocks_run() {
    python_is_there();
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"python": CLEANS_UP}}));
    cancel_at(&daemon, &runner, "ready");
    let closed = daemon.closed(&runner);
    assert_eq!(
        (&closed["outcome"], &attempt(&closed)["exit"]),
        (&json!("cancelled"), &json!({"code": 130})),
        "{closed}"
    );
    assert_eq!(attempt(&closed)["error"], Value::Null);
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs")), "ready\nclean\n", "and no traceback");
    let signals: Vec<_> = closed["cancel"]["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .filter(|step| step["action"] == "signal")
        .collect();
    assert!(
        signals.len() == 1
            && signals[0]["target"].as_str().is_some_and(|target| target.starts_with("SIGINT")),
        "{closed}"
    );
}

#[test]
fn a_cancel_that_interrupts_no_wait_of_the_loop_is_heeded_all_the_same() {
    python_is_there();
    let daemon = Setup::new().start();
    // As one that comes just before the loop waits: the other thread takes the signal.
    let source = "import asyncio, signal, threading\n\nasync def main():\n    \
                  threading.Thread(target=threading.Event().wait, daemon=True).start()\n    \
                  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n    print('ready')\n    \
                  try:\n        await asyncio.sleep(600)\n    finally:\n        print('cleaned up')\n";
    let runner = daemon.submit(json!({"job": {"python": source}, "cancel_grace": "5m"}));
    cancel_at(&daemon, &runner, "ready");
    let closed = daemon.closed(&runner);
    assert_eq!(closed["outcome"], "cancelled", "{closed}");
    assert_eq!(stream(&daemon, &closed, "stdout"), "ready\ncleaned up\n");
}

#[test]
fn who_swallows_the_cancellation_has_succeeded_and_who_raises_instead_has_failed() {
    python_is_there();
    let daemon = Setup::new().start();
    let job = |answer: &str| {
        format!(
            "import asyncio\nasync def main():\n    print('ready')\n    try:\n        await asyncio.sleep(600)\n    except asyncio.CancelledError:\n        {answer}\n"
        )
    };
    for (answer, outcome, exit, result) in [
        ("return 'later'", "succeeded", 0, json!("later")),
        ("return None", "succeeded", 0, Value::Null),
        ("raise ValueError('no')", "failed", 1, Value::Null),
        ("raise", "cancelled", 130, Value::Null),
        ("raise SystemExit(3)", "cancelled", 3, Value::Null),
    ] {
        let runner = daemon.submit(json!({"job": {"python": job(answer)}}));
        cancel_at(&daemon, &runner, "ready");
        let closed = daemon.closed(&runner);
        assert_eq!(closed["outcome"], outcome, "{answer}: {closed}");
        assert_eq!(attempt(&closed)["exit"], json!({"code": exit}), "{answer}");
        assert_eq!(closed["runs"][0]["result"], result, "{answer}");
        assert_eq!(closed["cancel"]["survivors"], 0);
    }
}

#[test]
fn a_time_that_is_up_interrupts_as_well() {
    python_is_there();
    let daemon = Setup::new().start();
    let closed = daemon.run(json!({"job": {"python": CLEANS_UP}, "timeout": "2s"}));
    assert_eq!(closed["outcome"], "timed_out", "{closed}");
    assert_eq!(attempt(&closed)["exit"], json!({"code": 130}));
}

#[test]
fn a_second_cancel_interrupts_at_once_and_kills_what_does_not_end_by_that() {
    python_is_there();
    let daemon = Setup::new().start();
    let ends = "def work():\n    while True: pass\nasync def main():\n    print('ready')\n    try:\n        work()\n    finally:\n        print('clean')\n";
    let stays = "import signal\nasync def main():\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    print('ready')\n    while True: pass\n";
    for (source, exit, output) in
        [(ends, json!({"code": 130}), "ready\nclean\n"), (stays, json!({"signal": 9}), "ready\n")]
    {
        let runner = daemon.submit(json!({"job": {"python": source}}));
        cancel_at(&daemon, &runner, "ready");
        // The first has been delivered, and the loop never gets to it.
        daemon.runner_when(&runner, "the signal is sent", |runner| {
            runner["cancel"]["steps"]
                .as_array()
                .is_some_and(|steps| steps.iter().any(|step| step["action"] == "signal"))
        });
        assert_eq!(daemon.cancel(&runner).0, 202);
        let closed = daemon.closed(&runner);
        assert_eq!((&closed["outcome"], &attempt(&closed)["exit"]), (&json!("killed"), &exit), "{closed}");
        assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs")), output);
    }
}

#[test]
fn a_second_signal_to_the_daemon_waits_for_no_python() {
    python_is_there();
    let mut daemon = Setup::new().start();
    let stays = "import signal\nasync def main():\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    print('ready')\n    while True: pass\n";
    let runner = daemon.submit(json!({"job": {"python": stays}}));
    daemon.output_with(&runner, "ready");
    daemon.signal(Signal::SIGTERM);
    daemon.logged("waiting for jobs to clean up");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(81), "{}", daemon.log_text());
    let daemon = daemon.restart();
    assert_eq!(daemon.runner(&runner)["outcome"], "killed");
}

/// Starts Python when something is written to the pipe `go`.
const SLOW_PYTHON: &str = "#!/usr/bin/env python3
import os, sys
open('go').read()
os.execv(sys.executable, [sys.executable] + sys.argv[1:])
";

#[test]
fn an_interrupt_before_the_jobs_own_code_runs_ends_it_quietly() {
    python_is_there();
    let daemon = Setup::new().start();
    // An interpreter that takes its time, so that the cancellation comes before the bootstrap.
    let slow = daemon.state_dir().join("slow-python");
    fs::write(&slow, SLOW_PYTHON).expect("written");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("set");
    let pipe = daemon.state_dir().join("go");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let source = "print('never')\nasync def main(): pass\n";
    let python = json!({"source": source, "interpreter": slow, "cwd": daemon.state_dir()});
    let runner = daemon.submit(json!({"job": {"python": python}}));
    daemon.running(&runner);
    assert_eq!(daemon.cancel(&runner).0, 202);
    daemon.runner_when(&runner, "the signal is sent", |runner| {
        runner["cancel"]["steps"]
            .as_array()
            .is_some_and(|steps| steps.iter().any(|step| step["action"] == "signal"))
    });
    let open = || fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe);
    until("somebody reads", || open().is_ok());
    let closed = daemon.closed(&runner);
    assert_eq!(
        (&closed["outcome"], &attempt(&closed)["exit"]),
        (&json!("cancelled"), &json!({"code": 130})),
        "{closed}"
    );
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs")), "");
}

#[test]
fn another_user_runs_it_and_leaves_result_and_failure_all_the_same() {
    python_is_there();
    if !geteuid().is_root() {
        println!("only root can run jobs as another user");
        return;
    }
    let daemon = Setup::new().start();
    let interpreter = system_python();
    let user = |source: &str| json!({"source": source, "user": "nobody", "interpreter": interpreter});
    let source = "import os, runward\nasync def main():\n    place = os.path.dirname(os.environ['RUNWARD_RESULT'])\n    return [os.getuid(), os.stat(place).st_uid, oct(os.stat(place).st_mode), place]\n";
    let runner = run_python(&daemon, user(source));
    let result = &runner["runs"][0]["result"];
    let nobody = nix::unistd::User::from_name("nobody").expect("readable").expect("known").uid.as_raw();
    assert_eq!(
        result.as_array().map(|list| &list[..3]),
        Some(&[json!(nobody), json!(nobody), json!("0o40700")][..]),
        "{runner}"
    );
    let place = result[3].as_str().expect("a path").to_owned();
    assert!(!Path::new(&place).starts_with(daemon.state_dir()));
    until("its directory is removed", || !Path::new(&place).exists());
    let runner = run_python(&daemon, user("async def main(): 1/0"));
    assert_eq!(attempt(&runner)["error"]["exception"], "ZeroDivisionError", "{runner}");

    let script = "umask 077; echo '{\"by\": \"'$(id -un)'\"}' > $RUNWARD_RESULT.tmp && mv $RUNWARD_RESULT.tmp $RUNWARD_RESULT";
    let runner = daemon.run(json!({"job": {"command": {"argv": ["sh", "-c", script], "user": "nobody"}}}));
    assert_eq!(runner["runs"][0]["result"], json!({"by": "nobody"}), "{runner}");
}

/// A Python that another user can reach.
fn system_python() -> String {
    let candidates = ["/usr/bin/python3", "/usr/local/bin/python3"];
    let fits = |path: &&&str| {
        let output =
            Command::new(path).args(["-c", "import sys; print(sys.version_info >= (3, 11))"]).output();
        output.is_ok_and(|output| output.stdout == b"True\n")
    };
    let found = candidates.iter().find(fits);
    (*found.expect("no Python 3.11 that other users can reach: apt-get install python3")).to_owned()
}

#[test]
fn a_shell_command_leaves_a_result_of_any_shape() {
    let daemon = Setup::new().start();
    let run = |script: &str| daemon.run(json!({"job": {"command": ["sh", "-c", script]}}));
    for (script, result) in [
        ("echo '{\"rows\": [1, 2]}' > $RUNWARD_RESULT", json!({"rows": [1, 2]})),
        ("printf 7 > \"$RUNWARD_RESULT\"", json!(7)),
        ("true", Value::Null),
        (": > $RUNWARD_RESULT", Value::Null),
        ("echo '\"one\"' > $RUNWARD_RESULT.new; mv $RUNWARD_RESULT.new $RUNWARD_RESULT", json!("one")),
    ] {
        let runner = run(script);
        assert_eq!(
            (&runner["outcome"], &runner["runs"][0]["result"]),
            (&json!("succeeded"), &result),
            "{script}: {runner}"
        );
        assert_eq!(files_left(&daemon), [] as [&str; 0], "{script}");
    }
    // What failed may have left one too.
    let runner = run("echo 1 > $RUNWARD_RESULT; exit 4");
    assert_eq!((&runner["outcome"], &runner["runs"][0]["result"]), (&json!("failed"), &json!(1)));
    assert_eq!(attempt(&runner)["error"], Value::Null);
}

#[test]
fn a_result_that_can_not_be_taken_fails_the_job_and_says_why() {
    let daemon = Setup::new().start();
    let secret = daemon.state_dir().join("token");
    let link = format!("ln -s {} $RUNWARD_RESULT", secret.display());
    let nested = format!("printf '{}{}' > $RUNWARD_RESULT", "[".repeat(65), "]".repeat(65));
    for (script, file, words) in [
        ("echo {rows: 3} > $RUNWARD_RESULT", "RUNWARD_RESULT", "is no JSON ("),
        ("head -c 65537 /dev/zero | tr '\\0' 1 > $RUNWARD_RESULT", "RUNWARD_RESULT", "is larger than 64 KiB"),
        (link.as_str(), "RUNWARD_RESULT", "is a symbolic link"),
        ("mkfifo $RUNWARD_RESULT", "RUNWARD_RESULT", "is no regular file"),
        ("mkdir $RUNWARD_RESULT", "RUNWARD_RESULT", "is no regular file"),
        ("printf '\\377' > $RUNWARD_RESULT", "RUNWARD_RESULT", "is not UTF-8"),
        (nested.as_str(), "RUNWARD_RESULT", "is nested more than 64 levels deep"),
        (
            "echo 'not a variable' > $RUNWARD_CONTEXT",
            "RUNWARD_CONTEXT",
            "says something else than NAME=value in line 1",
        ),
        ("ln -s /etc/hostname $RUNWARD_CONTEXT", "RUNWARD_CONTEXT", "is a symbolic link"),
    ] {
        let runner = daemon.run(json!({"job": {"command": ["sh", "-c", script]}}));
        let error = &attempt(&runner)["error"];
        assert_eq!(
            (&runner["outcome"], &error["kind"]),
            (&json!("failed"), &json!("bad_result")),
            "{script}: {runner}"
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.starts_with(&format!("the file named in {file} {words}")), "{script}: {message}");
        assert_eq!(attempt(&runner)["exit"], json!({"code": 0}));
        assert_eq!(runner["runs"][0]["result"], Value::Null);
    }
}

/// The shim of a job: the parent of its main process.
fn shim_of(pid: i64) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let after_name = stat.rsplit_once(") ").expect("a stat line").1;
    after_name.split(' ').nth(1).expect("a parent").parse().expect("a pid")
}

#[test]
fn a_result_that_was_not_recorded_is_adopted_with_the_exit() {
    python_is_there();
    let mut daemon = Setup::new().start();
    let source = "import runward, time\nasync def main():\n    print('ready')\n    time.sleep(0.2)\n    runward.var('SEEN').set('yes')\n    return {'rows': 3}\n";
    let good = daemon.submit(json!({"job": {"python": source}}));
    let bad = daemon
        .submit(json!({"job": {"python": source.replace("return {'rows': 3}", "raise ValueError('no')")}}));
    let pids = [&good, &bad].map(|runner| {
        daemon.output_with(runner, "ready");
        attempt(&daemon.running(runner))["pid"].as_i64().expect("a pid")
    });
    // Stopped, the daemon can record nothing; its shims see the jobs end, and then the daemon.
    let shims = pids.map(shim_of);
    daemon.signal(Signal::SIGSTOP);
    until("the jobs end", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).expect("it is there");
    daemon.wait();
    until("the shims end", || shims.iter().all(|shim| !common::alive(*shim)));
    let daemon = daemon.restart();
    let runner = daemon.closed(&good);
    assert_eq!(
        (&runner["outcome"], &runner["runs"][0]["result"]),
        (&json!("succeeded"), &json!({"rows": 3})),
        "{runner}"
    );
    let runner = daemon.closed(&bad);
    assert_eq!(
        (&runner["outcome"], &attempt(&runner)["error"]["exception"]),
        (&json!("failed"), &json!("ValueError")),
        "{runner}"
    );
}

#[test]
fn what_an_attempt_of_another_user_left_is_removed_when_its_shim_is_killed() {
    if !geteuid().is_root() {
        println!("only root can run jobs as another user");
        return;
    }
    let daemon = Setup::new().start();
    let command = json!({"argv": ["sh", "-c", "echo $RUNWARD_RESULT; exec sleep 600"], "user": "nobody"});
    let runner = daemon.submit(json!({"job": {"command": command}}));
    let output = daemon.output_with(&runner, "/result\n");
    let place = Path::new(output.trim()).parent().expect("a directory").to_owned();
    assert!(place.is_dir());
    let pid = attempt(&daemon.running(&runner))["pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(shim_of(pid)), Signal::SIGKILL).expect("it is there");
    assert_eq!(daemon.closed(&runner)["outcome"], "lost");
    assert!(!place.exists());
}

#[test]
fn a_coroutine_that_returns_has_succeeded_whatever_exit_codes_do() {
    python_is_there();
    let daemon = Setup::new().start();
    for (source, code, outcome) in [
        ("async def main(): return 1", 0, "succeeded"),
        ("import sys\nasync def main(): sys.exit(3)", 3, "succeeded"),
        ("import sys\nasync def main(): sys.exit(4)", 4, "failed"),
    ] {
        let runner = run_python(&daemon, json!({"source": source, "success_exit_codes": [3]}));
        let exit = &attempt(&runner)["exit"];
        assert_eq!(
            (&runner["outcome"], exit),
            (&json!(outcome), &json!({"code": code})),
            "{source}: {runner}"
        );
    }
}

#[test]
fn a_result_that_would_be_altered_is_refused() {
    python_is_there();
    let daemon = Setup::new().start();
    for (source, says) in [
        ("async def main(): return {'n': [2**70]}", "has `n[0]`, which must be a whole number of 64 bits"),
        ("async def main(): return {1: 'a', '1': 'b'}", "has the key `1` twice"),
    ] {
        let runner = run_python(&daemon, json!(source));
        let error = &attempt(&runner)["error"];
        assert_eq!(
            (&runner["outcome"], &error["kind"]),
            (&json!("failed"), &json!("bad_result")),
            "{runner}"
        );
        assert!(error["message"].as_str().is_some_and(|message| message.contains(says)), "{error}");
    }
    let runner = run_python(&daemon, json!("async def main(): return [2**64 - 1, -2**63, str(2**70)]"));
    assert_eq!(
        runner["runs"][0]["result"],
        json!([u64::MAX, i64::MIN, "1180591620717411303424"]),
        "{runner}"
    );
}

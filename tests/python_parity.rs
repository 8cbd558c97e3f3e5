//! The `python` kind beside plain `asyncio.Runner`, in the same Python: each coroutine runs once as a script that is sent
//! real SIGINTs, and once as a job on a real daemon that is cancelled over HTTP at the same points. What it prints and
//! how it ends are equal.
//!
//! Where they differ, and why:
//! - A result that is no JSON is returned by a script; a job fails with `bad_result`, for nobody could read it.
//! - An interrupt that nothing catches ends a script by SIGINT and with a traceback. A job exits with 130, and of a
//!   cancellation that was asked for nothing is printed.
//! - Between the runs of a script any object stays in the context. Between those of a job, which are processes, the variables
//!   of `runward.var` do, as text.
//! - A job's module is `__job__`, so that `if __name__ == "__main__": asyncio.run(main())` in it does not run it twice.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use common::{Setup, python_is_there};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// What a coroutine printed, and how it ended.
#[derive(Debug, PartialEq)]
struct Trace {
    lines: Vec<String>,
    end: String,
}

/// Runs what its first argument holds in a plain `asyncio.Runner`, as often as the second says, and tells how it ended.
const SCRIPT: &str = r#"
import asyncio, contextlib, contextvars, faulthandler, json, signal, socket, sys, types
# Whoever starts the tests may ignore it, as shells do for what is in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
faulthandler.dump_traceback_later(300, exit=True)
runward = sys.modules["runward"] = types.ModuleType("runward")
variables = {}
runward.var = lambda name: variables.setdefault(name, contextvars.ContextVar(name))
job = sys.modules["__job__"] = types.ModuleType("__job__")
exec(compile(open(sys.argv[1]).read(), "<job>", "exec"), job.__dict__)
try:
    with asyncio.Runner() as runner:
        # Otherwise a signal that comes just before the loop waits is heeded when it wakes for something else, and 3.11
        # may forget to look for one; the last call looks.
        bell, ring = socket.socketpair()
        ring.setblocking(False)
        bell.setblocking(False)
        def heed():
            with contextlib.suppress(BlockingIOError):
                bell.recv(4096)
            signal.pthread_sigmask(signal.SIG_BLOCK, ())
        runner.get_loop().add_reader(bell, heed)
        signal.set_wakeup_fd(ring.fileno())
        for _ in range(int(sys.argv[2])):
            result = runner.run(job.main())
    print("=> returned", json.dumps(result, sort_keys=True) if isinstance(result, dict) else repr(result))
except SystemExit as error:
    print("=> exited", error.code)
except KeyboardInterrupt:
    print("=> interrupted")
except BaseException as error:
    print("=> raised", type(error).__qualname__ + ":", error)
"#;

/// The interpreter itself: what stands in PATH may be a script that starts it, and would take the signal.
fn interpreter() -> String {
    let output =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().expect("it runs");
    String::from_utf8(output.stdout).expect("a path").trim().to_owned()
}

fn as_script(source: &str, interrupts: &[&str], runs: usize) -> Trace {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("job.py");
    fs::write(&path, source).expect("written");
    let mut child = Command::new(interpreter())
        .args(["-u", "-c", SCRIPT])
        .arg(&path)
        .arg(runs.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.path().join("stderr")).expect("made"))
        .spawn()
        .expect("it starts");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let mut interrupts = interrupts.iter().peekable();
    let (mut lines, mut end) = (Vec::new(), None);
    for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok) {
        match line.strip_prefix("=> ") {
            Some(told) => end = Some(told.to_owned()),
            None => lines.push(line.clone()),
        }
        if interrupts.next_if(|at| **at == line).is_some() {
            kill(pid, Signal::SIGINT).expect("it is there");
        }
    }
    let status = child.wait().expect("it ends");
    let stderr = fs::read_to_string(dir.path().join("stderr")).expect("readable");
    Trace { lines, end: end.unwrap_or_else(|| format!("{status}: {stderr}")) }
}

fn as_job(source: &str, interrupts: &[&str]) -> Trace {
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"python": source}}));
    for at in interrupts {
        daemon.output_with(&runner, &format!("{at}\n"));
        assert_eq!(daemon.cancel(&runner).0, 202);
    }
    let closed = daemon.closed(&runner);
    let attempt = &closed["runs"][0]["attempts"][0];
    let error = &attempt["error"];
    let outcome = closed["outcome"].as_str().expect("an outcome");
    let exit = attempt["exit"]["code"].as_i64();
    let end = match (outcome, exit, &error["exception"]) {
        ("succeeded", Some(0), Value::Null) => format!("returned {}", shown(&closed["runs"][0]["result"])),
        (_, Some(130), _) => "interrupted".to_owned(),
        (_, Some(1), Value::String(exception)) => {
            let message =
                error["message"].as_str().filter(|message| message != exception).unwrap_or_default();
            let name = exception.rsplit('.').next().unwrap_or_default();
            format!("raised {name}: {message}")
        }
        (_, Some(code), Value::Null) => format!("exited {code}"),
        _ => format!("{closed}"),
    };
    // How the record words it.
    let asked = !interrupts.is_empty();
    let fits = match (end.split(' ').next().unwrap_or_default(), asked) {
        ("returned", _) => outcome == "succeeded",
        ("interrupted", true) => outcome == if interrupts.len() > 1 { "killed" } else { "cancelled" },
        ("exited", true) => outcome == "cancelled",
        _ if end.starts_with("raised CancelledError") && asked => outcome == "cancelled",
        _ => outcome == "failed",
    };
    assert!(fits, "{end}: {closed}");
    let output = daemon.text(&format!("/v1/runners/{runner}/logs?stream=stdout"));
    Trace { lines: output.lines().map(String::from).collect(), end }
}

/// As Python shows it.
fn shown(result: &Value) -> String {
    match result {
        Value::Null => "None".into(),
        Value::String(text) => format!("'{text}'"),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => result.to_string(),
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            let fields: Vec<_> = sorted.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

/// A coroutine, the lines at which it is interrupted, what it prints, and how it ends.
macro_rules! parity {
    ($($name:ident: $source:literal, [$($at:literal),*] => [$($line:literal),*] $end:literal;)*) => {$(
        #[test]
        fn $name() {
            python_is_there();
            let expected = Trace { lines: [$(String::from($line)),*].into(), end: $end.into() };
            assert_eq!(as_script($source, &[$($at),*], 1), expected, "as a script");
            assert_eq!(as_job($source, &[$($at),*]), expected, "as a job");
        }
    )*};
}

parity! {
    returns: r#"
import asyncio
async def main():
    print("begins")
    await asyncio.sleep(0)
    return {"rows": 3}
"#, [] => ["begins"] "returned {\"rows\": 3}";

    raises: r#"
class Full(Exception): pass
async def main():
    try:
        raise KeyError("k")
    except KeyError:
        raise Full("no room")
"#, [] => [] "raised Full: no room";

    swallows_the_cancellation: r#"
import asyncio
async def main():
    try:
        print("ready")
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        print("cancelled", asyncio.current_task().cancelling())
        await asyncio.sleep(0)
        return "later"
"#, ["ready"] => ["ready", "cancelled 1"] "returned 'later'";

    cleans_up_with_awaits: r#"
import asyncio
async def step(name):
    for _ in range(3):
        await asyncio.sleep(0.001)
    print(name)
async def main():
    try:
        try:
            print("ready")
            await asyncio.sleep(600)
        finally:
            await step("inner")
    finally:
        await step("outer")
"#, ["ready"] => ["ready", "inner", "outer"] "interrupted";

    raises_in_its_clean_up: r#"
import asyncio
async def main():
    try:
        print("ready")
        await asyncio.sleep(600)
    finally:
        raise RuntimeError("clean-up failed")
"#, ["ready"] => ["ready"] "raised RuntimeError: clean-up failed";

    // The sleep of no time lets CPython hear a signal that came just when the line was written: it can miss it else.
    never_awaits_until_the_second_interrupt: r#"
import asyncio, time
async def main():
    task, told = asyncio.current_task(), False
    print("ready")
    try:
        while True:
            time.sleep(0)
            if task.cancelling() and not told:
                told = True
                print("first")
    finally:
        print("second")
"#, ["ready", "first"] => ["ready", "first", "second"] "interrupted";

    is_interrupted_in_its_clean_up: r#"
import asyncio
async def main():
    try:
        print("ready")
        await asyncio.sleep(600)
    finally:
        # Said by the loop, so that the interrupt meets the task at its await.
        asyncio.get_running_loop().call_later(0.01, print, "cleaning")
        try:
            await asyncio.sleep(600)
        finally:
            print("given up")
"#, ["ready", "cleaning"] => ["ready", "cleaning", "given up"] "interrupted";

    leaves_a_generator_open: r#"
import asyncio
async def numbers():
    try:
        yield 1
        yield 2
    finally:
        await asyncio.sleep(0)
        print("generator closed")
kept = numbers()
async def main():
    print(await anext(kept))
    return "done"
"#, [] => ["1", "generator closed"] "returned 'done'";

    leaves_tasks: r#"
import asyncio
async def quiet():
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0)
        print("quiet ends")
async def loud():
    try:
        await asyncio.sleep(600)
    finally:
        raise ValueError("loud")
async def main():
    def handler(loop, context):
        print("handler:", context["message"], repr(context.get("exception")))
    asyncio.get_running_loop().set_exception_handler(handler)
    tasks = [asyncio.create_task(quiet()), asyncio.create_task(loud())]
    await asyncio.sleep(0.001)
    print("main ends")
    return repr([task.done() for task in tasks])
"#, [] => ["main ends", "quiet ends", "handler: unhandled exception during asyncio.run() shutdown ValueError('loud')"]
    "returned '[False, False]'";

    leaves_a_thread: r#"
import asyncio, time
def work():
    time.sleep(0.2)
    print("thread ends")
async def main():
    asyncio.get_running_loop().run_in_executor(None, work)
    print("main ends")
"#, [] => ["main ends", "thread ends"] "returned None";

    runs_another_runner_inside: r#"
import asyncio
async def main():
    inner = asyncio.sleep(0)
    try:
        asyncio.Runner().run(inner)
    finally:
        inner.close()
"#, [] => [] "raised RuntimeError: Runner.run() cannot be called from a running event loop";

    exits: r#"
import asyncio, sys
async def main():
    try:
        await asyncio.sleep(0)
        sys.exit(3)
    finally:
        print("unwound")
"#, [] => ["unwound"] "exited 3";

    exits_from_its_clean_up: r#"
import asyncio, sys
async def main():
    try:
        print("ready")
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        sys.exit(4)
"#, ["ready"] => ["ready"] "exited 4";

    raises_an_interrupt_itself: r#"
async def main():
    raise KeyboardInterrupt
"#, [] => [] "interrupted";

    raises_a_cancellation_itself: r#"
import asyncio
async def main():
    raise asyncio.CancelledError("by itself")
"#, [] => [] "raised CancelledError: by itself";

    is_cancelled_by_itself_too: r#"
import asyncio
async def main():
    task = asyncio.current_task()
    try:
        print("ready")
        await asyncio.sleep(600)
    finally:
        task.cancel("also")
"#, ["ready"] => ["ready"] "raised CancelledError: ";

    is_interrupted_in_a_task_group: r#"
import asyncio
ended = []
async def child(name):
    try:
        await asyncio.sleep(600)
    finally:
        ended.append(name)
async def main():
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("a"))
            group.create_task(child("b"))
            await asyncio.sleep(0.001)
            print("ready")
    finally:
        print(sorted(ended))
"#, ["ready"] => ["ready", "['a', 'b']"] "interrupted";

    has_a_timeout_of_its_own: r#"
import asyncio
async def main():
    try:
        async with asyncio.timeout(600):
            print("ready")
            await asyncio.sleep(600)
    except TimeoutError:
        print("wrong")
    finally:
        print("left")
"#, ["ready"] => ["ready", "left"] "interrupted";
}

/// What two runs in one context show.
const COUNTS: &str = r#"
import runward
seen, text = runward.var("SEEN"), runward.var("TEXT")
async def main():
    count = int(seen.get("0"))
    print(count, repr(text.get("unset")))
    seen.set(str(count + 1))
    text.set("two\nlines" if count == 0 else None)
"#;

#[test]
fn keeps_its_context_across_runs() {
    python_is_there();
    let script = as_script(COUNTS, &[], 3);
    assert_eq!(script.lines[..3], ["0 'unset'", "1 'two\\nlines'", "2 None"]);
    let daemon = Setup::new().start();
    let job = json!({"python": COUNTS});
    let runner = daemon.submit(json!({"job": job, "keep_open": true}));
    for run in 2..=3 {
        let (status, added) =
            daemon.post(&format!("/v1/runners/{runner}/runs?wait=60s"), json!({"job": job}));
        assert_eq!((status, added["runs"].as_array().map(Vec::len)), (200, Some(run)), "{added}");
    }
    let lines: Vec<String> = (1..=3)
        .map(|run| daemon.text(&format!("/v1/runners/{runner}/logs?run={run}")).trim_end().to_owned())
        .collect();
    assert_eq!(lines[..2], script.lines[..2]);
    // What is kept between runs of a job is text; `None` unsets.
    assert_eq!(lines[2], "2 'unset'");
}

#[test]
fn differs_where_a_result_is_no_json() {
    python_is_there();
    let source = "async def main():\n    return {1}\n";
    assert_eq!(as_script(source, &[], 1).end, "returned {1}");
    let daemon = Setup::new().start();
    let closed = daemon.run(json!({"job": {"python": source}}));
    assert_eq!(closed["runs"][0]["attempts"][0]["error"]["kind"], "bad_result", "{closed}");
}

#[test]
fn differs_in_the_name_of_the_module_so_that_a_script_is_not_run_twice() {
    python_is_there();
    let source = "import asyncio\nasync def main():\n    print('once')\nif __name__ == '__main__':\n    asyncio.run(main())\n";
    assert_eq!(as_job(source, &[]).lines, ["once"]);
}

#[test]
fn differs_in_what_an_interrupt_prints() {
    python_is_there();
    let source = "import asyncio\nasync def main():\n    print('ready')\n    await asyncio.sleep(600)\n";
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"python": source}}));
    daemon.output_with(&runner, "ready");
    assert_eq!(daemon.cancel(&runner).0, 202);
    daemon.closed(&runner);
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs?stream=stderr")), "");
}

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runward::{
    daemon::Daemon as Embedded,
    kinds::{Call, HandlerError, Handlers},
    runner::Cancelled,
    settings::Flags,
};
use serde_json::{Value, json};

use super::{attempt, common::until, failure, result, start};

super::tests! {
    a_handler_gives_a_result_and_writes_to_its_log
    a_handler_that_fails_says_how
    a_name_that_nobody_registered_is_refused_with_what_was_meant
    a_handler_that_a_later_daemon_does_not_have_fails_and_says_so
    a_cancelled_handler_is_dropped_at_its_await
    a_handler_may_clean_up_after_a_cancellation
    a_handler_that_swallows_its_cancellation_has_succeeded
    a_handler_that_does_not_stop_is_killed_by_a_second_cancel_or_when_its_grace_is_over
    a_handler_that_takes_too_long_is_timed_out
    case_40_work_that_blocks_is_abandoned_and_the_daemon_still_ends
    a_handler_that_blocks_its_worker_is_killed_and_named
    a_job_that_ran_when_the_daemon_died_is_lost
    a_follower_sees_the_first_line_though_it_came_before
    hundreds_sleep_at_once_and_are_cancelled_at_once
    the_loop_of_a_handler_is_shown
    what_a_handler_logs_names_its_runner_run_and_attempt
    metrics_tell_that_handlers_block_their_loop
    the_example_embeds_a_daemon
}

/// When this file is in the state directory, the daemon has only its built-in handlers.
const FEWER: &str = "fewer-handlers";

/// The daemon.
pub(crate) fn serve(arguments: &[String]) -> ExitCode {
    let values = |name: &str| -> Vec<String> {
        arguments.windows(2).filter(|pair| pair[0] == name).map(|pair| pair[1].clone()).collect()
    };
    let state_dir = values("--state-dir").remove(0);
    let fewer = Path::new(&state_dir).join(FEWER).exists();
    let flags = Flags {
        config: None,
        state_dir: Some(state_dir.into()),
        listen: values("--listen"),
        ..Flags::default()
    };
    let handlers = if fewer { Handlers::new() } else { handlers() };
    ExitCode::from(Embedded::new(flags).handlers(handlers).serve() as u8)
}

fn handlers() -> Handlers {
    Handlers::new()
        .register("greet", |call: Call| async move {
            let name: String = call.args()?;
            call.print(&format!("greeting {name}")).await;
            call.eprint(call.context("WHO").unwrap_or("nobody")).await;
            Ok(json!({"greeting": format!("hello, {name}")}))
        })
        .register("tells", |_| async {
            tracing::warn!("the spam is late");
            Ok(json!(null))
        })
        .register("panic", |_| async { panic!("the spam is out") })
        .register("fail", |_| async { Err(HandlerError::new("no_spam", "there is no spam")) })
        .register("io", |_| async { Ok(std::fs::read_to_string("/nonexistent")?.into()) })
        .register("big", |_| async { Ok("x".repeat(70_000).into()) })
        .register("quits", |_| async { Err(Cancelled::new("of itself").into()) })
        .register("plain", |call: Call| async move {
            call.print("ready").await;
            std::future::pending::<()>().await;
            Ok(Value::Null)
        })
        .register_scoped("tidy", |call: Call| async move {
            call.print("ready").await;
            let slept = call.scope().sleep(Duration::from_secs(600)).await;
            call.scope().checkpoint().await?;
            call.print("tidied up").await;
            slept?;
            Ok(Value::Null)
        })
        .register_scoped("swallow", |call: Call| async move {
            call.print("ready").await;
            drop(call.scope().sleep(Duration::from_secs(600)).await);
            Ok("swallowed".into())
        })
        .register_scoped("stubborn", |call: Call| async move {
            call.print("ready").await;
            loop {
                drop(call.scope().sleep(Duration::from_secs(600)).await);
            }
        })
        .register("blocking", |call: Call| async move {
            drop(call.scope().spawn_blocking(|| {
                loop {
                    thread::park();
                }
            }));
            call.print("ready").await;
            call.scope().sleep(Duration::from_secs(600)).await?;
            Ok(Value::Null)
        })
        .register("stuck", |call: Call| async move {
            call.print("ready").await;
            // The line is on disk before the worker is lost.
            call.scope().sleep(Duration::from_millis(50)).await?;
            eprintln!("stuck");
            loop {
                thread::park();
            }
        })
        .register("late", |call: Call| async move {
            call.scope().sleep(Duration::from_millis(call.args()?)).await?;
            call.print("late").await;
            Ok(Value::Null)
        })
}

fn handler(name: &str) -> Value {
    json!({"job": {"handler": name}})
}

fn a_handler_gives_a_result_and_writes_to_its_log() {
    let daemon = start();
    let runner =
        daemon.run(json!({"job": {"handler": {"name": "greet", "args": "ada"}}, "context": {"WHO": "me"}}));
    assert_eq!(runner["outcome"], "succeeded", "{runner}");
    assert_eq!(result(&runner), &json!({"greeting": "hello, ada"}));
    assert_eq!(attempt(&runner)["pid"], Value::Null);
    assert_eq!(attempt(&runner)["output"], json!({"bytes": 16, "dropped": 0, "incomplete": false}));
    let id = super::common::id(&runner);
    let logs = |stream: &str| daemon.text(&format!("/v1/runners/{id}/logs?stream={stream}"));
    assert_eq!((logs("stdout").as_str(), logs("stderr").as_str()), ("greeting ada\n", "me\n"));

    let echo = daemon.run(json!({"job": {"handler": {"name": "echo", "args": {"a": [1, null]}}}}));
    assert_eq!(result(&echo), &json!({"a": [1, null]}));
    for args in [json!({"for": "10ms"}), json!({"for": 0.01}), json!("10ms"), json!(0)] {
        let slept = daemon.run(json!({"job": {"handler": {"name": "sleep", "args": args}}}));
        assert_eq!(slept["outcome"], "succeeded", "{slept}");
    }
}

fn a_handler_that_fails_says_how() {
    let daemon = start();
    for (name, kind, text) in [
        ("panic", "panicked", "the spam is out"),
        ("fail", "no_spam", "there is no spam"),
        ("io", "handler_failed", "No such file"),
        ("big", "result_too_large", "65536"),
        ("quits", "cancelled_itself", "nobody had asked"),
        ("greet", "invalid_args", "job.handler.args"),
        ("sleep", "invalid_args", r#"`job.handler.args`: must be {"for": "10s"}, a duration"#),
    ] {
        let runner = daemon.run(handler(name));
        let (was, message) = failure(&runner);
        assert_eq!((&runner["outcome"], was), (&json!("failed"), kind), "{name}: {message}");
        assert!(message.contains(text), "{name}: {message}");
    }
    for args in
        [json!({"for": "soon"}), json!({"for": 1, "then": 2}), json!({"for": null}), json!([1]), json!(-1)]
    {
        let runner = daemon.run(json!({"job": {"handler": {"name": "sleep", "args": args}}}));
        let (was, message) = failure(&runner);
        assert_eq!(was, "invalid_args", "{message}");
        assert!(message.contains(r#"must be {"for": "10s"}"#), "{message}");
    }
    assert_eq!(daemon.run(handler("echo"))["outcome"], "succeeded", "the daemon goes on");
}

fn a_name_that_nobody_registered_is_refused_with_what_was_meant() {
    let daemon = start();
    let (status, problem) = daemon.post("/v1/runners", json!({"job": {"handler": {"name": "gret"}}}));
    assert_eq!((status, &problem["type"]), (422, &json!("urn:runward:problem:unknown-handler")));
    assert_eq!(problem["field"], "job.handler.name");
    assert!(problem["detail"].as_str().expect("text").contains("did you mean \"greet\"?"), "{problem}");
}

fn a_handler_that_a_later_daemon_does_not_have_fails_and_says_so() {
    let mut daemon = start();
    let runner = daemon.submit(json!({"job": {"handler": "plain"}, "on_lost": "requeue"}));
    daemon.output_with(&runner, "ready");
    daemon.crash();
    std::fs::write(daemon.state_dir().join(FEWER), "").expect("written");
    let daemon = daemon.restart();
    let closed = daemon.closed(&runner);
    assert_eq!((&closed["outcome"], failure(&closed).0), (&json!("failed"), "unknown_handler"), "{closed}");
    assert!(failure(&closed).1.contains("`plain`"));
}

fn a_cancelled_handler_is_dropped_at_its_await() {
    let daemon = start();
    let runner = daemon.submit(handler("plain"));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!(
        (&closed["outcome"], &closed["cancel"]["forced"]),
        (&json!("cancelled"), &json!(false)),
        "{closed}"
    );
}

fn a_handler_may_clean_up_after_a_cancellation() {
    let daemon = start();
    let runner = daemon.submit(handler("tidy"));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    assert_eq!(daemon.closed(&runner)["outcome"], "cancelled");
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs")), "ready\ntidied up\n");
}

fn a_handler_that_swallows_its_cancellation_has_succeeded() {
    let daemon = start();
    let runner = daemon.submit(handler("swallow"));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!((&closed["outcome"], result(&closed)), (&json!("succeeded"), &json!("swallowed")));
}

fn a_handler_that_does_not_stop_is_killed_by_a_second_cancel_or_when_its_grace_is_over() {
    let daemon = start();
    let runner = daemon.submit(handler("stubborn"));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!(
        (&closed["outcome"], &closed["cancel"]["forced"]),
        (&json!("killed"), &json!(true)),
        "{closed}"
    );
    assert_eq!(closed["drain"]["abandoned"], json!([]), "it was dropped");

    let runner = daemon.submit(json!({"job": {"handler": "stubborn"}, "cancel_grace": "100ms"}));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    assert_eq!(daemon.closed(&runner)["outcome"], "killed");

    // A shutdown gives the grace that the job asks for.
    let runner = daemon.submit(json!({"job": {"handler": "stubborn"}, "cancel_grace": "100ms"}));
    daemon.output_with(&runner, "ready");
    let mut daemon = daemon;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(daemon.restart().runner(&runner)["outcome"], "killed");
}

fn a_handler_that_takes_too_long_is_timed_out() {
    let daemon = start();
    let runner = daemon.run(json!({"job": {"handler": "plain"}, "timeout": "100ms"}));
    assert_eq!((&runner["outcome"], &runner["cancel"]["reason"]), (&json!("timed_out"), &json!("timeout")));
}

fn case_40_work_that_blocks_is_abandoned_and_the_daemon_still_ends() {
    let daemon = start();
    let runner = daemon.submit(json!({"job": {"handler": "blocking"}, "drain_timeout": "100ms"}));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!(closed["outcome"], "cancelled");
    let abandoned = closed["drain"]["abandoned"].as_array().expect("names");
    assert_eq!(abandoned.len(), 1, "{closed}");
    // One that still drains is forced by a second signal.
    let runner = daemon.submit(handler("blocking"));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    daemon.runner_when(&runner, "draining", |runner| runner["state"] == "draining");
    let mut daemon = daemon;
    daemon.signal(Signal::SIGTERM);
    daemon.logged("every job is being cancelled");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(81), "{}", daemon.log_text());
    let closed = daemon.restart().runner(&runner);
    assert_eq!(closed["outcome"], "cancelled");
    assert_eq!(closed["drain"]["abandoned"].as_array().map(Vec::len), Some(1), "{closed}");
}

fn a_handler_that_blocks_its_worker_is_killed_and_named() {
    let daemon = start();
    let runner = daemon.submit(json!({"job": {"handler": "stuck"}, "cancel_grace": "100ms"}));
    daemon.logged("stuck");
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!(closed["outcome"], "killed");
    assert_eq!(closed["drain"]["abandoned"].as_array().map(Vec::len), Some(1), "{closed}");
}

fn a_job_that_ran_when_the_daemon_died_is_lost() {
    let mut daemon = start();
    let silent = daemon.submit(json!({"job": {"handler": {"name": "sleep", "args": 600}}}));
    let again =
        daemon.submit(json!({"job": {"handler": {"name": "late", "args": 100}}, "on_lost": "requeue"}));
    let held = daemon.submit(json!({"job": {"handler": "plain"}, "on_lost": "hold"}));
    daemon.running(&silent);
    daemon.running(&held);
    daemon.crash();
    let daemon = daemon.restart();
    let lost = daemon.runner(&silent);
    assert_eq!((&lost["outcome"], failure(&lost).0), (&json!("lost"), "daemon_lost"), "{lost}");
    assert_eq!(daemon.closed(&again)["outcome"], "succeeded");
    assert_eq!(daemon.runner(&held)["held"], true);
}

fn a_follower_sees_the_first_line_though_it_came_before() {
    let daemon = start();
    let runner = daemon.submit(json!({"job": {"handler": {"name": "late", "args": 300}}}));
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs?follow=true")), "late\n");
    // It is there while the job goes on, not only when it has ended.
    let runner = daemon.submit(handler("tidy"));
    let mut answer = daemon
        .request(reqwest::Method::GET, &format!("/v1/runners/{runner}/logs?follow=true"))
        .send()
        .map(BufReader::new)
        .expect("an answer");
    let mut line = String::new();
    answer.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    daemon.cancel(&runner);
    line.clear();
    answer.read_line(&mut line).expect("a line");
    assert_eq!(line, "tidied up\n");
}

fn hundreds_sleep_at_once_and_are_cancelled_at_once() {
    const JOBS: usize = 300;
    let daemon = start();
    let ids: Vec<String> = (0..JOBS)
        .map(|_| daemon.submit(json!({"job": {"handler": {"name": "sleep", "args": 600}}})))
        .collect();
    for id in &ids {
        daemon.running(id);
    }
    let logs = std::fs::read_dir(daemon.state_dir().join("logs")).expect("readable").count();
    assert_eq!(logs, 0, "who writes nothing has no file");
    for id in &ids {
        daemon.cancel(id);
    }
    for id in &ids {
        assert_eq!(daemon.closed(id)["outcome"], "cancelled");
    }
}

fn what_a_handler_logs_names_its_runner_run_and_attempt() {
    let daemon = start();
    let runner = daemon.run(json!({"job": {"handler": {"name": "tells"}}}));
    let line: Value = serde_json::from_str(&daemon.logged("the spam is late")).expect("JSON");
    let expected = json!([{"name": "attempt", "runner": runner["id"], "run": 1, "attempt": 1}]);
    assert_eq!(line["spans"], expected, "{line}");
}

fn metrics_tell_that_handlers_block_their_loop() {
    let daemon = start();
    let lag = || -> f64 {
        let text = daemon.text("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix("runward_in_process_loop_lag_seconds "));
        line.expect("it is told").parse().expect("a number")
    };
    assert!(lag() < 2.0);
    for _ in 0..thread::available_parallelism().expect("a number").get() {
        daemon.submit(json!({"job": {"handler": "stuck"}}));
    }
    until("no worker is left", || lag() == 2.0);
}

fn the_loop_of_a_handler_is_shown() {
    let daemon = start();
    let runner = daemon.submit(handler("blocking"));
    daemon.output_with(&runner, "ready");
    let shown = daemon.get(&format!("/v1/runners/{runner}/loop"));
    assert_eq!(shown["tasks"].as_array().map(Vec::len), Some(1), "{shown}");
}

fn the_example_embeds_a_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = Command::new(example("embed"))
        .arg(dir.path().join("state"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("ready on") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("its log"), 0, "it did not get ready");
    }
    let rest = thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let client = reqwest::blocking::Client::builder()
        .unix_socket(dir.path().join("state/api.sock"))
        .build()
        .expect("a client");
    let args = json!({"width": 1600, "height": 900, "to": 400});
    let answer = client
        .post("http://localhost/v1/runners?wait=30s")
        .json(&json!({"job": {"handler": {"name": "resize", "args": args}}}))
        .send();
    let runner: Value = answer.expect("an answer").json().expect("JSON");
    assert_eq!(result(&runner), &json!({"width": 400, "height": 225}), "{runner}");
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGTERM).expect("it is there");
    assert!(child.wait().expect("it ends").success());
    drop(rest.join());
    until("nothing of it is left", || {
        std::fs::File::open(dir.path().join("state/children.lock")).is_ok_and(|lock| lock.try_lock().is_ok())
    });
}

/// `cargo test` builds all examples, `--test` alone does not.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let profile: PathBuf = test.parent().and_then(Path::parent).expect("a profile").into();
    let built = profile.join("examples").join(name);
    if !built.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--example", name]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.arg("--target-dir").arg(profile.parent().expect("a target"));
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs").success());
    }
    built
}

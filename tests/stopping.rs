//! What we say is stopped is stopped.

mod common;

use std::{sync::Arc, time::Instant};

use common::{Setup, id, processes_of, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Hides a process in its own session, forks twice, and ignores TERM itself.
const ESCAPE: &str = "trap '' TERM; (setsid sleep 600 &); (sh -c 'trap \"\" TERM HUP; sleep 600 & sleep 600' &); \
                      echo ready; while :; do sleep 1; done";

fn actions(receipt: &Value) -> Vec<&str> {
    receipt["steps"].as_array().expect("steps").iter().filter_map(|step| step["action"].as_str()).collect()
}

#[test]
fn an_escaping_job_gets_a_signal_then_its_grace_then_force_and_nothing_of_it_is_left() {
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"script": ESCAPE}, "cancel_grace": "1s"}));
    daemon.output_with(&runner, "ready");
    until("the job has hidden processes", || processes_of(&runner).len() >= 4);
    let (status, receipt) = daemon.cancel(&runner);
    assert_eq!(status, 202, "{receipt}");
    let closed = daemon.closed(&runner);
    // First of all: when the record says so, it is so.
    assert_eq!(processes_of(&runner), [] as [i32; 0]);
    assert_eq!(closed["outcome"], "killed");
    let receipt = &closed["cancel"];
    assert_eq!(actions(receipt), ["requested", "signal", "grace_expired", "kill", "ended"]);
    assert_eq!(receipt["survivors"], 0);
    let times: Vec<&str> =
        receipt["steps"].as_array().expect("steps").iter().filter_map(|step| step["at"].as_str()).collect();
    assert!(times.is_sorted(), "each step has its time: {times:?}");
    assert_eq!(receipt["ended_at"].as_str(), times.last().copied());
}

#[test]
fn a_second_cancel_forces_at_once() {
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"script": ESCAPE}, "cancel_grace": "1h"}));
    daemon.output_with(&runner, "ready");
    assert_eq!(daemon.cancel(&runner).0, 202);
    assert_eq!(daemon.cancel(&runner).0, 202);
    let closed = daemon.closed(&runner);
    assert_eq!(processes_of(&runner), [] as [i32; 0]);
    assert_eq!(closed["outcome"], "killed");
    assert!(actions(&closed["cancel"]).contains(&"force_requested"));
}

#[test]
fn a_job_that_ends_in_its_grace_is_cancelled_whatever_its_exit_code() {
    let daemon = Setup::new().start();
    let script = "trap 'echo cleaning; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let runner = daemon.submit(json!({"job": {"script": script}}));
    daemon.output_with(&runner, "ready");
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!(closed["outcome"], "cancelled");
    assert_eq!(closed["runs"][0]["attempts"][0]["exit"], json!({"code": 7}));
    // On stderr the shell may have a word about its `sleep`, which the signal ended too.
    assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs?stream=stdout")), "ready\ncleaning\n");
}

#[test]
fn case_01_what_outlives_the_main_process_is_killed_and_counted() {
    let daemon = Setup::new().start();
    let runner = daemon.run(json!({"job": {"command": ["sh", "-c", "sleep 600 & echo done"]}}));
    assert_eq!(processes_of(&id(&runner)), [] as [i32; 0]);
    let attempt = &runner["runs"][0]["attempts"][0];
    assert_eq!((&runner["outcome"], &attempt["swept"]), (&json!("succeeded"), &json!(1)), "{attempt}");
    assert_eq!(attempt["output"]["incomplete"], false, "nobody held its output when it was read to the end");
}

#[test]
fn a_timeout_stops_a_job_as_a_cancel_does() {
    let daemon = Setup::new().start();
    let runner = daemon.run(json!({"job": {"command": ["sleep", "600"]}, "timeout": "0.2s"}));
    assert_eq!(runner["outcome"], "timed_out");
    assert_eq!(runner["cancel"]["reason"], "timeout");
}

#[test]
fn a_queued_job_is_cancelled_before_it_starts() {
    let daemon = Setup::new().set("JOBS__MAX_RUNNING", 1).start();
    let first = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    let second = daemon.submit(json!({"job": {"command": ["touch", daemon.state_dir().join("ran")]}}));
    assert_eq!(daemon.cancel(&second).0, 202);
    assert_eq!(daemon.closed(&second)["outcome"], "cancelled");
    daemon.cancel(&first);
    daemon.closed(&first);
    assert!(!daemon.state_dir().join("ran").exists());
}

#[test]
fn delete_closes_a_runner_and_is_idempotent() {
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    daemon.running(&runner);
    let delete = || {
        let request = daemon.request(reqwest::Method::DELETE, &format!("/v1/runners/{runner}"));
        request.send().expect("an answer").status().as_u16()
    };
    assert!([200, 202].contains(&delete()));
    assert_eq!(daemon.closed(&runner)["outcome"], "cancelled");
    assert_eq!(delete(), 200);
}

#[test]
fn a_cancel_of_what_has_ended_is_denied_with_how_it_ended() {
    let daemon = Setup::new().start();
    let runner = id(&daemon.run(json!({"job": {"command": ["true"]}})));
    let (status, problem) = daemon.cancel(&runner);
    assert_eq!(status, 409, "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("succeeded")), "{problem}");
}

#[test]
fn sigterm_cancels_what_runs_keeps_what_waits_and_answers_meanwhile() {
    let daemon = Setup::new().set("JOBS__MAX_RUNNING", 50).start();
    let mut polite = Vec::new();
    for _ in 0..45 {
        polite.push(daemon.submit(json!({"job": {"command": ["sleep", "600"]}})));
    }
    let mut stubborn = Vec::new();
    for _ in 0..5 {
        let job = json!({"script": "trap '' TERM; echo ready; while :; do sleep 1; done"});
        stubborn.push(daemon.submit(json!({"job": job, "cancel_grace": "2s"})));
    }
    for runner in &stubborn {
        daemon.output_with(runner, "ready");
    }
    for runner in &polite {
        daemon.running(runner);
    }
    let marks = daemon.state_dir().join("marks");
    std::fs::create_dir(&marks).expect("a directory");
    let mut waiting = Vec::new();
    for number in 0..100 {
        waiting.push(daemon.submit(json!({"job": {"command": ["touch", marks.join(number.to_string())]}})));
    }

    daemon.signal(Signal::SIGTERM);
    until("ready turns to 503", || daemon.status("/readyz") == 503);
    assert_eq!(daemon.status("/livez"), 200);
    let (status, problem) = daemon.post("/v1/runners", json!({"job": {"command": ["true"]}}));
    assert_eq!(status, 503, "{problem}");
    assert_eq!(daemon.runner(&waiting[0])["state"], "queued");
    let (status, receipt) = daemon.cancel(&stubborn[0]);
    assert_eq!(status, 202, "a second cancel is still answered: {receipt}");

    let daemon = daemon.restart();
    for runner in &polite {
        assert_eq!(daemon.runner(runner)["outcome"], "cancelled");
    }
    for runner in &stubborn {
        let record = daemon.runner(runner);
        assert_eq!(record["outcome"], "killed");
        assert_eq!(record["cancel"]["reason"], "shutdown");
    }
    for (number, runner) in waiting.iter().enumerate() {
        let record = daemon.closed(runner);
        assert_eq!(record["outcome"], "succeeded");
        assert_eq!(record["runs"][0]["attempts"].as_array().map(Vec::len), Some(1), "it ran once");
        assert!(marks.join(number.to_string()).exists());
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_clean_stop_leaves_no_ending_to_adopt() {
    // Many at once: the last of them are settled in the moment in which the daemon ends.
    let mut daemon = Setup::new().set("JOBS__MAX_RUNNING", 150).start();
    let runners: Vec<_> =
        (0..150).map(|_| daemon.submit(json!({"job": {"command": ["sleep", "600"]}}))).collect();
    for runner in &runners {
        daemon.running(runner);
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let slots = std::fs::read_dir(daemon.state_dir().join("slots")).expect("listed");
    let endings = slots.filter(|slot| {
        slot.as_ref().expect("an entry").path().extension().is_some_and(|extension| extension == "exit")
    });
    assert_eq!(endings.count(), 0);
}

#[test]
fn a_second_signal_ends_the_daemon_within_half_a_second() {
    let mut daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"script": ESCAPE}}));
    daemon.output_with(&runner, "ready");
    daemon.signal(Signal::SIGTERM);
    daemon.logged("every job is being cancelled");
    let second = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(81));
    // The contract names this time; everything but it is the machine's.
    assert!(second.elapsed().as_millis() < 500, "{:?}", second.elapsed());
    until("the tree is dead", || processes_of(&runner).is_empty());
    let daemon = daemon.restart();
    assert_eq!(daemon.runner(&runner)["outcome"], "killed");
}

#[test]
fn every_order_of_cancel_close_exit_and_timeout_ends_in_one_outcome() {
    let daemon = Arc::new(Setup::new().set("JOBS__MAX_RUNNING", 40).start());
    let shared = Arc::clone(&daemon);
    let outcomes = common::in_parallel(40, move |number| {
        let job = json!({"command": ["sleep", "0.05"]});
        let timeout = if number % 2 == 0 { json!("0.05s") } else { Value::Null };
        let runner = shared.submit(json!({"job": job, "timeout": timeout}));
        if number % 3 != 0 {
            shared.cancel(&runner);
        }
        if number % 5 != 0 {
            let request = shared.request(reqwest::Method::DELETE, &format!("/v1/runners/{runner}"));
            assert!(request.send().expect("an answer").status().is_success());
        }
        let closed = shared.closed(&runner);
        let ends = closed["cancel"]["steps"]
            .as_array()
            .map_or(1, |steps| steps.iter().filter(|step| step["action"] == "ended").count());
        (closed["outcome"].as_str().map(str::to_owned), ends)
    });
    for (outcome, ends) in outcomes {
        assert!(outcome.is_some());
        assert_eq!(ends, 1, "one receipt, ended once");
    }
}

//! When jobs run, on a real daemon: queues, keys, weights, delays, retries, deadlines, kept-open Runners, and many at
//! once.

mod common;

use std::{fs, path::PathBuf, sync::Arc};

use common::{Daemon, Setup, id, in_parallel};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

fn start() -> Daemon {
    Setup::new().set("JOBS__MAX_RUNNING", 64).start()
}

/// A job that runs until it is cancelled, with more said of it.
fn sleeper(rest: Value) -> Value {
    with(json!({"command": ["sleep", "600"]}), rest)
}

fn with(job: Value, rest: Value) -> Value {
    let Value::Object(mut body) = rest else { panic!("an object") };
    body.insert("job".into(), job);
    Value::Object(body)
}

fn set_queue(daemon: &Daemon, name: &str, settings: Value) -> Value {
    let answer = daemon.request(Method::PUT, &format!("/v1/queues/{name}")).json(&settings).send();
    let answer = answer.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    answer.json().expect("JSON")
}

fn reason(daemon: &Daemon, runner: &str) -> String {
    let why = daemon.get(&format!("/v1/runners/{runner}/explain"));
    why["facts"]["reason"].as_str().unwrap_or_else(|| panic!("no reason: {why}")).to_owned()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no time: {value}")).parse().expect("a time")
}

/// A directory for what jobs leave.
fn work(daemon: &Daemon) -> PathBuf {
    let dir = daemon.state_dir().with_file_name("work");
    fs::create_dir_all(&dir).expect("made");
    dir
}

#[test]
fn a_queue_runs_as_many_as_it_may_and_others_do_not_wait_for_it() {
    let daemon = start();
    set_queue(&daemon, "q", json!({"max_running": 1}));
    let runners: Vec<_> = (0..3).map(|_| daemon.submit(sleeper(json!({"queue": "q"})))).collect();
    daemon.running(&runners[0]);
    assert_eq!(daemon.run(json!({"job": {"command": ["true"]}}))["outcome"], "succeeded");
    let why = daemon.get(&format!("/v1/runners/{}/explain", runners[2]));
    assert_eq!(why["facts"]["ahead"], json!([runners[1]]), "{why}");
    assert_eq!(why["facts"]["running"], json!([runners[0]]), "{why}");
    daemon.cancel(&runners[0]);
    daemon.running(&runners[1]);
    assert_eq!(daemon.runner(&runners[2])["state"], "queued");
    set_queue(&daemon, "q", json!({"max_running": 2}));
    daemon.running(&runners[2]);
}

#[test]
fn a_paused_queue_starts_nothing_also_after_a_restart() {
    let mut daemon = start();
    let before = daemon.submit(sleeper(json!({"queue": "q", "on_shutdown": "requeue"})));
    daemon.running(&before);
    assert_eq!(set_queue(&daemon, "q", json!({"paused": true}))["paused"], true);
    let waits = daemon.submit(with(json!({"command": ["true"]}), json!({"queue": "q"})));
    assert_eq!(reason(&daemon, &waits), "queue_paused");
    assert_eq!(daemon.runner(&before)["state"], "running", "what runs goes on");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon = daemon.restart();
    // The queue is seen as soon as requests are: nothing of it has started by then.
    let queue = daemon.get("/v1/queues/q");
    assert_eq!((&queue["paused"], &queue["queued"], &queue["running"]), (&json!(true), &json!(2), &json!(0)));
    assert_eq!(reason(&daemon, &before), "queue_paused");
    set_queue(&daemon, "q", json!({"paused": false}));
    assert_eq!(daemon.closed(&waits)["outcome"], "succeeded");
    daemon.running(&before);
    daemon.cancel(&before);
}

#[test]
fn a_queue_goes_back_to_what_the_settings_say() {
    let daemon = Setup::new().set("QUEUES__NIGHT__MAX_RUNNING", 2).start();
    let configured = daemon.get("/v1/queues/night");
    assert_eq!((&configured["max_running"], &configured["changed"]), (&json!(2), &json!(false)));
    let changed = set_queue(&daemon, "night", json!({"paused": true}));
    let now = (&changed["max_running"], &changed["paused"], &changed["changed"]);
    assert_eq!(now, (&json!(2), &json!(true), &json!(true)));
    let reset = daemon.request(Method::DELETE, "/v1/queues/night").send().expect("an answer");
    assert_eq!(reset.json::<Value>().expect("JSON"), configured);
}

#[test]
fn a_job_waits_for_its_time() {
    let daemon = start();
    let job = json!({"command": ["true"]});
    let delayed = daemon.run(with(job.clone(), json!({"delay": "300ms"})));
    let waited = time(&delayed["started_at"]).duration_since(time(&delayed["created_at"]));
    assert!(waited >= jiff::SignedDuration::from_millis(300), "{waited}");
    let at = Timestamp::now() + jiff::SignedDuration::from_millis(300);
    let scheduled = daemon.run(with(job.clone(), json!({"start_at": at.to_string()})));
    assert!(time(&scheduled["started_at"]) >= at, "{scheduled}");
    let late = daemon.run(with(job.clone(), json!({"start_at": "2001-01-01T00:00:00Z"})));
    assert_eq!(late["outcome"], "succeeded");
    let far = daemon.submit(with(job, json!({"delay": "1h"})));
    assert_eq!(reason(&daemon, &far), "delayed");
    daemon.cancel(&far);
    assert_eq!(daemon.closed(&far)["runs"], json!([]));
}

#[test]
fn of_one_key_one_runs_at_a_time() {
    let daemon = Arc::new(start());
    let lock = work(&daemon).join("lock");
    // The directory is there already where two run at once.
    let script = format!("mkdir {0} || exit 9\nsleep 0.01\nrmdir {0}", lock.display());
    let submit = {
        let daemon = Arc::clone(&daemon);
        move |_| daemon.submit(with(json!({"script": script}), json!({"concurrency_key": "k"})))
    };
    for runner in in_parallel(20, submit) {
        assert_eq!(daemon.closed(&runner)["outcome"], "succeeded");
    }
    let holder = daemon.submit(sleeper(json!({"concurrency_key": "k"})));
    daemon.running(&holder);
    let waits = daemon.submit(with(json!({"command": ["true"]}), json!({"concurrency_key": "k"})));
    let why = daemon.get(&format!("/v1/runners/{waits}/explain"));
    assert_eq!(why["facts"]["key_holder"], holder, "{why}");
    daemon.cancel(&holder);
    assert_eq!(daemon.closed(&waits)["outcome"], "succeeded");
}

#[test]
fn case_39_submits_in_parallel_with_one_idempotency_key_make_one_job() {
    let daemon = Arc::new(start());
    let submit = {
        let daemon = Arc::clone(&daemon);
        move |_| {
            let request = daemon.request(Method::POST, "/v1/runners").header("idempotency-key", "k");
            let answer = request.json(&json!({"job": {"command": ["true"]}})).send().expect("an answer");
            id(&answer.json().expect("JSON"))
        }
    };
    let mut ids = in_parallel(20, submit);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(daemon.get("/v1/runners")["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_heavy_job_takes_several_slots() {
    let daemon = Setup::new().set("JOBS__MAX_RUNNING", 4).start();
    let heavy = daemon.submit(sleeper(json!({"weight": 3})));
    daemon.running(&heavy);
    let waits = daemon.submit(sleeper(json!({"weight": 2})));
    assert_eq!(reason(&daemon, &waits), "in_line");
    daemon.cancel(&heavy);
    daemon.running(&waits);
    let (status, problem) = daemon.post("/v1/runners", sleeper(json!({"weight": 5})));
    assert_eq!((status, &problem["field"]), (422, &json!("weight")), "{problem}");
}

#[test]
fn higher_priorities_go_first() {
    let daemon = Setup::new().set("JOBS__MAX_RUNNING", 1).start();
    let first = daemon.submit(sleeper(json!({})));
    daemon.running(&first);
    let order = [0, 5, -3, 5]
        .map(|priority| daemon.submit(with(json!({"command": ["true"]}), json!({"priority": priority}))));
    daemon.cancel(&first);
    let mut started: Vec<_> =
        order.iter().map(|runner| (time(&daemon.closed(runner)["started_at"]), runner)).collect();
    started.sort();
    let started: Vec<_> = started.into_iter().map(|(_, runner)| runner).collect();
    assert_eq!(started, [&order[1], &order[3], &order[0], &order[2]]);
}

#[test]
fn what_failed_is_tried_again_after_its_backoff() {
    let daemon = start();
    let mark = work(&daemon).join("tried");
    let script = format!("[ -e {0} ] && exit 0\ntouch {0}\nexit 75", mark.display());
    let retry = json!({"max_attempts": 3, "initial_backoff": "1s", "on_exit_codes": [75]});
    let runner = daemon.submit(with(json!({"script": script}), json!({"retry": retry})));
    let waiting = daemon.runner_when(&runner, "waits for its next attempt", |runner| {
        runner["not_before"].is_string() || runner["state"] == "closed"
    });
    let not_before = time(&waiting["not_before"]);
    let ended = time(&waiting["runs"][0]["attempts"][0]["ended_at"]);
    assert!(not_before >= ended + jiff::SignedDuration::from_secs(1), "{waiting}");
    let closed = daemon.closed(&runner);
    assert_eq!(closed["outcome"], "succeeded");
    let attempts = closed["runs"][0]["attempts"].as_array().expect("attempts");
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt["outcome"].clone()).collect();
    assert_eq!(outcomes, ["failed", "succeeded"]);
    assert!(time(&attempts[1]["started_at"]) >= not_before, "{closed}");
    let why = daemon.get(&format!("/v1/runners/{runner}/explain"));
    assert!(why["sentence"].as_str().expect("a sentence").contains("after 2 attempts"), "{why}");
}

#[test]
fn what_is_not_to_be_tried_again_is_not() {
    let daemon = start();
    let once = |job: Value, retry: Value| {
        let closed = daemon.run(with(job, json!({ "retry": retry })));
        (closed["outcome"].clone(), closed["runs"][0]["attempts"].as_array().map(Vec::len))
    };
    let other_code = json!({"max_attempts": 3, "on_exit_codes": [75]});
    assert_eq!(once(json!({"command": ["false"]}), other_code), (json!("failed"), Some(1)));
    assert_eq!(once(json!({"command": ["true"]}), json!({"max_attempts": 3})), (json!("succeeded"), Some(1)));
    let cancelled = daemon.submit(sleeper(json!({"retry": {"max_attempts": 3}})));
    daemon.running(&cancelled);
    daemon.cancel(&cancelled);
    assert_eq!(daemon.closed(&cancelled)["outcome"], "cancelled");
}

#[test]
fn a_wait_for_another_attempt_survives_a_restart_and_can_be_cancelled() {
    let mut daemon = start();
    let retry = json!({"max_attempts": 3, "initial_backoff": "1h", "max_backoff": "1h"});
    let runner = daemon.submit(with(json!({"command": ["false"]}), json!({ "retry": retry })));
    let waits = |daemon: &Daemon| {
        daemon.runner_when(&runner, "waits for its next attempt", |runner| runner["not_before"].is_string())
    };
    let before = waits(&daemon);
    daemon.crash();
    daemon = daemon.restart();
    assert_eq!(waits(&daemon)["not_before"], before["not_before"]);
    assert_eq!(reason(&daemon, &runner), "backoff");
    daemon.cancel(&runner);
    let closed = daemon.closed(&runner);
    assert_eq!((&closed["outcome"], &closed["runs"][0]["attempts"][1]), (&json!("cancelled"), &Value::Null));
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let daemon = start();
    let runs = daemon.submit(sleeper(json!({"deadline": "500ms", "retry": {"max_attempts": 5}})));
    set_queue(&daemon, "paused", json!({"paused": true}));
    let waits = daemon.submit(sleeper(json!({"deadline": "300ms", "queue": "paused"})));
    for runner in [&runs, &waits] {
        assert_eq!(daemon.closed(runner)["outcome"], "timed_out");
        assert_eq!(reason(&daemon, runner), "deadline_passed");
    }
    assert_eq!(daemon.runner(&waits)["runs"], json!([]));
}

#[test]
fn what_a_shutdown_stops_has_the_fate_it_declared() {
    let mut daemon = start();
    let fates = ["fail", "requeue", "hold"];
    let runners = fates.map(|fate| daemon.submit(sleeper(json!({"on_shutdown": fate}))));
    for runner in &runners {
        daemon.running(runner);
    }
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon = daemon.restart();
    assert_eq!(daemon.runner(&runners[0])["outcome"], "cancelled");
    assert_eq!(reason(&daemon, &runners[0]), "shutdown");
    let again = daemon.running(&runners[1]);
    assert_eq!(again["runs"][0]["attempts"][1]["state"], "running");
    assert_eq!(daemon.runner(&runners[2])["held"], true);
    assert_eq!(reason(&daemon, &runners[2]), "held_after_shutdown");
    let (status, released) = daemon.post(&format!("/v1/runners/{}/release", runners[2]), Value::Null);
    assert_eq!(status, 400, "an order is not followed: {released}");
    let path = format!("/v1/runners/{}/release", runners[2]);
    let released = daemon.request(Method::POST, &path).send().expect("an answer");
    assert_eq!(released.status().as_u16(), 200);
    daemon.running(&runners[2]);
    assert_eq!(daemon.request(Method::POST, &path).send().expect("an answer").status().as_u16(), 409);
}

#[test]
fn case_36_what_takes_the_daemon_down_twice_is_held() {
    let mut daemon = start();
    let runner = daemon.submit(sleeper(json!({"on_lost": "requeue"})));
    daemon.running(&runner);
    daemon.crash();
    daemon = daemon.restart();
    daemon.running(&runner);
    daemon.crash();
    daemon = daemon.restart();
    assert_eq!(daemon.runner(&runner)["held"], true);
    assert_eq!(reason(&daemon, &runner), "held_as_poison");
    let path = format!("/v1/runners/{runner}/release");
    assert_eq!(daemon.request(Method::POST, &path).send().expect("an answer").status().as_u16(), 200);
    daemon.running(&runner);
    daemon.cancel(&runner);
    daemon.closed(&runner);
}

#[test]
fn runs_of_a_kept_open_runner_share_its_context() {
    let daemon = start();
    let first = json!({"script": "echo STEP=$((STEP + 1)) >> \"$RUNWARD_CONTEXT\"\necho step $STEP"});
    let runner = daemon.submit(with(first.clone(), json!({"keep_open": true, "context": {"STEP": "1"}})));
    daemon.runner_when(&runner, "idle", |runner| runner["state"] == "idle");
    assert_eq!(reason(&daemon, &runner), "idle");
    let (status, second) =
        daemon.post(&format!("/v1/runners/{runner}/runs?wait=60s"), json!({ "job": first }));
    assert_eq!((status, &second["state"]), (200, &json!("idle")), "{second}");
    let job = json!({"job": {"command": ["sh", "-c", "exit $STEP"]}});
    let (status, third) = daemon.post(&format!("/v1/runners/{runner}/runs?wait=60s"), job);
    assert_eq!((status, &third["runs"][2]["attempts"][0]["exit"]), (200, &json!({"code": 3})), "{third}");
    for (run, output) in [(1, "step 1\n"), (2, "step 2\n")] {
        assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs?run={run}")), output);
    }
    assert_eq!(daemon.cancel(&runner).0, 409, "nothing runs on it");
    daemon.request(Method::DELETE, &format!("/v1/runners/{runner}")).send().expect("an answer");
    let closed = daemon.closed(&runner);
    assert_eq!(closed["outcome"], "failed", "as its last run: {closed}");
    assert_eq!(
        daemon.post(&format!("/v1/runners/{runner}/runs"), json!({"job": {"command": ["true"]}})).0,
        409
    );
}

#[test]
fn each_run_of_a_kept_open_runner_has_its_own_job_and_output() {
    let daemon = start();
    let job = |text: &str| json!({"command": ["echo", text]});
    let runner = daemon.submit(with(job("one"), json!({"keep_open": true})));
    let runs = format!("/v1/runners/{runner}/runs");
    // Those that are asked for while another one runs wait for their turn, in their order.
    for text in ["two", "three"] {
        assert_eq!(daemon.post(&runs, json!({ "job": job(text) })).0, 201);
    }
    let (status, _) = daemon.post(&format!("{runs}?wait=60s"), json!({ "job": job("four") }));
    assert_eq!(status, 200);
    for (run, text) in [(1, "one"), (2, "two"), (3, "three"), (4, "four")] {
        assert_eq!(daemon.text(&format!("/v1/runners/{runner}/logs?run={run}")), format!("{text}\n"));
    }
    daemon.request(Method::DELETE, &format!("/v1/runners/{runner}")).send().expect("an answer");
    assert_eq!(daemon.closed(&runner)["outcome"], "succeeded");
}

#[test]
fn runs_that_never_begin_are_told_as_cancelled() {
    let daemon = start();
    let runner = daemon.submit(sleeper(json!({"keep_open": true})));
    let runs = format!("/v1/runners/{runner}/runs");
    for _ in 0..2 {
        assert_eq!(daemon.post(&runs, json!({"job": {"command": ["true"]}})).0, 201);
    }
    daemon.running(&runner);
    daemon.request(Method::DELETE, &format!("/v1/runners/{runner}")).send().expect("an answer");
    let closed = daemon.closed(&runner);
    let outcomes: Vec<_> =
        closed["runs"].as_array().expect("runs").iter().map(|run| &run["outcome"]).collect();
    assert_eq!(outcomes, ["cancelled", "cancelled", "cancelled"], "{closed}");
    let why = daemon.get(&format!("/v1/runners/{runner}/explain"));
    let sentence = why["sentence"].as_str().expect("a sentence");
    assert!(sentence.contains("after 1 run, and 2 runs that waited did not begin"), "{sentence}");
}

#[test]
fn a_runner_that_is_idle_outlives_a_stop_if_its_job_asks_for_that() {
    let mut daemon = start();
    let job = json!({"script": "echo KEPT=yes >> $RUNWARD_CONTEXT"});
    let kept = daemon.submit(with(job.clone(), json!({"keep_open": true, "on_shutdown": "requeue"})));
    let closes = daemon.submit(with(job, json!({"keep_open": true})));
    for runner in [&kept, &closes] {
        daemon.runner_when(runner, "idle", |runner| runner["state"] == "idle");
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    daemon = daemon.restart();
    assert_eq!(daemon.closed(&closes)["outcome"], "succeeded");
    let job = json!({"job": {"script": "echo $KEPT"}});
    assert_eq!(daemon.post(&format!("/v1/runners/{kept}/runs?wait=60s"), job).0, 200);
    assert_eq!(daemon.text(&format!("/v1/runners/{kept}/logs?run=2")), "yes\n");
}

#[test]
fn a_run_that_was_lost_is_told_as_lost_though_its_runner_goes_on() {
    let mut daemon = start();
    let runner = daemon.submit(sleeper(json!({"keep_open": true})));
    daemon.running(&runner);
    daemon.crash();
    daemon = daemon.restart();
    daemon.runner_when(&runner, "idle", |runner| runner["state"] == "idle");
    let why = daemon.get(&format!("/v1/runners/{runner}/explain"));
    let sentence = why["sentence"].as_str().expect("a sentence");
    assert!(sentence.contains("run 1, was lost with the daemon"), "{sentence}");
}

#[test]
fn what_the_first_of_a_queue_waits_for_all_behind_it_do() {
    let daemon = start();
    set_queue(&daemon, "narrow", json!({"max_running": 2}));
    let in_queue = |weight: u32| sleeper(json!({"queue": "narrow", "weight": weight}));
    let first = daemon.submit(in_queue(1));
    daemon.running(&first);
    let heavy = daemon.submit(in_queue(2));
    let last = daemon.submit(in_queue(1));
    let why = daemon.get(&format!("/v1/runners/{last}/explain"));
    assert_eq!(why["facts"]["limit"], json!({"of": "queue", "max": 2}), "{why}");
    for runner in [last, heavy, first] {
        daemon.cancel(&runner);
        daemon.closed(&runner);
    }
}

#[test]
fn a_batch_runs_and_what_is_left_of_it_is_cancelled_by_its_label() {
    let daemon = start();
    set_queue(&daemon, "slow", json!({"max_running": 1}));
    let job = |number: usize| match number {
        0..50 => with(json!({"command": ["true"]}), json!({"labels": {"batch": "b"}})),
        50 => json!({"job": {"command": []}}),
        _ => sleeper(json!({"labels": {"batch": "b"}, "queue": "slow"})),
    };
    let runners: Vec<_> = (0..100).map(job).collect();
    let (status, answer) = daemon.post("/v1/runners:batch", json!({ "runners": runners }));
    assert_eq!(status, 200, "{answer}");
    let items = answer["items"].as_array().expect("items");
    assert_eq!(items[50]["problem"]["field"], "runners[50].job.command");
    for item in &items[..50] {
        assert_eq!(daemon.closed(&id(&item["runner"]))["outcome"], "succeeded");
    }
    daemon.running(&id(&items[51]["runner"]));
    let (status, answer) = daemon.post("/v1/runners:cancel", json!({"label": {"batch": "b"}}));
    assert_eq!((status, &answer["matched"], &answer["accepted"]), (200, &json!(49), &json!(49)), "{answer}");
    for item in &items[51..] {
        let closed = daemon.closed(&id(&item["runner"]));
        assert_eq!(closed["outcome"], "cancelled");
        let started = item["runner"]["id"] == items[51]["runner"]["id"];
        assert_eq!(closed["runs"].as_array().map(Vec::len), Some(usize::from(started)), "{closed}");
    }
}

#[test]
fn a_full_queue_is_told_and_takes_more_when_there_is_room() {
    let daemon = Setup::new().set("JOBS__MAX_QUEUED", 2).start();
    let later = || with(json!({"command": ["true"]}), json!({"delay": "1h"}));
    let [first, _] = [daemon.submit(later()), daemon.submit(later())];
    let (status, problem) = daemon.post("/v1/runners", later());
    assert_eq!((status, &problem["type"]), (503, &json!("urn:runward:problem:queue-full")));
    daemon.cancel(&first);
    daemon.submit(later());
}

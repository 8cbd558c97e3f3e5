//! The settings are read again while a real daemon runs: as a whole or not at all, and no job is touched.

mod common;

use common::{Daemon, Setup};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// A daemon with a settings file that can be written anew.
fn start(text: &str) -> Daemon {
    let setup = Setup::new();
    let path = setup.state_dir().with_extension("toml");
    std::fs::write(&path, text).expect("written");
    setup.argument("--config").argument(&path.display().to_string()).start()
}

fn write(daemon: &Daemon, text: &str) {
    std::fs::write(daemon.state_dir().with_extension("toml"), text).expect("written");
}

/// `POST /v1/reload`
fn reload(daemon: &Daemon) -> (u16, Value) {
    let answer = daemon.request(Method::POST, "/v1/reload").send().expect("an answer");
    (answer.status().as_u16(), answer.json().expect("JSON"))
}

fn sleeper(daemon: &Daemon, name: &str) -> String {
    daemon.submit(json!({"job": {"command": ["sleep", "3600"]}, "name": name, "cancel_grace": "0s"}))
}

fn max_running(daemon: &Daemon) -> Value {
    daemon.get("/v1/info")["limits"]["max_running"].clone()
}

#[test]
fn more_slots_after_sighup_start_what_waits_and_what_runs_goes_on() {
    let daemon = start("[jobs]\nmax_running = 1\n");
    let first = sleeper(&daemon, "first");
    let before = daemon.running(&first);
    let second = sleeper(&daemon, "second");
    let third = sleeper(&daemon, "third");
    write(&daemon, "[jobs]\nmax_running = 2\n");
    daemon.signal(Signal::SIGHUP);
    daemon.running(&second);
    assert_eq!(daemon.runner(&third)["state"], "queued");
    let log = daemon.logged("a setting was changed");
    assert!(log.contains(r#""key":"jobs.max_running","from":"1","to":"2""#), "{log}");
    assert!(daemon.logged("the settings were read again").contains("SIGHUP"));
    let after = daemon.runner(&first);
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &before["state"]), "it was not touched");
    assert_eq!(max_running(&daemon), 2);
    // Fewer slots stop nobody.
    write(&daemon, "[jobs]\nmax_running = 1\n");
    assert_eq!(reload(&daemon).0, 200);
    for id in [&first, &second] {
        assert_eq!(daemon.runner(id)["state"], "running");
    }
    daemon.cancel(&first);
    daemon.closed(&first);
    assert_eq!(daemon.runner(&third)["state"], "queued", "one slot, and the second has it");
    daemon.cancel(&second);
    daemon.running(&third);
}

#[test]
fn what_is_wrong_changes_nothing_and_is_named() {
    let daemon = start("[jobs]\nmax_running = 3\n");
    for (text, named) in [
        (
            "[jobs]\nmax_running = 5\nmax_queued = 0\n",
            "`jobs.max_queued` is \"0\", but must be a whole number from 1",
        ),
        (
            "[jobs]\nmax_running = 5\nmax_runing = 5\n",
            "no setting `jobs.max_runing`; did you mean `jobs.max_running`?",
        ),
        (
            "[jobs]\nmax_running = 5\n[telemetry]\nfilter = \"loud\"\n",
            "`telemetry.filter` is \"loud\", but must be error, warn",
        ),
        ("[jobs\n", "state.toml"),
    ] {
        write(&daemon, text);
        let (status, problem) = reload(&daemon);
        let detail = problem["detail"].as_str().expect("a detail");
        assert_eq!(
            (status, &problem["type"]),
            (422, &json!("urn:runward:problem:invalid-settings")),
            "{detail}"
        );
        assert!(detail.contains(named) && detail.contains("state.toml"), "{detail}");
        assert!(detail.ends_with("nothing was changed"), "{detail}");
        assert_eq!(max_running(&daemon), 3, "{text}");
    }
    write(&daemon, "[jobs]\nmax_running = 6\ncancel_grace = \"soon\"\n");
    daemon.signal(Signal::SIGHUP);
    let log = daemon.logged("`jobs.cancel_grace`");
    assert!(log.contains("nothing was changed") && log.contains("a duration such as"), "{log}");
    assert_eq!(max_running(&daemon), 3);
}

#[test]
fn the_answer_tells_what_has_changed_and_what_needs_a_restart() {
    let daemon = start("[queues.slow]\nmax_running = 1\n[queues.kept]\npaused = false\n");
    let (status, answer) = reload(&daemon);
    assert_eq!((status, answer), (200, json!({"changed": [], "needs_restart": []})));
    // What was changed over the API still holds.
    let body = json!({"max_running": 7});
    let put = daemon.request(Method::PUT, "/v1/queues/kept").json(&body).send().expect("an answer");
    assert_eq!(put.status(), 200);
    write(
        &daemon,
        "[jobs]\ncancel_grace = \"7s\"\ndrain_timeout = \"1m\"\n[queues.fast]\npaused = true\n[queues.kept]\nmax_running = 2\n\
         [http]\nmax_body_bytes = 2048\nallowed_hosts = [\"build.example\"]\n[process]\nmin_containment = \"cgroup2\"\n\
         [telemetry]\nfilter = \"debug\"\n",
    );
    let (status, answer) = reload(&daemon);
    assert_eq!(status, 200, "{answer}");
    let keys = |list: &Value| -> Vec<String> {
        list.as_array()
            .expect("a list")
            .iter()
            .map(|one| one["key"].as_str().expect("a key").into())
            .collect()
    };
    let mut changed = keys(&answer["changed"]);
    changed.sort();
    let expected = [
        "http.allowed_hosts",
        "http.max_body_bytes",
        "jobs.cancel_grace",
        "jobs.drain_timeout",
        "queues.fast.paused",
        "queues.kept.max_running",
        "queues.slow.max_running",
        "queues.slow.paused",
        "telemetry.filter",
    ];
    assert_eq!(changed, expected, "{answer}");
    assert_eq!(keys(&answer["needs_restart"]), ["process.min_containment"], "{answer}");
    let limits = daemon.get("/v1/info")["limits"].clone();
    assert_eq!((&limits["cancel_grace"], &limits["drain_timeout"]), (&json!("7s"), &json!("1m")));
    assert_eq!(limits["max_body"], 2048);
    let queue = |name: &str| daemon.get(&format!("/v1/queues/{name}"));
    assert_eq!(queue("fast")["paused"], true);
    assert_eq!(queue("kept")["max_running"], 7);
    assert_eq!(queue("slow")["max_running"], Value::Null);
    let long = json!({"job": {"script": "x".repeat(4096)}});
    assert_eq!(daemon.post("/v1/runners", long).0, 413);
    let hosts = |name: &str| {
        let request = reqwest::blocking::Client::new().get(format!("http://{}/livez", daemon.address()));
        request.header("host", name).send().expect("an answer").status().as_u16()
    };
    assert_eq!((hosts("build.example"), hosts("other.example")), (200, 403));
    daemon.run(json!({"job": {"command": ["true"]}}));
    daemon.logged("\"level\":\"DEBUG\"");
    // What needs a restart still does.
    let (_, answer) = reload(&daemon);
    assert_eq!(keys(&answer["changed"]), Vec::<String>::new());
    assert_eq!(keys(&answer["needs_restart"]), ["process.min_containment"]);
}

#[test]
fn retention_quotas_and_what_requests_may_reach_change_at_once() {
    let daemon = start("");
    let own_api = |name: &str| {
        let url = format!("http://{}/livez", daemon.address());
        daemon.run(json!({"job": {"http": {"url": url}}, "name": name}))["outcome"].clone()
    };
    let writes = || {
        let job = json!({"job": {"command": ["head", "-c", "1000000", "/dev/zero"]}});
        daemon.run(job)["runs"][0]["attempts"][0]["output"]["dropped"].as_u64().expect("a number")
    };
    assert_eq!((own_api("before"), writes()), (json!("failed"), 0));
    write(
        &daemon,
        "[http_jobs]\nallow_own_api = true\n[logs]\nsegment_bytes = 65536\nmax_bytes_per_attempt = 131072\n",
    );
    assert_eq!(reload(&daemon).0, 200);
    assert_eq!(own_api("after"), "succeeded");
    assert!(writes() > 500_000);
    write(&daemon, "[retention]\nmax_records = 1\n");
    assert_eq!(reload(&daemon).0, 200);
    common::until("all but the last are forgotten", || {
        daemon.get("/v1/runners")["items"].as_array().expect("a list").len() == 1
    });
    assert!(daemon.text("/metrics").contains("\nrunward_runners_purged_total 3\n"));
}

#[test]
fn what_was_changed_is_logged_though_less_is_logged_from_then_on() {
    let daemon = start("");
    write(&daemon, "[jobs]\nmax_running = 7\n[telemetry]\nfilter = \"error\"\n");
    assert_eq!(reload(&daemon).0, 200);
    for key in ["telemetry.filter", "jobs.max_running"] {
        daemon.logged(&format!("\"key\":\"{key}\""));
    }
    write(&daemon, "[jobs]\nmax_running = 8\n");
    assert_eq!(reload(&daemon).0, 200);
    let line = daemon.logged("the settings were read again");
    assert!(line.contains("\"changed\":\"jobs.max_running, telemetry.filter\""), "{line}");
}

#[test]
fn signals_that_mean_nothing_end_nothing() {
    let daemon = start("");
    daemon.signal(Signal::SIGUSR1);
    daemon.signal(Signal::SIGUSR2);
    daemon.logged("ignored");
    assert_eq!(daemon.status("/livez"), 200);
    assert_eq!(daemon.stop(), Some(0));
}

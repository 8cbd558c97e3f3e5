//! What a real daemon tells Prometheus: by the documented names, well-formed, and the same as its records.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    thread,
};

use common::{Daemon, Setup, until};
use nix::sys::signal::Signal;
use serde_json::json;

const DOCUMENT: &str = include_str!("../docs/metrics.md");

/// Each sample, by its name and labels as they are written.
fn scrape(daemon: &Daemon) -> BTreeMap<String, f64> {
    let text = daemon.text("/metrics");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// The sum of all samples of a name whose labels hold all of these.
fn sum(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> f64 {
    let fits = |key: &&String| {
        let (its, rest) = key.split_once('{').unwrap_or((key, ""));
        its == name && labels.iter().all(|label| rest.contains(label))
    };
    samples.iter().filter(|(key, _)| fits(key)).map(|(_, value)| value).sum()
}

/// The names that are told, with their types.
fn families(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, of) = line.split_once(' ').expect("a name and a type");
            (name.to_owned(), of.to_owned())
        })
        .collect()
}

/// A daemon that has seen something of everything.
fn busy() -> (Daemon, BTreeMap<&'static str, u32>) {
    let daemon = Setup::new().set("JOBS__MAX_RUNNING", 50).start();
    let mut outcomes = BTreeMap::new();
    let mut ran = |outcome, body| {
        let runner = daemon.run(body);
        assert_eq!(runner["outcome"], outcome, "{runner}");
        *outcomes.entry(outcome).or_insert(0) += 1;
    };
    for _ in 0..3 {
        ran("succeeded", json!({"job": {"command": ["echo", "hello"]}}));
    }
    ran("succeeded", json!({"job": {"handler": {"name": "echo"}}}));
    ran("failed", json!({"job": {"script": "exit 3"}}));
    let retry = json!({"max_attempts": 2, "initial_backoff": "1s", "max_backoff": "1s"});
    ran("failed", json!({"job": {"command": ["false"]}, "retry": retry}));
    ran("timed_out", json!({"job": {"command": ["sleep", "60"]}, "timeout": "50ms"}));
    for (outcome, script) in
        [("cancelled", "exec sleep 60"), ("killed", "trap '' TERM; while :; do sleep 0.1; done")]
    {
        let script = format!("echo ready; {script}");
        let id = daemon.submit(json!({"job": {"script": script}, "cancel_grace": "100ms"}));
        daemon.output_with(&id, "ready");
        daemon.cancel(&id);
        assert_eq!(daemon.closed(&id)["outcome"], outcome);
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    (daemon, outcomes)
}

#[test]
fn the_numbers_add_up_with_the_records() {
    let (daemon, outcomes) = busy();
    let samples = scrape(&daemon);
    let all: u32 = outcomes.values().sum();
    let total = |name: &str, labels: &[&str]| sum(&samples, name, labels);
    assert_eq!(total("runward_runners_submitted_total", &[]), f64::from(all));
    for (outcome, count) in &outcomes {
        let label = format!("outcome=\"{outcome}\"");
        assert_eq!(total("runward_runners_closed_total", &[&label]), f64::from(*count), "{outcome}");
    }
    assert_eq!(total("runward_runners_closed_total", &[]), f64::from(all));
    assert_eq!(total("runward_runners_submitted_total", &["kind=\"handler\""]), 1.0);
    assert_eq!(total("runward_runners_submitted_total", &["kind=\"script\""]), 3.0);
    // One more attempt of the one that was tried again.
    assert_eq!(total("runward_attempts_started_total", &[]), f64::from(all + 1));
    assert_eq!(total("runward_attempts_ended_total", &[]), f64::from(all + 1));
    assert_eq!(total("runward_attempt_duration_seconds_count", &[]), f64::from(all + 1));
    assert_eq!(total("runward_requeued_total", &["reason=\"retry\""]), 1.0);
    assert_eq!(total("runward_queue_wait_seconds_count", &[]), f64::from(all));
    assert_eq!(total("runward_cancellations_total", &["reason=\"requested\"", "force=\"false\""]), 2.0);
    assert_eq!(total("runward_cancellations_total", &["reason=\"timeout\""]), 1.0);
    assert!(total("runward_attempt_duration_seconds_sum", &["kind=\"command\""]) > 0.05, "one took 50 ms");
    assert!(total("runward_log_bytes_total", &[]) >= 3.0 * 6.0);
    assert_eq!(total("runward_runners_queued", &[]) + total("runward_runners_active", &[]), 0.0);
    assert_eq!(total("runward_ready", &[]), 1.0);
    let events = daemon.get("/v1/events?limit=1000")["items"].as_array().expect("events").clone();
    let last = events.last().expect("an event")["seq"].as_f64().expect("a place");
    assert_eq!(total("runward_events_last_seq", &[]), last);
    assert_eq!(total("runward_store_commit_events_sum", &[]), events.len() as f64);
    assert_eq!(
        total("runward_store_commit_events_count", &[]),
        total("runward_store_commit_duration_seconds_count", &[])
    );
    let submitted = ["method=\"POST\"", "route=\"/v1/runners\"", "status=\"2xx\""];
    assert_eq!(total("runward_http_requests_total", &submitted), f64::from(all));
    assert_eq!(total("runward_http_request_duration_seconds_count", &submitted[..2]), f64::from(all));
    assert!(total("runward_http_connections", &["transport=\"unix\""]) >= 1.0);
    assert!(total("runward_core_lag_seconds_count", &[]) >= f64::from(all));
    assert!(
        total("process_open_fds", &[]) > 3.0
            && total("process_open_fds", &[]) < total("process_max_fds", &[])
    );
    daemon.status("/nothing");
    assert_eq!(
        sum(&scrape(&daemon), "runward_http_requests_total", &["route=\"none\"", "status=\"4xx\""]),
        1.0
    );
}

#[test]
fn gauges_are_true_at_once_after_a_crash_and_counters_begin_anew() {
    let mut daemon = Setup::new().set("JOBS__MAX_RUNNING", 1).start();
    let running = daemon.submit(json!({"job": {"command": ["sleep", "3600"]}, "cancel_grace": "0s"}));
    daemon.running(&running);
    for _ in 0..3 {
        let body = json!({"job": {"command": ["sleep", "3600"]}, "queue": "nightly", "cancel_grace": "0s"});
        daemon.submit(body);
    }
    let samples = scrape(&daemon);
    assert_eq!(sum(&samples, "runward_queue_queued", &["queue=\"nightly\""]), 3.0);
    assert_eq!(sum(&samples, "runward_queue_running", &["queue=\"default\""]), 1.0);
    assert_eq!(sum(&samples, "runward_max_running", &[]), 1.0);
    daemon.crash();
    let daemon = daemon.restart();
    // The lost one is closed; its slot goes to one of the others.
    until("the next one runs, on record too", || {
        let samples = scrape(&daemon);
        sum(&samples, "runward_queue_running", &["queue=\"nightly\""]) == 1.0
            && sum(&samples, "runward_attempts_started_total", &[]) == 1.0
    });
    let samples = scrape(&daemon);
    assert_eq!(sum(&samples, "runward_queue_queued", &["queue=\"nightly\""]), 2.0);
    assert_eq!(sum(&samples, "runward_runners_queued", &[]), 2.0);
    assert_eq!(sum(&samples, "runward_runners_active", &[]), 1.0);
    assert_eq!(sum(&samples, "runward_runners_submitted_total", &[]), 0.0);
    assert_eq!(sum(&samples, "runward_attempts_started_total", &[]), 1.0);
    assert_eq!(
        sum(&samples, "runward_runners_closed_total", &["outcome=\"lost\""]),
        1.0,
        "this start put it on record"
    );
}

#[test]
fn a_daemon_that_stops_tells_how_long_it_waits() {
    let daemon = Setup::new().start();
    // Nothing that the machine is slow at lets it end before it is looked at.
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let id = daemon.submit(json!({"job": {"script": script}, "cancel_grace": "300s"}));
    daemon.output_with(&id, "ready");
    assert_eq!(sum(&scrape(&daemon), "runward_draining", &[]), 0.0);
    daemon.signal(Signal::SIGTERM);
    until("it drains", || sum(&scrape(&daemon), "runward_draining", &[]) == 1.0);
    // Its request is counted when it is on record, which is after the daemon has begun to stop.
    let counted = || sum(&scrape(&daemon), "runward_cancellations_total", &["reason=\"shutdown\""]) == 1.0;
    until("the cancellation is on record", counted);
    let samples = scrape(&daemon);
    let left = sum(&samples, "runward_drain_left_seconds", &[]);
    assert!(left > 200.0 && left <= 300.0, "{left}");
    assert_eq!(sum(&samples, "runward_ready", &[]), 0.0);
}

#[test]
fn messages_are_counted_when_they_are_taken_and_when_not() {
    let mut daemon = Setup::new().start();
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = held.local_addr().expect("an address");
    let on_close = json!({"url": format!("http://{address}/")});
    let answers = thread::spawn(move || {
        for status in ["503 Service Unavailable", "204 No Content"] {
            let (mut stream, _) = held.accept().expect("a message");
            let mut reader = BufReader::new(stream.try_clone().expect("the stream"));
            let mut line = String::new();
            while reader.read_line(&mut line).expect("a header") > 2 {
                line.clear();
            }
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .expect("written");
        }
    });
    daemon.run(json!({"job": {"command": ["true"]}, "on_close": on_close}));
    until("it is taken", || sum(&scrape(&daemon), "runward_webhooks_delivered_total", &[]) == 1.0);
    answers.join().expect("no panic");
    let samples = scrape(&daemon);
    assert_eq!(sum(&samples, "runward_webhook_failures_total", &[]), 1.0);
    assert_eq!(sum(&samples, "runward_webhooks_pending", &[]), 0.0);
    // The port is closed: what is to be told stays so, over a crash too.
    daemon.run(json!({"job": {"command": ["true"]}, "on_close": on_close}));
    assert_eq!(sum(&scrape(&daemon), "runward_webhooks_pending", &[]), 1.0);
    daemon.crash();
    let daemon = daemon.restart();
    assert_eq!(sum(&scrape(&daemon), "runward_webhooks_pending", &[]), 1.0);
}

#[test]
fn every_name_that_is_served_is_documented_and_every_documented_one_is_served() {
    let daemon = Setup::new().start();
    let text = daemon.text("/metrics");
    let served = families(&text);
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeMap<String, String> = rows
        .filter_map(|row| {
            let (name, rest) = row.split_once("` | ")?;
            Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
        })
        .filter(|(name, _)| !name.contains(' '))
        .collect();
    assert_eq!(documented, served);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let family = name.strip_suffix(end)?;
            (served.get(family).map(String::as_str) == Some("histogram")).then_some(family)
        });
        assert!(served.contains_key(family.unwrap_or(name)), "{line}");
    }
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "each is told once");
}

/// What promtool says of this, given on standard input; it must be content.
fn promtool(check: &[&str], text: &str) -> String {
    let mut promtool = Command::new("promtool")
        .arg("check")
        .args(check)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs; if it is missing: apt-get install --no-install-recommends prometheus, or as .ci/run does");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let checked = promtool.wait_with_output().expect("it ends");
    let said =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    said
}

#[test]
#[ignore = "needs promtool: .ci/run brings it and runs this"]
fn promtool_finds_nothing_wrong() {
    let (daemon, _) = busy();
    let said = promtool(&["metrics"], &daemon.text("/metrics"));
    assert!(said.trim().is_empty(), "{said}");
    let mut rules = "groups:\n- name: documented\n  rules:\n".to_owned();
    for (number, expression) in alerts().iter().enumerate() {
        rules.push_str(&format!("  - alert: Documented{number}\n    expr: {}\n", json!(expression)));
    }
    promtool(&["rules", "/dev/stdin"], &rules);
}

/// The expressions of the documented alerts.
fn alerts() -> Vec<&'static str> {
    let alerts = DOCUMENT.split("## Worth an alert").nth(1).expect("alerts");
    alerts.lines().filter_map(|row| row.strip_prefix("| ")?.split_once(" | `")?.1.split('`').next()).collect()
}

#[test]
fn the_documented_alerts_are_of_names_that_are_served() {
    let expressions = alerts();
    assert!(expressions.len() >= 8, "{expressions:?}");
    for expression in expressions {
        for name in expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            if name.starts_with("runward_") || name.starts_with("process_") {
                let family = name.trim_end_matches("_bucket");
                assert!(DOCUMENT.contains(&format!("| `{family}` |")), "{name}");
            }
        }
    }
}

#[test]
fn numbers_are_for_those_who_may_read() {
    let daemon = Setup::new().start();
    let client = reqwest::blocking::Client::new();
    let ask = |token: &str| {
        let request = client.get(format!("http://{}/metrics", daemon.address())).bearer_auth(token);
        let answer = request.send().expect("an answer");
        (answer.status().as_u16(), answer.headers()["content-type"].to_str().expect("a text").to_owned())
    };
    assert_eq!(ask("wrong").0, 401);
    assert_eq!(ask(&daemon.token()), (200, "text/plain; version=0.0.4; charset=utf-8".into()));
}

/// A line of the log as JSON.
fn fields(line: &str) -> serde_json::Value {
    serde_json::from_str(line).expect("a line is JSON")
}

#[test]
fn what_is_told_of_an_attempt_names_its_runner_run_and_attempt() {
    let daemon = Setup::new().start();
    let failed = daemon.run(json!({"job": {"command": ["false"]}}));
    let closed = fields(&daemon.logged("\"closed\""));
    assert_eq!(
        (&closed["runner"], &closed["run"], &closed["attempt"]),
        (&failed["id"], &json!(1), &json!(1))
    );
}

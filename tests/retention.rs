//! What is too old or too much is forgotten, and nothing else.

mod common;

use std::fs;

use common::{Daemon, Setup, id, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn echo(daemon: &Daemon, text: &str) -> String {
    let body = json!({"job": {"command": ["echo", text]}, "labels": {"kind": "echo"}});
    id(&daemon.run(body))
}

fn listed(daemon: &Daemon) -> Vec<String> {
    let page = daemon.get("/v1/runners?limit=1000");
    page["items"].as_array().expect("items").iter().map(id).collect()
}

#[test]
fn the_oldest_go_with_all_that_belongs_to_them() {
    let daemon = Setup::new().set("RETENTION__MAX_RECORDS", 3).start();
    let held = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    daemon.running(&held);
    let runners: Vec<String> = (0..8).map(|number| echo(&daemon, &number.to_string())).collect();
    until("only three and the open one are left", || listed(&daemon).len() == 4);
    let mut left = listed(&daemon);
    left.reverse();
    let (gone, kept) = runners.split_at(5);
    assert_eq!(left, [[held.clone()].as_slice(), kept].concat());
    for runner in gone {
        for path in ["", "/logs", "/events"] {
            assert_eq!(daemon.status(&format!("/v1/runners/{runner}{path}")), 404, "{path}");
        }
        assert!(!daemon.state_dir().join("logs").join(runner).exists());
    }
    for runner in kept {
        assert_eq!(daemon.status(&format!("/v1/runners/{runner}")), 200);
        assert!(!daemon.text(&format!("/v1/runners/{runner}/logs")).is_empty());
    }
    assert_eq!(daemon.get("/v1/runners?label=kind=echo")["items"].as_array().map(Vec::len), Some(3));
    let line: Value = serde_json::from_str(&daemon.logged("forgot what had closed first")).expect("JSON");
    assert!(line["runners"].as_u64() >= Some(1) && line["log_bytes"].as_u64() >= Some(2), "{line}");
    // What is left is enough for the next start, and the places of events go on.
    let last = daemon.get("/v1/events?limit=1000")["items"].as_array().expect("events").last().expect("one")
        ["seq"]
        .clone();
    daemon.signal(Signal::SIGTERM);
    let daemon = daemon.restart();
    daemon.closed(&held);
    until("only three are left", || listed(&daemon).len() == 3);
    let next = echo(&daemon, "next");
    let events = daemon.get(&format!("/v1/runners/{next}/events"));
    assert!(events["items"][0]["seq"].as_u64() > last.as_u64(), "{last} {events}");
}

#[test]
fn a_purged_key_makes_a_new_job() {
    let daemon = Setup::new().set("RETENTION__MAX_RECORDS", 1).start();
    let submit = || {
        let request =
            daemon.request(reqwest::Method::POST, "/v1/runners?wait=60s").header("Idempotency-Key", "k");
        id(&request
            .json(&json!({"job": {"command": ["true"]}}))
            .send()
            .expect("an answer")
            .json()
            .expect("JSON"))
    };
    let first = submit();
    assert_eq!(submit(), first);
    echo(&daemon, "another");
    until("the first is forgotten", || daemon.status(&format!("/v1/runners/{first}")) == 404);
    assert_ne!(submit(), first);
}

#[test]
fn output_is_bounded_in_all() {
    let daemon = Setup::new()
        .set("LOGS__MAX_BYTES_PER_ATTEMPT", 100_000)
        .set("RETENTION__MAX_LOG_BYTES", 100_000)
        .set("RETENTION__MAX_RECORDS", 10)
        .start();
    let runners: Vec<String> = (0..5).map(|_| echo(&daemon, &"x".repeat(40_000))).collect();
    until("two are left", || listed(&daemon).len() == 2);
    let mut left = listed(&daemon);
    left.reverse();
    assert_eq!(left, runners[3..]);
}

#[test]
fn what_is_too_old_goes_at_the_start() {
    let daemon = Setup::new().set("RETENTION__MAX_AGE", "1ms").start();
    let runner = echo(&daemon, "old");
    daemon.signal(Signal::SIGTERM);
    let daemon = daemon.restart();
    until("it is forgotten", || listed(&daemon).is_empty());
    assert!(!daemon.state_dir().join("logs").join(runner).exists());
    // Nothing is left at all, and this is no lost store.
    daemon.signal(Signal::SIGTERM);
    let daemon = daemon.restart();
    assert_eq!(listed(&daemon), [] as [String; 0]);
}

#[test]
fn off_keeps_everything() {
    let off = |setup: Setup| {
        setup
            .set("RETENTION__MAX_AGE", "off")
            .set("RETENTION__MAX_RECORDS", "off")
            .set("RETENTION__MAX_LOG_BYTES", 0)
    };
    let daemon = off(Setup::new()).start();
    let runner = echo(&daemon, "kept");
    daemon.signal(Signal::SIGTERM);
    let daemon = daemon.restart();
    assert_eq!(listed(&daemon), [runner]);
    assert!(!daemon.log_text().contains("forgot"));
}

#[test]
fn a_crash_between_output_and_record_is_harmless() {
    let mut daemon = Setup::new().set("RETENTION__MAX_RECORDS", 2).start();
    let runners: Vec<String> = (0..2).map(|number| echo(&daemon, &number.to_string())).collect();
    daemon.crash();
    // As it is when it came as far as to remove the output.
    for runner in &runners {
        fs::remove_dir_all(daemon.state_dir().join("logs").join(runner)).expect("there was output");
    }
    let daemon = daemon.restart();
    assert_eq!(listed(&daemon).len(), 2, "their records are there");
    let newer: Vec<String> = (0..2).map(|number| echo(&daemon, &number.to_string())).collect();
    until("they are forgotten", || listed(&daemon).iter().all(|left| newer.contains(left)));
}

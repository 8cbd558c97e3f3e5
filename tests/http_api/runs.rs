//! Runners that are kept open, and those that are held.

use runward::job::{RunnerId, State};
use serde_json::{Value, json};

use crate::{client::Request, rig::Rig};

fn kept_open(rig: &Rig) -> RunnerId {
    let id = rig.accepted(&json!({"job": {"command": ["true"]}, "keep_open": true}));
    rig.until(id, |record| record.state == State::Idle);
    id
}

fn command(program: &str) -> Value {
    json!({"job": {"command": [program]}})
}

#[test]
fn runs_follow_each_other_on_one_runner() {
    let rig = Rig::start();
    let id = kept_open(&rig);
    let runs = format!("/v1/runners/{id}/runs");
    let added = rig.send("POST", &runs, &command("hold"));
    assert_eq!(added.status, 201, "{}", added.text());
    assert_eq!(added.header("runward-run"), Some("2"));
    assert_eq!(added.header("location"), Some(format!("/v1/runners/{id}").as_str()));
    rig.until(id, |record| record.state == State::Running);
    // Another one waits behind it.
    let third = rig.send("POST", &runs, &command("true"));
    assert_eq!((third.status, third.header("runward-run")), (201, Some("3")));
    rig.jobs.exit(id, 3);
    rig.until(id, |record| record.is_over(3));
    let fourth = rig.send("POST", &format!("{runs}?wait=1h"), &command("false"));
    assert_eq!((fourth.status, fourth.header("runward-run")), (200, Some("4")), "{}", fourth.text());
    let runner = fourth.json();
    let ends: Vec<_> = (runner["runs"].as_array().expect("runs").iter())
        .map(|run| {
            (
                run["run"].clone(),
                run["job"]["command"]["argv"][0].clone(),
                run["attempts"][0]["exit"]["code"].clone(),
            )
        })
        .collect();
    let expected = [(1, "true", 0), (2, "hold", 3), (3, "true", 0), (4, "false", 1)];
    assert_eq!(ends, expected.map(|(run, program, code)| (json!(run), json!(program), json!(code))));
    assert_eq!(runner["state"], "idle");
    let goes_on = rig.send("POST", &format!("{runs}?wait=0"), &command("hold"));
    assert_eq!(goes_on.status, 202);
}

#[test]
fn who_waits_for_one_that_is_kept_open_waits_for_its_first_run() {
    let rig = Rig::start();
    let body = json!({"job": {"command": ["true"]}, "keep_open": true});
    let over = rig.send("POST", "/v1/runners?wait=1h", &body);
    assert_eq!((over.status, &over.json()["state"]), (200, &json!("idle")), "{}", over.text());
    let target = Request::new("POST", "/v1/runners?follow").header("content-type", "application/json");
    let followed = rig.ask(target.body(body.to_string()));
    assert_eq!((followed.status, followed.text().as_str()), (201, ""));
    let waits = rig.accepted(&json!({"job": {"command": ["true"]}, "delay": "1h"}));
    assert_eq!(rig.get(&format!("/v1/runners/{waits}/logs?run=1")).status, 200);
}

#[test]
fn a_run_of_another_user_is_refused() {
    let rig = Rig::start();
    let id = kept_open(&rig);
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("readable").expect("known").name;
    let job = json!({"job": {"command": {"argv": ["true"], "user": me}}});
    let refused = rig.send("POST", &format!("/v1/runners/{id}/runs"), &job);
    assert_eq!((refused.status, refused.problem().as_str()), (422, "invalid-field"));
    assert_eq!(refused.json()["field"], "job");
    assert!(refused.text().contains("each run sets variables for the next one"), "{}", refused.text());
}

#[test]
fn an_idle_runner_is_closed_not_cancelled() {
    let rig = Rig::start();
    let id = kept_open(&rig);
    let refused = rig.bare("POST", &format!("/v1/runners/{id}/cancel"));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "runner-idle"), "{}", refused.text());
    let closing = rig.bare("DELETE", &format!("/v1/runners/{id}"));
    assert!([200, 202].contains(&closing.status), "{}", closing.text());
    let record = rig.until(id, |record| record.state == State::Closed);
    assert_eq!(record.outcome.map(|outcome| outcome.as_str()), Some("succeeded"));
    let refused = rig.send("POST", &format!("/v1/runners/{id}/runs"), &command("true"));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "runner-closed"), "{}", refused.text());
}

#[test]
fn who_takes_no_runs_says_why() {
    let rig = Rig::start();
    let once = rig.running("hold");
    let refused = rig.send("POST", &format!("/v1/runners/{once}/runs"), &command("true"));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "runner-not-kept-open"));
    let stubborn = rig.accepted(&json!({"job": {"command": ["stubborn"]}, "keep_open": true}));
    rig.until(stubborn, |record| record.state == State::Running);
    assert_eq!(rig.bare("DELETE", &format!("/v1/runners/{stubborn}")).status, 202);
    let refused = rig.send("POST", &format!("/v1/runners/{stubborn}/runs"), &command("true"));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "runner-closing"), "{}", refused.text());
    let open = kept_open(&rig);
    let runs = format!("/v1/runners/{open}/runs");
    for (body, kind, field) in [
        (json!({}), "missing-field", "job"),
        (json!({"job": {"command": ["true"]}, "timeout": 1}), "unknown-field", "timeout"),
        (json!({"job": {"command": []}}), "invalid-field", "job.command"),
    ] {
        let refused = rig.send("POST", &runs, &body);
        assert_eq!((refused.status, refused.problem().as_str()), (422, kind), "{}", refused.text());
        assert_eq!(refused.json()["field"], field);
    }
    let keyed = Request::new("POST", &runs).header("content-type", "application/json");
    let refused = rig.ask(keyed.header("idempotency-key", "k").body(command("true").to_string()));
    assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid-header"));
    assert_eq!(rig.until(open, |_| true).runs.len(), 1, "nothing of it was accepted");
}

#[test]
fn each_run_has_its_own_output() {
    let rig = Rig::start();
    let id = rig.accepted(&json!({"job": {"command": ["hold"]}, "keep_open": true}));
    rig.until(id, |record| record.state == State::Running);
    let logs = format!("/v1/runners/{id}/logs");
    rig.write_output_of_run(id, (1, 1), &[(1, b"one\n")]);
    let second = rig.send("POST", &format!("/v1/runners/{id}/runs"), &command("hold"));
    assert_eq!(second.status, 201, "{}", second.text());
    // It has not begun: of it there is nothing yet, and the last is the first.
    let waits = rig.get(&format!("{logs}?run=2"));
    assert_eq!((waits.status, waits.text().as_str()), (200, ""));
    assert_eq!(rig.get(&logs).text(), "one\n");
    assert_eq!(rig.get(&format!("{logs}?run=3")).problem(), "attempt-not-found");
    // Whoever follows a run that has not begun hears all of it and nothing of the others.
    let mut follower = rig.unix().open(&Request::new("GET", &format!("{logs}?run=2&follow")));
    rig.jobs.exit(id, 0);
    rig.until(id, |record| record.position() == Some((2, 1)) && record.state == State::Running);
    rig.write_output_of_run(id, (2, 1), &[(1, b"two\n")]);
    assert_eq!(follower.take_until("\n"), "two\n");
    rig.jobs.exit(id, 0);
    assert_eq!(follower.rest().text(), "", "it ends with its run, though the runner is open");
    assert_eq!(rig.get(&format!("{logs}?run=1")).text(), "one\n");
    assert_eq!(rig.get(&logs).text(), "two\n");
}

#[test]
fn what_is_held_starts_when_it_is_released() {
    let rig = Rig::start();
    let id = rig.accepted(&json!({"job": {"command": ["hold"]}, "on_lost": "hold"}));
    rig.until(id, |record| record.state == State::Running);
    let release = || rig.bare("POST", &format!("/v1/runners/{id}/release"));
    let refused = release();
    assert_eq!((refused.status, refused.problem().as_str()), (409, "runner-not-held"), "{}", refused.text());
    rig.jobs.lose(id);
    rig.until(id, |record| record.held);
    let why = rig.get(&format!("/v1/runners/{id}/explain")).json();
    assert_eq!(why["facts"]["reason"], "held_after_loss", "{why}");
    let released = release();
    assert_eq!((released.status, &released.json()["held"]), (200, &json!(false)), "{}", released.text());
    rig.until(id, |record| record.position() == Some((1, 2)) && record.state == State::Running);
    rig.bare("DELETE", &format!("/v1/runners/{id}"));
    rig.until(id, |record| record.state == State::Closed);
    assert_eq!(release().status, 409);
}

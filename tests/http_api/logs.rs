//! The output of jobs: read, followed, resumed.

use runward::job::State;
use serde_json::{Value, json};

use crate::{client::Request, rig::Rig};

const OUT: u8 = 1;
const ERR: u8 = 2;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn output_is_read_as_it_came() {
    let rig = Rig::start();
    let id = rig.running("hold");
    rig.write_output(id, &[(OUT, b"one\ntwo\n"), (ERR, b"oops\n"), (OUT, b"\xff\0three")]);
    let get = |query: &str| rig.get(&format!("/v1/runners/{id}/logs{query}"));
    let all = get("");
    assert_eq!(all.body, b"one\ntwo\noops\n\xff\0three");
    assert_eq!(all.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(all.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(get("?stream=stderr").text(), "oops\n");
    assert_eq!(get("?stream=stdout").body, b"one\ntwo\n\xff\0three");
    assert_eq!(get("?tail=2").body, b"oops\n\xff\0three");
    assert_eq!(get("?tail=1&stream=stderr").text(), "oops\n");
    assert_eq!(get("?tail=0").text(), "");
    assert_eq!(get("?run=1&attempt=1").body, all.body);
    for missing in ["?run=2", "?attempt=2", "?run=1&attempt=7"] {
        assert_eq!(get(missing).problem(), "attempt-not-found", "{missing}");
    }
    for wrong in ["?run=0", "?stream=stdin", "?format=xml", "?tail=1&offset=2", "?follow=maybe", "?tail=-1"] {
        assert_eq!(get(wrong).problem(), "invalid-parameter", "{wrong}");
    }
}

#[test]
fn ndjson_tells_what_raw_can_not() {
    let rig = Rig::start();
    let id = rig.running("hold");
    rig.write_output(id, &[(OUT, b"one\n"), (ERR, b"\xff\0")]);
    let answer = rig.get(&format!("/v1/runners/{id}/logs?format=ndjson"));
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let at = "2023-11-14T22:13:20.000000Z";
    let first = json!({"run": 1, "attempt": 1, "offset": 0, "next": 20, "stream": "stdout", "at": at, "text": "one\n"});
    let second = json!({"run": 1, "attempt": 1, "offset": 20, "next": 38, "stream": "stderr", "at": at, "base64": "/wA="});
    assert_eq!(lines(&answer.text()), [first, second.clone()]);
    let resumed = rig.get(&format!("/v1/runners/{id}/logs?format=ndjson&offset=20"));
    assert_eq!(lines(&resumed.text()), [second]);
}

#[test]
fn raw_goes_on_where_it_ended() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let logs = format!("/v1/runners/{id}/logs");
    assert_eq!(rig.get(&logs).header("runward-offset-next"), Some("0"));
    rig.write_output(id, &[(OUT, b"one\n")]);
    let first = rig.get(&logs);
    let next = first.header("runward-offset-next").expect("an offset").to_owned();
    rig.write_output(id, &[(OUT, b"two\n")]);
    assert_eq!(
        (first.text().as_str(), rig.get(&format!("{logs}?offset={next}")).text().as_str()),
        ("one\n", "two\n")
    );
}

#[test]
fn a_follower_gets_what_comes_until_the_runner_closes() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let target = format!("/v1/runners/{id}/logs?follow=true");
    // Before there is any output.
    let mut follower = rig.unix().open(&Request::new("GET", &target));
    let mut other = rig.unix().open(&Request::new("GET", &format!("{target}&format=ndjson&stream=stderr")));
    rig.write_output(id, &[(OUT, b"one\n")]);
    assert_eq!(rig.get(&format!("/v1/runners/{id}/logs")).text(), "one\n");
    let mut late = rig.unix().open(&Request::new("GET", &target));
    assert_eq!(late.take(4), b"one\n");
    rig.write_output(id, &[(ERR, b"two\n")]);
    assert_eq!(late.take(4), b"two\n");
    rig.jobs.exit(id, 0);
    rig.until(id, |record| record.state == State::Closed);
    assert_eq!(follower.take(8), b"one\ntwo\n");
    assert_eq!(follower.rest().text(), "");
    assert_eq!(late.rest().text(), "");
    assert!(other.take_until("\n").contains("\"text\":\"two\\n\""));
}

#[test]
fn a_follower_may_come_before_the_runner_has_started() {
    let rig = Rig::with(|limits| limits.max_running = 1);
    let first = rig.running("hold");
    let answer = rig.submit(r#"{"job": {"command": ["hold"]}}"#);
    let second = answer.json()["id"].as_str().expect("an id").parse().expect("an id");
    let mut follower = rig.unix().open(&Request::new("GET", &format!("/v1/runners/{second}/logs?follow")));
    rig.jobs.exit(first, 0);
    rig.until(second, |record| record.state == State::Running);
    rig.write_output(second, &[(OUT, b"late\n")]);
    rig.jobs.exit(second, 0);
    assert_eq!(follower.take(5), b"late\n");
    assert_eq!(follower.rest().text(), "");
}

#[test]
fn following_what_is_cancelled_in_the_queue_ends() {
    let rig = Rig::with(|limits| limits.max_running = 1);
    rig.running("hold");
    let answer = rig.submit(r#"{"job": {"command": ["hold"]}}"#);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let follower = rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow")));
    rig.ask(Request::new("POST", &format!("/v1/runners/{id}/cancel")));
    assert_eq!(follower.rest().text(), "");
}

#[test]
fn a_submission_can_be_followed_at_once() {
    let rig = Rig::start();
    let request = Request::new("POST", "/v1/runners?follow").header("content-type", "application/json");
    let mut follower = rig.unix().open(&request.body(r#"{"job": {"command": ["hold"]}}"#));
    assert_eq!(follower.head.status, 201);
    let location = follower.head.header("location").expect("an address").to_owned();
    let id = location.rsplit('/').next().expect("an id").parse().expect("an id");
    rig.until(id, |record| record.state == State::Running);
    rig.write_output(id, &[(OUT, b"hello\n"), (ERR, b"there\n")]);
    assert_eq!(follower.take(12), b"hello\nthere\n");
    rig.jobs.exit(id, 0);
    assert_eq!(follower.rest().text(), "");
}

#[test]
fn case_25_a_large_log_without_a_newline_arrives_whole() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let piece: Vec<u8> = (0..=255).cycle().take(60_000).collect();
    for _ in 0..50 {
        rig.write_output(id, &[(OUT, &piece)]);
    }
    let answer = rig.get(&format!("/v1/runners/{id}/logs"));
    assert_eq!(answer.body, piece.repeat(50));
    let mut follower = rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow")));
    assert_eq!(follower.take(piece.len() * 50), piece.repeat(50));
}

#[test]
fn nothing_that_is_written_is_missed() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let target = format!("/v1/runners/{id}/logs?follow");
    let mut followers: Vec<_> = (0..3).map(|_| rig.unix().open(&Request::new("GET", &target))).collect();
    // So often that some writes meet a follower that waits, and some one that is about to.
    for round in 0..300 {
        let line = format!("{round:03}\n");
        rig.write_output(id, &[(OUT, line.as_bytes())]);
        for follower in &mut followers {
            assert_eq!(follower.take(4), line.as_bytes());
        }
    }
}

#[test]
fn who_follows_one_attempt_is_done_when_it_has_ended() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let follow =
        |query: &str| rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow{query}")));
    let (attempt, mut all) = (follow("&attempt=1"), follow(""));
    rig.write_output(id, &[(OUT, b"one\n")]);
    rig.jobs.end_main_task(id);
    assert_eq!(rig.until(id, |record| record.state == State::Draining).outcome, None);
    assert_eq!(attempt.rest().text(), "one\n");
    assert_eq!(all.take(4), b"one\n");
}

#[test]
fn who_follows_a_runner_goes_on_with_its_next_attempt() {
    let rig = Rig::start();
    let answer = rig.submit(r#"{"job": {"command": ["hold"]}, "on_lost": "requeue"}"#);
    let id = answer.json()["id"].as_str().expect("an id").parse().expect("an id");
    rig.until(id, |record| record.state == State::Running);
    let mut all =
        rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow&format=ndjson")));
    rig.write_output(id, &[(OUT, b"one\n")]);
    rig.jobs.lose(id);
    rig.until(id, |record| record.position() == Some((1, 2)) && record.state == State::Running);
    rig.write_output_of(id, 2, &[(OUT, b"two\n")]);
    all.take_until("\"two\\n\"");
    rig.jobs.exit(id, 0);
    all.rest();
    let lines = lines(&rig.get(&format!("/v1/runners/{id}/logs?format=ndjson&attempt=1")).text());
    assert_eq!((&lines[0]["attempt"], &lines[0]["text"]), (&json!(1), &json!("one\n")));
    assert_eq!(rig.get(&format!("/v1/runners/{id}/logs")).text(), "two\n", "the last attempt's");
}

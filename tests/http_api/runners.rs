//! Submitting, seeing, listing, cancelling, closing.

use std::{collections::HashSet, io::Write, thread};

use runward::{
    job::{RunnerId, State},
    supervisor::Stage,
};
use serde_json::{Value, json};

use crate::{
    client::{Request, Response},
    rig::Rig,
};

fn post(target: &str, body: &Value) -> Request {
    Request::new("POST", target).header("content-type", "application/json").body(body.to_string())
}

fn id(answer: &Response) -> RunnerId {
    answer.json()["id"].as_str().expect("an id").parse().expect("an id")
}

#[test]
fn a_submission_is_answered_with_its_runner() {
    let rig = Rig::start();
    let body = json!({
        "job": {"command": {"argv": ["hold", "x"], "env": {"A": "b"}, "cwd": "/tmp", "stdin": "in", "stop_signal": "SIGINT"}},
        "name": "nightly", "queue": "q", "priority": 3, "labels": {"team": "data"}, "context": {"PASSWORD": "hidden"},
        "timeout": "1h30m", "cancel_grace": 2.5, "drain_timeout": "5m", "on_lost": "hold", "debug": true,
        "delay": null, "retry": null, "concurrency_key": null, "keep_open": false,
    });
    let answer = rig.ask(post("/v1/runners", &body));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let id = id(&answer);
    assert_eq!(answer.header("location"), Some(format!("/v1/runners/{id}").as_str()));
    assert!(!answer.text().contains("hidden"), "the context may hold passwords");
    rig.until(id, |record| record.state == State::Running);
    let mut runner = rig.get(&format!("/v1/runners/{id}")).json();
    for time in ["/created_at", "/started_at", "/runs/0/attempts/0/started_at"] {
        let text = runner.pointer_mut(time).expect("a time").take();
        let text = text.as_str().expect("a text");
        assert!(text.len() == 27 && text.ends_with('Z') && text.as_bytes()[19] == b'.', "{text}");
    }
    let job = json!({"command": {"argv": ["hold", "x"], "env": {"A": "b"}, "cwd": "/tmp", "stdin": "in", "stop_signal": "INT"}});
    assert_eq!(
        runner,
        json!({
            "id": id.to_string(), "name": "nightly", "state": "running", "outcome": null, "held": false, "not_before": null,
            "queue": "q", "weight": 1, "concurrency_key": null, "deadline": null, "on_shutdown": "fail", "keep_open": false,
            "on_close": null, "retry": {"max_attempts": 1, "initial_backoff": "1s", "max_backoff": "1m", "on_exit_codes": []},
            "priority": 3, "labels": {"team": "data"}, "job": job, "timeout": "1h30m", "cancel_grace": "2.5s",
            "drain_timeout": "5m", "on_lost": "hold", "debug": true, "created_at": null, "started_at": null,
            "closed_at": null, "cancel": null, "drain": null,
            "runs": [{"run": 1, "job": job, "outcome": null, "result": null, "attempts": [{
                "attempt": 1, "state": "running", "outcome": null, "pid": 4711, "exit": null, "error": null,
                "output": null, "swept": 0, "context_version": 0, "started_at": null, "ended_at": null,
            }]}],
        })
    );
}

#[test]
fn a_script_may_be_the_body_itself() {
    let rig = Rig::start();
    let target = "/v1/runners?name=n&queue=q&priority=-2&label=a%3Db&label=c=&timeout=10&cancel_grace=1m&drain_timeout=2s\
                  &on_lost=requeue&arg=one&arg=two%20three";
    let request =
        Request::new("POST", target).header("content-type", "text/x-shellscript").body("#!/bin/sh\nhold\n");
    let answer = rig.ask(request);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let runner = answer.json();
    assert_eq!(
        runner["job"],
        json!({"script": {"source": "#!/bin/sh\nhold\n", "args": ["one", "two three"]}})
    );
    assert_eq!(runner["labels"], json!({"a": "b", "c": ""}));
    assert_eq!(runner["priority"], -2);
    let rest =
        ["name", "queue", "timeout", "cancel_grace", "drain_timeout", "on_lost"].map(|name| &runner[name]);
    assert_eq!(rest, ["n", "q", "10s", "1m", "2s", "requeue"]);
    // Everything that README's table has can be said so.
    let target = "/v1/runners?keep_open&retry.max_attempts=3&retry.on_exit_codes=75,%202\
                  &on_close.url=https://example.org/done&on_close.secret=KEY";
    let request = Request::new("POST", target).header("content-type", "text/x-shellscript").body("hold");
    let answer = rig.ask(request);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let runner = answer.json();
    assert_eq!((&runner["keep_open"], &runner["retry"]["on_exit_codes"]), (&json!(true), &json!([2, 75])));
    assert_eq!(runner["on_close"], json!({"url": "https://example.org/done", "secret": "KEY"}));
    for (query, field) in [
        ("retry.max_attempts=2&retry.on_exit_codes=x", "retry.on_exit_codes[0]"),
        ("keep_open=yes", "keep_open"),
        ("on_close.secret=KEY", "on_close.url"),
        ("priority=high", "priority"),
        ("timeout=soon", "timeout"),
        ("label=a=b&label=a=c", "label"),
    ] {
        let request = Request::new("POST", &format!("/v1/runners?{query}"));
        let refused = rig.ask(request.header("content-type", "text/x-shellscript").body("true"));
        assert!((400..500).contains(&refused.status));
        assert_eq!(refused.json()["field"], field, "{}", refused.text());
    }
}

#[test]
fn who_waits_is_answered_when_the_runner_has_closed() {
    let rig = Rig::start();
    let done = rig.ask(post("/v1/runners?wait=1h", &json!({"job": {"command": ["true"]}})));
    assert_eq!(done.status, 200);
    let runner = done.json();
    assert_eq!((&runner["state"], &runner["outcome"]), (&json!("closed"), &json!("succeeded")));
    assert_eq!(runner["runs"][0]["attempts"][0]["exit"], json!({"code": 0}));
    assert!(runner["closed_at"].is_string());
    let goes_on = rig.ask(post("/v1/runners?wait=0", &json!({"job": {"command": ["hold"]}})));
    assert_eq!(goes_on.status, 202);
    assert_eq!(goes_on.header("location"), Some(format!("/v1/runners/{}", id(&goes_on)).as_str()));
}

#[test]
fn case_39_a_retry_gets_the_first_answer() {
    let rig = Rig::start();
    let send = |name: &str, target: &str, key: &str| {
        let body = json!({"job": {"command": ["hold"]}, "name": name});
        rig.ask(post(target, &body).header("idempotency-key", key))
    };
    let first = send("a", "/v1/runners", "k1");
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
    for target in ["/v1/runners", "/v1/runners?wait=0"] {
        let again = send("a", target, "k1");
        assert!(again.status < 300);
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(id(&again), id(&first));
    }
    let other = send("b", "/v1/runners", "k1");
    assert_eq!((other.status, other.problem().as_str()), (422, "idempotency-key-reused"));
    assert_eq!(other.json()["runner"], first.json()["id"]);
    assert_ne!(id(&send("a", "/v1/runners", "k2")), id(&first));
    // In parallel: one job.
    let ids: HashSet<_> = thread::scope(|scope| {
        let sends: Vec<_> = (0..16).map(|_| scope.spawn(|| id(&send("p", "/v1/runners", "k3")))).collect();
        sends.into_iter().map(|send| send.join().expect("answered")).collect()
    });
    assert_eq!(ids.len(), 1);
    let named = rig.get("/v1/runners?name=p").json();
    assert_eq!(named["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn case_38_a_client_that_goes_away_takes_nothing_back() {
    let rig = Rig::start();
    let waits = post("/v1/runners?wait=1h", &json!({"job": {"command": ["hold"]}, "name": "left"}));
    let mut socket = rig.unix().connect();
    socket.write_all(&waits.bytes()).expect("sent");
    // It is committed, and then its client goes.
    let mut events =
        rig.unix().open(&Request::new("GET", "/v1/events?cursor=0").header("accept", "text/event-stream"));
    events.take_until("event: running");
    drop(socket);
    let left = rig.get("/v1/runners?name=left").json();
    assert_eq!(left["items"][0]["state"], "running");
    // Half a body is no job.
    let mut half = rig.unix().connect();
    half.write_all(b"POST /v1/runners HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        .expect("sent");
    drop(half);
    assert_eq!(rig.get("/v1/runners").json()["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn lists_are_filtered_and_paged() {
    let rig = Rig::start();
    let mut ids = Vec::new();
    for number in 0..120 {
        let (queue, parity) = if number < 5 { ("small", "odd") } else { ("big", "even") };
        let body = json!({"job": {"command": ["hold"]}, "queue": queue, "name": format!("n{number}"),
            "labels": {"number": number.to_string(), "parity": parity}});
        ids.push(rig.ask(post("/v1/runners", &body)).json()["id"].clone());
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut target = "/v1/runners?limit=51".to_owned();
    loop {
        let page = rig.get(&target).json();
        let items = page["items"].as_array().expect("items").clone();
        assert!(items.len() <= 51);
        seen.extend(items.iter().map(|runner| runner["id"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        target = format!("/v1/runners?limit=51&cursor={cursor}");
    }
    assert_eq!(seen, ids, "newest first, each once");
    let count =
        |query: &str| rig.get(&format!("/v1/runners?{query}")).json()["items"].as_array().map(Vec::len);
    assert_eq!(count(""), Some(100));
    assert_eq!(count("limit=1000"), Some(120));
    assert_eq!(count("queue=small"), Some(5));
    assert_eq!(count("label=parity=odd"), Some(5));
    assert_eq!(count("label=parity=odd&label=number=3"), Some(1));
    assert_eq!(count("name=n7"), Some(1));
    let last: RunnerId = ids[0].as_str().expect("an id").parse().expect("an id");
    rig.ask(Request::new("DELETE", &format!("/v1/runners/{last}")));
    rig.until(last, |record| record.state == State::Closed);
    assert_eq!(count("state=closed"), Some(1));
    assert_eq!(count("state=closed,queued&outcome=cancelled"), Some(1));
    assert_eq!(count("outcome=succeeded,lost"), Some(0));
}

#[test]
fn a_page_of_large_runners_is_short() {
    let rig = Rig::start();
    let script = format!("hold # {}", "x".repeat(900_000));
    for _ in 0..6 {
        assert_eq!(rig.ask(post("/v1/runners", &json!({"job": {"script": script}}))).status, 201);
    }
    let page = rig.get("/v1/runners").json();
    let (items, cursor) = (page["items"].as_array().expect("items").len(), page["next_cursor"].as_str());
    assert!(items < 6 && cursor.is_some());
    let rest = rig.get(&format!("/v1/runners?cursor={}", cursor.expect("a cursor"))).json();
    assert_eq!(rest["items"].as_array().expect("items").len() + items, 6);
}

#[test]
fn the_first_cancel_asks_and_the_second_forces() {
    let rig = Rig::start();
    let id = rig.running("stubborn");
    let cancel = || rig.ask(Request::new("POST", &format!("/v1/runners/{id}/cancel")));
    let first = cancel();
    assert_eq!(first.status, 202, "{}", first.text());
    let first = first.json();
    assert_eq!((&first["id"], &first["state"]), (&json!(id.to_string()), &json!("cancelling")));
    assert_eq!(
        (&first["cancel"]["reason"], &first["cancel"]["forced"]),
        (&json!("requested"), &json!(false))
    );
    assert_eq!(first["cancel"]["survivors"], Value::Null);
    let by = first["cancel"]["by"].as_str().expect("somebody");
    assert!(by.starts_with("user ") && by.ends_with(" on the unix socket"), "{by}");
    assert_eq!(cancel().status, 202);
    rig.until(id, |record| record.state == State::Closed);
    let third = cancel();
    assert_eq!(third.status, 202, "cancelling what was cancelled is no error");
    let receipt = third.json()["cancel"].clone();
    assert_eq!((&receipt["forced"], &receipt["survivors"]), (&json!(true), &json!(0)));
    assert_eq!(third.json()["outcome"], "killed");
    let steps = receipt["steps"].as_array().expect("steps");
    assert_eq!(steps.last().expect("a last step")["action"], "ended");
}

#[test]
fn what_ended_by_itself_can_be_closed_but_not_cancelled() {
    let rig = Rig::start();
    let id = rig.running("true");
    rig.until(id, |record| record.state == State::Closed);
    let refused = rig.ask(Request::new("POST", &format!("/v1/runners/{id}/cancel")));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "runner-closed"));
    let closed = rig.ask(Request::new("DELETE", &format!("/v1/runners/{id}")));
    assert_eq!((closed.status, &closed.json()["outcome"]), (200, &json!("succeeded")));
}

#[test]
fn closing_asks_once_and_never_forces() {
    let rig = Rig::start();
    let id = rig.running("stubborn");
    for _ in 0..3 {
        let answer = rig.ask(Request::new("DELETE", &format!("/v1/runners/{id}")));
        assert_eq!((answer.status, &answer.json()["state"]), (202, &json!("cancelling")));
    }
    assert!(!rig.until(id, |_| true).cancel.as_ref().expect("a receipt").forced);
    rig.jobs.exit(id, 0);
    rig.until(id, |record| record.state == State::Closed);
    assert_eq!(rig.ask(Request::new("DELETE", &format!("/v1/runners/{id}"))).status, 200);
}

#[test]
fn a_full_queue_says_so() {
    let rig = Rig::with(|limits| (limits.max_running, limits.max_queued) = (1, 1));
    rig.running("hold");
    let body = r#"{"job": {"command": ["true"]}}"#;
    assert_eq!(rig.submit(body).status, 201);
    let refused = rig.submit(body);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "queue-full"));
    assert_eq!(refused.header("retry-after"), Some("1"));
}

#[test]
fn the_daemon_tells_of_itself() {
    let rig = Rig::start();
    rig.until_stage(|stage| *stage == Stage::Ready);
    let info = rig.get("/v1/info").json();
    assert_eq!((&info["version"], &info["status"]), (&json!("1.2.3"), &json!("ready")));
    let containment = &info["containment"];
    assert_eq!((&containment["tier"], &containment["detail"]), (&json!("none"), &json!("a test")));
    assert_eq!(containment["limits"], json!([]));
    for name in ["memory", "cpu", "pids"] {
        assert!(containment["limits_missing"][name].is_string(), "{containment}");
    }
    assert_eq!(info["limits"]["max_body"], 1 << 20);
    assert_eq!(info["counts"], json!({"queued": 0, "active": 0}));
}

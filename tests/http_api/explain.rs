//! "Why?" over the API. Each sentence is tested where it is made; here, that the right one comes.

use runward::job::{RunnerId, State};
use serde_json::{Value, json};

use crate::rig::Rig;

fn explain(rig: &Rig, id: RunnerId) -> Value {
    let answer = rig.get(&format!("/v1/runners/{id}/explain"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let why = answer.json();
    assert_eq!(why["id"], id.to_string());
    assert!(
        why["sentence"].as_str().is_some_and(|text| text.starts_with("It ") && text.ends_with('.')),
        "{why}"
    );
    why
}

#[test]
fn why_it_does_not_run_yet() {
    let rig = Rig::start();
    assert_eq!(rig.send("PUT", "/v1/queues/q", &json!({"max_running": 1})).status, 200);
    let submit = |rest: Value| {
        let mut body = json!({"job": {"command": ["hold"]}});
        body.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        rig.accepted(&body)
    };
    let first = submit(json!({"queue": "q", "concurrency_key": "k"}));
    rig.until(first, |record| record.state == State::Running);
    let second = submit(json!({"queue": "q"}));
    let third = submit(json!({"queue": "q"}));
    let why = explain(&rig, third);
    assert_eq!(why["state"], "queued");
    let facts = &why["facts"];
    assert_eq!(facts["reason"], "in_line", "{why}");
    assert_eq!((&facts["position"], &facts["of"], &facts["queue"]), (&json!(2), &json!(2), &json!("q")));
    assert_eq!(facts["ahead"], json!([second.to_string()]));
    assert_eq!(facts["running"], json!([first.to_string()]));
    assert_eq!(facts["limit"], json!({"of": "queue", "max": 1}));
    let keyed = submit(json!({"concurrency_key": "k"}));
    let why = explain(&rig, keyed);
    assert_eq!(why["facts"]["reason"], "key_taken", "{why}");
    assert_eq!(why["facts"]["key_holder"], first.to_string());
    let delayed = submit(json!({"delay": "1h"}));
    assert_eq!(explain(&rig, delayed)["facts"]["reason"], "delayed");
    assert_eq!(rig.send("PUT", "/v1/queues/q", &json!({"paused": true})).status, 200);
    assert_eq!(explain(&rig, second)["facts"]["reason"], "queue_paused");
}

#[test]
fn what_it_is_at_and_why_it_ended() {
    let rig = Rig::start();
    let id = rig.running("stubborn");
    let why = explain(&rig, id);
    assert_eq!((&why["facts"]["reason"], &why["facts"]["pid"]), (&json!("running"), &json!(4711)));
    rig.bare("POST", &format!("/v1/runners/{id}/cancel"));
    let why = explain(&rig, id);
    assert_eq!((&why["state"], &why["facts"]["reason"]), (&json!("cancelling"), &json!("cleaning_up")));
    assert!(why["facts"]["until"].is_string(), "{why}");
    rig.bare("POST", &format!("/v1/runners/{id}/cancel"));
    rig.until(id, |record| record.state == State::Closed);
    let why = explain(&rig, id);
    assert_eq!(
        (&why["facts"]["reason"], &why["facts"]["outcome"]),
        (&json!("killed"), &json!("killed")),
        "{why}"
    );
    let failed = rig.running("false");
    rig.until(failed, |record| record.state == State::Closed);
    let why = explain(&rig, failed);
    assert_eq!((&why["facts"]["reason"], &why["facts"]["exit"]), (&json!("exit_code"), &json!({"code": 1})));
}

#[test]
fn a_backoff_is_told_with_its_end() {
    let rig = Rig::start();
    let retry = json!({"max_attempts": 3, "initial_backoff": "1h", "max_backoff": "1h"});
    let id = rig.accepted(&json!({"job": {"command": ["false"]}, "retry": retry}));
    rig.until(id, |record| record.not_before.is_some());
    let why = explain(&rig, id);
    assert_eq!(why["facts"]["reason"], "backoff", "{why}");
    assert_eq!((&why["facts"]["attempt"], &why["facts"]["max_attempts"]), (&json!(1), &json!(3)));
    let runner = rig.get(&format!("/v1/runners/{id}")).json();
    assert_eq!(why["facts"]["until"], runner["not_before"]);
    rig.bare("DELETE", &format!("/v1/runners/{id}"));
    rig.until(id, |record| record.state == State::Closed);
    assert_eq!(explain(&rig, id)["facts"]["reason"], "cancelled_in_queue");
}

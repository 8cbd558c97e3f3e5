//! Queues: seen, changed, paused; and what keeps a job waiting in one.

use runward::job::State;
use serde_json::{Value, json};

use crate::rig::Rig;

fn hold(queue: &str) -> Value {
    json!({"job": {"command": ["hold"]}, "queue": queue})
}

#[test]
fn a_queue_is_there_by_being_named() {
    let rig = Rig::start();
    let unused = json!({"name": "unused", "max_running": null, "paused": false, "changed": false, "queued": 0,
        "ready": 0, "running": 0, "slots_taken": 0});
    assert_eq!(rig.get("/v1/queues/unused").json(), unused);
    assert_eq!(rig.get("/v1/queues").json(), json!({"items": []}));
    let id = rig.accepted(&json!({"job": {"command": ["hold"]}, "queue": "used", "weight": 3}));
    rig.until(id, |record| record.state == State::Running);
    let used = rig.get("/v1/queues/used").json();
    assert_eq!((&used["running"], &used["slots_taken"]), (&json!(1), &json!(3)), "{used}");
    assert_eq!(rig.get("/v1/queues").json()["items"], json!([used]));
}

#[test]
fn a_change_of_a_part_keeps_the_rest_and_takes_effect_at_once() {
    let rig = Rig::start();
    let set = |body: Value| {
        let answer = rig.send("PUT", "/v1/queues/q", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let queue = answer.json();
        (queue["max_running"].clone(), queue["paused"].clone(), queue["changed"].clone())
    };
    assert_eq!(set(json!({"paused": true})), (json!(null), json!(true), json!(true)));
    assert_eq!(set(json!({"max_running": 1})), (json!(1), json!(true), json!(true)));
    let [first, second] = [rig.accepted(&hold("q")), rig.accepted(&hold("q"))];
    let queue = rig.get("/v1/queues/q").json();
    assert_eq!((&queue["queued"], &queue["running"]), (&json!(2), &json!(0)));
    assert_eq!(set(json!({"paused": false})), (json!(1), json!(false), json!(true)));
    rig.until(first, |record| record.state == State::Running);
    let queue = rig.get("/v1/queues/q").json();
    assert_eq!((&queue["queued"], &queue["ready"], &queue["running"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(set(json!({"max_running": null})), (json!(null), json!(false), json!(true)));
    rig.until(second, |record| record.state == State::Running);
    let reset = rig.bare("DELETE", "/v1/queues/q");
    assert_eq!((reset.status, &reset.json()["changed"]), (200, &json!(false)), "{}", reset.text());
}

#[test]
fn parts_that_are_changed_at_once_are_all_kept() {
    let rig = Rig::start();
    std::thread::scope(|scope| {
        for round in 0..8 {
            let part = if round % 2 == 0 { json!({"paused": true}) } else { json!({"max_running": 7}) };
            let rig = &rig;
            scope.spawn(move || assert_eq!(rig.send("PUT", "/v1/queues/q", &part).status, 200));
        }
    });
    let queue = rig.get("/v1/queues/q").json();
    assert_eq!((&queue["paused"], &queue["max_running"]), (&json!(true), &json!(7)));
}

#[test]
fn a_submission_has_all_that_says_when_it_may_run() {
    let rig = Rig::start();
    let body = json!({
        "job": {"command": ["hold"]}, "weight": 2, "start_at": "2099-01-31T07:00:00+01:00", "concurrency_key": "k",
        "deadline": "2d", "on_shutdown": "hold", "keep_open": true,
        "retry": {"max_attempts": 3, "initial_backoff": "2s", "max_backoff": "1m30s", "on_exit_codes": [75]},
        "on_close": {"url": "https://example.org/done", "secret": "KEY"},
    });
    let runner = rig.send("POST", "/v1/runners", &body).json();
    for (field, value) in body.as_object().expect("an object").iter().filter(|(field, _)| *field != "job") {
        match field.as_str() {
            "start_at" => assert_eq!(runner["not_before"], "2099-01-31T06:00:00.000000Z"),
            "deadline" => assert_eq!(runner["deadline"], "48h"),
            _ => assert_eq!(&runner[field], value, "{field}"),
        }
    }
    assert_eq!(runner["state"], "queued");
}

#[test]
fn a_script_says_so_in_its_query() {
    let rig = Rig::start();
    let target = "/v1/runners?delay=1h&weight=2&concurrency_key=a%20b&deadline=3h&on_shutdown=requeue\
                  &retry.max_attempts=3&retry.initial_backoff=5s";
    let request = crate::client::Request::new("POST", target);
    let answer = rig.ask(request.header("content-type", "text/x-shellscript").body("hold"));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let runner = answer.json();
    assert!(runner["not_before"].is_string(), "{runner}");
    let fields = ["weight", "concurrency_key", "deadline", "on_shutdown"].map(|name| runner[name].clone());
    assert_eq!(fields, [json!(2), json!("a b"), json!("3h"), json!("requeue")]);
    let retry = json!({"max_attempts": 3, "initial_backoff": "5s", "max_backoff": "1m", "on_exit_codes": []});
    assert_eq!(runner["retry"], retry);
}

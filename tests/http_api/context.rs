//! The shared context: see, set, unset.

use serde_json::{Value, json};

use crate::{
    client::{Request, Response},
    rig::Rig,
};

fn put(rig: &Rig, name: &str, body: &Value) -> Response {
    let request = Request::new("PUT", &format!("/v1/context/{name}"));
    rig.ask(request.header("content-type", "application/json").body(body.to_string()))
}

fn set(rig: &Rig, name: &str, body: Value) -> Value {
    let answer = put(rig, name, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// A problem's kind and field.
fn refused(rig: &Rig, name: &str, body: Value) -> (u16, String, String) {
    let answer = put(rig, name, &body);
    let field = answer.json()["field"].as_str().unwrap_or_default().to_owned();
    (answer.status, answer.problem(), field)
}

#[test]
fn variables_are_set_seen_and_unset() {
    let rig = Rig::start();
    assert_eq!(rig.get("/v1/context").json(), json!({"version": 0, "variables": []}));
    let mut plain = set(&rig, "PGHOST", json!({"value": "db1"}));
    assert!(plain["set_at"].take().as_str().is_some_and(|at| at.ends_with('Z')));
    let shown = json!({
        "name": "PGHOST", "value": "db1", "secret": false, "source": "inline", "from": null, "version": 1, "set_at": null,
    });
    assert_eq!(plain, shown);
    for (number, (from, source, place)) in [
        (json!({"file": "/run/secrets/db"}), "file", "/run/secrets/db"),
        (json!({"env": "DB_PASSWORD"}), "env", "DB_PASSWORD"),
        (json!({"credential": "db"}), "credential", "db"),
    ]
    .into_iter()
    .enumerate()
    {
        let variable = set(&rig, "DB", json!({"from": from}));
        assert_eq!((&variable["source"], &variable["from"]), (&json!(source), &json!(place)));
        assert_eq!((&variable["value"], &variable["secret"]), (&Value::Null, &json!(true)));
        assert_eq!(variable["version"], 2 + number);
    }
    let names = |list: &Value| -> Vec<String> {
        let variables = list["variables"].as_array().expect("a list").iter();
        variables.map(|variable| variable["name"].as_str().expect("a name").to_owned()).collect()
    };
    let list = rig.get("/v1/context").json();
    assert_eq!((names(&list), &list["version"]), (vec!["DB".into(), "PGHOST".into()], &json!(4)));
    assert_eq!(rig.get("/v1/context/PGHOST").json()["value"], "db1");
    let gone = rig.ask(Request::new("DELETE", "/v1/context/DB"));
    assert_eq!((gone.status, gone.json()), (200, json!({"version": 5})));
    for method in ["GET", "DELETE"] {
        let answer = rig.ask(Request::new(method, "/v1/context/DB"));
        assert_eq!((answer.status, answer.problem().as_str()), (404, "variable-not-found"));
    }
    assert_eq!(names(&rig.get("/v1/context").json()), ["PGHOST"]);
}

#[test]
fn a_secret_is_never_shown() {
    let rig = Rig::start();
    let answer = put(&rig, "TOKEN", &json!({"value": "hush-hush", "secret": true}));
    let shown = [answer, rig.get("/v1/context/TOKEN"), rig.get("/v1/context")];
    for answer in shown {
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("hush"), "{}", answer.text());
    }
    let variable = rig.get("/v1/context/TOKEN").json();
    assert_eq!(
        (&variable["value"], &variable["secret"], &variable["source"]),
        (&Value::Null, &json!(true), &json!("inline"))
    );
    // A mistake does not repeat it either.
    for body in [r#"{"value": "hush-hush", "secret": 1}"#, r#"{"value": "hush-hush", "secret": true"#] {
        let request = Request::new("PUT", "/v1/context/TOKEN").header("content-type", "application/json");
        let answer = rig.ask(request.body(body));
        assert!(answer.status >= 400 && !answer.text().contains("hush"), "{}", answer.text());
    }
}

#[test]
fn each_fault_names_its_field() {
    let rig = Rig::start();
    for (name, body, kind, field) in [
        ("A", json!({}), "missing-field", "value"),
        ("A", json!({"value": 1}), "invalid-field", "value"),
        ("A", json!({"value": "a\u{0}"}), "invalid-field", "value"),
        ("A", json!({"value": "x".repeat((64 << 10) + 1)}), "invalid-field", "value"),
        ("A", json!({"value": "a", "sceret": true}), "unknown-field", "sceret"),
        ("A", json!({"value": "a", "from": {"env": "B"}}), "invalid-field", "from"),
        ("A", json!({"from": {}}), "invalid-field", "from"),
        ("A", json!({"from": {"file": "/a", "env": "B"}}), "invalid-field", "from"),
        ("A", json!({"from": {"file": "a"}}), "invalid-field", "from.file"),
        ("A", json!({"from": {"env": "A=B"}}), "invalid-field", "from.env"),
        ("A", json!({"from": {"credential": "../token"}}), "invalid-field", "from.credential"),
        ("A", json!({"from": {"credential": "a/b"}}), "invalid-field", "from.credential"),
        ("A", json!({"from": {"env": "B"}, "secret": false}), "invalid-field", "secret"),
        ("A%3DB", json!({"value": "a"}), "invalid-field", "name"),
        ("A%00", json!({"value": "a"}), "invalid-field", "name"),
        ("A%0A", json!({"value": "a"}), "invalid-field", "name"),
        ("RUNWARD_RUNNER", json!({"value": "a"}), "invalid-field", "name"),
    ] {
        let shown: String = body.to_string().chars().take(80).collect();
        assert_eq!(refused(&rig, name, body), (422, kind.into(), field.into()), "{name}: {shown}");
    }
    assert_eq!(refused(&rig, &"A".repeat(256), json!({"value": "a"})).2, "name");
    assert_eq!(rig.get("/v1/context").json()["version"], 0, "nothing was set");
    let script = Request::new("PUT", "/v1/context/A").header("content-type", "text/x-shellscript").body("a");
    assert_eq!(rig.ask(script).status, 415);
}

#[test]
fn it_is_bounded_in_number_and_size() {
    let rig = Rig::start();
    let large = "x".repeat(64 << 10);
    for number in 0..15 {
        set(&rig, &format!("L{number}"), json!({"value": large}));
    }
    let full = put(&rig, "L15", &json!({"value": large}));
    assert_eq!((full.status, full.problem().as_str()), (409, "context-full"));
    set(&rig, "L0", json!({"value": large, "secret": true}));
    for number in 0..15 {
        assert_eq!(rig.ask(Request::new("DELETE", &format!("/v1/context/L{number}"))).status, 200);
    }
    for number in 0..1000 {
        set(&rig, &format!("N{number}"), json!({"value": ""}));
    }
    let full = put(&rig, "N1000", &json!({"value": ""}));
    assert_eq!((full.status, full.problem().as_str()), (409, "context-full"));
    set(&rig, "N0", json!({"value": "changed"}));
}

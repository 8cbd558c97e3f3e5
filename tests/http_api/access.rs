//! Who is let in: every route, and everybody who might ask.

use runward::http::access::ROUTES;

use crate::{client::Request, rig::Rig};

const NO_RUNNER: &str = "00000000-0000-7000-8000-000000000000";
const SUBMISSION: &str = r#"{"job": {"command": ["true"]}}"#;

/// A route, and the answers to: no token, a wrong token, the right one, and the right one with a body of a type that
/// the route does not take. A foreign Host, a foreign Origin and a cross-site request are 403 everywhere.
const ROWS: &[(&str, &str, [u16; 4])] = &[
    ("GET", "/livez", [200, 200, 200, 200]),
    ("GET", "/readyz", [200, 200, 200, 200]),
    ("GET", "/openapi.json", [401, 401, 200, 200]),
    ("GET", "/metrics", [401, 401, 200, 200]),
    ("POST", "/v1/reload", [401, 401, 200, 400]),
    ("GET", "/v1/info", [401, 401, 200, 200]),
    ("GET", "/v1/events", [401, 401, 200, 200]),
    ("GET", "/v1/context", [401, 401, 200, 200]),
    ("GET", "/v1/context/{name}", [401, 401, 404, 404]),
    ("PUT", "/v1/context/{name}", [401, 401, 200, 415]),
    ("DELETE", "/v1/context/{name}", [401, 401, 404, 404]),
    ("GET", "/v1/runners", [401, 401, 200, 200]),
    ("POST", "/v1/runners", [401, 401, 201, 415]),
    ("GET", "/v1/runners/{id}", [401, 401, 404, 404]),
    ("DELETE", "/v1/runners/{id}", [401, 401, 404, 404]),
    ("POST", "/v1/runners/{id}/cancel", [401, 401, 404, 400]),
    ("GET", "/v1/runners/{id}/loop", [401, 401, 404, 404]),
    ("GET", "/v1/runners/{id}/events", [401, 401, 404, 404]),
    ("GET", "/v1/runners/{id}/logs", [401, 401, 404, 404]),
    ("GET", "/v1/runners/{id}/explain", [401, 401, 404, 404]),
    ("POST", "/v1/runners/{id}/runs", [401, 401, 404, 415]),
    ("POST", "/v1/runners/{id}/release", [401, 401, 404, 400]),
    ("POST", "/v1/runners:batch", [401, 401, 200, 415]),
    ("POST", "/v1/runners:cancel", [401, 401, 200, 415]),
    ("GET", "/v1/queues", [401, 401, 200, 200]),
    ("GET", "/v1/queues/{name}", [401, 401, 200, 200]),
    ("PUT", "/v1/queues/{name}", [401, 401, 200, 415]),
    ("DELETE", "/v1/queues/{name}", [401, 401, 200, 200]),
    // What is no route is told to those only who may read.
    ("GET", "/v1/nothing", [401, 401, 404, 404]),
    ("PUT", "/v1/runners", [401, 401, 405, 405]),
    ("OPTIONS", "/v1/runners", [401, 401, 405, 405]),
];

fn bare(method: &str, route: &str) -> Request {
    // So that a variable that one row sets is none that another row looks for.
    let name = if method == "PUT" { "q" } else { "none" };
    Request::new(method, &route.replace("{id}", NO_RUNNER).replace("{name}", name))
}

fn request(method: &str, route: &str) -> Request {
    let body = match (method, route) {
        ("POST", "/v1/runners" | "/v1/runners/{id}/runs") => SUBMISSION,
        ("POST", "/v1/runners:batch") => r#"{"runners": [{"job": {"command": ["true"]}}]}"#,
        ("POST", "/v1/runners:cancel") => r#"{"queue": "empty"}"#,
        ("PUT", "/v1/queues/{name}") => r#"{"paused": true}"#,
        ("PUT", "/v1/context/{name}") => r#"{"value": "x"}"#,
        _ => return bare(method, route),
    };
    bare(method, route).header("content-type", "application/json").body(body)
}

fn of_wrong_type(method: &str, route: &str) -> Request {
    bare(method, route).header("content-type", "text/html").body("<p>")
}

#[test]
fn every_route_lets_in_whom_it_should() {
    let rig = Rig::start();
    rig.until_stage(|stage| *stage == runward::supervisor::Stage::Ready);
    for (method, route, [none, wrong, right, wrong_type]) in ROWS {
        let tcp = |request: Request, expected: u16, who: &str| {
            let answer = rig.tcp().send(&request);
            assert_eq!(answer.status, expected, "{method} {route}, {who}: {}", answer.text());
            if expected >= 400 {
                answer.problem();
            }
            if expected == 401 {
                assert!(answer.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
                assert!(answer.text().contains("the file `token`"), "{}", answer.text());
            }
            assert!(!answer.text().contains(&rig.token), "{method} {route}, {who}: it tells the token");
        };
        let plain = || request(method, route);
        tcp(plain(), *none, "no token");
        tcp(plain().token("wrong"), *wrong, "a wrong token");
        tcp(plain().token(&rig.token[1..]), *wrong, "nearly the token");
        tcp(plain().token(&rig.token), *right, "the token");
        tcp(of_wrong_type(method, route).token(&rig.token), *wrong_type, "a body of the wrong type");
        for (name, value) in [
            ("host", "evil.example"),
            ("host", "localhost.evil.example"),
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
        ] {
            tcp(plain().token(&rig.token).header(name, value), 403, &format!("{name}: {value}"));
        }
        let own = rig.ask(plain());
        assert_eq!(own.status, *right, "{method} {route}, on the unix socket: {}", own.text());
    }
}

#[test]
fn every_route_has_a_row() {
    for (method, route, _) in ROUTES {
        let rows = ROWS.iter().filter(|(known, path, _)| known == method && path == route).count();
        assert_eq!(rows, 1, "{method} {route}");
    }
}

#[test]
fn every_route_is_described_and_answers() {
    let rig = Rig::start();
    let document = rig.get("/openapi.json").json();
    let described = document["paths"].as_object().expect("paths");
    let operations: usize = described.values().map(|item| item.as_object().expect("operations").len()).sum();
    assert_eq!(operations, ROUTES.len());
    for (method, route, _) in ROUTES {
        let method = method.as_str();
        assert!(described[*route][method.to_lowercase()].is_object(), "{method} {route}");
        let answer = rig.ask(request(method, route));
        assert!(answer.status < 500 && answer.status != 405, "{method} {route}: {}", answer.text());
        if answer.status == 404 {
            let problem = answer.problem();
            assert!(
                ["runner-not-found", "variable-not-found"].contains(&&*problem),
                "{method} {route}: {problem}"
            );
        }
    }
}

#[test]
fn a_configured_name_and_the_bound_address_are_hosts() {
    let rig = Rig::start();
    for host in [rig.tcp.to_string(), "build.example".into(), "BUILD.example:443".into(), "[::1]:1".into()] {
        assert_eq!(
            rig.tcp().send(&Request::new("GET", "/livez").header("host", &host)).status,
            200,
            "{host}"
        );
    }
    assert_eq!(rig.tcp().raw(b"GET /livez HTTP/1.0\r\n\r\n").problem(), "foreign-host");
    let absolute = b"GET http://evil.example/livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(rig.tcp().raw(absolute).problem(), "foreign-host");
}

#[test]
fn the_probes_disclose_nothing() {
    let rig = Rig::start();
    rig.until_stage(|stage| *stage == runward::supervisor::Stage::Ready);
    assert_eq!(rig.tcp().send(&Request::new("GET", "/livez")).text(), "ok\n");
    assert_eq!(rig.tcp().send(&Request::new("GET", "/readyz")).text(), "{\"status\":\"ready\"}\n");
}

#[test]
fn a_daemon_that_drains_is_alive_and_not_ready() {
    let rig = Rig::start();
    let id = rig.running("stubborn");
    rig.signal();
    rig.until_stage(|stage| matches!(stage, runward::supervisor::Stage::Draining { .. }));
    assert_eq!(rig.get("/livez").status, 200);
    let ready = rig.get("/readyz");
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["status"], "draining");
    assert_eq!(ready.json()["active"], 1);
    assert!(ready.json()["seconds_left"].as_u64().is_some_and(|seconds| seconds <= 3600));
    let refused = rig.submit(SUBMISSION);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "shutting-down"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(rig.get(&format!("/v1/runners/{id}")).json()["state"], "cancelling");
    assert_eq!(rig.ask(Request::new("POST", &format!("/v1/runners/{id}/cancel"))).status, 202);
}

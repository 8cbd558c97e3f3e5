//! Whatever comes in, the answer is a 4xx that says what would be right.

use crate::{client::Request, rig::Rig};

fn post(content_type: &str, body: impl AsRef<[u8]>) -> Request {
    Request::new("POST", "/v1/runners").header("content-type", content_type).body(body)
}

fn json(body: impl AsRef<[u8]>) -> Request {
    post("application/json", body)
}

fn send(method: &str, target: &str, body: &str) -> Request {
    Request::new(method, target).header("content-type", "application/json").body(body)
}

fn job(rest: &str) -> Request {
    json(format!(r#"{{"job": {{"command": ["true"]}}, {rest}}}"#))
}

#[test]
fn garbage_is_refused_in_words() {
    let rig = Rig::start();
    let deep = format!(r#"{{"labels": {}1{}}}"#, r#"{"a":"#.repeat(64), "}".repeat(64));
    let many_headers = (0..80)
        .fold(Request::new("GET", "/v1/info"), |request, number| request.header(&format!("x-{number}"), "x"));
    let runner = "/v1/runners/00000000-0000-7000-8000-000000000000";
    for (what, request, status, kind, says) in [
        ("no JSON", json("{\"job\": }"), 400, "invalid-json", "line 1 column 9"),
        ("nothing", json(""), 400, "invalid-json", "the body is empty"),
        ("half a body", json("{\"job\""), 400, "invalid-json", "line 1 column 6"),
        ("two values", json("{} {}"), 400, "invalid-json", "trailing characters"),
        ("NaN", job("\"priority\": NaN"), 400, "invalid-json", "line 1"),
        ("1e999", job("\"priority\": 1e999"), 400, "invalid-json", "number out of range"),
        (
            "a huge number",
            job("\"priority\": 123456789012345678901234567890"),
            422,
            "invalid-field",
            "whole number",
        ),
        (
            "an argument that is too big",
            json(r#"{"job": {"handler": {"name": "echo", "args": {"n": [1180591620717411303424]}}}}"#),
            422,
            "invalid-field",
            "`job.handler.args.n[0]` must be a whole number of 64 bits at the most",
        ),
        ("a lone surrogate", job(r#""name": "\ud800""#), 400, "invalid-json", "line 1"),
        ("no UTF-8", json(b"{\"job\": \"\xff\"}"), 400, "invalid-body", "UTF-8"),
        ("depth 65", json(&deep), 400, "too-deep", "64 levels"),
        (
            "a duplicate key",
            job("\"name\": \"a\", \"name\": \"b\""),
            400,
            "duplicate-key",
            "`name` stands twice",
        ),
        (
            "a key that would not be read back",
            json(
                r#"{"job": {"handler": {"name": "echo", "args": {"$serde_json::private::RawValue": "1"}}}}"#,
            ),
            422,
            "invalid-field",
            "are reserved",
        ),
        ("an unknown field", job("\"tiemout\": 1"), 422, "unknown-field", "did you mean \"timeout\"?"),
        ("a wrong type", job("\"name\": 1"), 422, "invalid-field", "`name` must be a string"),
        ("no object", json("[]"), 422, "invalid-field", "a JSON object"),
        ("no job", json("{}"), 422, "missing-field", "`job` is missing"),
        (
            "empty argv",
            json(r#"{"job": {"command": []}}"#),
            422,
            "invalid-field",
            "non-empty list of strings",
        ),
        ("NUL", json(r#"{"job": {"command": ["a\u0000"]}}"#), 422, "invalid-field", "NUL"),
        ("a retry of nothing", job("\"retry\": {}"), 422, "missing-field", "`retry.max_attempts` is missing"),
        (
            "a busy loop",
            job("\"retry\": {\"max_attempts\": 9, \"initial_backoff\": \"1ms\"}"),
            422,
            "invalid-field",
            "`retry.initial_backoff` must be 1s at the least",
        ),
        ("a vague time", job("\"start_at\": \"tomorrow\""), 422, "invalid-field", "RFC 3339"),
        (
            "a time too far away",
            job("\"start_at\": \"9999-12-31T23:59:59Z\""),
            422,
            "invalid-field",
            "`start_at` must be no later than 9999-12-30T22:00:00Z",
        ),
        ("no offset", job("\"start_at\": \"9999-12-31T23:59:59\""), 422, "invalid-field", "RFC 3339"),
        (
            "a wait of less",
            send("POST", "/v1/runners?wait=-1", "{}"),
            400,
            "invalid-parameter",
            "from 0 to 1h",
        ),
        (
            "two times",
            job("\"start_at\": \"2030-01-31T06:00:00Z\", \"delay\": 1"),
            422,
            "invalid-field",
            "`start_at` must be left out",
        ),
        ("no time at all", job("\"deadline\": 0"), 422, "invalid-field", "`deadline` must be longer than 0"),
        ("no slots", job("\"weight\": 0"), 422, "invalid-field", "from 1 to 1000"),
        ("all slots", job("\"weight\": 65"), 422, "too-heavy", "`weight` must be 64 at the most"),
        ("an empty key", job("\"concurrency_key\": \"\""), 422, "invalid-field", "1 to 255 characters"),
        (
            "a webhook to a file",
            job("\"on_close\": {\"url\": \"file:///etc/passwd\"}"),
            422,
            "invalid-field",
            "http:// or https://",
        ),
        (
            "no runs",
            send("POST", &format!("{runner}/runs"), "{}"),
            404,
            "runner-not-found",
            "GET /v1/runners lists",
        ),
        (
            "a queue of no name",
            send("PUT", "/v1/queues/a%20b", "{}"),
            400,
            "invalid-parameter",
            "letters, digits",
        ),
        (
            "nothing to set",
            send("PUT", "/v1/queues/q", "{}"),
            422,
            "missing-field",
            "`max_running`, `paused`",
        ),
        (
            "a queue of less than nothing",
            send("PUT", "/v1/queues/q", "{\"max_running\": -1}"),
            422,
            "invalid-field",
            "from 0 to 1000000",
        ),
        (
            "a misspelt setting",
            send("PUT", "/v1/queues/q", "{\"pause\": true}"),
            422,
            "unknown-field",
            "did you mean \"paused\"?",
        ),
        ("no batch", send("POST", "/v1/runners:batch", "{}"), 422, "missing-field", "`runners` is missing"),
        (
            "an empty batch",
            send("POST", "/v1/runners:batch", "{\"runners\": []}"),
            422,
            "invalid-field",
            "1 to 1000 submissions",
        ),
        (
            "a long batch",
            send("POST", "/v1/runners:batch", &format!("{{\"runners\": [{}0]}}", "0,".repeat(1000))),
            422,
            "invalid-field",
            "1 to 1000 submissions",
        ),
        ("no filter", send("POST", "/v1/runners:cancel", "{}"), 422, "missing-field", "{\"all\": true}"),
        (
            "a filter of nothing",
            send("POST", "/v1/runners:cancel", "{\"state\": [], \"label\": {}}"),
            422,
            "missing-field",
            "say which",
        ),
        (
            "all and some",
            send("POST", "/v1/runners:cancel", "{\"all\": true, \"queue\": \"q\"}"),
            422,
            "invalid-field",
            "`all` must be left out",
        ),
        (
            "closed ones",
            send("POST", "/v1/runners:cancel", "{\"state\": \"closed\"}"),
            422,
            "invalid-field",
            "value of `state`:",
        ),
        (
            "an order to release",
            Request::new("POST", &format!("{runner}/release")).body("{}"),
            400,
            "invalid-body",
            "no body",
        ),
        ("10 MiB", json("x".repeat(10 << 20)), 413, "body-too-large", "1048576 bytes"),
        (
            "no type",
            Request::new("POST", "/v1/runners").body("{}"),
            415,
            "unsupported-media-type",
            "application/json",
        ),
        (
            "a form",
            post("application/x-www-form-urlencoded", "{}"),
            415,
            "unsupported-media-type",
            "application/json",
        ),
        (
            "gzip",
            json("{}").header("content-encoding", "gzip"),
            415,
            "unsupported-media-type",
            "without Content-Encoding",
        ),
        ("an empty script", post("text/x-shellscript", ""), 422, "invalid-field", "not empty"),
        ("empty python", post("text/x-python", ""), 422, "invalid-field", "async def main(): …"),
        ("an unknown runner", Request::new("GET", runner), 404, "runner-not-found", "GET /v1/runners lists"),
        ("no id", Request::new("GET", "/v1/runners/1"), 404, "runner-not-found", "ids are UUIDs"),
        (
            "an id in braces",
            Request::new("GET", "/v1/runners/%7B%7D"),
            404,
            "runner-not-found",
            "ids are UUIDs",
        ),
        (
            "an id of no text",
            Request::new("GET", "/v1/runners/%FF"),
            404,
            "runner-not-found",
            "ids are UUIDs",
        ),
        (
            "an unknown route",
            Request::new("GET", "/v1/runner"),
            404,
            "route-not-found",
            "did you mean /v1/runners?",
        ),
        ("a way up", Request::new("GET", "/v1/runners/../info"), 404, "route-not-found", "/openapi.json"),
        ("a wrong method", Request::new("PATCH", "/v1/runners"), 405, "method-not-allowed", "GET, POST"),
        (
            "an unknown parameter",
            Request::new("GET", "/v1/runners?stat=x"),
            400,
            "unknown-parameter",
            "\"state\"?",
        ),
        (
            "a wrong parameter",
            Request::new("GET", "/v1/runners?limit=0"),
            400,
            "invalid-parameter",
            "from 1 to 1000",
        ),
        (
            "a wrong state",
            Request::new("GET", "/v1/runners?state=runing"),
            400,
            "invalid-parameter",
            "\"running\"?",
        ),
        (
            "a parameter for a probe",
            Request::new("GET", "/livez?x"),
            400,
            "unknown-parameter",
            "there are none",
        ),
        (
            "a wrong wait",
            job("\"name\": \"n\"").target("/v1/runners?wait=soon"),
            400,
            "invalid-parameter",
            "a duration",
        ),
        (
            "a long wait",
            job("\"name\": \"n\"").target("/v1/runners?wait=2h"),
            400,
            "invalid-parameter",
            "from 0 to 1h; to wait longer, follow the events",
        ),
        (
            "both",
            job("\"name\": \"n\"").target("/v1/runners?wait=1s&follow"),
            400,
            "invalid-parameter",
            "left out",
        ),
        (
            "a wrong key",
            job("\"name\": \"n\"").header("idempotency-key", "a b"),
            400,
            "invalid-header",
            "visible ASCII",
        ),
        ("many headers", many_headers, 431, "too-many-headers", "64 at the most"),
        (
            "a long path",
            Request::new("GET", &format!("/{}", "x".repeat(20_000))),
            414,
            "uri-too-long",
            "16384",
        ),
        (
            "a wrong event",
            Request::new("GET", "/v1/events").header("last-event-id", "x"),
            400,
            "invalid-header",
            "whole number",
        ),
        (
            "an order to cancel",
            Request::new("POST", &format!("{runner}/cancel")).body("{}"),
            400,
            "invalid-body",
            "no body",
        ),
    ] {
        let answer = rig.ask(request);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert_eq!(answer.problem(), kind, "{what}: {}", answer.text());
        let detail = answer.json()["detail"].as_str().expect("a detail").to_owned();
        assert!(detail.contains(says), "{what}: {detail}");
    }
    let none = rig.get("/v1/runners").json();
    assert_eq!(none["items"].as_array().map(Vec::len), Some(0), "nothing of it was accepted");
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    let rig = Rig::start();
    assert_eq!(rig.ask(Request::new("PUT", "/livez")).header("allow"), Some("GET"));
    assert_eq!(rig.ask(Request::new("PATCH", "/v1/runners")).header("allow"), Some("GET, POST"));
}

#[test]
fn what_is_no_http_ends_in_a_4xx() {
    let rig = Rig::start();
    for bytes in [
        &b"hello\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /v1/runners HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/runners HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ] {
        let answer = rig.unix().raw(bytes);
        assert!(
            (400..500).contains(&answer.status),
            "{:?}: {}",
            String::from_utf8_lossy(bytes),
            answer.status
        );
    }
    let bad_chunk = b"POST /v1/runners HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
        transfer-encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(rig.unix().raw(bad_chunk).problem(), "invalid-body");
}

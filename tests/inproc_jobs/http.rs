use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    common::{Daemon, Setup},
    failure, result,
    server::Server,
    start,
};

super::tests! {
    an_http_job_gives_status_headers_and_body
    an_http_job_sends_what_it_is_told_to_and_secrets_stay_secret
    another_status_than_expected_is_a_failure_with_its_result
    redirects_are_followed_so_far_and_no_further
    secrets_do_not_follow_a_redirect_to_another_origin
    a_large_body_is_cut_and_said_to_be
    case_46_an_http_job_can_not_reach_the_daemons_own_api
    an_address_where_nobody_answers_is_http_connect
    an_http_job_stops_at_once_when_it_is_cancelled
    an_http_job_has_one_deadline_for_all_of_it
    tls_needs_a_certificate_that_the_system_trusts
}

fn run(daemon: &Daemon, http: Value) -> Value {
    daemon.run(json!({"job": {"http": http}}))
}

fn an_http_job_gives_status_headers_and_body() {
    let (daemon, server) = (start(), Server::start());
    let runner = run(&daemon, json!(server.url("/")));
    assert_eq!(runner["outcome"], "succeeded", "{runner}");
    let result = result(&runner);
    assert_eq!(
        (&result["status"], &result["body"], &result["truncated"], &result["redirects"]),
        (&json!(200), &json!("hello"), &json!(false), &json!(0))
    );
    assert_eq!(result["url"], server.url("/"));
    assert_eq!(result["headers"]["content-length"], "5");
    let id = super::common::id(&runner);
    assert_eq!(daemon.text(&format!("/v1/runners/{id}/logs?stream=stdout")), "hello");
    assert_eq!(super::attempt(&runner)["output"]["bytes"], 5);
    let twice = run(&daemon, json!(server.url("/twice")));
    assert_eq!(super::result(&twice)["headers"]["set-cookie"], json!(["a=1", "b=2"]));
    let binary = run(&daemon, json!(server.url("/binary")));
    assert_eq!(super::result(&binary)["body_base64"], "/wA=");
}

fn an_http_job_sends_what_it_is_told_to_and_secrets_stay_secret() {
    let (daemon, server) = (start(), Server::start());
    let runner = daemon.run(json!({
        "job": {"http": {
            "method": "put", "url": server.url("/echo"), "body": {"a": [1]},
            "headers": {"x-a": "b"},
        }},
    }));
    let sent: Value = serde_json::from_str(result(&runner)["body"].as_str().expect("text")).expect("JSON");
    assert_eq!((&sent["method"], &sent["body"]), (&json!("PUT"), &json!("{\"a\":[1]}")));
    assert_eq!(sent["headers"]["content-type"], "application/json");
    assert_eq!(sent["headers"]["x-a"], "b");
    assert_eq!(sent["headers"]["host"], server.address.to_string());
    assert_eq!(runner["job"]["http"]["body"], json!({"a": [1]}), "it is shown as it was sent in");

    // The server does not say what it was sent: nobody else may.
    let secret = "s3cr3t-of-the-test";
    let runner = daemon.run(json!({
        "job": {"http": {
            "url": server.url("/status/500"), "body": {"context": "TOKEN"},
            "headers": {"authorization": {"context": "TOKEN"}},
        }},
        "context": {"TOKEN": secret},
    }));
    assert_eq!(failure(&runner).0, "http_status", "{runner}");
    let id = super::common::id(&runner);
    let seen = [
        runner.to_string(),
        daemon.text(&format!("/v1/runners/{id}/events")),
        daemon.text(&format!("/v1/runners/{id}/logs")),
        daemon.log_text(),
    ];
    assert!(seen.iter().all(|text| !text.contains(secret)), "{seen:?}");
    assert_eq!(runner["job"]["http"]["headers"]["authorization"], json!({"context": "TOKEN"}));
    let unusable = daemon.run(json!({
        "job": {"http": {"url": server.url("/"), "headers": {"a": {"context": "TOKEN"}}}},
        "context": {"TOKEN": format!("{secret}\n")},
    }));
    assert_eq!(failure(&unusable).0, "context_unusable");
    assert!(!unusable.to_string().contains(secret));
    let missing = run(&daemon, json!({"url": server.url("/"), "headers": {"a": {"context": "NOBODY"}}}));
    let (kind, message) = failure(&missing);
    assert_eq!(kind, "context_missing");
    assert!(message.contains("`job.http.headers.a`") && message.contains("`NOBODY`"), "{message}");
}

fn another_status_than_expected_is_a_failure_with_its_result() {
    let (daemon, server) = (start(), Server::start());
    let runner = run(&daemon, json!(server.url("/status/503")));
    assert_eq!((runner["outcome"].as_str(), failure(&runner).0), (Some("failed"), "http_status"));
    assert_eq!((&result(&runner)["status"], &result(&runner)["body"]), (&json!(503), &json!("as asked")));
    let runner = run(&daemon, json!({"url": server.url("/status/503"), "expected_status": [404, "5xx"]}));
    assert_eq!(runner["outcome"], "succeeded");
    let runner = run(&daemon, json!({"url": server.url("/"), "expected_status": ["204"]}));
    assert!(failure(&runner).1.contains("200"), "{runner}");
}

fn redirects_are_followed_so_far_and_no_further() {
    let (daemon, server) = (start(), Server::start());
    let runner = run(&daemon, json!(server.url("/hops/5")));
    assert_eq!((&result(&runner)["body"], &result(&runner)["redirects"]), (&json!("arrived"), &json!(5)));
    assert_eq!(result(&runner)["url"], server.url("/hops/0"));
    for path in ["/hops/6", "/loop", "/to?status=302&place=ftp://x/", "/to?status=301&place=http://"] {
        let runner = run(&daemon, json!(server.url(path)));
        assert_eq!(failure(&runner).0, "http_redirects", "{path}: {runner}");
    }
    let options = json!({"url": server.url("/hops/6"), "follow_redirects": 6});
    assert_eq!(run(&daemon, options)["outcome"], "succeeded");
    let options = json!({"url": server.url("/loop"), "follow_redirects": 0, "expected_status": ["3xx"]});
    let runner = run(&daemon, options);
    assert_eq!((&runner["outcome"], &result(&runner)["status"]), (&json!("succeeded"), &json!(302)));
    for (status, method) in [(302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")] {
        let url = server.url(&format!("/to?status={status}&place=/echo"));
        let runner = run(&daemon, json!({"method": "POST", "url": url, "body": "b"}));
        let sent: Value =
            serde_json::from_str(result(&runner)["body"].as_str().expect("text")).expect("JSON");
        let body = if method == "GET" { "" } else { "b" };
        assert_eq!((&sent["method"], &sent["body"]), (&json!(method), &json!(body)), "{status}");
    }
}

fn secrets_do_not_follow_a_redirect_to_another_origin() {
    let (daemon, server) = (start(), Server::start());
    let elsewhere = format!("http://localhost:{}/echo", server.address.port());
    for (place, kept) in [(server.url("/echo"), true), (elsewhere.clone(), false)] {
        let url = server.url(&format!("/to?status=307&place={place}"));
        let runner = daemon.run(json!({
            "job": {"http": {"url": url, "headers": {
                "authorization": "Bearer a", "cookie": "b", "x-key": {"context": "KEY"}, "x-plain": "c",
            }}},
            "context": {"KEY": "k"},
        }));
        let sent: Value =
            serde_json::from_str(result(&runner)["body"].as_str().expect("text")).expect("JSON");
        for name in ["authorization", "cookie", "x-key"] {
            assert_eq!(sent["headers"].get(name).is_some(), kept, "{name} to {place}");
        }
        assert_eq!(sent["headers"]["x-plain"], "c");
    }
    let runner = daemon.run(json!({
        "job": {"http": {
            "method": "POST", "url": server.url(&format!("/to?status=307&place={elsewhere}")),
            "body": {"context": "KEY"},
        }},
        "context": {"KEY": "k"},
    }));
    assert_eq!(failure(&runner).0, "http_redirects");
}

fn a_large_body_is_cut_and_said_to_be() {
    let (daemon, server) = (start(), Server::start());
    let runner = run(&daemon, json!({"url": server.url("/big"), "max_response_bytes": 1000}));
    assert_eq!(result(&runner)["truncated"], true);
    assert_eq!(result(&runner)["body"].as_str().expect("text").len(), 1000);
    let runner = run(&daemon, json!(server.url("/big")));
    assert_eq!((&runner["outcome"], &result(&runner)["truncated"]), (&json!("succeeded"), &json!(true)));
    assert!(result(&runner).to_string().len() <= 64 << 10, "a record stays small");
    let id = super::common::id(&runner);
    assert_eq!(daemon.text(&format!("/v1/runners/{id}/logs")).len(), 300_000, "the log has all of it");
}

fn case_46_an_http_job_can_not_reach_the_daemons_own_api() {
    let (daemon, server) = (start(), Server::start());
    let port = daemon.address().rsplit_once(':').expect("a port").1.to_owned();
    let hosts =
        ["127.0.0.1", "localhost", "0.0.0.0", "127.9.9.9", "[::ffff:127.0.0.1]", "[::1]", "0x7f000001"];
    let direct = hosts.map(|host| format!("http://{host}:{port}/livez"));
    let by_redirect = direct.clone().map(|url| server.url(&format!("/to?status=302&place={url}")));
    for url in direct.iter().chain(&by_redirect) {
        let runner = run(&daemon, json!(url));
        let (kind, message) = failure(&runner);
        assert_eq!(kind, "http_refused", "{url}: {runner}");
        assert!(message.contains("allow_own_api"), "{message}");
    }
    for url in ["http://169.254.169.254/latest/", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/"] {
        let runner = run(&daemon, json!(url));
        assert_eq!(failure(&runner).0, "http_refused", "{url}");
    }
    let daemon = super::setup().set("HTTP_JOBS__ALLOW_OWN_API", true).start();
    let runner = run(&daemon, json!(format!("http://{}/livez", daemon.address())));
    assert_eq!(runner["outcome"], "succeeded", "{runner}");
}

fn an_address_where_nobody_answers_is_http_connect() {
    let daemon = start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    for url in [format!("http://{free}/"), "http://nobody.invalid/".into()] {
        let runner = run(&daemon, json!(url));
        let (kind, message) = failure(&runner);
        assert_eq!((runner["outcome"].as_str(), kind), (Some("failed"), "http_connect"), "{message}");
    }
}

fn an_http_job_stops_at_once_when_it_is_cancelled() {
    let (daemon, server) = (start(), Server::start());
    for path in ["/never", "/dribble"] {
        let runner = daemon.submit(json!({"job": {"http": server.url(path)}}));
        daemon.running(&runner);
        assert_eq!(daemon.cancel(&runner).0, 202);
        let closed = daemon.closed(&runner);
        assert_eq!(closed["outcome"], "cancelled", "{closed}");
        assert_eq!((&closed["cancel"]["survivors"], &closed["cancel"]["forced"]), (&json!(0), &json!(false)));
    }
    let runner = daemon.submit(json!({"job": {"http": server.url("/dribble")}}));
    // What has come is in the log, though nothing has ended.
    daemon.output_with(&runner, "beginning");
    let mut daemon = daemon;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let daemon = daemon.restart();
    let closed = daemon.runner(&runner);
    assert_eq!((&closed["outcome"], &closed["cancel"]["reason"]), (&json!("cancelled"), &json!("shutdown")));
}

fn an_http_job_has_one_deadline_for_all_of_it() {
    let (daemon, server) = (start(), Server::start());
    for path in ["/never", "/dribble"] {
        let runner = daemon.run(json!({"job": {"http": server.url(path)}, "timeout": "300ms"}));
        assert_eq!(runner["outcome"], "timed_out", "{path}: {runner}");
    }
}

fn tls_needs_a_certificate_that_the_system_trusts() {
    let (server, certificate) = Server::secure();
    let url = format!("https://localhost:{}/", server.address.port());
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), certificate).expect("written");
    let with = |file: &str| -> Daemon {
        let setup: Setup = super::setup();
        setup.env("SSL_CERT_FILE", file).env("SSL_CERT_DIR", "/nonexistent").start()
    };
    let trusting = with(&file.path().display().to_string());
    let runner = run(&trusting, json!(url));
    assert_eq!(
        (&runner["outcome"], &result(&runner)["body"]),
        (&json!("succeeded"), &json!("safe")),
        "{runner}"
    );
    // Its address stands in the certificate too, another name does not.
    assert_eq!(run(&trusting, json!(format!("https://{}/", server.address)))["outcome"], "succeeded");
    let runner = run(&trusting, json!(format!("https://127.0.0.2:{}/", server.address.port())));
    assert_ne!(runner["outcome"], "succeeded");
    let (other, certificate) = Server::secure();
    std::fs::write(file.path(), certificate).expect("written");
    let distrusting = with(&file.path().display().to_string());
    let runner = run(&distrusting, json!(url));
    assert_eq!(failure(&runner).0, "http_tls", "{runner}");
    drop(other);
    // Without roots the daemon starts all the same, and the job says what to do.
    let rootless = with("/dev/null");
    let runner = run(&rootless, json!(url));
    assert_eq!(failure(&runner).0, "http_tls");
    assert!(failure(&runner).1.contains("ca-certificates"), "{runner}");
    let plain = Server::start();
    let runner = run(&distrusting, json!(format!("https://{}/", plain.address)));
    assert_eq!(failure(&runner).0, "http_tls", "{runner}");
}

//! The shared context on a real daemon: what jobs see, and where a secret is not to be found.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
};

use common::{Daemon, Setup, processes_of};
use reqwest::Method;
use serde_json::{Value, json};

/// In no log, file or answer by chance.
const SECRET: &str = "v3ry-h1dden-5ecret-of-th1s-test";
/// Of one test alone: it looks into all processes.
const NOWHERE: &str = "n0-pr0cess-0f-an0ther-test-has-1t";

fn put(daemon: &Daemon, name: &str, body: Value) -> Value {
    let answer =
        daemon.request(Method::PUT, &format!("/v1/context/{name}")).json(&body).send().expect("an answer");
    let status = answer.status();
    let value: Value = answer.json().expect("JSON");
    assert!(status.is_success(), "PUT {name}: {status} {value}");
    value
}

fn output(daemon: &Daemon, script: &str, body: Value) -> String {
    let mut submission = json!({"job": {"script": script}});
    submission.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
    let runner = daemon.run(submission);
    assert_eq!(runner["outcome"], "succeeded", "{runner}");
    daemon.text(&format!("/v1/runners/{}/logs", common::id(&runner)))
}

#[test]
fn jobs_see_the_context_of_their_start_and_the_record_says_which() {
    let daemon = Setup::new().start();
    let dir = daemon.state_dir();
    fs::write(dir.join("from-a-file"), "of the file\n").expect("written");
    put(&daemon, "PLAIN", json!({"value": "one"}));
    put(&daemon, "HIDDEN", json!({"value": SECRET, "secret": true}));
    put(&daemon, "FROM_FILE", json!({"from": {"file": dir.join("from-a-file")}}));
    put(&daemon, "FROM_ENV", json!({"from": {"env": "RUNWARD__TELEMETRY__FORMAT"}}));
    put(&daemon, "OWN", json!({"value": "shared"}));
    put(&daemon, "LAST", json!({"value": "shared"}));
    let script = "printf '%s|' \"$PLAIN\" \"$HIDDEN\" \"$FROM_FILE\" \"$FROM_ENV\" \"$OWN\" \"$LAST\"";
    let job = json!({"script": {"source": script, "env": {"LAST": "env"}}});
    let runner = daemon.run(json!({"job": job, "context": {"OWN": "submitted", "LAST": "submitted"}}));
    assert_eq!(
        daemon.text(&format!("/v1/runners/{}/logs", common::id(&runner))),
        format!("one|{SECRET}|of the file|json|submitted|env|")
    );
    let version = |runner: &Value| runner["runs"][0]["attempts"][0]["context_version"].clone();
    assert_eq!(version(&runner), 6);
    put(&daemon, "PLAIN", json!({"value": "two"}));
    let runner = daemon.run(json!({"job": {"script": "printf %s \"$PLAIN\""}}));
    assert_eq!(daemon.text(&format!("/v1/runners/{}/logs", common::id(&runner))), "two");
    assert_eq!(version(&runner), 7);
    // It is as it was after the next start, and its version goes on.
    assert_eq!(daemon.request(Method::DELETE, "/v1/context/OWN").send().expect("an answer").status(), 200);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let daemon = daemon.restart();
    assert_eq!(daemon.get("/v1/context")["version"], 8);
    assert_eq!(
        output(&daemon, "printf '%s|' \"$PLAIN\" \"$HIDDEN\" \"$OWN\"", json!({})),
        format!("two|{SECRET}||")
    );
    assert_eq!(put(&daemon, "NEW", json!({"value": ""}))["version"], 9);
}

#[test]
fn what_was_answered_is_there_after_a_crash() {
    let mut daemon = Setup::new().start();
    put(&daemon, "KEPT", json!({"value": "1"}));
    put(&daemon, "GONE", json!({"value": "2"}));
    assert_eq!(daemon.request(Method::DELETE, "/v1/context/GONE").send().expect("an answer").status(), 200);
    daemon.crash();
    let daemon = daemon.restart();
    let context = daemon.get("/v1/context");
    assert_eq!((&context["version"], context["variables"].as_array().map(Vec::len)), (&json!(3), Some(1)));
    assert_eq!(put(&daemon, "GONE", json!({"value": "3"}))["version"], 4, "no version comes again");
}

#[test]
fn a_request_gets_its_secret_header_and_nobody_else() {
    const HEADER: &str = "b3arer-0f-a-request-that-1s-h1dden";
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a connection");
        let mut head = String::new();
        let mut reader = BufReader::new(socket.try_clone().expect("cloned"));
        while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            .expect("answered");
        head
    });
    let daemon = Setup::new().set("TELEMETRY__FILTER", "trace").start();
    put(&daemon, "HIDDEN", json!({"value": HEADER, "secret": true}));
    let headers = json!({"authorization": {"context": "HIDDEN"}});
    let runner = daemon.run(json!({"job": {"http": {"url": url, "headers": headers}}}));
    assert_eq!(runner["outcome"], "succeeded", "{runner}");
    assert!(server.join().expect("it was asked").contains(HEADER));
    assert_eq!(leaks(&daemon, &common::id(&runner), HEADER), [] as [String; 0]);
    // One that is not to be had fails it before anything is sent.
    put(&daemon, "HIDDEN", json!({"from": {"env": "RUNWARD_NO_SUCH"}}));
    let failed = daemon.run(json!({"job": {"http": {"url": url, "headers": headers}}}));
    let error = &failed["runs"][0]["attempts"][0]["error"];
    assert_eq!((&error["kind"], &error["stage"]), (&json!("start_failed"), &json!("context")), "{failed}");
}

#[test]
fn a_python_job_has_a_secret_and_leaves_it_nowhere() {
    const PYTHON: &str = "0nly-a-c0ntextvar-sh0ws-thi5-0ne";
    let daemon = Setup::new().set("TELEMETRY__FILTER", "trace").start();
    put(&daemon, "HIDDEN", json!({"value": PYTHON, "secret": true}));
    let source = "import runward\nasync def main():\n    runward.var('SEEN').set('yes')\n    return len(runward.var('HIDDEN').get())\n";
    // Kept open: what it changed is kept for the next run, and that is not the secret.
    let body = json!({"job": {"python": {"source": source}}, "keep_open": true});
    let runner = daemon.submit(body);
    let idle = daemon.runner_when(&runner, "idle", |runner| runner["state"] == "idle");
    assert_eq!(idle["runs"][0]["result"], PYTHON.len(), "{idle}");
    assert_eq!(leaks(&daemon, &runner, PYTHON), [] as [String; 0]);
    let path = format!("/v1/runners/{runner}");
    daemon.request(Method::DELETE, &path).send().expect("an answer");
    daemon.closed(&runner);
}

#[test]
fn a_variable_that_is_not_to_be_had_fails_the_job_and_says_what_to_do() {
    let daemon = Setup::new().start();
    let path = daemon.state_dir().join("gone");
    put(&daemon, "PASSWORD", json!({"from": {"file": path}}));
    let runner = daemon.run(json!({"job": {"command": ["true"]}}));
    let error = &runner["runs"][0]["attempts"][0]["error"];
    assert_eq!(
        (&runner["outcome"], &error["kind"], &error["stage"]),
        (&json!("failed"), &json!("start_failed"), &json!("context"))
    );
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("`PASSWORD`") && message.contains("PUT /v1/context/PASSWORD"), "{message}");
    // Who brings his own does not need it.
    assert_eq!(
        daemon.run(json!({"job": {"command": ["true"]}, "context": {"PASSWORD": ""}}))["outcome"],
        "succeeded"
    );
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let setup = Setup::new();
    fs::create_dir(setup.state_dir()).expect("made");
    fs::set_permissions(setup.state_dir(), fs::Permissions::from_mode(0o700)).expect("set");
    fs::write(setup.state_dir().join("context.key"), "k".repeat(64)).expect("written");
    fs::set_permissions(setup.state_dir().join("context.key"), fs::Permissions::from_mode(0o644))
        .expect("set");
    let output = setup.command().output().expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(77), "{message}");
    assert!(message.contains("context.key") && message.contains("chmod 600"), "{message}");
}

/// Files below a directory that hold these bytes.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("readable").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file() {
            let held = fs::read(&path).expect("readable");
            if held.windows(bytes.len()).any(|window| window == bytes) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// Processes that show these bytes in their command line or environment.
fn processes_showing(bytes: &[u8]) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let shows = |file: &str| {
            let mut held = Vec::new();
            let read =
                fs::File::open(entry.path().join(file)).and_then(|mut file| file.read_to_end(&mut held));
            read.is_ok() && held.windows(bytes.len()).any(|window| window == bytes)
        };
        if shows("environ") || shows("cmdline") {
            found.push(pid);
        }
    }
    found.sort_unstable();
    found
}

/// Each place where this text is found that is not the environment of the job's own processes.
fn leaks(daemon: &Daemon, runner: &str, text: &str) -> Vec<String> {
    let mut found = files_with(&daemon.state_dir(), text.as_bytes());
    if daemon.log_text().contains(text) {
        found.push("the log".into());
    }
    for path in [
        "/v1/context".to_owned(),
        "/v1/context/HIDDEN".into(),
        "/v1/runners".into(),
        format!("/v1/runners/{runner}"),
        format!("/v1/runners/{runner}/events"),
        format!("/v1/runners/{runner}/loop"),
        "/v1/events".into(),
        "/v1/info".into(),
        "/readyz".into(),
        "/openapi.json".into(),
    ] {
        if daemon.text(&path).contains(text) {
            found.push(path);
        }
    }
    let own = processes_of(runner);
    let others = processes_showing(text.as_bytes()).into_iter().filter(|pid| !own.contains(pid));
    found.extend(others.map(|pid| format!("process {pid}")));
    found
}

#[test]
fn a_secret_is_found_nowhere_but_in_the_jobs_own_processes() {
    let daemon = Setup::new().set("TELEMETRY__FILTER", "trace").start();
    put(&daemon, "HIDDEN", json!({"value": NOWHERE, "secret": true}));
    // What is wrong with a request is told without it.
    let wrong = json!({"value": NOWHERE, "secret": true, "from": {"env": "X"}});
    let answer = daemon.request(Method::PUT, "/v1/context/HIDDEN").json(&wrong).send().expect("an answer");
    assert!(!answer.text().expect("text").contains(NOWHERE));
    let script = "[ ${#HIDDEN} = 33 ] && echo ready; sleep 600";
    let runner = daemon.submit(json!({"job": {"script": script}}));
    daemon.output_with(&runner, "ready");
    let shown = processes_showing(NOWHERE.as_bytes());
    assert!(!shown.is_empty(), "the job has it");
    assert_eq!(leaks(&daemon, &runner, NOWHERE), [] as [String; 0], "while it runs");
    assert_eq!(daemon.cancel(&runner).0, 202);
    daemon.closed(&runner);
    assert_eq!(leaks(&daemon, &runner, NOWHERE), [] as [String; 0], "when it is closed");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let daemon = daemon.restart();
    assert_eq!(leaks(&daemon, &runner, NOWHERE), [] as [String; 0], "after the next start");
}

#[test]
fn the_search_for_leaks_finds_one_in_each_place() {
    let daemon = Setup::new().start();
    // Plain: it may be shown, and it is.
    put(&daemon, "HIDDEN", json!({"value": "l3aked-t3xt"}));
    let runner = daemon.submit(json!({
        "job": {"script": "echo l3aked-t3xt; sleep 600"}, "name": "l3aked-t3xt",
    }));
    daemon.output_with(&runner, "l3aked-t3xt");
    let mut beside =
        std::process::Command::new("sleep").arg("600").env("X", "l3aked-t3xt").spawn().expect("it runs");
    let found = leaks(&daemon, &runner, "l3aked-t3xt");
    beside.kill().expect("killed");
    beside.wait().expect("dead");
    let state = daemon.state_dir().display().to_string();
    for place in [
        format!("{state}/runward.db-wal"),
        format!("{state}/logs/{runner}/"),
        format!("/v1/runners/{runner}"),
        "/v1/context".into(),
        "/v1/context/HIDDEN".into(),
        format!("process {}", beside.id()),
    ] {
        assert!(found.iter().any(|found| found.starts_with(&place)), "{place} is not in {found:?}");
    }
}

#[test]
fn secrets_whose_key_is_lost_are_named_and_burn_no_job_until_they_are_forgotten_by_order() {
    let daemon = Setup::new().start();
    let state = daemon.state_dir();
    put(&daemon, "FIRST", json!({"value": SECRET, "secret": true}));
    put(&daemon, "SECOND", json!({"value": SECRET, "secret": true}));
    put(&daemon, "PLAIN", json!({"value": "kept"}));
    // What is kept elsewhere may come later: it is no reason to refuse.
    put(&daemon, "LATER", json!({"from": {"file": state.join("not-yet")}}));
    let waits = daemon.submit(json!({"job": {"command": ["true"]}, "delay": "1h"}));
    let mut command = daemon.setup().command();
    let mut forgetting = daemon.setup().command();
    forgetting.arg("--forget-secrets");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let mut daemon = daemon;
    assert_eq!(daemon.wait().code(), Some(0));
    let key = state.join("context.key");
    let kept = fs::read(&key).expect("the key");
    let mut refused = |what: &str| {
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let mut text = String::new();
        for line in lines {
            text.push_str(&format!("{line}\n"));
            if line.contains("\"ready on ") {
                child.kill().expect("it runs");
                panic!("it started: {text}");
            }
        }
        assert_eq!(child.wait().expect("it ends").code(), Some(65), "{text}");
        for part in ["`FIRST`, `SECOND`", what, "context.key", "--forget-secrets"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("LATER") && !text.contains("PLAIN"), "{text}");
    };
    fs::remove_file(&key).expect("removed");
    refused("is missing");
    assert!(!key.exists(), "no new key is made in place of the lost one");
    fs::write(&key, "another key, which is long enough to be one\n".replace([' ', ','], "_"))
        .expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("private");
    refused("another key");
    // The right one again, and nothing is lost.
    fs::write(&key, &kept).expect("restored");
    let mut daemon = daemon.restart();
    assert_eq!(daemon.get("/v1/context")["variables"].as_array().map(Vec::len), Some(4));
    assert_eq!(daemon.runner(&waits)["state"], "queued");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    fs::remove_file(&key).expect("removed");
    // By order they are unset, also for the starts that follow.
    let mut child = forgetting.spawn().expect("it starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let told = log.by_ref().find(|line| line.contains("were unset")).expect("it is logged");
    assert!(told.contains("FIRST, SECOND"), "{told}");
    log.by_ref().find(|line| line.contains("\"ready on ")).expect("it gets ready");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    log.for_each(drop);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let daemon = daemon.restart();
    let context = daemon.get("/v1/context");
    let names: Vec<_> =
        context["variables"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!((&context["version"], names), (&json!(6), vec![&json!("LATER"), &json!("PLAIN")]));
    assert_eq!(put(&daemon, "FIRST", json!({"value": SECRET, "secret": true}))["version"], 7);
    fs::write(state.join("not-yet"), "there").expect("written");
    assert_eq!(output(&daemon, "printf %s \"$FIRST$SECOND\"", json!({})), SECRET);
}

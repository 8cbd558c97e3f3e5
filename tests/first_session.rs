//! What somebody does on the first day, with curl.

mod common;

use std::process::Command;

use common::{Setup, id, until};
use serde_json::{Value, json};

#[test]
fn the_curl_line_of_the_ready_message_works_as_it_stands() {
    let daemon = Setup::new().start();
    let ready: Value = serde_json::from_str(&daemon.logged("ready on ")).expect("a JSON line");
    let message = ready["message"].as_str().expect("a message");
    let line = message.split_once("Try: ").expect("a line to try").1;
    let output = Command::new("sh").args(["-c", line]).output().expect("sh");
    let runner: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{line}: {output:?}"));
    assert_eq!(runner["outcome"], "succeeded", "{runner}");
    assert_eq!(daemon.text(&format!("/v1/runners/{}/logs", id(&runner))), "hello\n");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_script_file_sent_with_curl_runs_and_tells_exit_code_outcome_and_output() {
    let daemon = Setup::new().start();
    let script = daemon.state_dir().join("job.sh");
    std::fs::write(&script, "echo out; echo err >&2; exit 3\n").expect("written");
    let data = format!("@{}", script.display());
    let url = "http://localhost/v1/runners?wait=30s&name=nightly";
    let answer = daemon.curl(&["--data-binary", &data, "-H", "content-type: text/x-shellscript", url]);
    let runner: Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!(runner["state"], "closed");
    assert_eq!(runner["outcome"], "failed");
    assert_eq!(runner["name"], "nightly");
    assert_eq!(runner["runs"][0]["attempts"][0]["exit"], json!({"code": 3}));
    let logs = format!("/v1/runners/{}/logs", id(&runner));
    assert_eq!(daemon.text(&format!("{logs}?stream=stdout")), "out\n");
    assert_eq!(daemon.text(&format!("{logs}?stream=stderr")), "err\n");
}

#[test]
fn tcp_needs_the_token_of_the_state_directory() {
    let daemon = Setup::new().start();
    let url = format!("http://{}/v1/runners", daemon.address());
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
            .args(arguments)
            .output()
            .expect("curl runs; if it is missing: apt-get install curl");
        String::from_utf8(output.stdout).expect("a code")
    };
    assert_eq!(curl(&[&url]), "401");
    assert_eq!(curl(&["-H", "Authorization: Bearer wrong", &url]), "401");
    let bearer = format!("Authorization: Bearer {}", daemon.token());
    assert_eq!(curl(&["-H", &bearer, &url]), "200");
    assert_eq!(curl(&["-H", &bearer, "-H", "Host: evil.example", &url]), "403");
    assert_eq!(curl(&[&format!("http://{}/livez", daemon.address())]), "200");
}

#[test]
fn a_job_is_followed_while_it_writes_and_the_answer_ends_with_it() {
    let daemon = Setup::new().start();
    let script = "echo first; while [ ! -e go ]; do sleep 0.01; done; echo last";
    let runner = daemon.submit(json!({"job": {"script": {"source": script, "cwd": daemon.state_dir()}}}));
    let (state_dir, path) = (daemon.state_dir(), format!("/v1/runners/{runner}/logs?follow=true"));
    let mut answer = daemon.request(reqwest::Method::GET, &path).send().expect("an answer");
    let mut first = [0; 6];
    std::io::Read::read_exact(&mut answer, &mut first).expect("the first line comes while the job runs");
    assert_eq!(&first, b"first\n");
    std::fs::write(state_dir.join("go"), "").expect("written");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut answer, &mut rest).expect("the rest");
    assert_eq!(rest, "last\n");
    assert_eq!(daemon.closed(&runner)["outcome"], "succeeded");
}

#[test]
fn a_key_makes_a_retry_return_the_first_answer() {
    let daemon = Setup::new().start();
    let submit = |key: &str, body: &Value| {
        let request =
            daemon.request(reqwest::Method::POST, "/v1/runners").header("Idempotency-Key", key).json(body);
        let answer = request.send().expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().expect("JSON"))
    };
    let body = json!({"job": {"command": ["true"]}});
    let (status, first) = submit("backup-2026-11-22", &body);
    assert_eq!(status, 201);
    let (status, again) = submit("backup-2026-11-22", &body);
    assert_eq!((status, &again["id"]), (201, &first["id"]));
    let (status, problem) = submit("backup-2026-11-22", &json!({"job": {"command": ["false"]}}));
    assert_eq!(status, 422, "{problem}");
    assert_eq!(daemon.get("/v1/runners")["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn twenty_parallel_submits_with_one_key_make_one_job() {
    let daemon = std::sync::Arc::new(Setup::new().start());
    let shared = std::sync::Arc::clone(&daemon);
    let ids = common::in_parallel(20, move |_| {
        let request = shared.request(reqwest::Method::POST, "/v1/runners").header("Idempotency-Key", "one");
        let answer = request.json(&json!({"job": {"command": ["true"]}})).send().expect("an answer");
        assert_eq!(answer.status().as_u16(), 201);
        id(&answer.json().expect("JSON"))
    });
    assert!(ids.iter().all(|other| *other == ids[0]), "{ids:?}");
    assert_eq!(daemon.get("/v1/runners")["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn events_are_streamed_and_resumed() {
    let daemon = Setup::new().start();
    let runner = daemon.run(json!({"job": {"command": ["true"]}}));
    let page = daemon.get(&format!("/v1/runners/{}/events", id(&runner)));
    let types: Vec<&str> =
        page["items"].as_array().expect("events").iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(types.first(), Some(&"submitted"));
    assert_eq!(types.last(), Some(&"closed"));
    let socket = daemon.state_dir().join("api.sock");
    let stream = |last: &str| {
        let output = Command::new("curl")
            .args(["-sN", "-m", "2", "--unix-socket", &socket.display().to_string()])
            .args(["-H", "Accept: text/event-stream", "-H", &format!("Last-Event-ID: {last}")])
            .arg(format!("http://localhost/v1/runners/{}/events", id(&runner)))
            .output()
            .expect("curl runs; if it is missing: apt-get install curl");
        String::from_utf8(output.stdout).expect("text")
    };
    let all = stream("0");
    assert!(all.contains("submitted") && all.contains("closed"), "{all}");
    let rest = stream("1");
    assert!(!rest.contains("submitted") && rest.contains("closed"), "{rest}");
}

#[test]
fn a_list_is_filtered_and_paged() {
    let daemon = Setup::new().start();
    for number in 0..5 {
        let name = if number % 2 == 0 { "even" } else { "odd" };
        daemon.run(json!({"job": {"command": ["true"]}, "name": name, "labels": {"n": number.to_string()}}));
    }
    let ids = |path: &str| -> Vec<String> {
        daemon.get(path)["items"].as_array().expect("items").iter().map(id).collect()
    };
    assert_eq!(ids("/v1/runners?name=even").len(), 3);
    assert_eq!(ids("/v1/runners?label=n%3D3").len(), 1);
    assert_eq!(ids("/v1/runners?state=queued").len(), 0);
    assert_eq!(ids("/v1/runners?outcome=succeeded").len(), 5);
    let first = daemon.get("/v1/runners?limit=3");
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let rest = daemon.get(&format!("/v1/runners?limit=3&cursor={cursor}"));
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(rest["next_cursor"], Value::Null);
}

#[test]
fn a_second_daemon_on_the_same_state_refuses_and_names_the_first() {
    let daemon = Setup::new().start();
    let output = daemon.setup().command().output().expect("it runs");
    assert_eq!(output.status.code(), Some(75));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(&format!("pid {}", daemon.pid())), "{message}");
}

#[test]
fn a_store_that_vanished_is_not_begun_anew() {
    let daemon = Setup::new().start();
    daemon.run(json!({"job": {"command": ["echo", "hi"]}}));
    let setup_dir = daemon.state_dir();
    let command = daemon.setup().command();
    let mut command = command;
    assert_eq!(
        stop_and_keep(daemon, &setup_dir, |dir| {
            std::fs::remove_file(dir.join("runward.db")).expect("removed");
            let output = command.output().expect("it runs");
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(message.contains("restore the file from a backup"), "{message}");
            output.status.code()
        }),
        Some(65)
    );
}

/// The state directory lives as long as the daemon's handle: work on it between stop and drop.
fn stop_and_keep<T>(
    mut daemon: common::Daemon,
    dir: &std::path::Path,
    work: impl FnOnce(&std::path::Path) -> T,
) -> T {
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    work(dir)
}

#[test]
fn a_store_that_lost_its_latest_records_is_refused_and_names_the_job() {
    let daemon = Setup::new().start();
    let runner = id(&daemon.run(json!({"job": {"command": ["echo", "hi"]}})));
    let (dir, mut command) = (daemon.state_dir(), daemon.setup().command());
    let refused = stop_and_keep(daemon, &dir, |dir| {
        let store = rusqlite::Connection::open(dir.join("runward.db")).expect("the store");
        store.execute_batch("DELETE FROM events; DELETE FROM runners").expect("lost");
        drop(store);
        command.output().expect("it runs")
    });
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{message}");
    assert!(message.contains(&runner), "{message}");
}

#[test]
fn a_store_that_lost_the_start_of_a_job_without_output_is_refused() {
    let mut daemon = Setup::new().start();
    daemon.run(json!({"job": {"command": ["true"]}}));
    let dir = daemon.state_dir();
    let (store, kept) = (dir.join("runward.db"), dir.join("earlier.db"));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    std::fs::copy(&store, &kept).expect("kept");
    let daemon = daemon.restart();
    daemon.run(json!({"job": {"command": ["true"]}}));
    let mut command = daemon.setup().command();
    let refused = stop_and_keep(daemon, &dir, |_| {
        std::fs::rename(&kept, &store).expect("an earlier one");
        for rest in ["runward.db-wal", "runward.db-shm"] {
            std::fs::remove_file(dir.join(rest)).ok();
        }
        command.output().expect("it runs")
    });
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{message}");
    assert!(message.contains("slots"), "{message}");
}

#[test]
fn a_used_state_directory_without_store_and_logs_is_not_begun_anew() {
    let daemon = Setup::new().start();
    let (dir, mut command) = (daemon.state_dir(), daemon.setup().command());
    let code = stop_and_keep(daemon, &dir, |dir| {
        std::fs::remove_file(dir.join("runward.db")).expect("removed");
        std::fs::remove_dir_all(dir.join("logs")).expect("removed");
        command.output().expect("it runs").status.code()
    });
    assert_eq!(code, Some(65));
}

#[test]
fn a_socket_that_another_daemon_answers_at_is_not_taken() {
    let daemon = Setup::new().start();
    let socket = daemon.state_dir().join("api.sock");
    let other = Setup::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_runward"))
        .args(["serve", "--state-dir", &other.state_dir().display().to_string()])
        .args(["--listen", &format!("unix:{}", socket.display())])
        .output()
        .expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{message}");
    assert_eq!(daemon.status("/livez"), 200);
}

#[test]
fn case_20_with_few_descriptors_fewer_jobs_run_at_once_and_none_fails() {
    let setup = Setup::through("prlimit", &["--nofile=64"]).set("JOBS__MAX_RUNNING", 200);
    let daemon = setup.start();
    let runners: Vec<String> =
        (0..60).map(|_| daemon.submit(json!({"job": {"command": ["sleep", "0.01"]}}))).collect();
    for runner in runners {
        assert_eq!(daemon.closed(&runner)["outcome"], "succeeded");
    }
}

#[test]
fn case_20_with_few_descriptors_http_jobs_wait_for_their_turn_and_none_fails() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("http://{}/", server.local_addr().expect("an address"));
    let (open, gate) = std::sync::mpsc::channel::<()>();
    // Accepts everything, and answers nothing before the gate is open.
    let server = std::thread::spawn(move || {
        server.set_nonblocking(true).expect("set");
        let mut held = Vec::new();
        while gate.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            match server.accept() {
                Ok((stream, _)) => held.push(stream),
                Err(_) => std::thread::park_timeout(std::time::Duration::from_millis(3)),
            }
        }
        server.set_nonblocking(false).expect("set");
        let answer = |stream: std::net::TcpStream| {
            use std::io::{Read, Write};
            stream.set_nonblocking(false).expect("set");
            let (mut stream, mut request) = (stream, [0; 4096]);
            // One that was cancelled is gone.
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok();
                return request.starts_with(b"GET /last ");
            }
            false
        };
        for stream in held {
            answer(stream);
        }
        while !answer(server.accept().expect("a connection").0) {}
    });
    let daemon = Setup::through("prlimit", &["--nofile=64"]).start();
    let runners: Vec<String> =
        (0..100).map(|_| daemon.submit(json!({"job": {"http": {"url": url}}}))).collect();
    let late = daemon.submit(json!({"job": {"http": {"url": url}}, "timeout": "10ms"}));
    assert_eq!(daemon.closed(&late)["outcome"], "timed_out", "its time runs while it waits");
    let cancelled = daemon.submit(json!({"job": {"http": {"url": url}}}));
    daemon.running(&cancelled);
    daemon.cancel(&cancelled);
    assert_eq!(daemon.closed(&cancelled)["outcome"], "cancelled");
    assert_eq!(
        daemon.run(json!({"job": {"command": ["true"]}}))["outcome"],
        "succeeded",
        "others keep their share"
    );
    open.send(()).expect("the server waits");
    for runner in runners {
        let closed = daemon.closed(&runner);
        assert_eq!(closed["outcome"], "succeeded", "{closed}");
    }
    daemon.run(json!({"job": {"http": {"url": format!("{url}last")}}}));
    server.join().expect("no panic");
}

#[test]
fn case_20_idle_connections_take_descriptors_neither_from_jobs_nor_from_the_unix_socket() {
    let daemon = Setup::through("prlimit", &["--nofile=64"]).start();
    let address = daemon.address();
    let _idle: Vec<_> =
        (0..300).map(|_| std::net::TcpStream::connect(&address).expect("the system takes it")).collect();
    for _ in 0..10 {
        assert_eq!(daemon.status("/livez"), 200);
        let closed = daemon.run(json!({"job": {"command": ["true"]}}));
        assert_eq!(closed["outcome"], "succeeded", "{closed}");
    }
    let limits = &daemon.get("/v1/info")["limits"];
    assert!(limits["max_connections"].as_u64() < Some(64), "{limits}");
}

#[test]
fn logs_tidied_away_under_the_daemon_do_not_fail_jobs() {
    let daemon = Setup::new().start();
    std::fs::remove_dir_all(daemon.state_dir().join("logs")).expect("removed");
    let runner = daemon.run(json!({"job": {"command": ["echo", "hello"]}}));
    assert_eq!(runner["outcome"], "succeeded");
    assert_eq!(daemon.text(&format!("/v1/runners/{}/logs", id(&runner))), "hello\n");
}

#[test]
fn nothing_is_left_after_a_stop() {
    let daemon = Setup::new().start();
    let (keeper, runner) = (daemon.keeper(), daemon.submit(json!({"job": {"command": ["sleep", "600"]}})));
    daemon.running(&runner);
    assert_eq!(daemon.stop(), Some(0));
    until("the keeper is gone", || !common::alive(keeper));
    assert_eq!(common::processes_of(&runner), [] as [i32; 0]);
}

#[test]
fn a_runners_loop_is_shown_while_it_runs_and_is_closed_with_it() {
    let daemon = Setup::new().set("JOBS__MAX_RUNNING", 1).start();
    let runner = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    let queued = daemon.submit(json!({"job": {"command": ["true"]}}));
    daemon.running(&runner);
    let shown = daemon.get(&format!("/v1/runners/{runner}/loop"));
    assert_eq!((&shown["tasks_alive"], &shown["blocking_tasks"]), (&json!(1), &json!(0)), "{shown}");
    let task = &shown["tasks"][0];
    assert_eq!(task["state"], "waiting");
    assert!(task["polls"].as_u64() > Some(0), "{task}");
    assert!(task["source"].as_str().is_some_and(|source| source.contains("kinds/process.rs:")), "{task}");
    assert_eq!(daemon.get(&format!("/v1/runners/{queued}/loop"))["tasks_alive"], 0, "Runners are lazy");
    daemon.cancel(&runner);
    daemon.closed(&runner);
    assert_eq!(daemon.status(&format!("/v1/runners/{runner}/loop")), 409);
}

//! Who asked for it is told that a Runner has closed: signed, again until it is taken, also after a crash.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::Command,
    sync::mpsc::{self, Receiver},
    thread,
};

use common::{PATIENCE, Setup, id};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// A message as it came.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// Takes messages and answers each as it is told, then with the last.
struct Receiving {
    address: String,
    messages: Receiver<Message>,
}

impl Receiving {
    fn answering(statuses: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (sender, messages) = mpsc::channel();
        // It ends with the test's process: nothing waits for it.
        thread::spawn(move || {
            for (number, socket) in listener.incoming().enumerate() {
                let status = statuses[number.min(statuses.len() - 1)];
                let mut socket = socket.expect("connected");
                let mut reader = BufReader::new(socket.try_clone().expect("cloned"));
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
                let message = Message { head, body: Vec::new() };
                let length = message.header("content-length").and_then(|length| length.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                if reader.read_exact(&mut body).is_err() {
                    continue;
                }
                if sender.send(Message { body, ..message }).is_err() {
                    break;
                }
                if !status.is_empty() {
                    let answer =
                        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    drop(socket.write_all(answer.as_bytes()));
                }
            }
        });
        Self { address, messages }
    }

    fn next(&self) -> Message {
        self.messages.recv_timeout(PATIENCE).expect("a message")
    }

    fn url(&self) -> String {
        format!("http://{}/closed?from=runward", self.address)
    }
}

#[test]
fn a_close_is_told_with_its_record_and_a_signature_that_openssl_verifies() {
    let receiving = Receiving::answering(&["204 No Content"]);
    let daemon = Setup::new().start();
    let set = json!({"value": "a key to sign with", "secret": true});
    daemon.request(Method::PUT, "/v1/context/HOOK_KEY").json(&set).send().expect("set");
    let on_close = json!({"url": receiving.url(), "secret": "HOOK_KEY"});
    let runner = daemon.run(json!({"job": {"command": ["false"]}, "on_close": on_close}));
    let message = receiving.next();
    assert!(message.head.starts_with("POST /closed?from=runward HTTP/1.1"), "{}", message.head);
    assert_eq!(message.header("content-type"), Some("application/json"));
    assert_eq!(message.header("runward-event"), Some("closed"));
    assert_eq!(message.header("runward-delivery"), Some(id(&runner).as_str()));
    assert_eq!(message.json(), daemon.runner(&id(&runner)), "what the API shows");
    assert_eq!(message.json()["outcome"], "failed");

    // As the README says.
    let signature = message.header("runward-signature").expect("a signature");
    let dir = tempfile::tempdir().expect("a directory");
    let body = dir.path().join("body");
    std::fs::write(&body, &message.body).expect("written");
    let recipe = verify_recipe();
    let verified = |signature: &str| {
        let output = Command::new("bash")
            .args(["-c", &recipe])
            .env("SIGNATURE", signature)
            .env("KEY", "a key to sign with")
            .env("BODY", &body)
            .output()
            .expect("bash runs; openssl too, else: apt-get install openssl");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(verified(signature), "genuine");
    let last = if signature.ends_with('0') { '1' } else { '0' };
    assert_eq!(verified(&format!("{}{last}", &signature[..signature.len() - 1])), "forged");
    std::fs::write(&body, [&message.body[..], b" "].concat()).expect("written");
    assert_eq!(verified(signature), "forged");
    let next = daemon.submit(json!({"job": {"command": ["true"]}, "on_close": {"url": receiving.url()}}));
    assert_eq!(receiving.next().json()["id"], next, "the first was taken, and is not told again");
}

/// The block of the README that verifies a signature.
fn verify_recipe() -> String {
    let readme = include_str!("../README.md");
    let section = readme.split("## Webhooks").nth(1).expect("the README has them");
    let block = section.split("```sh").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block for the shell").to_owned()
}

#[test]
fn it_is_told_again_until_it_is_taken() {
    let receiving =
        Receiving::answering(&["500 Oops", "302 Found\r\nlocation: http://127.0.0.1:1/", "200 OK"]);
    let daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"command": ["true"]}, "on_close": {"url": receiving.url()}}));
    let tries: Vec<Message> = (0..3).map(|_| receiving.next()).collect();
    for message in &tries {
        assert_eq!(message.header("runward-delivery"), Some(runner.as_str()), "the same for each try");
        assert_eq!(message.header("runward-signature"), None, "no key was named");
        assert_eq!(message.body, tries[0].body);
    }
    daemon.logged("nobody could be told of its close; it is tried again");
}

#[test]
fn it_survives_a_crash_and_a_shutdown_does_not_wait_for_it() {
    // Nobody listens there at first.
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", closed.local_addr().expect("an address"));
    drop(closed);
    let mut daemon = Setup::new().start();
    let runner = id(&daemon.run(json!({"job": {"command": ["true"]}, "on_close": {"url": url}})));
    daemon.logged("it is tried again");
    daemon.crash();
    let daemon = daemon.restart();
    daemon.signal(Signal::SIGTERM);
    let mut stopped = daemon;
    assert_eq!(stopped.wait().code(), Some(0));
    let listener =
        TcpListener::bind(url.trim_start_matches("http://").trim_end_matches('/')).expect("the port again");
    let daemon = stopped.restart();
    let (mut socket, _) = listener.accept().expect("it is told");
    let mut head = [0; 1024];
    let read = socket.read(&mut head).expect("a request");
    assert!(String::from_utf8_lossy(&head[..read]).contains(&runner));
    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("answered");
    drop(daemon);
}

#[test]
fn a_message_under_way_when_the_daemon_is_killed_is_told_again() {
    // The first is heard and never answered.
    let receiving = Receiving::answering(&["", "200 OK"]);
    let mut daemon = Setup::new().start();
    let runner = daemon.submit(json!({"job": {"command": ["true"]}, "on_close": {"url": receiving.url()}}));
    receiving.next();
    daemon.crash();
    let daemon = daemon.restart();
    assert_eq!(receiving.next().json()["id"], runner);
    drop(daemon);
}

#[test]
fn the_own_api_is_not_told_and_a_missing_key_is_named() {
    let daemon = Setup::new().start();
    let url = format!("http://{}/v1/runners", daemon.address());
    daemon.run(json!({"job": {"command": ["true"]}, "on_close": {"url": url}}));
    let line = daemon.logged("nobody could be told of its close");
    assert!(line.contains("runward's own API"), "{line}");
    let receiving = Receiving::answering(&["200 OK"]);
    let on_close = json!({"url": receiving.url(), "secret": "NO_SUCH_KEY"});
    daemon.run(json!({"job": {"command": ["true"]}, "on_close": on_close}));
    let line = daemon.logged("NO_SUCH_KEY");
    assert!(line.contains("PUT /v1/context/NO_SUCH_KEY"), "{line}");
    assert!(receiving.messages.try_recv().is_err(), "nothing is sent unsigned");
    daemon.request(Method::PUT, "/v1/context/NO_SUCH_KEY").json(&json!({"value": "k"})).send().expect("set");
    assert!(receiving.next().header("runward-signature").is_some());
}

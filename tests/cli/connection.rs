//! The way to the daemon: sockets, tokens, and connections that break.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::json;

use crate::{
    common::{Daemon, Setup},
    program::{client, program, said},
};

#[test]
fn case_44_over_tcp_a_token_is_needed_and_none_is_ever_on_the_command_line() {
    let daemon = Setup::new().start();
    let url = format!("http://{}", daemon.address());
    let file = daemon.state_dir().join("token");
    let ask =
        |name: &str, value: &str| said(program().args(["ps"]).env("RUNWARD_URL", &url).env(name, value));
    for (name, value) in
        [("RUNWARD_TOKEN", daemon.token()), ("RUNWARD_TOKEN_FILE", file.display().to_string())]
    {
        assert_eq!(ask(name, &value).code, Some(0), "{name}");
    }
    let by_option = said(program().args(["ps", "--url", &url, "--token-file"]).arg(&file));
    assert_eq!(by_option.code, Some(0), "{by_option:?}");
    for (value, text) in [("", "set RUNWARD_TOKEN"), ("wrong", "set RUNWARD_TOKEN")] {
        let denied = ask("RUNWARD_TOKEN", value);
        assert_eq!(denied.code, Some(77), "{denied:?}");
        assert!(denied.err.contains(text), "{denied:?}");
    }
    // Where there is no socket, the state directory has the token.
    let file = daemon.state_dir().join("daemon.json");
    let text = std::fs::read_to_string(&file).expect("there");
    let mut parsed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    parsed["listen"] = json!([daemon.address()]);
    std::fs::write(&file, parsed.to_string()).expect("written");
    assert_eq!(said(&mut client(&daemon, &["run", "--", "true"])).code, Some(0));
}

/// Answers that are cut; those after them come whole, for a piece that is longer than the cut.
const CUTS: usize = 12;

/// A socket that passes on to the daemon's, and cuts answers that are longer than this.
fn cutting(daemon: &Daemon, after: u64) -> (PathBuf, Arc<AtomicUsize>) {
    let (to, path) = (daemon.state_dir().join("api.sock"), daemon.state_dir().join("cut.sock"));
    let listener = UnixListener::bind(&path).expect("bound");
    let cut = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cut);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (to, cut) = (to.clone(), Arc::clone(&counted));
            thread::spawn(move || {
                let limit = if cut.load(Ordering::Relaxed) < CUTS { after } else { u64::MAX };
                if pass(&client, &to, limit) {
                    cut.fetch_add(1, Ordering::Relaxed);
                }
                drop(client.shutdown(Shutdown::Both));
            });
        }
    });
    (path, cut)
}

/// Whether it was cut.
fn pass(client: &UnixStream, to: &Path, limit: u64) -> bool {
    let daemon = UnixStream::connect(to).expect("the daemon is there");
    let mut upward = (client.try_clone().expect("a descriptor"), daemon.try_clone().expect("a descriptor"));
    thread::spawn(move || drop(std::io::copy(&mut upward.0, &mut upward.1)));
    let (mut from, mut into) = ((&daemon).take(limit), client);
    // Either end may be gone.
    let passed = std::io::copy(&mut from, &mut into);
    drop(daemon.shutdown(Shutdown::Both));
    passed.is_ok_and(|bytes| bytes == limit)
}

/// A line that is long enough for a few of them to be cut.
fn line(attempt: usize, number: usize) -> String {
    format!("{attempt} {number} of lines that are cut somewhere\n")
}

#[test]
fn a_follower_whose_connection_breaks_goes_on_where_it_was() {
    let daemon = Setup::new().start();
    let (socket, cut) = cutting(&daemon, 3000);
    let script = "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo 1 $n of lines that are cut somewhere; sleep 0.001; done; exit 5";
    let expected: String = (1..=300).map(|number| line(1, number)).collect();
    let url = format!("unix:{}", socket.display());
    let run = said(program().args(["run", "--url", &url, "--", "sh", "-c", script]));
    assert_eq!((run.code, run.out.as_str()), (Some(5), expected.as_str()), "{}", run.err);
    let in_run = cut.swap(0, Ordering::Relaxed);
    let logs = said(program().args(["logs", "-f", "--url", &url, "-"]));
    assert_eq!((logs.code, logs.out.as_str()), (Some(0), expected.as_str()), "{}", logs.err);
    let in_logs = cut.load(Ordering::Relaxed);
    assert!(in_run > 2 && in_logs > 2, "the connections did break: {in_run}, {in_logs}");
}

#[test]
fn retries_are_followed_over_broken_connections() {
    let daemon = Setup::new().start();
    let (socket, cut) = cutting(&daemon, 3000);
    let dir = tempfile::tempdir().expect("a directory");
    let count = dir.path().join("count").display().to_string();
    let script = format!(
        "echo x >> {count}; attempt=$(wc -l < {count}); for n in $(seq 150); do \
         echo $attempt $n of lines that are cut somewhere; sleep 0.001; done; [ $attempt = 2 ]"
    );
    let expected: String =
        (1..=2).flat_map(|attempt| (1..=150).map(move |number| line(attempt, number))).collect();
    let url = format!("unix:{}", socket.display());
    let run = said(program().args(["run", "--url", &url, "--retry", "2", "--", "sh", "-c", &script]));
    assert_eq!((run.code, run.out.as_str()), (Some(0), expected.as_str()), "{}", run.err);
    assert!(cut.load(Ordering::Relaxed) > 2, "the connections did break");
}

fn started(daemon: &Daemon, arguments: &[&str]) -> std::process::Child {
    let mut child =
        client(daemon, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut up = [0; 3];
    child.stdout.as_mut().expect("piped").read_exact(&mut up).expect("it runs");
    child
}

const UP: &str = "echo up; exec sleep 600";

#[test]
fn a_daemon_that_dies_meanwhile_is_told_with_what_to_do() {
    let mut daemon = Setup::new().start();
    let run = started(&daemon, &["run", "--reconnect", "300ms", "--", "sh", "-c", UP]);
    daemon.crash();
    let output = run.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(74), "{err}");
    assert!(err.contains("Lost sight of the runner") && err.contains("runward show "), "{err}");
}

#[test]
fn a_daemon_that_comes_back_in_time_says_what_became_of_the_job() {
    let mut daemon = Setup::new().start();
    let run = started(&daemon, &["run", "--reconnect", "60s", "--", "sh", "-c", UP]);
    daemon.crash();
    let daemon = daemon.restart();
    let output = run.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains("lost"), "{err}");
    drop(daemon);
}

#[test]
fn a_daemon_that_is_stopped_takes_the_run_with_it() {
    let daemon = Setup::new().start();
    let run = started(&daemon, &["run", "--", "sh", "-c", UP]);
    assert_eq!(daemon.stop(), Some(0));
    let output = run.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{err}");
}

#[test]
fn a_socket_that_answers_nonsense_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut head = [0; 64];
        let read = stream.read(&mut head).expect("a request");
        assert!(read > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").expect("answered");
    });
    let url = format!("unix:{}", path.display());
    let told = said(program().args(["ps", "--url", &url]));
    assert_eq!(told.code, Some(70), "{told:?}");
    server.join().expect("answered");
}

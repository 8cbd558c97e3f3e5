//! Where a real daemon's log goes, and in which form.

mod common;

use std::{
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
};

use common::{PATIENCE, Setup};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

/// Makes a directory the journal's, for what it starts alone, and its standard error the stream that systemd gave.
const AS_A_SERVICE: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind "$1" /run/systemd/journal || exit 99
shift
JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2) exec "$@"
"#;

/// A field of the journal's own protocol: its name, the length of its value, its value.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = u64::try_from(value.len()).expect("short").to_le_bytes();
    [name.as_bytes(), b"\n", &length, value.as_bytes(), b"\n"].concat()
}

fn holds(entry: &[u8], part: &[u8]) -> bool {
    entry.windows(part.len()).any(|window| window == part)
}

#[test]
fn as_a_service_of_systemd_the_log_has_fields_of_its_own_in_the_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = UnixDatagram::bind(dir.path().join("socket")).expect("bound");
    journal.set_read_timeout(Some(PATIENCE)).expect("set");
    let entry_with = |part: &[u8]| -> Vec<u8> {
        let mut entry = vec![0; 64 << 10];
        loop {
            let length = journal.recv(&mut entry).expect("the entry comes in time");
            if holds(&entry[..length], part) {
                return entry[..length].to_vec();
            }
        }
    };
    let place = dir.path().display().to_string();
    let setup = Setup::through("unshare", &["--mount", "sh", "-c", AS_A_SERVICE, "sh", &place]);
    let mut command = setup.command();
    command.env("RUNWARD__TELEMETRY__FORMAT", "auto");
    let mut daemon = command.spawn().expect("unshare runs; it needs root");
    let ready = entry_with(b"ready on ");
    assert!(holds(&ready, &field("PRIORITY", "6")), "info: {}", String::from_utf8_lossy(&ready));
    assert!(holds(&ready, &field("SYSLOG_IDENTIFIER", "runward")));
    let client = reqwest::blocking::Client::builder()
        .unix_socket(setup.state_dir().join("api.sock"))
        .timeout(PATIENCE)
        .build()
        .expect("a client");
    let body = json!({"job": {"command": ["false"]}});
    let answer = client.post("http://localhost/v1/runners?wait=60s").json(&body).send().expect("an answer");
    let runner: serde_json::Value = answer.json().expect("JSON");
    let closed = entry_with(b"closed");
    assert!(holds(&closed, &field("RUNNER", &common::id(&runner))), "{}", String::from_utf8_lossy(&closed));
    assert!(holds(&closed, &field("OUTCOME", "failed")));
    kill(Pid::from_raw(i32::try_from(daemon.id()).expect("a pid")), Signal::SIGTERM).expect("it is there");
    assert!(daemon.wait().expect("it ends").success());
    let lock = std::fs::File::open(setup.state_dir().join("children.lock")).expect("there");
    lock.lock().expect("the keeper ends");
}

/// The exit code of a daemon with one setting, and what it said on standard error.
fn refused(key: &str, value: &str) -> (Option<i32>, String) {
    let output = Setup::new().set(key, value).command().stdin(Stdio::null()).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_filter_that_is_none_is_refused_with_where_it_was_found() {
    for wrong in ["loud", "runward=loud", "info,,=,"] {
        let (code, said) = refused("TELEMETRY__FILTER", wrong);
        assert_eq!(code, Some(78), "{wrong}: {said}");
        assert!(said.starts_with("runward: the environment: `telemetry.filter` is"), "{said}");
        assert!(said.contains("must be error, warn, info"), "{said}");
    }
}

#[test]
fn on_a_machine_without_a_journal_its_format_is_refused() {
    let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
    let setup = Setup::through("unshare", &["--mount", "sh", "-c", script, "sh"]);
    let mut command: Command = setup.command();
    let output = command.env("RUNWARD__TELEMETRY__FORMAT", "journald").output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("`telemetry.format`") && said.contains("must be \"auto\""), "{said}");
}

//! Tables, records, output and events, as people and scripts see them.

use serde_json::{Value, json};

use crate::{
    common::Setup,
    program::{client, done, masked, said, snapshot},
    terminal::Terminal,
};

#[test]
fn tables_show_what_there_is() {
    let daemon = Setup::new().start();
    let tool = |body: Value| daemon.run(body)["id"].as_str().expect("an id").to_owned();
    let good = tool(
        json!({"job": {"command": ["echo", "it's", "done"]}, "name": "good", "labels": {"team": "data"}}),
    );
    let bad = tool(
        json!({"job": {"script": "# first\necho out; echo err >&2\nexit 7"}, "name": "bad", "queue": "nightly"}),
    );
    let missing = tool(json!({"job": {"command": ["/no/such/program"]}}));
    let (_, runner) =
        daemon.post("/v1/runners", json!({"job": {"handler": "echo"}, "delay": "1h", "name": "later"}));
    let later = runner["id"].as_str().expect("an id").to_owned();
    done(&daemon, &["queue", "pause", "nightly"]);
    done(&daemon, &["queue", "set", "bulk", "--max-running", "2"]);
    done(&daemon, &["context", "set", "PGHOST", "db1"]);
    done(&daemon, &["context", "set", "KEY", "--from-file", "/run/secrets/key"]);
    let known = [
        (good.as_str(), "GOOD"),
        (bad.as_str(), "BAD"),
        (missing.as_str(), "MISSING"),
        (later.as_str(), "LATER"),
    ];
    for (name, arguments) in [
        ("ps", &["ps"][..]),
        ("ps-all", &["ps", "--all"]),
        ("ps-filtered", &["ps", "--outcome", "failed", "--queue", "nightly"]),
        ("show-failed", &["show", "bad"]),
        ("show-waiting", &["show", &later]),
        ("explain", &["explain", &missing]),
        ("events", &["events", &good]),
        ("queue-ls", &["queue", "ls"]),
        ("context-ls", &["context", "ls"]),
    ] {
        let said = said(&mut client(&daemon, arguments));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{arguments:?}");
        snapshot(name, &masked(&said.out, &known));
    }
    // Any part of an id will do, or the name.
    for part in [&good[28..], &good[30..], &good[..], &good.to_uppercase(), "good"] {
        let shown = done(&daemon, &["show", "--json", part]);
        assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON")["id"], good, "{part}");
    }
    let common_part = said(&mut client(&daemon, &["show", &good[..8]]));
    assert_eq!(
        common_part.code,
        Some(2),
        "the beginning is the time, and that of others too: {common_part:?}"
    );
    let none = said(&mut client(&daemon, &["ps", "--label", "team=nobody", "-a"]));
    assert_eq!((none.code, none.out.as_str(), none.err.as_str()), (Some(0), "", "runward: no runner fits\n"));
}

#[test]
fn tables_fit_and_colours_are_for_terminals() {
    let daemon = Setup::new().start();
    let long = "x".repeat(200);
    daemon.run(json!({"job": {"command": ["echo", long]}, "name": "n".repeat(80)}));
    let ps = ["ps", "-a"];
    for width in [40, 80, 100] {
        let table = said(client(&daemon, &ps).env("COLUMNS", width.to_string())).out;
        let widest = table.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(width) && table.contains('…'), "{width}: {table}");
    }
    let whole = said(client(&daemon, &ps).env_remove("COLUMNS")).out;
    assert!(whole.contains(&long) && !whole.contains('\x1b'), "a pipe gets all of it, and no colour");
    let (_, on_terminal) = Terminal::start(client(&daemon, &ps)).end();
    assert!(on_terminal.contains("\x1b[32msucceeded\x1b[0m"), "{on_terminal}");
    let widest = strip(&on_terminal).lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{on_terminal}");
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let mut plain = client(&daemon, &ps);
        plain.env(name, value);
        let (_, shown) = Terminal::start(plain).end();
        assert!(!shown.contains('\x1b'), "{name}: {shown}");
    }
    assert!(said(client(&daemon, &ps).env("CLICOLOR_FORCE", "1")).out.contains("\x1b[32m"));
    assert!(done(&daemon, &["ps", "-a", "--color", "always"]).contains("\x1b[32m"));
    let (_, never) = Terminal::start(client(&daemon, &["ps", "-a", "--color", "never"])).end();
    assert!(!never.contains('\x1b'), "{never}");
}

/// Without colours.
fn strip(text: &str) -> String {
    text.split('\x1b')
        .enumerate()
        .map(|(at, part)| if at == 0 { part } else { part.split_once('m').unwrap_or_default().1 })
        .collect()
}

#[test]
fn output_is_shown_by_stream_by_tail_and_as_json() {
    let daemon = Setup::new().start();
    daemon.run(json!({"job": {"script": "for n in 1 2 3; do echo out $n; echo err $n >&2; done"}}));
    let both = said(&mut client(&daemon, &["logs", "-"]));
    assert_eq!((both.out.as_str(), both.err.as_str()), ("out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n"));
    assert_eq!(done(&daemon, &["logs", "-", "--stream", "stdout", "--tail", "1"]), "out 3\n");
    let err = said(&mut client(&daemon, &["logs", "-", "-s", "stderr", "-n", "2"]));
    assert_eq!((err.out.as_str(), err.err.as_str()), ("", "err 2\nerr 3\n"));
    assert_eq!(
        done(&daemon, &["logs", "-f", "-", "-s", "stdout"]),
        "out 1\nout 2\nout 3\n",
        "it is over: it ends"
    );
    for line in done(&daemon, &["logs", "--json", "-"]).lines() {
        assert!(serde_json::from_str::<Value>(line).expect("JSON")["next"].is_u64(), "{line}");
    }
}

#[test]
fn events_are_followed_to_the_end() {
    let daemon = Setup::new().start();
    let id = daemon.submit(json!({"job": {"command": ["sleep", "600"]}}));
    let follower =
        client(&daemon, &["events", "-f", "--json", &id]).stdout(std::process::Stdio::piped()).spawn();
    let follower = follower.expect("it runs");
    daemon.running(&id);
    assert!(done(&daemon, &["cancel", "--wait", "--force", &id]).starts_with(&id[28..]));
    let seen = follower.wait_with_output().expect("it ends").stdout;
    let types: Vec<String> = String::from_utf8_lossy(&seen)
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["type"].as_str().expect("a type").to_owned()
        })
        .collect();
    assert_eq!(
        (types.first().map(String::as_str), types.last().map(String::as_str)),
        (Some("submitted"), Some("closed"))
    );
    let again = done(&daemon, &["events", "-f", &id]);
    assert_eq!(again.lines().count(), types.len());
    assert_eq!(done(&daemon, &["events"]).lines().count(), types.len(), "all there are");
}

#[test]
fn many_are_submitted_cancelled_and_released() {
    let daemon = Setup::new().start();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("jobs");
    let jobs = "{\"job\": {\"command\": [\"sleep\", \"600\"]}, \"queue\": \"many\"}\n".repeat(3);
    std::fs::write(&file, jobs + "{\"job\": {\"comand\": []}}\n").expect("written");
    let batch = said(&mut client(&daemon, &["batch", &file.display().to_string()]));
    assert_eq!(batch.code, Some(65), "{batch:?}");
    assert_eq!(batch.out.lines().filter(|line| line.len() == 36).count(), 3, "{batch:?}");
    assert!(batch.err.contains("job 4: ") && batch.err.contains("comand"), "{batch:?}");
    assert_eq!(done(&daemon, &["cancel", "--queue", "many", "--wait"]).lines().count(), 3);
    let none = said(&mut client(&daemon, &["cancel", "--all"]));
    assert_eq!((none.code, none.err.as_str()), (Some(0), "runward: nothing that waits or runs fits\n"));
    let released = said(&mut client(&daemon, &["release", "-"]));
    assert_eq!(released.code, Some(65), "it is not held: {released:?}");
    let waited = said(&mut client(
        &daemon,
        &["wait", "--timeout", "50ms", done(&daemon, &["submit", "sleep", "600"]).trim()],
    ));
    assert_eq!(waited.code, Some(75), "{waited:?}");
}

#[test]
fn case_44_a_secret_comes_from_standard_input_or_is_typed_unseen() {
    let daemon = Setup::new().start();
    let mut command = client(&daemon, &["context", "set", "--secret", "PASSWORD"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("it runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"from a pipe\n").expect("taken");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(done(&daemon, &["run", "--", "sh", "-c", "echo $PASSWORD"]), "from a pipe\n");
    let mut terminal = Terminal::start(client(&daemon, &["context", "set", "--secret", "PASSWORD"]));
    terminal.wait_for("PASSWORD: ");
    // The echo is off once the prompt waits for input: nothing tells, but the terminal's own modes.
    crate::common::until("the terminal is silent", || !terminal.echoes());
    terminal.press("typed\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("typed"), "{shown}");
    assert_eq!(done(&daemon, &["run", "--", "sh", "-c", "echo $PASSWORD"]), "typed\n");
    let hidden = said(&mut client(&daemon, &["context", "get", "PASSWORD"]));
    assert_eq!(hidden.code, Some(77), "{hidden:?}");
    assert_eq!(done(&daemon, &["health"]), "ready\n");
}

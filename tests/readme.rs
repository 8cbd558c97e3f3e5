//! What the README and the documents show, pasted into a shell block by block, answers as shown there.

mod common;

use std::{
    path::Path,
    process::{Command, Output},
};

use common::{Daemon, Setup};
use nix::sys::signal::Signal;

const README: &str = include_str!("../README.md");
const TEN_MINUTES: &str = include_str!("../docs/ten-minutes.md");
const OPERATING: &str = include_str!("../docs/operating.md");
const COMING_FROM: &str = include_str!("../docs/coming-from.md");

struct Block<'a> {
    language: &'a str,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for line in markdown.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some(Block { language, text: String::new() }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    blocks
}

/// Whether the output has the parts between the `…`, in order.
fn shows(output: &str, expected: &str) -> bool {
    let mut rest = output;
    expected.lines().flat_map(|line| line.split('…')).filter(|part| !part.is_empty()).all(|part| {
        let found = rest.find(part).map(|at| &rest[at + part.len()..]);
        rest = found.unwrap_or(rest);
        found.is_some()
    })
}

/// Runs this in a shell of somebody who uses the daemon. What fails is named on standard error.
fn shell(daemon: &Daemon, script: &str) -> Output {
    let script = script
        .replace("/tmp/runward", &daemon.state_dir().display().to_string())
        .replace("127.0.0.1:7711", &daemon.address())
        .replace("$PWD/target/release:", "");
    let program = Path::new(env!("CARGO_BIN_EXE_runward")).parent().expect("it is in a directory").display();
    // A shell that waits for what never comes is a test that failed.
    Command::new("timeout")
        .args(["--signal=KILL", &common::PATIENCE.as_secs().to_string(), "bash"])
        .env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap_or_default()))
        .env("RUNWARD_STATE_DIR", daemon.state_dir())
        .env_remove("COLUMNS")
        .args([
            "-c",
            &format!("shopt -s expand_aliases\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{script}"),
        ])
        .output()
        .expect("bash runs; if it is missing: apt-get install bash curl")
}

/// Pastes the blocks of this text into a shell.
fn answers_what_is_shown(daemon: &Daemon, text: &str, least: usize) {
    let blocks = blocks(text);
    // One shell for all blocks, as somebody who pastes has it; a line between them tells them apart.
    let commands: Vec<&Block<'_>> = blocks.iter().filter(|block| block.language == "sh").collect();
    assert!(commands.len() >= least, "the section was found");
    let script: String =
        commands.iter().map(|block| format!("{}\necho; echo '=== end of block'\n", block.text)).collect();
    let output = shell(daemon, &script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}after:\n{text}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<&str> = text.split("=== end of block\n").collect();
    let mut answered = answers.iter();
    let mut answer = "";
    for block in &blocks {
        match block.language {
            "sh" => answer = answered.next().expect("each block has an answer"),
            _ => assert!(shows(answer, &block.text), "shown:\n{}\nanswered:\n{answer}", block.text),
        }
    }
}

/// The part of a document under this title.
fn section<'a>(document: &'a str, title: &str) -> &'a str {
    let section =
        document.split(&format!("\n## {title}\n")).nth(1).and_then(|rest| rest.split("\n## ").next());
    section.unwrap_or_else(|| panic!("the document has no section {title:?}"))
}

fn answers_what_it_shows(title: &str, least: usize) {
    answers_what_is_shown(&Setup::new().start(), section(README, title), least);
}

#[test]
fn the_first_session_answers_what_the_readme_shows() {
    answers_what_it_shows("A first session", 5);
}

#[test]
fn the_command_line_answers_what_the_readme_shows() {
    answers_what_it_shows("On the command line", 2);
}

#[test]
fn ten_minutes_go_as_they_are_told() {
    let (start, rest) = TEN_MINUTES.split_once("\n```sh\n").expect("it has blocks");
    let started = "target/release/runward serve --state-dir /tmp/runward\n";
    assert!(blocks(start)[0].text.ends_with(started), "it starts the daemon as this test does");
    let (session, stop) = rest.split_once("\nThen press Ctrl-C").expect("it stops the daemon");
    let (log, again) = stop.split_once("\nStart the daemon again").expect("it starts it again");

    let mut daemon = Setup::new().start();
    answers_what_is_shown(&daemon, &format!("```sh\n{session}"), 8);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait().code(), Some(0));
    let shown = &blocks(log)[0].text;
    assert!(shows(&daemon.log_text(), shown), "shown:\n{shown}\nlogged:\n{}", daemon.log_text());
    answers_what_is_shown(&daemon.restart(), again, 1);
}

#[test]
fn operating_answers_what_is_shown() {
    let mut daemon = Setup::new().start();
    let submitted = shell(
        &daemon,
        "runward submit --name gone -- sleep 1000; runward submit --name dump --on-lost hold -- sleep 1000
         until [ $(runward ps --state running --ids | wc -l) = 2 ]; do sleep 0.1; done",
    );
    assert!(submitted.stderr.is_empty(), "{}", String::from_utf8_lossy(&submitted.stderr));
    daemon.crash();
    answers_what_is_shown(&daemon.restart(), OPERATING, 5);
}

/// Each command of the tables' last column is run in their order, and each option is one of `submit`.
#[test]
fn whoever_comes_from_elsewhere_is_told_commands_that_work() {
    let rows = COMING_FROM.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let cells: Vec<&str> = rows.filter_map(|row| row.rsplit('|').next()).collect();
    let spans = || cells.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let commands: Vec<&str> = spans().filter(|span| span.starts_with("runward ")).collect();
    assert!(commands.len() >= 25, "the tables were found: {commands:?}");
    let output = shell(&Setup::new().start(), &commands.join("\n"));
    let told = String::from_utf8_lossy(&output.stderr);
    // That nothing fits is said on standard error too, and is no failure.
    assert!(!told.contains("failed: "), "{told}after:\n{}", String::from_utf8_lossy(&output.stdout));

    let help =
        Command::new(env!("CARGO_BIN_EXE_runward")).args(["submit", "--help"]).output().expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for option in spans().filter(|span| span.starts_with('-')).filter_map(|span| span.split(' ').next()) {
        assert!(help.contains(&format!("{option} <")) || help.contains(&format!("{option}\n")), "{option}");
    }
}

#[test]
fn the_comparison_sees_what_differs() {
    assert!(shows("{\"id\":\"7\",\"state\":\"closed\"}", "{\"id\":\"…\",\"state\":\"closed\"}"));
    assert!(!shows("{\"id\":\"7\",\"state\":\"queued\"}", "{\"id\":\"…\",\"state\":\"closed\"}"));
    assert!(!shows("b a", "a…b"));
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    use runward::daemon::Code;
    let codes = [
        Code::Stopped,
        Code::StoreUnusable,
        Code::Unavailable,
        Code::Internal,
        Code::System,
        Code::StoreFailed,
        Code::InUse,
        Code::NotPrivate,
        Code::Settings,
        Code::Abandoned,
        Code::Forced,
    ];
    for code in codes {
        assert!(README.contains(&format!("\n| {} | ", code as u8)), "{code:?} is not in the README");
    }
}

#[test]
fn bad_settings_and_a_public_state_directory_are_refused_with_their_codes() {
    let refused = |setup: Setup, code: i32, text: &str| {
        let output = setup.command().output().expect("it runs");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(text), "{message}");
    };
    refused(Setup::new().set("JOBS__MAX_RUNING", 3), 78, "did you mean `jobs.max_running`");
    let public = Setup::new();
    std::fs::create_dir(public.state_dir()).expect("made");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(public.state_dir(), mode).expect("set");
    refused(public, 77, "has mode 0755; make it a directory of user");
}

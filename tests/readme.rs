//! The README's session, pasted into a shell block by block, answers what the README shows.

mod common;

use std::{path::Path, process::Command};

use common::Setup;

const README: &str = include_str!("../README.md");

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

/// Pastes the blocks of a section of the README into a shell.
fn answers_what_it_shows(title: &str, least: usize) {
    let daemon = Setup::new().start();
    let section = README.split(&format!("\n## {title}\n")).nth(1).and_then(|rest| rest.split("\n## ").next());
    let blocks = blocks(section.expect("the README has the section"));
    // One shell for all blocks, as somebody who pastes has it; a line between them tells them apart.
    let commands: Vec<&Block<'_>> = blocks.iter().filter(|block| block.language == "sh").collect();
    assert!(commands.len() >= least, "the section was found");
    let script: String =
        commands.iter().map(|block| format!("{}\necho; echo '=== end of block'\n", block.text)).collect();
    let script = script
        .replace("/tmp/runward", &daemon.state_dir().display().to_string())
        .replace("127.0.0.1:7711", &daemon.address());
    let program = Path::new(env!("CARGO_BIN_EXE_runward")).parent().expect("it is in a directory").display();
    let output = Command::new("bash")
        .env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap_or_default()))
        .env_remove("COLUMNS")
        .args(["-c", &format!("shopt -s expand_aliases\n{script}")])
        .output()
        .expect("bash runs; if it is missing: apt-get install bash curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
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

#[test]
fn the_first_session_answers_what_the_readme_shows() {
    answers_what_it_shows("A first session", 5);
}

#[test]
fn the_command_line_answers_what_the_readme_shows() {
    answers_what_it_shows("On the command line", 2);
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

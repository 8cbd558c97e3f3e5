//! What the program tells of itself: help, manual, completions.

use std::process::{Command, Stdio};

use crate::program::{program, said, snapshot};

/// Every command, as one types it.
const COMMANDS: &[&[&str]] = &[
    &[],
    &["serve"],
    &["run"],
    &["submit"],
    &["batch"],
    &["ps"],
    &["show"],
    &["explain"],
    &["logs"],
    &["events"],
    &["wait"],
    &["cancel"],
    &["close"],
    &["release"],
    &["queue"],
    &["queue", "ls"],
    &["queue", "set"],
    &["queue", "pause"],
    &["queue", "resume"],
    &["queue", "reset"],
    &["context"],
    &["context", "ls"],
    &["context", "get"],
    &["context", "set"],
    &["context", "unset"],
    &["health"],
    &["config"],
    &["config", "check"],
    &["config", "print"],
    &["completions"],
    &["man"],
];

#[test]
fn each_command_helps() {
    for command in COMMANDS {
        let help = said(program().args(*command).arg("--help"));
        assert_eq!((help.code, help.err.as_str()), (Some(0), ""), "{command:?}");
        snapshot([&["help"], *command].concat().join("-").as_str(), &help.out);
    }
}

#[test]
fn no_command_is_missing_here() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(said(program().arg("man").arg(dir.path())).code, Some(0));
    let mut pages: Vec<String> = std::fs::read_dir(dir.path())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    pages.sort();
    let mut expected: Vec<String> =
        COMMANDS.iter().map(|command| format!("{}.1", [&["runward"], *command].concat().join("-"))).collect();
    expected.sort();
    assert_eq!(pages, expected);
}

#[test]
fn the_manual_is_one_that_man_can_read() {
    let page = said(program().arg("man"));
    assert_eq!(page.code, Some(0));
    assert!(page.out.contains(".TH runward 1") && page.out.contains("Exit codes"), "{}", page.out);
}

#[test]
fn bash_reads_its_completions() {
    let script = said(program().args(["completions", "bash"])).out;
    let checked = Command::new("bash").args(["-n", "-c", &script]).stderr(Stdio::piped()).output();
    let checked = checked.expect("bash runs; if it is missing: apt-get install bash");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(said(program().args(["completions", shell])).out.contains("runward"), "{shell}");
    }
}

#[test]
fn a_slip_of_the_finger_is_told_what_was_meant() {
    for (typed, meant) in [
        (&["cnacel"][..], "cancel"),
        (&["ps", "--lable", "a=b"], "--label"),
        (&["queue", "pasue", "x"], "pause"),
    ] {
        let refused = said(program().args(typed));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.err.contains(&format!("'{meant}'")), "{refused:?}");
    }
}

#[test]
fn the_help_of_serve_is_that_of_all_commands() {
    // `serve` has a way of its own through the arguments.
    let version = said(program().arg("--version")).out;
    assert!(version.starts_with("runward "), "{version}");
    let refused = said(program().args(["serve", "--nope"]));
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("runward serve"), "{refused:?}");
}

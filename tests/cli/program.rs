//! The program as a child, and what it said.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::common::Daemon;

/// The program, with nothing of the caller's that would change what it does.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runward"));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RUNWARD"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    for name in ["NO_COLOR", "CLICOLOR_FORCE", "STATE_DIRECTORY"] {
        command.env_remove(name);
    }
    command.env("COLUMNS", "100").env("TERM", "xterm-256color").stdin(Stdio::null());
    command
}

/// A client of this daemon.
pub(crate) fn client(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(arguments).env("RUNWARD_STATE_DIR", daemon.state_dir());
    command
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// One that is to succeed; gives its standard output.
pub(crate) fn done(daemon: &Daemon, arguments: &[&str]) -> String {
    let said = said(&mut client(daemon, arguments));
    assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}");
    said.out
}

/// Compares with the file of this name; `RUNWARD_UPDATE_SNAPSHOTS=1` writes it instead.
pub(crate) fn snapshot(name: &str, text: &str) {
    let path: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("RUNWARD_UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).expect("written");
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "{} differs; RUNWARD_UPDATE_SNAPSHOTS=1 writes it anew. Kept:\n{kept}\nNow:\n{text}",
        path.display()
    );
}

/// A text without what differs from run to run: ids and places by their names, numbers as `#`, columns one gap apart.
pub(crate) fn masked(text: &str, known: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (what, name) in known {
        text = text.replace(what, name);
        if what.len() == 36 {
            text = text.replace(&what[28..], name);
        }
    }
    let mut masked = String::new();
    for letter in text.chars() {
        let last = masked.chars().last();
        match letter {
            '0'..='9' if last == Some('#') => {}
            '0'..='9' => masked.push('#'),
            ' ' if masked.ends_with("  ") => {}
            letter => masked.push(letter),
        }
    }
    // A time of less than a second has another unit.
    masked.replace("#.# s", "# s").replace("# ms", "# s").replace("  # s", " # s").replace('\t', " ")
}

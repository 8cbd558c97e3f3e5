//! The examples of the Runner, as a user runs them: what they print, and that Ctrl-C does in
//! `graceful` what it promises.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, atomic::AtomicBool};

use nix::sys::signal::Signal::{self, SIGINT, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Built beside this test: `cargo test` builds all examples, `--test` alone does not.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile: PathBuf = test.parent().unwrap().parent().unwrap().into();
    let built = profile.join("examples").join(name);
    if !built.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--no-default-features", "--example", name]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    }
    let mut command = Command::new(built);
    command.env_remove("RUNWARD_DEBUG");
    command
}

/// What it prints until it ends of itself, without its fault.
fn prints(name: &str) -> Vec<String> {
    let output = example(name).output().unwrap();
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A printed `CloseReport` up to its duration, which no two runs share.
fn report(line: &str) -> &str {
    line.split(", elapsed").next().unwrap()
}

#[test]
fn hello() {
    assert_eq!(prints("hello"), ["hello …", "… world"]);
}

#[test]
fn context() {
    let mut lines = prints("context");
    assert_eq!(lines.pop().as_deref(), Some("Ok(Ok(()))"));
    assert_eq!(lines.remove(0), "[request None] main: waits");
    // Blocking work of the three runs side by side.
    for request in 1..=3 {
        let mine = format!("[request Some({request})] ");
        let of_it: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(&mine)).collect();
        assert_eq!(of_it.len(), 2, "{lines:?}");
        assert!(of_it[0].starts_with("Task-") && of_it[0].ends_with(": begins"), "{lines:?}");
        assert_eq!(of_it[1], "blocking work: computes");
    }
    assert_eq!(lines.len(), 6, "{lines:?}");
}

#[test]
fn generator() {
    let lines = prints("generator");
    let (last, rest) = lines.split_last().unwrap();
    let expected =
        ["9", "8", "7", "the run is over, the Runner closes", "closing the countdown …", "… closed"];
    assert_eq!(rest, expected);
    // The task is the one that the dropped generator left to close it; the close did that instead.
    assert_eq!(
        report(last),
        "CloseReport { tasks_cancelled: 1, task_errors: 0, tasks_abandoned: [], generators_closed: 1, \
         executor_abandoned: []"
    );
}

struct Graceful {
    process: Child,
    stdout: BufReader<ChildStdout>,
}

impl Graceful {
    /// Until the task tree shows a second client: then the first one has begun. A task that is
    /// cancelled before it begins says nothing, as in asyncio.
    fn with_a_client() -> Self {
        // Whoever starts the tests may ignore it, and the example would inherit that; what is caught it does not.
        let always = Arc::new(AtomicBool::new(true));
        signal_hook::flag::register_conditional_shutdown(SIGINT as i32, 130, always).unwrap();
        let mut process = example("graceful").stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let mut this = Graceful { process, stdout };
        while !this.line().contains("client 2") {}
        this
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.stdout.read_line(&mut line).unwrap() > 0, "it ended too soon");
        line
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    /// The lines after the signal; the task tree may have been printed once more before it.
    fn ends(mut self) -> Vec<String> {
        let lines = self.stdout.lines().map(Result::unwrap).collect();
        let status = self.process.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
        lines
    }
}

#[test]
fn graceful_says_goodbye_on_a_signal() {
    for signal in [SIGINT, SIGTERM] {
        let server = Graceful::with_a_client();
        server.send(signal);
        let lines = server.ends();
        assert!(lines.iter().any(|line| line == "said goodbye to client 1"), "{lines:?}");
        let [.., stopped, closed] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(stopped, "stopped by a signal");
        assert_eq!(
            report(closed),
            "CloseReport { tasks_cancelled: 0, task_errors: 0, tasks_abandoned: [], generators_closed: 0, \
             executor_abandoned: []"
        );
    }
}

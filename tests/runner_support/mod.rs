//! What the tests of the Runner share: real child processes, and the findings that were logged.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, atomic::AtomicBool};

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A test of a test binary's own harness, by the name of its function.
#[macro_export]
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        vec![$(libtest_mimic::Trial::test(stringify!($name), || { $name(); Ok(()) })),*]
    };
}

/// Runs the tests; or, in a process started by [`Child::start`], the scenario it was started for,
/// on the main thread.
pub(crate) fn main(trials: Vec<Trial>, scenario: impl Fn(&str)) -> ExitCode {
    tracing::subscriber::set_global_default(Findings).expect("nobody else has set one");
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--child") {
        scenario(&arguments.next().expect("the name of a scenario"));
        return ExitCode::SUCCESS;
    }
    // Whoever starts the tests may ignore it, as shells do for what is in the background, and children would inherit
    // that. What is caught is theirs again as it is by default.
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGINT, 130, always)
        .expect("it can be caught");
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// This binary again, in a process of its own.
pub(crate) struct Child {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    lines: Vec<String>,
}

impl Child {
    pub(crate) fn start(scenario: &str) -> Self {
        Self::spawn(Self::command(scenario))
    }

    pub(crate) fn command(scenario: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--child", scenario]).env_remove("RUNWARD_DEBUG");
        command
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = process.stdin.take();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        Child { process, stdin, stdout, lines: Vec::new() }
    }

    /// Waits until the child says `expected`.
    pub(crate) fn says(&mut self, expected: &str) -> &mut Self {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the child ended without saying {expected:?}; it said {:?}", self.lines);
            self.lines.push(line.trim_end().to_owned());
            if line.trim_end() == expected {
                return self;
            }
        }
    }

    pub(crate) fn send(&mut self, signal: Signal) -> &mut Self {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
        self
    }

    /// Lets a child that reads its standard input go on.
    pub(crate) fn go_on(&mut self) -> &mut Self {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self
    }

    /// Waits until all threads of the child sleep, so that the loop is in its wait for events.
    pub(crate) fn sleeps(&mut self) -> &mut Self {
        let tasks = format!("/proc/{}/task", self.process.id());
        let asleep = || {
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
            })
        };
        while !asleep() {
            std::thread::yield_now();
        }
        self
    }

    /// Sends `signal` until the child has ended.
    pub(crate) fn send_until_it_ends(&mut self, signal: Signal) -> &mut Self {
        while self.process.try_wait().unwrap().is_none() {
            self.send(signal);
            std::thread::yield_now();
        }
        self
    }

    /// Waits for the end: the exit code or the signal, and every line that was said.
    pub(crate) fn ends(mut self) -> (Result<i32, Signal>, Vec<String>) {
        drop(self.stdin.take());
        let rest = self.stdout.lines().map(Result::unwrap);
        self.lines.extend(rest);
        let status = self.process.wait().unwrap();
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => Ok(code),
            (None, signal) => Err(Signal::try_from(signal.unwrap()).unwrap()),
        };
        (end, self.lines)
    }
}

/// A line to the parent, at once.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Waits for [`Child::go_on`].
pub(crate) fn wait_for_parent() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

static FINDINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The findings logged so far that contain `text`, which should be unique to one test.
pub(crate) fn findings(text: &str) -> Vec<String> {
    FINDINGS.lock().unwrap().iter().filter(|finding| finding.contains(text)).cloned().collect()
}

/// Keeps every event as a line.
struct Findings;

impl tracing::Subscriber for Findings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("runward")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                write!(self.0, "{field}={value:?} ").unwrap();
            }
        }
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        FINDINGS.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Silences the panics that tests cause on purpose.
pub(crate) fn expect_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            if !text.starts_with("on purpose") {
                default(info);
            }
        }));
    });
}

/// A value that counts its drops.
pub(crate) struct Dropped(pub(crate) std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

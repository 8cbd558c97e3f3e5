//! The hot paths that need no daemon, for counting their instructions: `.ci/instructions` runs this under callgrind.
//!
//! `hot_paths core N` leads N jobs through the supervisor's core, from the submission to the close; `hot_paths segment N`
//! writes N MiB of output in pieces of 4 KiB. What both take once is the difference to a run with a smaller N.

use std::{process::ExitCode, sync::Arc, time::Duration};

use jiff::Timestamp;
use runward::{
    job::{Command, Drain, Exit, Job, Record, RunnerId, Spec},
    process::log::{LogWriter, Stream},
    supervisor::{
        core::{Core, Input, Limits, Now, Output},
        ports::{End, News, Records, Report, Unreadable},
    },
};

const LIMITS: Limits = Limits {
    max_running: 8,
    max_in_process: 8,
    max_queued: 1000,
    cancel_grace: Duration::from_secs(30),
    shutdown: Duration::from_secs(300),
};

/// Everything is in memory here.
struct NoStore;

impl Records for NoStore {
    fn load(&self, _: RunnerId) -> Result<Option<Record>, Unreadable> {
        Ok(None)
    }

    fn load_at(&self, _: u64) -> Result<Option<Record>, Unreadable> {
        Ok(None)
    }
}

/// The core, and what its actor does with what it says: commit at once.
struct Supervisor {
    core: Core,
    mono: Duration,
}

impl Supervisor {
    fn input(&mut self, input: Input) {
        let output = self.turn(input);
        let changed = self.core.take_changed();
        if let Some(last) = output.batch.events.last() {
            self.turn(Input::Committed { upto: last.seq });
        }
        std::hint::black_box((output, changed));
    }

    fn turn(&mut self, input: Input) -> Output {
        self.mono += Duration::from_micros(10);
        let now = Now { wall: Timestamp::UNIX_EPOCH + self.mono, mono: self.mono, jitter: || 0.5 };
        self.core.handle(now, input, &NoStore)
    }

    fn one_job(&mut self, number: u128) {
        let id = RunnerId::from_u128(number);
        let job = Job::Command(Command { argv: vec!["/bin/true".into()], ..Command::default() });
        let spec = Arc::new(Spec::new(job, Duration::from_secs(300)));
        self.input(Input::Submit { id, spec, key: None, token: (id, 0) });
        let key = self.core.attempt(id).expect("it starts");
        let report = |news| Input::Report(Report { runner: id, key, news });
        self.input(report(News::Running { pid: Some(7), start_time: Some(7) }));
        let end = End { exit: Some(Exit::Code(0)), closed: Some(Drain::default()), ..End::default() };
        self.input(report(News::Ended(end)));
        assert!(self.core.record(id).is_none(), "it is closed");
    }
}

fn core(jobs: u32) {
    let mut supervisor = Supervisor { core: Core::new(LIMITS, "boot".into(), 1), mono: Duration::ZERO };
    for number in 1..=jobs {
        supervisor.one_job(number.into());
    }
}

fn segment(mib: u32) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = LogWriter::new(dir.path().to_owned(), 8 << 20, 64 << 20);
    let piece = [b'x'; 4096];
    for number in 0..u64::from(mib) * 256 {
        log.append(Stream::Stdout, number, &piece);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["core", count] => core(count.parse().expect("a number")),
        ["segment", count] => segment(count.parse().expect("a number")),
        // `cargo bench` runs all benchmarks; this one is for `.ci/instructions`.
        [] => eprintln!("hot_paths: run `.ci/instructions`"),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

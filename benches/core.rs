//! The supervisor's core alone, without I/O: `cargo bench --bench core`.
//!
//! `cargo bench --bench core -- plain life 1000` does so many of one thing and nothing else, for a profiler; after a
//! warm-up, so that what is subtracted between two counts is one of it.

use std::{hint::black_box, sync::Arc, time::Duration};

use divan::Bencher;
use jiff::Timestamp;
use runward::{
    job::{AttemptKey, Command, Drain, Exit, Job, Record, RunnerId, Spec},
    supervisor::{
        core::{Core, Effect, Input, Limits, Now, Output},
        ports::{End, News, Records, Report, Unreadable},
    },
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let Some(plain) = args.iter().position(|arg| arg == "plain") else { return divan::main() };
    let number = |place: usize| args.get(place).and_then(|arg| arg.parse().ok());
    let (what, count) = (args.get(plain + 1).map(String::as_str), number(plain + 2).unwrap_or(1000));
    let backlog = number(plain + 3).unwrap_or(0);
    match what {
        Some("life") => {
            let mut rig = Rig::new(u32::MAX, backlog);
            (0..count).for_each(|_| rig.life());
        }
        Some("submit") => {
            let mut rig = Rig::full(backlog);
            (0..count).for_each(|_| rig.submit(1));
        }
        Some("batch") => {
            let mut rig = Rig::full(backlog);
            (0..count).for_each(|_| rig.submit(BATCH));
        }
        Some(_) | None => panic!("plain life|submit|batch COUNT [BACKLOG]"),
    }
}

/// Submissions that are committed together.
const BATCH: usize = 1000;

/// Nothing is read back here.
struct Nothing;

impl Records for Nothing {
    fn load(&self, _: RunnerId) -> Result<Option<Record>, Unreadable> {
        Ok(None)
    }

    fn load_at(&self, _: u64) -> Result<Option<Record>, Unreadable> {
        Ok(None)
    }
}

/// A core, and what the actor does with it but for the effects.
struct Rig {
    core: Core,
    spec: Arc<Spec>,
    mono: Duration,
    seq: u64,
}

impl Rig {
    /// With so many slots, and so many that wait in a queue that is paused.
    fn new(max_running: u32, backlog: usize) -> Self {
        let limits = Limits {
            max_running,
            max_in_process: 1,
            max_queued: usize::MAX,
            cancel_grace: Duration::from_secs(30),
            shutdown: Duration::from_secs(300),
        };
        let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
        let spec = Spec {
            timeout: Some(Duration::from_secs(60)).into(),
            ..Spec::new(job, Duration::from_secs(300))
        };
        let mut core = Core::new(limits, "0b2b5f1c-9a1c-4b9f-8a36-0f6c2d4e5f60".into(), 1);
        let paused = runward::job::QueueSettings { max_running: None, paused: true };
        core.configure([("paused".to_owned(), paused)].into(), Default::default());
        let mut rig = Self { core, spec: Arc::new(spec), mono: Duration::ZERO, seq: 0 };
        let usual = Arc::clone(&rig.spec);
        rig.spec = Arc::new(Spec { queue: "paused".into(), weight: 1, ..Spec::clone(&usual) });
        for _ in 0..backlog / BATCH {
            rig.submit(BATCH);
        }
        rig.spec = usual;
        rig
    }

    /// With one slot, which is taken.
    fn full(backlog: usize) -> Self {
        let mut rig = Self::new(1, backlog);
        rig.submit(1);
        rig
    }

    fn input(&mut self, input: Input) -> Output {
        self.mono += Duration::from_micros(1);
        let now = Now { wall: Timestamp::UNIX_EPOCH, mono: self.mono, jitter: || 0.5 };
        let output = self.core.handle(now, input, &Nothing);
        self.seq = output.batch.events.last().map_or(self.seq, |event| event.seq);
        output
    }

    fn commit(&mut self) {
        black_box(self.core.take_changed());
        black_box(self.input(Input::Committed { upto: self.seq }));
    }

    /// Durable submissions that find no slot.
    fn submit(&mut self, count: usize) {
        for _ in 0..count {
            let id = RunnerId::new();
            let spec = Arc::new(Spec::clone(&self.spec));
            black_box(self.input(Input::Submit { id, spec, key: None, token: (id, 0) }));
        }
        self.commit();
    }

    /// One job from its submission to its close, with the three commits that it has when nothing else goes on.
    fn life(&mut self) {
        let id = RunnerId::new();
        let spec = Arc::new(Spec::clone(&self.spec));
        let output = self.input(Input::Submit { id, spec, key: None, token: (id, 0) });
        let key = output.now.iter().find_map(|effect| match effect {
            Effect::Prepare(_, key) => Some(*key),
            _ => None,
        });
        let key: AttemptKey = key.expect("there is a slot");
        // The Runner is made from it.
        drop(black_box(self.core.record(id)));
        self.commit();
        let news = News::Running { pid: Some(7), start_time: Some(7) };
        black_box(self.input(Input::Report(Report { runner: id, key, news })));
        self.commit();
        let closed = Some(Drain::default());
        let news = News::Ended(End { exit: Some(Exit::Code(0)), closed, ..End::default() });
        black_box(self.input(Input::Report(Report { runner: id, key, news })));
        self.commit();
        assert_eq!(self.core.counts().active, 0);
    }
}

#[divan::bench(args = [0, 1_000, 100_000, 1_000_000])]
fn life(bencher: Bencher<'_, '_>, backlog: usize) {
    let mut rig = Rig::new(u32::MAX, backlog);
    bencher.bench_local(|| rig.life());
}

#[divan::bench(args = [0, 1_000, 100_000, 1_000_000])]
fn submit(bencher: Bencher<'_, '_>, backlog: usize) {
    let mut rig = Rig::full(backlog);
    bencher.bench_local(|| rig.submit(1));
}

#[divan::bench(args = [0, 1_000, 100_000, 1_000_000])]
fn batch(bencher: Bencher<'_, '_>, backlog: usize) {
    let mut rig = Rig::full(backlog);
    bencher.counter(divan::counter::ItemsCount::new(BATCH)).bench_local(|| rig.submit(BATCH));
}

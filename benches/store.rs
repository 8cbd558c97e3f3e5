//! What the store's thread does for each job, for a count of instructions, which is the same at each run:
//!
//! ```text
//! cargo bench --bench store --no-run
//! valgrind --tool=callgrind --toggle-collect='*store::append*' target/release/deps/store-… submission
//! ```
//!
//! Or `life` or `thousand`. Without a word it does all of them, and prints how long each takes, commits included.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use runward::{
    job::{
        self, AttemptKey, CloseFacts, Command, Drain, Event, EventKind, Exit, Job, Outcome, OutputFacts,
        Record, RunnerId, Spec,
    },
    store::{self, Log},
    supervisor::ports::{Batch, EventLog},
};

/// How often each is done.
const TIMES: u32 = 1000;

/// How many are submitted at once by the route for many.
const MANY: usize = 1000;

/// The events so far, and what is to be written of them.
#[derive(Default)]
struct History {
    seq: u64,
}

impl History {
    fn happens(&mut self, records: &mut Vec<Record>, id: RunnerId, kind: EventKind) -> Event {
        self.seq += 1;
        let at = Timestamp::UNIX_EPOCH + Duration::from_micros(self.seq);
        let event = Event { seq: self.seq, runner: id, at, kind };
        match records.iter_mut().find(|record| record.id == id) {
            Some(record) => job::apply(record, &event).expect("legal"),
            None => records.push(job::create(&event).expect("legal")),
        }
        event
    }

    fn batch(&mut self, record: &mut Vec<Record>, id: RunnerId, kinds: Vec<EventKind>) -> Batch {
        let events = kinds.into_iter().map(|kind| self.happens(record, id, kind)).collect();
        let records = record.iter().cloned().map(Arc::new).collect();
        Batch { events, records, ..Batch::default() }
    }
}

fn submitted() -> EventKind {
    let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
    EventKind::Submitted { spec: Arc::new(Spec::new(job, Duration::from_secs(300))) }
}

fn starting() -> EventKind {
    EventKind::Starting {
        run: 1,
        attempt: 1,
        key: AttemptKey::new(),
        boot_id: "00000000-0000-4000-8000-000000000000".into(),
        context_version: 0,
    }
}

fn ended() -> Vec<EventKind> {
    let output = OutputFacts { bytes: 0, dropped: 0, incomplete: false };
    let drain = Drain { elapsed_us: 5, ..Drain::default() };
    vec![
        EventKind::AttemptEnded {
            outcome: Outcome::Succeeded,
            exit: Some(Exit::Code(0)),
            error: None,
            output: Some(output),
            swept: 0,
            result: None,
            context: BTreeMap::new(),
        },
        EventKind::Draining { outcome: Some(Outcome::Succeeded) },
        EventKind::Closed(CloseFacts { outcome: Outcome::Succeeded, drain: Some(Box::new(drain)) }),
    ]
}

/// One job that waits: one commit.
fn a_submission(history: &mut History) -> Vec<Batch> {
    vec![history.batch(&mut Vec::new(), RunnerId::new(), vec![submitted()])]
}

/// One short job from its submission to its close: two commits, as an idle daemon makes them.
fn a_life(history: &mut History) -> Vec<Batch> {
    let (id, mut record) = (RunnerId::new(), Vec::new());
    let begin = history.batch(&mut record, id, vec![submitted(), starting()]);
    let mut end = vec![EventKind::Running { pid: Some(4711), start_time: Some(123_456) }];
    end.extend(ended());
    vec![begin, history.batch(&mut record, id, end)]
}

/// A thousand jobs that wait: one commit.
fn a_thousand(history: &mut History) -> Vec<Batch> {
    let mut all = Batch::default();
    for _ in 0..MANY {
        let Batch { events, records, .. } =
            history.batch(&mut Vec::new(), RunnerId::new(), vec![submitted()]);
        all.events.extend(events);
        all.records.extend(records);
    }
    vec![all]
}

#[inline(never)]
fn append(log: &mut Log, batches: &[Batch]) {
    for batch in batches {
        black_box(log.append(black_box(batch)).expect("appended"));
    }
}

fn measure(word: &str, times: u32, make: fn(&mut History) -> Vec<Batch>) {
    let chosen = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    if chosen.is_some_and(|chosen| chosen != word) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = store::open(&dir.path().join("runward.db"), false).expect("a store");
    let mut history = History::default();
    let mut elapsed = Duration::ZERO;
    for _ in 0..times {
        let batches = make(&mut history);
        let start = Instant::now();
        append(&mut log, &batches);
        elapsed += start.elapsed();
    }
    println!("{word}: {:.1} µs", elapsed.as_secs_f64() * 1e6 / f64::from(times));
}

fn main() {
    measure("submission", TIMES, a_submission);
    measure("life", TIMES, a_life);
    measure("thousand", TIMES / 50, a_thousand);
}

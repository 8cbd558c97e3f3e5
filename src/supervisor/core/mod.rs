//! The supervisor's decisions: inputs in, events and effects out. No I/O, no clock, no threads.
//!
//! An effect that needs something to be durable is held: it is performed when the events before it are
//! committed. All others are performed at once.

mod message;
mod turn;
mod verdict;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

pub use message::{Answer, Counts, Denied, Effect, Input, Limits, Now, Output, Phase, Token};
pub(super) use verdict::verdict;

use super::ports::Records;
use crate::job::{AttemptKey, Record, RunnerId};
use turn::Turn;

/// How many records of waiting Runners are kept in memory. The rest is two numbers each and is read back
/// when its turn comes, so memory hardly grows with the backlog.
const RECORDS_KEPT: usize = 1024;

/// After a shutdown's deadline, or a second signal, everything is killed. What has not died after this long
/// is in uninterruptible sleep: the daemon leaves it, says so, and ends.
pub const SETTLE: Duration = Duration::from_millis(350);

struct Waiting {
    place: Place,
    record: Option<Box<Record>>,
}

/// The order of starts: priority, then acceptance.
type Place = (Reverse<i32>, u64, RunnerId);

struct Active {
    record: Box<Record>,
    key: AttemptKey,
    /// The start is durable and the Runner was told to go.
    gone: bool,
    timeout: Option<Duration>,
    grace: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Timeout,
    Grace,
}

/// All Runners that are not closed, and what to do with them.
pub struct Core {
    limits: Limits,
    boot_id: String,
    phase: Phase,
    next_seq: u64,
    waiting: HashMap<RunnerId, Waiting>,
    /// Those of `waiting` that may start.
    queue: BTreeSet<Place>,
    active: HashMap<RunnerId, Active>,
    timers: BTreeSet<(Duration, RunnerId, Timer)>,
    /// Starts and submissions that are not durable yet, in the order of their events.
    starting: VecDeque<(u64, RunnerId)>,
    submitted: VecDeque<(u64, RunnerId)>,
    /// Changed since the last snapshot; those that closed since are in `retired`.
    changed: HashSet<RunnerId>,
    retired: Vec<Arc<Record>>,
}

impl Core {
    /// A core with nothing in it, that numbers events from `next_seq`.
    pub fn new(limits: Limits, boot_id: String, next_seq: u64) -> Self {
        Self {
            limits,
            boot_id,
            phase: Phase::Open,
            next_seq,
            waiting: HashMap::new(),
            queue: BTreeSet::new(),
            active: HashMap::new(),
            timers: BTreeSet::new(),
            starting: VecDeque::new(),
            submitted: VecDeque::new(),
            changed: HashSet::new(),
            retired: Vec::new(),
        }
    }

    /// Takes over a Runner that waited when the daemon ended. Its record stays in the store.
    pub fn restore(&mut self, id: RunnerId, priority: i32, submitted_seq: u64, held: bool) {
        let place = (Reverse(priority), submitted_seq, id);
        self.waiting.insert(id, Waiting { place, record: None });
        if !held {
            self.queue.insert(place);
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many are where.
    pub fn counts(&self) -> Counts {
        Counts { queued: self.waiting.len(), active: self.active.len() }
    }

    /// Those that are neither waiting nor closed.
    pub fn active(&self) -> impl Iterator<Item = &Record> {
        self.active.values().map(|active| &*active.record)
    }

    /// When the core wants to be told of the time.
    pub fn next_deadline(&self) -> Option<Duration> {
        let timer = self.timers.first().map(|(at, _, _)| *at);
        let phase = match self.phase {
            Phase::Draining { deadline } => Some(deadline),
            Phase::Forcing { until } => Some(until),
            Phase::Open | Phase::Finished => None,
        };
        timer.into_iter().chain(phase).min()
    }

    /// The record of an active Runner, to make it from.
    pub fn record(&self, id: RunnerId) -> Option<Arc<Record>> {
        self.active.get(&id).map(|active| Arc::new(Record::clone(&active.record)))
    }

    /// The attempt of an active Runner.
    pub fn attempt(&self, id: RunnerId) -> Option<AttemptKey> {
        self.active.get(&id).map(|active| active.key)
    }

    /// The records that changed since the last call.
    pub fn take_changed(&mut self) -> Vec<Arc<Record>> {
        let mut records = std::mem::take(&mut self.retired);
        for id in self.changed.drain() {
            let waiting = || self.waiting.get(&id).and_then(|waiting| waiting.record.as_deref());
            if let Some(record) = self.active.get(&id).map(|active| &*active.record).or_else(waiting) {
                records.push(Arc::new(record.clone()));
            }
        }
        records
    }

    /// Decides what an input leads to.
    pub fn handle(&mut self, now: Now, input: Input, records: &dyn Records) -> Output {
        let mut turn = Turn { core: self, now, records, out: Output::default() };
        match input {
            Input::Submit { id, spec, key, token } => turn.submit(id, spec, key, token),
            Input::Cancel { id, by, token } => {
                let answer = turn.cancel(id, by, true);
                turn.reply(token, answer);
            }
            Input::Close { id, by, token } => {
                let answer = turn.cancel(id, by, false);
                turn.reply(token, answer);
            }
            Input::Report(report) => turn.report(report),
            Input::Committed { upto } => turn.committed(upto),
            Input::Refused(ids) => turn.refused(&ids),
            Input::Signal { name } => turn.signal(name),
            Input::Tick => turn.tick(),
        }
        turn.schedule();
        turn.finish_if_drained();
        turn.out
    }
}

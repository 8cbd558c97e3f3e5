//! The supervisor's decisions: inputs in, events and effects out. No I/O, no clock, no threads.
//!
//! An effect that needs something to be durable is held: it is performed when the events before it are
//! committed. All others are performed at once.

mod change;
mod line;
mod message;
mod places;
mod request;
mod standing;
mod timers;
mod turn;
mod untold;
mod verdict;
mod waiting;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use foldhash::{HashMap, HashSet};
use jiff::Timestamp;

pub use message::{
    Answer, Change, Counts, Denied, Effect, Input, Limit, Limits, Now, Output, Phase, QueueStatus, Request,
    Restored, Standing, Token,
};
pub(super) use verdict::{Next, ended, final_outcome, requeued, what_follows};

use super::ports::Records;
use crate::job::{AttemptKey, QueueSettings, Record, RunnerId, SharedContext, State};
use line::{Line, Ticket};
use places::Place;
use timers::{Timer, Timers};
use turn::Turn;
use untold::Untold;
use waiting::{Ready, Waiting, WaitingRoom};

/// How many records of waiting Runners are kept in memory. Of most others it holds their place in the line and nothing
/// else, so memory hardly grows with the backlog; their records are read back when their turn comes.
const RECORDS_KEPT: usize = 256;

/// After a shutdown's deadline, or a second signal, everything is killed. What has not died after this long
/// is in uninterruptible sleep: the daemon leaves it, says so, and ends.
pub const SETTLE: Duration = Duration::from_millis(350);

struct Active {
    record: Arc<Record>,
    /// The start is durable and the Runner was told to go.
    gone: bool,
    /// Its slots and its key are taken, as long as something of it may run.
    slots: bool,
}

impl Active {
    /// Its attempt; it has one.
    fn key(&self) -> Option<AttemptKey> {
        self.record.attempt().map(|attempt| attempt.key)
    }
}

/// All Runners that are not closed, and what to do with them.
pub struct Core {
    limits: Limits,
    boot_id: Arc<str>,
    phase: Phase,
    next_seq: u64,
    context: Arc<SharedContext>,
    /// All that wait.
    line: Line,
    /// Those of them of which more is known than their place.
    waiting: WaitingRoom,
    active: HashMap<RunnerId, Active>,
    /// How many of `active` are kept open with nothing to run.
    idle: usize,
    timers: Timers,
    untold: Untold,
    /// The last event that is known to be durable.
    committed: u64,
    /// Starts that are not durable yet, and what became of those that wait, in the order of their events.
    starting: VecDeque<(u64, RunnerId)>,
    unsettled: VecDeque<(u64, RunnerId)>,
    /// When the store is read again, after it could not be.
    stalled: Option<Duration>,
    /// Changed since the last snapshot; those that closed since are in `retired`.
    changed: HashSet<RunnerId>,
    retired: Vec<Arc<Record>>,
}

impl Core {
    /// A core with nothing in it, that numbers events from `next_seq`.
    pub fn new(limits: Limits, boot_id: String, next_seq: u64) -> Self {
        Self {
            limits,
            boot_id: boot_id.into(),
            phase: Phase::Open,
            next_seq,
            context: Arc::default(),
            line: Line::default(),
            waiting: WaitingRoom::default(),
            active: HashMap::default(),
            idle: 0,
            timers: Timers::default(),
            untold: Untold::default(),
            committed: next_seq.saturating_sub(1),
            starting: VecDeque::new(),
            unsettled: VecDeque::new(),
            stalled: None,
            changed: HashSet::default(),
            retired: Vec::new(),
        }
    }

    /// The queues: what the operator's settings say of them, and what was changed over the API since.
    pub fn configure(
        &mut self,
        configured: BTreeMap<String, QueueSettings>,
        changed: BTreeMap<String, QueueSettings>,
    ) {
        configured.into_iter().for_each(|(name, settings)| self.line.configure(&name, settings));
        changed.into_iter().for_each(|(name, settings)| self.line.change(&name, Some(settings)));
    }

    /// The shared context as it was.
    pub fn set_context(&mut self, context: SharedContext) {
        self.context = Arc::new(context);
    }

    /// The shared context.
    pub fn context(&self) -> Arc<SharedContext> {
        Arc::clone(&self.context)
    }

    /// Keeps so many records of waiting Runners in memory, not the usual number: for tests, where few wait.
    pub fn keep_records(&mut self, count: usize) {
        self.waiting.kept = count;
    }

    /// Takes over a Runner that waited when the daemon ended. Its record stays in the store.
    pub fn restore(&mut self, restored: Restored<'_>, now: Now) {
        let id = restored.id;
        let ticket = self.line.restore(&restored);
        let ready = match (restored.held, restored.ready_at) {
            (true, _) => Ready::Held,
            (false, Some(at)) if at > now.wall => Ready::Later(at),
            (false, Some(_) | None) => Ready::Now,
        };
        match ready {
            Ready::Now => self.line.push(&ticket),
            // The monotonic clock began anew: what is left by the wall clock is left, whatever it was told before.
            Ready::Later(at) => self.timers.at(id, at),
            Ready::Held => {}
        }
        if let Some(at) = restored.deadline_at {
            self.timers.set(id, Timer::Deadline, now.mono + until(now.wall, at));
        }
        let waiting = Waiting { ticket, ready, record: None };
        if !waiting.is_plain() {
            self.waiting.insert(id, waiting);
        }
    }

    /// Takes over a Runner that was idle when the daemon ended.
    pub fn restore_idle(&mut self, record: Record, now: Now) {
        if record.attempt().is_none() {
            return;
        }
        let id = record.id;
        if let Some(at) = record.deadline_at() {
            self.timers.set(id, Timer::Deadline, now.mono + until(now.wall, at));
        }
        self.active.insert(id, Active { record: Arc::new(record), gone: true, slots: false });
        self.idle += 1;
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many are where.
    pub fn counts(&self) -> Counts {
        Counts { queued: self.line.queued(), active: self.active.len() - self.idle }
    }

    /// Those of which something may run.
    pub fn under_way(&self) -> impl Iterator<Item = &Record> {
        self.active().filter(|record| record.state != State::Idle)
    }

    /// Those that are neither waiting nor closed, idle ones too.
    pub fn active(&self) -> impl Iterator<Item = &Record> {
        self.active.values().map(|active| &*active.record)
    }

    /// The queues as they are.
    pub fn queues(&self) -> Vec<QueueStatus> {
        self.line.status()
    }

    /// Why a waiting Runner is not running; `None` where it does not wait.
    pub fn standing(&self, id: RunnerId, records: &dyn Records) -> Option<Standing> {
        let (ticket, ready) = match self.waiting.get(id) {
            Some(waiting) => (waiting.ticket.clone(), waiting.ready),
            None => (self.find(id, records).ok()??.0, Ready::Now),
        };
        match ready {
            Ready::Held => Some(Standing::Held),
            Ready::Later(_) | Ready::Now if self.phase != Phase::Open => Some(Standing::Stopping),
            Ready::Later(at) => Some(Standing::Until { at }),
            Ready::Now => {
                let who = |place: Place| {
                    let known = self.waiting.at(place.seq);
                    known.or_else(|| Some(records.load_at(place.seq).ok()??.id))
                };
                self.line.standing(&ticket, &self.limits, who)
            }
        }
    }

    /// When the core wants to be told of the time.
    pub fn next_deadline(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Draining { deadline } => Some(deadline),
            Phase::Forcing { until } => Some(until),
            Phase::Open | Phase::Finished => None,
        };
        self.timers.next().into_iter().chain(self.untold.next()).chain(phase).chain(self.stalled).min()
    }

    /// The same by the wall clock, for jobs that wait for a time of day.
    pub fn next_wall_deadline(&self) -> Option<Timestamp> {
        self.timers.next_wall()
    }

    /// The record of an active Runner, to make it from.
    pub fn record(&self, id: RunnerId) -> Option<Arc<Record>> {
        self.active.get(&id).map(|active| Arc::clone(&active.record))
    }

    /// The attempt of an active Runner.
    pub fn attempt(&self, id: RunnerId) -> Option<AttemptKey> {
        self.active.get(&id)?.key()
    }

    /// The records that changed since the last call.
    pub fn take_changed(&mut self) -> Vec<Arc<Record>> {
        let mut records = std::mem::take(&mut self.retired);
        for id in self.changed.drain() {
            let waiting = || self.waiting.get(id).and_then(|waiting| waiting.record.as_ref());
            let record = self.active.get(&id).map(|active| &active.record).or_else(waiting);
            records.extend(record.map(Arc::clone));
        }
        records
    }

    /// Decides what an input leads to.
    pub fn handle(&mut self, now: Now, input: Input, records: &dyn Records) -> Output {
        let mut out = Output::default();
        self.handle_into(&mut out, now, input, records);
        out
    }

    /// The same, added to what the inputs before have led to.
    pub fn handle_into(&mut self, out: &mut Output, now: Now, input: Input, records: &dyn Records) {
        let mut turn = Turn { core: self, now, records, out };
        match input {
            Input::Submit { id, spec, key, token } => turn.submit(id, spec, key, token),
            Input::Ask { id, request, token } => {
                let answer = turn.ask(id, request);
                turn.reply(token, answer);
            }
            Input::Change { change, token } => {
                let answer = turn.change(change);
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
    }
}

/// How long it is until then; nothing if it is past.
fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// Whether a Runner in this state takes slots.
fn runs(state: State) -> bool {
    match state {
        State::Starting | State::Running | State::Cancelling | State::Draining => true,
        State::Queued | State::Idle | State::Closed => false,
    }
}

//! Those that wait and of which more is known than their place in the line.

use std::sync::Arc;

use foldhash::HashMap;
use jiff::Timestamp;

use super::{Core, RECORDS_KEPT, line::Ticket};
use crate::{
    job::{Record, RunnerId, State},
    supervisor::ports::{Records, Unreadable},
};

/// How many times the room that is needed may be kept.
const SPARE: usize = 8;

/// When a waiting Runner may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Now,
    /// When somebody has decided.
    Held,
    /// At that time; it was so long until then when it began to wait.
    Later(Timestamp),
}

pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) ready: Ready,
    pub(super) record: Option<Arc<Record>>,
}

impl Waiting {
    /// Whether the line knows all that is to be known of it.
    pub(super) fn is_plain(&self) -> bool {
        self.record.is_none() && self.ready == Ready::Now && self.ticket.is_plain()
    }
}

/// Those of which something is not durable yet, those that have not only a place but a key, a weight or a time, and as
/// many others as there is room for. What is not here waits in the line, as the store has it.
pub(super) struct WaitingRoom {
    known: HashMap<RunnerId, Waiting>,
    /// By the places of their submissions.
    places: HashMap<u64, RunnerId>,
    records: usize,
    pub(super) kept: usize,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self { known: HashMap::default(), places: HashMap::default(), records: 0, kept: RECORDS_KEPT }
    }
}

impl WaitingRoom {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn get(&self, id: RunnerId) -> Option<&Waiting> {
        self.known.get(&id)
    }

    /// Its record must stay where it is.
    pub(super) fn get_mut(&mut self, id: RunnerId) -> Option<&mut Waiting> {
        self.known.get_mut(&id)
    }

    pub(super) fn at(&self, submitted_seq: u64) -> Option<RunnerId> {
        self.places.get(&submitted_seq).copied()
    }

    pub(super) fn record(&self, id: RunnerId) -> Option<&Arc<Record>> {
        self.known.get(&id)?.record.as_ref()
    }

    pub(super) fn insert(&mut self, id: RunnerId, waiting: Waiting) {
        self.records += usize::from(waiting.record.is_some());
        self.places.insert(waiting.ticket.place.seq, id);
        self.known.insert(id, waiting);
    }

    pub(super) fn remove(&mut self, id: RunnerId) -> Option<Waiting> {
        let waiting = self.known.remove(&id)?;
        self.places.remove(&waiting.ticket.place.seq);
        self.records -= usize::from(waiting.record.is_some());
        // A rush that is over leaves no room for another one behind.
        if self.known.len() < self.known.capacity() / SPARE {
            self.known.shrink_to_fit();
            self.places.shrink_to_fit();
        }
        Some(waiting)
    }

    /// Its record was read back.
    pub(super) fn keep(&mut self, id: RunnerId, record: Record) {
        if let Some(waiting) = self.known.get_mut(&id) {
            self.records += usize::from(waiting.record.is_none());
            waiting.record = Some(Arc::new(record));
        }
    }

    /// Forgets what the store knows too and there is no room for. What is not durable up to `committed` stays.
    pub(super) fn trim(&mut self, id: RunnerId, committed: u64) {
        let Some(waiting) = self.known.get_mut(&id) else { return };
        if waiting.record.as_ref().is_some_and(|record| record.last_seq <= committed)
            && self.records > self.kept
        {
            waiting.record = None;
            self.records -= 1;
        }
        if waiting.is_plain() {
            self.remove(id);
        }
    }
}

impl Core {
    /// Reads back one of which no more is known than its place; `None` if it does not wait.
    pub(super) fn find(
        &self,
        id: RunnerId,
        records: &dyn Records,
    ) -> Result<Option<(Ticket, Record)>, Unreadable> {
        if self.active.contains_key(&id) || self.waiting.len() == self.line.queued() {
            return Ok(None);
        }
        // The store does not know yet what became of one that has just left the line.
        let record = records.load(id)?.filter(|record| record.state == State::Queued);
        Ok(record.and_then(|record| Some((self.line.find(&record)?, record))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        job::{Command, Job, Spec},
        supervisor::core::{Counts, Input, Limits, Now},
    };

    struct Nothing;

    impl Records for Nothing {
        fn load(&self, _: RunnerId) -> Result<Option<Record>, Unreadable> {
            Ok(None)
        }

        fn load_at(&self, _: u64) -> Result<Option<Record>, Unreadable> {
            Ok(None)
        }
    }

    #[test]
    fn of_a_backlog_only_so_many_are_in_memory() {
        let limits = Limits {
            max_running: 1,
            max_in_process: 1,
            max_queued: usize::MAX,
            cancel_grace: Duration::ZERO,
            shutdown: Duration::ZERO,
        };
        let mut core = Core::new(limits, "boot".into(), 1);
        let now = Now { wall: Timestamp::UNIX_EPOCH, mono: Duration::ZERO, jitter: || 0.5 };
        let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
        let spec = Arc::new(Spec::new(job, Duration::ZERO));
        let submit = |core: &mut Core, count: usize| {
            for _ in 0..count {
                let id = RunnerId::new();
                let input = Input::Submit { id, spec: Arc::clone(&spec), key: None, token: (id, 0) };
                core.handle(now, input, &Nothing);
            }
        };
        submit(&mut core, 1 + 3 * RECORDS_KEPT);
        // What is not durable yet is in memory and nowhere else.
        assert_eq!(core.waiting.len(), 3 * RECORDS_KEPT);
        core.handle(now, Input::Committed { upto: u64::MAX }, &Nothing);
        assert_eq!((core.waiting.len(), core.waiting.places.len()), (RECORDS_KEPT, RECORDS_KEPT));
        assert_eq!(core.counts(), Counts { queued: 3 * RECORDS_KEPT, active: 1 });
        assert!(core.unsettled.is_empty() && core.starting.is_empty());
    }
}

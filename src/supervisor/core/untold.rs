//! What runs and is not on record yet: it is told with what happens next, if that comes soon. So the whole life of a
//! short job after its start is one row of the log, and one change of its state.

use std::{collections::VecDeque, time::Duration};

use foldhash::HashMap;

use crate::job::{EventKind, RunnerId};

/// How long it may be that a job runs and its record says `starting`.
pub(super) const TOLD_WITHIN: Duration = Duration::from_millis(5);

/// Jobs that run, and when that is to be told at the latest.
#[derive(Debug, Default)]
pub(super) struct Untold {
    running: HashMap<RunnerId, EventKind>,
    /// In the order of time; the first one is not told yet, others may be.
    due: VecDeque<(Duration, RunnerId)>,
}

impl Untold {
    pub(super) fn add(&mut self, id: RunnerId, running: EventKind, now: Duration) {
        self.running.insert(id, running);
        self.due.push_back((now.saturating_add(TOLD_WITHIN), id));
    }

    /// What is to be told of it before anything else.
    pub(super) fn take(&mut self, id: RunnerId) -> Option<EventKind> {
        if self.running.is_empty() {
            return None;
        }
        let running = self.running.remove(&id)?;
        while self.due.pop_front_if(|(_, id)| !self.running.contains_key(id)).is_some() {}
        Some(running)
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.due.front().map(|(at, _)| *at)
    }

    /// The first that is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<(RunnerId, EventKind)> {
        let (_, id) = *self.due.front().filter(|(at, _)| *at <= now)?;
        Some((id, self.take(id)?))
    }
}

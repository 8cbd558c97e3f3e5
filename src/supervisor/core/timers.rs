//! What is to happen when time has passed.

use std::{collections::BTreeSet, time::Duration};

use foldhash::HashMap;
use jiff::Timestamp;

use crate::job::RunnerId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Timer {
    /// An attempt has taken too long.
    Timeout,
    /// A cancelled one has cleaned up for too long.
    Grace,
    /// The wait before an attempt is over.
    Ready,
    /// All of it has taken too long.
    Deadline,
}

impl Timer {
    const ALL: [Self; 4] = [Self::Timeout, Self::Grace, Self::Ready, Self::Deadline];
}

/// Timers by the monotonic clock, at most one of each kind for a Runner, and times of day by the wall clock.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Duration, RunnerId, Timer)>,
    set: HashMap<(RunnerId, Timer), Duration>,
    wall: BTreeSet<(Timestamp, RunnerId)>,
}

impl Timers {
    pub(super) fn set(&mut self, id: RunnerId, timer: Timer, at: Duration) {
        self.clear(id, timer);
        self.set.insert((id, timer), at);
        self.due.insert((at, id, timer));
    }

    pub(super) fn clear(&mut self, id: RunnerId, timer: Timer) {
        if let Some(at) = self.set.remove(&(id, timer)) {
            self.due.remove(&(at, id, timer));
        }
    }

    pub(super) fn clear_all(&mut self, id: RunnerId) {
        Timer::ALL.into_iter().for_each(|timer| self.clear(id, timer));
    }

    /// The Runner's turn comes at that time of day.
    pub(super) fn at(&mut self, id: RunnerId, at: Timestamp) {
        self.wall.insert((at, id));
    }

    pub(super) fn clear_at(&mut self, id: RunnerId, at: Timestamp) {
        self.wall.remove(&(at, id));
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.due.first().map(|(at, _, _)| *at)
    }

    pub(super) fn next_wall(&self) -> Option<Timestamp> {
        self.wall.first().map(|(at, _)| *at)
    }

    /// The first that is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<(RunnerId, Timer)> {
        let (at, id, timer) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.clear(id, timer);
        Some((id, timer))
    }

    /// The first whose time of day has come.
    pub(super) fn pop_wall(&mut self, now: Timestamp) -> Option<RunnerId> {
        let (at, id) = *self.wall.first()?;
        if at > now {
            return None;
        }
        self.wall.pop_first();
        Some(id)
    }
}

//! What the line says of itself: why somebody waits, and what its queues are.

use std::sync::Arc;

use super::{
    Limit, Limits, QueueStatus, Standing,
    line::{Line, Queue, Ticket, fits},
    places::Place,
};
use crate::job::RunnerId;

/// How many Runners an answer names.
const NAMED: usize = 10;

impl Line {
    /// Why one that is ready is not running. `who` knows the Runners by their places.
    pub(super) fn standing(
        &self,
        ticket: &Ticket,
        limits: &Limits,
        who: impl Fn(Place) -> Option<RunnerId>,
    ) -> Option<Standing> {
        if let Some(name) = &ticket.key
            && let Some(holder) = self.keys.get(name).and_then(|key| key.holder)
        {
            return Some(Standing::Key { key: name.to_string(), holder });
        }
        let queue = self.queues.get(&ticket.queue)?;
        if queue.settings.paused {
            return Some(Standing::Paused { queue: ticket.queue.to_string() });
        }
        let before = queue.ready.iter().take_while(|place| *place < ticket.place);
        let ahead = before.take(NAMED).filter_map(who).collect();
        // Nobody is overtaken in a queue: what its first one waits for, all of them do.
        let first = queue.ready.first().and_then(|place| self.special.get(&place.seq));
        let first = first.map_or(1, |special| special.weight);
        let own = queue.settings.max_running.filter(|max| {
            [ticket.weight, first].iter().any(|weight| !fits(queue.slots, Some(*max), *weight))
        });
        let (limit, running) = match own {
            Some(max) => {
                let limit = Limit::Queue { name: ticket.queue.to_string(), max };
                (limit, queue.running.iter().copied().take(NAMED).collect())
            }
            None => {
                let limit = match ticket.place.in_process {
                    true => Limit::InProcess { max: limits.max_in_process },
                    false => Limit::Daemon { max: limits.max_running },
                };
                let running = self.queues.values().flat_map(|queue| queue.running.iter().copied());
                (limit, running.take(NAMED).collect())
            }
        };
        let position = queue.ready.before(ticket.place) + 1;
        // One whose key has just become free may have left its turn to another one with that key.
        let of = queue.ready.len() + usize::from(!queue.ready.contains(ticket.place));
        Some(Standing::Line { position, of, ahead, limit, running })
    }

    pub(super) fn status(&self) -> Vec<QueueStatus> {
        let status = |(name, queue): (&Arc<str>, &Queue)| QueueStatus {
            name: name.to_string(),
            settings: queue.settings,
            changed: queue.changed,
            queued: queue.queued,
            ready: queue.ready.len(),
            running: queue.running.len(),
            slots: queue.slots,
        };
        self.queues.iter().map(status).collect()
    }
}

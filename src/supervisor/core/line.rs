//! Who is next: queues, slots and keys.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Limit, Limits, QueueStatus, Restored, Standing};
use crate::job::{QueueSettings, Record, RunnerId};

/// The order of starts: priority, then acceptance.
pub(super) type Place = (Reverse<i32>, u64, RunnerId);

/// How many Runners an answer names.
const NAMED: usize = 10;

/// How far a place in the line is counted: beyond it nobody reads the number, and counting takes time.
const COUNTED: usize = 10_000;

/// What a Runner needs to start.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) place: Place,
    pub(super) queue: Arc<str>,
    pub(super) weight: u32,
    pub(super) key: Option<Arc<str>>,
    pub(super) in_process: bool,
}

#[derive(Debug, Default)]
struct Queue {
    settings: QueueSettings,
    /// By the operator's settings; `None`: it is only there because somebody named it.
    configured: Option<QueueSettings>,
    /// Over the API.
    changed: bool,
    ready: BTreeSet<Place>,
    queued: usize,
    running: BTreeSet<RunnerId>,
    slots: u64,
}

#[derive(Debug, Default)]
struct Key {
    holder: Option<RunnerId>,
    /// By their queues.
    waiting: BTreeMap<Arc<str>, BTreeSet<Place>>,
}

/// The queues, with the tickets of those that may start, and what is taken.
#[derive(Debug, Default)]
pub(super) struct Line {
    queues: BTreeMap<Arc<str>, Queue>,
    keys: HashMap<Arc<str>, Key>,
    /// Slots taken by processes, and by tasks of the daemon's own.
    slots: u64,
    in_process: u64,
}

impl Line {
    pub(super) fn configure(&mut self, name: &str, settings: QueueSettings) {
        let queue = self.queue(name);
        queue.configured = Some(settings);
        if !queue.changed {
            queue.settings = settings;
        }
    }

    /// All that the settings say now: a queue that they don't name any more is as any other.
    pub(super) fn reconfigure(&mut self, configured: &BTreeMap<String, QueueSettings>) {
        let known: Vec<Arc<str>> = self.queues.keys().cloned().collect();
        for name in known.iter().filter(|name| !configured.contains_key(&***name)) {
            let queue = self.queue(name);
            if queue.configured.take().is_some() && !queue.changed {
                queue.settings = QueueSettings::default();
            }
            self.tidy(name);
        }
        configured.iter().for_each(|(name, settings)| self.configure(name, *settings));
    }

    pub(super) fn change(&mut self, name: &str, settings: Option<QueueSettings>) {
        let queue = self.queue(name);
        queue.changed = settings.is_some();
        queue.settings = settings.or(queue.configured).unwrap_or_default();
        self.tidy(&Arc::from(name));
    }

    /// The ticket of a Runner that waits in its queue from now on, though it may not be ready.
    pub(super) fn enter(&mut self, record: &Record) -> Ticket {
        let spec = &*record.spec;
        let job = record.next_run().and_then(|run| run.job.as_deref()).unwrap_or(&spec.job);
        let place = (Reverse(spec.priority), record.submitted_seq, record.id);
        self.issue(place, &spec.queue, spec.weight, spec.concurrency_key.as_deref(), job.in_process())
    }

    pub(super) fn restore(&mut self, restored: &Restored) -> Ticket {
        let place = (Reverse(restored.priority), restored.submitted_seq, restored.id);
        let key = restored.concurrency_key.as_deref();
        self.issue(place, &restored.queue, restored.weight, key, restored.in_process)
    }

    fn issue(
        &mut self,
        place: Place,
        queue: &str,
        weight: u32,
        key: Option<&str>,
        in_process: bool,
    ) -> Ticket {
        self.queue(queue).queued += 1;
        let name = self.queues.get_key_value(queue).map(|(name, _)| Arc::clone(name));
        Ticket {
            place,
            queue: name.unwrap_or_else(|| queue.into()),
            weight,
            key: key.map(Arc::from),
            in_process,
        }
    }

    fn queue(&mut self, name: &str) -> &mut Queue {
        if !self.queues.contains_key(name) {
            self.queues.insert(name.into(), Queue::default());
        }
        self.queues.get_mut(name).expect("it was just made")
    }

    /// From now on it may start.
    pub(super) fn push(&mut self, ticket: &Ticket) {
        self.queue(&ticket.queue).ready.insert(ticket.place);
    }

    /// It does not wait any more.
    pub(super) fn leave(&mut self, ticket: &Ticket) {
        let queue = self.queue(&ticket.queue);
        queue.ready.remove(&ticket.place);
        queue.queued -= 1;
        if let Some(name) = &ticket.key {
            if let Some(waiting) = self.keys.get_mut(name).and_then(|key| key.waiting.get_mut(&ticket.queue))
            {
                waiting.remove(&ticket.place);
            }
            self.wake(name);
        }
        self.tidy(&ticket.queue);
    }

    /// It starts: its slots and its key are taken.
    pub(super) fn take(&mut self, ticket: &Ticket) {
        let weight = u64::from(ticket.weight);
        match ticket.in_process {
            true => self.in_process += weight,
            false => self.slots += weight,
        }
        let queue = self.queue(&ticket.queue);
        queue.slots += weight;
        queue.running.insert(ticket.place.2);
        if let Some(key) = &ticket.key {
            self.keys.entry(Arc::clone(key)).or_default().holder = Some(ticket.place.2);
        }
    }

    /// It is over: what was taken is free.
    pub(super) fn give_back(&mut self, ticket: &Ticket) {
        let weight = u64::from(ticket.weight);
        match ticket.in_process {
            true => self.in_process -= weight,
            false => self.slots -= weight,
        }
        let queue = self.queue(&ticket.queue);
        queue.slots -= weight;
        queue.running.remove(&ticket.place.2);
        if let Some(name) = &ticket.key {
            if let Some(key) = self.keys.get_mut(name) {
                key.holder = None;
            }
            self.wake(name);
        }
        self.tidy(&ticket.queue);
    }

    /// The next to start, if anybody may. Its ticket is still in the line.
    ///
    /// A job that needs more slots than are free is not overtaken by others that need the same kind of slots: it
    /// would wait for ever. Nor is one overtaken in its own queue, but where only its key keeps it back.
    pub(super) fn next<'a>(
        &mut self,
        limits: &Limits,
        ticket: impl Fn(RunnerId) -> Option<&'a Ticket>,
    ) -> Option<RunnerId> {
        loop {
            let mut heads: Vec<Place> = Vec::new();
            for queue in self.queues.values().filter(|queue| !queue.settings.paused) {
                let Some(head) = queue.ready.first() else { continue };
                let weight = ticket(head.2).map_or(1, |ticket| ticket.weight);
                if fits(queue.slots, queue.settings.max_running, weight) {
                    heads.push(*head);
                }
            }
            heads.sort_unstable();
            let mut parked = None;
            let (mut room, mut room_in_process) = (true, true);
            for head in heads {
                let Some(ticket) = ticket(head.2) else { continue };
                if self.is_taken(ticket) {
                    parked = Some(ticket);
                    break;
                }
                let (room, taken, max) = match ticket.in_process {
                    true => (&mut room_in_process, self.in_process, limits.max_in_process),
                    false => (&mut room, self.slots, limits.max_running),
                };
                *room = *room && fits(taken, Some(max), ticket.weight);
                if *room {
                    return Some(head.2);
                }
            }
            self.park(parked?);
        }
    }

    fn is_taken(&self, ticket: &Ticket) -> bool {
        let holder = ticket.key.as_ref().and_then(|key| self.keys.get(key)).and_then(|key| key.holder);
        holder.is_some()
    }

    /// Out of its queue's way until its key is free.
    fn park(&mut self, ticket: &Ticket) {
        self.queue(&ticket.queue).ready.remove(&ticket.place);
        if let Some(key) = &ticket.key {
            let key = self.keys.entry(Arc::clone(key)).or_default();
            key.waiting.entry(Arc::clone(&ticket.queue)).or_default().insert(ticket.place);
        }
    }

    /// Why one that is ready is not running.
    pub(super) fn standing<'a>(
        &self,
        ticket: &Ticket,
        limits: &Limits,
        others: impl Fn(RunnerId) -> Option<&'a Ticket>,
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
        let before = queue.ready.range(..ticket.place);
        let ahead: Vec<_> = before.clone().take(NAMED).map(|place| place.2).collect();
        // Nobody is overtaken in a queue: what its first one waits for, all of them do.
        let first = queue.ready.first().and_then(|place| others(place.2)).unwrap_or(ticket);
        let own = queue
            .settings
            .max_running
            .filter(|max| [ticket, first].iter().any(|ticket| !fits(queue.slots, Some(*max), ticket.weight)));
        let (limit, running) = match own {
            Some(max) => {
                let limit = Limit::Queue { name: ticket.queue.to_string(), max };
                (limit, queue.running.iter().copied().take(NAMED).collect())
            }
            None => {
                let limit = match ticket.in_process {
                    true => Limit::InProcess { max: limits.max_in_process },
                    false => Limit::Daemon { max: limits.max_running },
                };
                let running = self.queues.values().flat_map(|queue| queue.running.iter().copied());
                (limit, running.take(NAMED).collect())
            }
        };
        let position = before.take(COUNTED).count() + 1;
        Some(Standing::Line { position, of: queue.ready.len(), ahead, limit, running })
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

    /// A queue that nobody decided about is only there while it is used.
    fn tidy(&mut self, name: &Arc<str>) {
        let unused = |queue: &Queue| {
            queue.configured.is_none() && !queue.changed && queue.queued == 0 && queue.running.is_empty()
        };
        if self.queues.get(name).is_some_and(unused) {
            self.queues.remove(name);
        }
    }

    /// Of those that wait for a free key the first of each queue is ready: one queue may be paused or full.
    fn wake(&mut self, name: &Arc<str>) {
        let Some(key) = self.keys.get_mut(name) else { return };
        if key.holder.is_some() {
            return;
        }
        let mut ready = Vec::new();
        key.waiting.retain(|queue, waiting| {
            ready.extend(waiting.pop_first().map(|place| (Arc::clone(queue), place)));
            !waiting.is_empty()
        });
        if key.waiting.is_empty() {
            self.keys.remove(name);
        }
        for (queue, place) in ready {
            self.queue(&queue).ready.insert(place);
        }
    }
}

/// One that is heavier than all slots together runs alone: limits can be lowered after it was accepted.
fn fits(taken: u64, max: Option<u32>, weight: u32) -> bool {
    max.is_none_or(|max| taken == 0 && max > 0 || taken + u64::from(weight) <= u64::from(max))
}

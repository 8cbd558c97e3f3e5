//! Who is next: queues, slots and keys.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use foldhash::HashMap;

use super::{
    Limits, Restored,
    places::{Place, Places},
};
use crate::job::{QueueSettings, Record, RunnerId};

/// What a Runner needs to start.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) place: Place,
    pub(super) queue: Arc<str>,
    pub(super) weight: u32,
    pub(super) key: Option<Arc<str>>,
}

impl Ticket {
    /// Whether its place and its queue are all that is to be known of it.
    pub(super) fn is_plain(&self) -> bool {
        self.weight == 1 && self.key.is_none()
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) settings: QueueSettings,
    /// By the operator's settings; `None`: it is only there because somebody named it.
    configured: Option<QueueSettings>,
    /// Over the API.
    pub(super) changed: bool,
    pub(super) ready: Places,
    pub(super) queued: usize,
    pub(super) running: BTreeSet<RunnerId>,
    pub(super) slots: u64,
    /// What stands among the heads for it.
    head: Option<Place>,
}

#[derive(Debug, Default)]
pub(super) struct Key {
    pub(super) holder: Option<RunnerId>,
    /// By their queues.
    waiting: BTreeMap<Arc<str>, Places>,
}

/// What is said of one that takes more than a slot.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) weight: u32,
    pub(super) key: Option<Arc<str>>,
}

/// The queues, with the places of those that may start, and what is taken.
///
/// The first of each queue that has room for it is a head. Which these are changes with a queue, so who is next is known
/// without looking at the others.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) queues: BTreeMap<Arc<str>, Queue>,
    /// Of processes, and of tasks of the daemon's own.
    heads: [BTreeMap<Place, Arc<str>>; 2],
    /// By the places of their submissions: those that are not plain.
    pub(super) special: HashMap<u64, Special>,
    pub(super) keys: HashMap<Arc<str>, Key>,
    /// In all queues.
    queued: usize,
    /// Slots taken by processes, and by tasks of the daemon's own.
    slots: [u64; 2],
}

impl Line {
    pub(super) fn configure(&mut self, name: &str, settings: QueueSettings) {
        let (name, queue) = self.queue(name);
        queue.configured = Some(settings);
        if !queue.changed {
            queue.settings = settings;
        }
        self.look(&name);
    }

    /// All that the settings say now: a queue that they don't name any more is as any other.
    pub(super) fn reconfigure(&mut self, configured: &BTreeMap<String, QueueSettings>) {
        let known: Vec<Arc<str>> = self.queues.keys().cloned().collect();
        for name in known.iter().filter(|name| !configured.contains_key(&***name)) {
            let (_, queue) = self.queue(name);
            if queue.configured.take().is_some() && !queue.changed {
                queue.settings = QueueSettings::default();
            }
            self.look(name);
        }
        configured.iter().for_each(|(name, settings)| self.configure(name, *settings));
    }

    pub(super) fn change(&mut self, name: &str, settings: Option<QueueSettings>) {
        let (name, queue) = self.queue(name);
        queue.changed = settings.is_some();
        queue.settings = settings.or(queue.configured).unwrap_or_default();
        self.look(&name);
    }

    /// How many wait, ready or not.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// The ticket of a Runner that waits in its queue from now on, though it may not be ready.
    pub(super) fn enter(&mut self, record: &Record) -> Ticket {
        let spec = &*record.spec;
        self.issue(place(record), &spec.queue, spec.weight, spec.concurrency_key.as_deref())
    }

    pub(super) fn restore(&mut self, restored: &Restored<'_>) -> Ticket {
        let place = Place {
            priority: Reverse(restored.priority),
            seq: restored.submitted_seq,
            in_process: restored.in_process,
        };
        self.issue(place, restored.queue, restored.weight, restored.concurrency_key)
    }

    fn issue(&mut self, place: Place, queue: &str, weight: u32, key: Option<&str>) -> Ticket {
        let (name, queue) = self.queue(queue);
        queue.queued += 1;
        self.queued += 1;
        let ticket = Ticket { place, queue: name, weight, key: key.map(Arc::from) };
        if !ticket.is_plain() {
            self.special.insert(place.seq, Special { weight, key: ticket.key.clone() });
        }
        ticket
    }

    /// The ticket of one of which only the place is known. `None` if it does not wait.
    pub(super) fn find(&self, record: &Record) -> Option<Ticket> {
        let (name, queue) = self.queues.get_key_value(&*record.spec.queue)?;
        let place = place(record);
        queue.ready.contains(place).then(|| self.ticket(place, name))
    }

    /// The ticket that one started with.
    fn taken_by(&self, record: &Record) -> Option<Ticket> {
        let spec = &*record.spec;
        let (queue, _) = self.queues.get_key_value(&*spec.queue)?;
        let (queue, key) = (Arc::clone(queue), spec.concurrency_key.as_deref().map(Arc::from));
        Some(Ticket { place: place(record), queue, weight: spec.weight, key })
    }

    fn ticket(&self, place: Place, queue: &Arc<str>) -> Ticket {
        let special = self.special.get(&place.seq);
        Ticket {
            place,
            queue: Arc::clone(queue),
            weight: special.map_or(1, |special| special.weight),
            key: special.and_then(|special| special.key.clone()),
        }
    }

    fn queue(&mut self, name: &str) -> (Arc<str>, &mut Queue) {
        let known = self.queues.get_key_value(name).map(|(name, _)| Arc::clone(name));
        let name = known.unwrap_or_else(|| name.into());
        let queue = self.queues.entry(Arc::clone(&name)).or_default();
        (name, queue)
    }

    /// From now on it may start.
    pub(super) fn push(&mut self, ticket: &Ticket) {
        self.ready(&ticket.queue, ticket.place);
    }

    fn ready(&mut self, name: &Arc<str>, place: Place) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let before = queue.ready.first();
        queue.ready.insert(place);
        if before.is_none_or(|before| place < before) {
            self.look(name);
        }
    }

    /// It does not wait any more.
    pub(super) fn leave(&mut self, ticket: &Ticket) {
        let Some(queue) = self.queues.get_mut(&ticket.queue) else { return };
        queue.ready.remove(ticket.place);
        queue.queued -= 1;
        self.queued -= 1;
        if !ticket.is_plain() {
            self.special.remove(&ticket.place.seq);
        }
        if let Some(name) = &ticket.key {
            if let Some(waiting) = self.keys.get_mut(name).and_then(|key| key.waiting.get_mut(&ticket.queue))
            {
                waiting.remove(ticket.place);
            }
            self.wake(name);
        }
        self.look(&ticket.queue);
    }

    /// It starts: its slots and its key are taken.
    pub(super) fn take(&mut self, ticket: &Ticket, id: RunnerId) {
        let weight = u64::from(ticket.weight);
        self.slots[kind(ticket.place)] += weight;
        let (_, queue) = self.queue(&ticket.queue);
        queue.slots += weight;
        queue.running.insert(id);
        if let Some(key) = &ticket.key {
            self.keys.entry(Arc::clone(key)).or_default().holder = Some(id);
        }
        self.look(&ticket.queue);
    }

    /// It is over: what was taken is free.
    pub(super) fn give_back(&mut self, record: &Record) {
        let Some(ticket) = self.taken_by(record) else { return };
        let id = record.id;
        let weight = u64::from(ticket.weight);
        self.slots[kind(ticket.place)] -= weight;
        let (_, queue) = self.queue(&ticket.queue);
        queue.slots -= weight;
        queue.running.remove(&id);
        if let Some(name) = &ticket.key {
            if let Some(key) = self.keys.get_mut(name) {
                key.holder = None;
            }
            self.wake(name);
        }
        self.look(&ticket.queue);
    }

    /// The next to start, if anybody may. It is still in the line.
    ///
    /// A job that needs more slots than are free is not overtaken by others that need the same kind of slots: it
    /// would wait for ever. Nor is one overtaken in its own queue, but where only its key keeps it back.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<Ticket> {
        'parked: loop {
            let mut next: Option<(Place, &Arc<str>)> = None;
            for (kind, max) in [limits.max_running, limits.max_in_process].into_iter().enumerate() {
                let Some((place, queue)) = self.heads[kind].first_key_value() else { continue };
                let special = self.special.get(&place.seq);
                if special.is_some_and(|special| self.is_taken(special)) {
                    let (place, queue) = (*place, Arc::clone(queue));
                    self.park(place, &queue);
                    continue 'parked;
                }
                let weight = special.map_or(1, |special| special.weight);
                if fits(self.slots[kind], Some(max), weight) && next.is_none_or(|(first, _)| *place < first) {
                    next = Some((*place, queue));
                }
            }
            return next.map(|(place, queue)| self.ticket(place, queue));
        }
    }

    fn is_taken(&self, special: &Special) -> bool {
        let key = special.key.as_ref().and_then(|key| self.keys.get(key));
        key.is_some_and(|key| key.holder.is_some())
    }

    /// Out of its queue's way until its key is free.
    fn park(&mut self, place: Place, queue: &Arc<str>) {
        if let Some(key) = self.special.get(&place.seq).and_then(|special| special.key.as_ref()) {
            let key = self.keys.entry(Arc::clone(key)).or_default();
            key.waiting.entry(Arc::clone(queue)).or_default().insert(place);
        }
        let (_, known) = self.queue(queue);
        known.ready.remove(place);
        self.look(queue);
    }

    /// Of those that wait for a free key the first of each queue is ready: one queue may be paused or full.
    fn wake(&mut self, name: &Arc<str>) {
        let Some(key) = self.keys.get_mut(name) else { return };
        if key.holder.is_some() {
            return;
        }
        let mut ready = Vec::new();
        key.waiting.retain(|queue, waiting| {
            if let Some(first) = waiting.first() {
                waiting.remove(first);
                ready.push((Arc::clone(queue), first));
            }
            !waiting.is_empty()
        });
        if key.waiting.is_empty() {
            self.keys.remove(name);
        }
        ready.into_iter().for_each(|(queue, place)| self.ready(&queue, place));
    }

    /// Puts the queue's first among the heads, if there is room for it, or takes it away. Follows each change of a queue.
    fn look(&mut self, name: &Arc<str>) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let weight = |place: &Place| self.special.get(&place.seq).map_or(1, |special| special.weight);
        let has_room = |place: &Place| {
            !queue.settings.paused && fits(queue.slots, queue.settings.max_running, weight(place))
        };
        let head = queue.ready.first().filter(has_room);
        if head != queue.head {
            if let Some(old) = queue.head {
                self.heads[kind(old)].remove(&old);
            }
            if let Some(new) = head {
                self.heads[kind(new)].insert(new, Arc::clone(name));
            }
            queue.head = head;
        }
        // A queue that nobody decided about is only there while it is used.
        if queue.configured.is_none() && !queue.changed && queue.queued == 0 && queue.running.is_empty() {
            self.queues.remove(name);
        }
    }
}

fn place(record: &Record) -> Place {
    let spec = &*record.spec;
    // All runs of a Runner are of one kind.
    Place { priority: Reverse(spec.priority), seq: record.submitted_seq, in_process: spec.job.in_process() }
}

fn kind(place: Place) -> usize {
    usize::from(place.in_process)
}

/// One that is heavier than all slots together runs alone: limits can be lowered after it was accepted.
pub(super) fn fits(taken: u64, max: Option<u32>, weight: u32) -> bool {
    max.is_none_or(|max| taken == 0 && max > 0 || taken + u64::from(weight) <= u64::from(max))
}

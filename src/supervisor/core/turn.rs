//! The decisions: what one input leads to.

use std::{sync::Arc, time::Duration};

use foldhash::HashSet;

use super::{
    Active, Answer, Core, Denied, Effect, Next, Now, Output, Phase, Ready, SETTLE, Ticket, Timer, Token,
    Waiting, ended, final_outcome, requeued, runs, until, what_follows,
};
use crate::{
    job::{
        self, Action, AttemptKey, CancelReason, CloseFacts, Drain, Event, EventKind, Illegal, OnLost,
        Outcome, Record, Requester, RequeueReason, RunnerId, Spec, State,
    },
    supervisor::ports::{End, IdempotencyKey, KeyedSubmission, News, Records, Report, Unreadable},
};

/// How long a store is left alone in which the record of a job that is to start could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// One input being handled.
pub(super) struct Turn<'a> {
    pub(super) core: &'a mut Core,
    pub(super) now: Now,
    pub(super) records: &'a dyn Records,
    pub(super) out: &'a mut Output,
}

impl Turn<'_> {
    pub(super) fn submit(
        &mut self,
        id: RunnerId,
        spec: Arc<Spec>,
        key: Option<Box<IdempotencyKey>>,
        token: Token,
    ) {
        if let Err(denied) = self.admit(&spec) {
            return self.reply(token, Answer::Denied(denied));
        }
        let deadline = *spec.deadline;
        self.append(id, EventKind::Submitted { spec });
        if let Some(deadline) = deadline {
            self.core.timers.set(id, Timer::Deadline, self.now.mono.saturating_add(deadline));
        }
        self.out.batch.keys.extend(key.map(|key| KeyedSubmission { key: *key, runner: id }));
        self.reply(token, Answer::Accepted);
    }

    fn admit(&self, spec: &Spec) -> Result<(), Denied> {
        let max = match spec.job.in_process() {
            true => self.core.limits.max_in_process,
            false => self.core.limits.max_running,
        };
        match self.core.phase {
            Phase::Draining { .. } | Phase::Forcing { .. } | Phase::Finished => Err(Denied::Draining),
            Phase::Open if self.core.line.queued() >= self.core.limits.max_queued => Err(Denied::QueueFull),
            Phase::Open if spec.weight > max => Err(Denied::TooHeavy { max }),
            Phase::Open => Ok(()),
        }
    }

    /// The first request to an active Runner, or a higher reason.
    pub(super) fn cancel_active(&mut self, id: RunnerId, by: Requester, reason: CancelReason) {
        let Some(active) = self.core.active.get_mut(&id) else { return };
        let first = active.record.cancel.is_none();
        let Some(key) = active.key() else { return };
        let grace = *active.record.spec.cancel_grace;
        if matches!(active.record.state, State::Draining | State::Idle) {
            return;
        }
        if active.record.cancel.as_ref().is_some_and(|receipt| receipt.escalated_to >= reason) {
            return;
        }
        self.append(id, EventKind::CancelRequested { by, reason, force: false });
        if !first {
            return;
        }
        // Only when it is on record: an end by a signal that nobody is known to have sent would look like a failure.
        self.out.held.push(Effect::Cancel(key));
        let grace = match reason {
            CancelReason::Requested | CancelReason::Timeout | CancelReason::Deadline => {
                Some(grace.unwrap_or(self.core.limits.cancel_grace))
            }
            // The shared deadline is all the patience there is.
            CancelReason::Shutdown => grace,
        };
        if let Some(grace) = grace {
            self.set_timer(id, Timer::Grace, grace);
        }
    }

    /// On record first, like a cancellation; but once everything is being killed nothing waits for a disk.
    pub(super) fn force(&mut self, id: RunnerId) {
        self.core.timers.clear(id, Timer::Grace);
        let Some(effect) = self.core.attempt(id).map(Effect::Force) else { return };
        match self.core.phase {
            Phase::Forcing { .. } => self.out.now.push(effect),
            Phase::Open | Phase::Draining { .. } | Phase::Finished => self.out.held.push(effect),
        }
    }

    pub(super) fn report(&mut self, Report { runner: id, key, news }: Report) {
        let Some(active) = self.core.active.get(&id) else { return };
        if active.key() != Some(key) {
            return;
        }
        match news {
            News::Running { pid, start_time } => {
                let timeout = *active.record.spec.timeout;
                self.core.untold.add(id, EventKind::Running { pid, start_time }, self.now.mono);
                if let Some(timeout) = timeout {
                    self.set_timer(id, Timer::Timeout, timeout);
                }
            }
            News::Step { action, target } => {
                // A step can be reported just after the end has been; the receipt is complete by then.
                if active.record.cancel.is_some() && active.record.state == State::Cancelling {
                    self.append(id, EventKind::CancelStep { action, target });
                }
            }
            News::Ended(end) => self.ended(id, end),
            News::Closed(drain) => {
                // Of one that is kept open it comes late: another attempt or run has made a new Runner by then.
                if active.record.state == State::Draining {
                    self.close(id, drain);
                }
            }
        }
    }

    fn ended(&mut self, id: RunnerId, mut end: End) {
        let Some(active) = self.core.active.get(&id) else { return };
        let Some(key) = active.key() else { return };
        let closed = end.closed.take();
        let event = ended(&active.record, end);
        self.append(id, event);
        self.out.held.push(Effect::Settled(key));
        self.core.timers.clear(id, Timer::Grace);
        self.core.timers.clear(id, Timer::Timeout);
        let Some(active) = self.core.active.get(&id) else { return };
        match what_follows(&active.record, self.core.phase != Phase::Open) {
            Next::Again { reason, held } => {
                let event = requeued(&active.record, reason, held, self.now.wall, self.now.jitter);
                self.append(id, event);
            }
            Next::Idle => drop(self.append(id, EventKind::Idle)),
            Next::Close => {
                let outcome = final_outcome(&active.record);
                match closed {
                    Some(drain) => {
                        self.append(id, EventKind::Draining { outcome: Some(outcome) });
                        self.close(id, drain);
                    }
                    None => self.wind_up(id, outcome),
                }
            }
        }
    }

    /// Nothing of it is to be run any more: its Runner closes.
    pub(super) fn wind_up(&mut self, id: RunnerId, outcome: Outcome) {
        self.append(id, EventKind::Draining { outcome: Some(outcome) });
        if self.core.phase == Phase::Finished {
            // Its Runner goes with the daemon.
            self.append(id, EventKind::Closed(CloseFacts { outcome, drain: None }));
        } else if let Some(key) = self.core.attempt(id) {
            self.out.now.push(Effect::Close(id, key));
        }
    }

    fn close(&mut self, id: RunnerId, drain: Drain) {
        let Some(active) = self.core.active.get(&id) else { return };
        let outcome = final_outcome(&active.record);
        self.append(id, EventKind::Closed(CloseFacts { outcome, drain: Some(Box::new(drain)) }));
    }

    pub(super) fn committed(&mut self, upto: u64) {
        while let Some((seq, id)) = self.core.starting.front().copied()
            && seq <= upto
        {
            self.core.starting.pop_front();
            if let Some(active) = self.core.active.get_mut(&id) {
                active.gone = true;
            }
        }
        self.core.committed = self.core.committed.max(upto);
        while let Some((seq, id)) = self.core.unsettled.front().copied()
            && seq <= upto
        {
            self.core.unsettled.pop_front();
            self.core.waiting.trim(id, upto);
        }
    }

    pub(super) fn refused(&mut self, ids: &[RunnerId]) {
        let ids: HashSet<RunnerId> = ids.iter().copied().collect();
        for &id in &ids {
            self.core.timers.clear_all(id);
            self.unqueue(id);
            // It was never told to go: for that its submission had to be durable.
            if let Some(active) = self.core.active.remove(&id) {
                if active.slots {
                    self.core.line.give_back(&active.record);
                }
                self.out.now.extend(active.key().map(Effect::Abort));
            }
            self.core.changed.remove(&id);
        }
        self.core.starting.retain(|(_, id)| !ids.contains(id));
        self.core.unsettled.retain(|(_, id)| !ids.contains(id));
        self.core.retired.retain(|record| !ids.contains(&record.id));
    }

    pub(super) fn signal(&mut self, name: &'static str) {
        match self.core.phase {
            Phase::Open => {
                self.core.phase = Phase::Draining { deadline: self.now.mono + self.core.limits.shutdown };
                let ids: Vec<RunnerId> = self.core.active.keys().copied().collect();
                for id in ids {
                    self.stop_for_shutdown(id, name);
                }
                let Core { starting, active, .. } = &mut *self.core;
                starting.retain(|(_, id)| active.contains_key(id));
            }
            Phase::Draining { .. } => self.force_all(&Requester(name.into())),
            Phase::Forcing { .. } | Phase::Finished => {}
        }
    }

    /// A Runner that was not told to go yet keeps its place in the queue; the others are cancelled.
    fn stop_for_shutdown(&mut self, id: RunnerId, name: &'static str) {
        let Some(active) = self.core.active.get(&id) else { return };
        if active.record.state == State::Starting && !active.gone {
            self.out.now.extend(active.key().map(Effect::Abort));
            let reason = RequeueReason::NotExecuted;
            self.append(id, EventKind::Requeued { reason, held: false, not_before: None });
        } else {
            // One whose job asks to go on after a shutdown stays open for the next start.
            if active.record.spec.on_shutdown == OnLost::Fail {
                self.close_idle(id);
            }
            self.cancel_active(id, Requester(name.into()), CancelReason::Shutdown);
        }
    }

    fn force_all(&mut self, by: &Requester) {
        self.core.phase = Phase::Forcing { until: self.now.mono + SETTLE };
        let ids: Vec<RunnerId> = self.core.under_way().map(|record| record.id).collect();
        for id in ids {
            let record = &self.core.active[&id].record;
            if record.state != State::Draining
                && !record.cancel.as_ref().is_some_and(|receipt| receipt.forced)
            {
                let reason = CancelReason::Shutdown;
                self.append(id, EventKind::CancelRequested { by: by.clone(), reason, force: true });
            }
            self.force(id);
        }
    }

    pub(super) fn tick(&mut self) {
        self.core.stalled = self.core.stalled.filter(|at| *at > self.now.mono);
        while let Some((id, running)) = self.core.untold.pop(self.now.mono) {
            self.append(id, running);
        }
        while let Some((id, timer)) = self.core.timers.pop(self.now.mono) {
            match timer {
                Timer::Timeout => self.cancel_active(id, Requester("timeout".into()), CancelReason::Timeout),
                Timer::Grace => {
                    self.append(id, EventKind::CancelStep { action: Action::GraceExpired, target: None });
                    self.force(id);
                }
                Timer::Ready => self.make_ready(id),
                Timer::Deadline => self.deadline(id),
            }
        }
        while let Some(id) = self.core.timers.pop_wall(self.now.wall) {
            self.make_ready(id);
        }
        match self.core.phase {
            Phase::Draining { deadline } if deadline <= self.now.mono => {
                self.force_all(&Requester("shutdown deadline".into()));
            }
            Phase::Forcing { until } if until <= self.now.mono => {
                self.core.phase = Phase::Finished;
                let abandoned = self.core.under_way().map(|record| record.id).collect();
                self.out.held.push(Effect::Finished { abandoned });
            }
            Phase::Open | Phase::Draining { .. } | Phase::Forcing { .. } | Phase::Finished => {}
        }
    }

    fn make_ready(&mut self, id: RunnerId) {
        if let Some(waiting) = self.core.waiting.get_mut(id) {
            waiting.ready = Ready::Now;
            self.core.line.push(&waiting.ticket);
            self.core.waiting.trim(id, self.core.committed);
        }
    }

    fn deadline(&mut self, id: RunnerId) {
        let by = Requester("deadline".into());
        match self.recall(id) {
            Ok(true) => self.cancel_waiting(id, by, CancelReason::Deadline, Outcome::TimedOut),
            Ok(false) => {
                self.close_idle(id);
                self.cancel_active(id, by, CancelReason::Deadline);
            }
            Err(error) => {
                tracing::error!(runner = %id, %error, "a queued job could not be read back");
                self.set_timer(id, Timer::Deadline, READ_AGAIN);
            }
        }
    }

    pub(super) fn finish_if_drained(&mut self) {
        match self.core.phase {
            Phase::Draining { .. } | Phase::Forcing { .. } if self.core.counts().active == 0 => {
                self.core.phase = Phase::Finished;
                self.out.held.push(Effect::Finished { abandoned: Vec::new() });
            }
            Phase::Draining { .. } | Phase::Forcing { .. } | Phase::Open | Phase::Finished => {}
        }
    }

    /// Starts what may start.
    pub(super) fn schedule(&mut self) {
        while self.core.phase == Phase::Open
            && self.core.stalled.is_none()
            && let Some(ticket) = self.core.line.next(&self.core.limits)
        {
            let id = match self.recall_at(&ticket) {
                Ok(Some(id)) => id,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, "the next job could not be read back: nothing is started for now");
                    self.core.stalled = Some(self.now.mono.saturating_add(READ_AGAIN));
                    return;
                }
            };
            let Some(record) = self.core.waiting.record(id) else { continue };
            let (run, attempt) = record.next_position();
            let key = AttemptKey::new();
            let boot_id = Arc::clone(&self.core.boot_id);
            let context_version = self.core.context.version;
            let seq = self.append(id, EventKind::Starting { run, attempt, key, boot_id, context_version });
            self.core.starting.push_back((seq, id));
            self.out.now.push(Effect::Prepare(id, key));
            self.out.held.push(Effect::Go(key));
        }
    }

    /// Whether it waits. Its record is in memory then, read back if need be.
    pub(super) fn recall(&mut self, id: RunnerId) -> Result<bool, Unreadable> {
        match self.core.waiting.get(id).map(|waiting| waiting.record.is_some()) {
            Some(true) => Ok(true),
            Some(false) => {
                let record = self.records.load(id)?;
                let found = record.is_some();
                match record {
                    Some(record) => self.core.waiting.keep(id, record),
                    None => {
                        missing(&id);
                        self.unqueue(id);
                    }
                }
                Ok(found)
            }
            None => {
                let found = self.core.find(id, self.records)?;
                Ok(found.map(|(ticket, record)| self.admit_back(ticket, record)).is_some())
            }
        }
    }

    /// The Runner that this is the ticket of, with its record in memory. `None`: it does not wait any more.
    fn recall_at(&mut self, ticket: &Ticket) -> Result<Option<RunnerId>, Unreadable> {
        let seq = ticket.place.seq;
        if let Some(id) = self.core.waiting.at(seq) {
            return Ok(self.recall(id)?.then_some(id));
        }
        let record = self.records.load_at(seq)?.filter(|record| record.state == State::Queued);
        let found = record.and_then(|record| Some((self.core.line.find(&record)?, record)));
        if found.is_none() {
            missing(&seq);
            self.core.line.leave(ticket);
        }
        Ok(found.map(|(ticket, record)| self.admit_back(ticket, record)))
    }

    fn admit_back(&mut self, ticket: Ticket, record: Record) -> RunnerId {
        let id = record.id;
        let waiting = Waiting { ticket, ready: Ready::Now, record: Some(Arc::new(record)) };
        self.core.waiting.insert(id, waiting);
        id
    }

    pub(super) fn reply(&mut self, token: Token, answer: Answer) {
        self.out.held.push(Effect::Reply(token, answer));
    }

    /// Records what happened and moves the Runner to where it belongs now.
    ///
    /// # Panics
    /// If the transition is illegal: the state in memory can't be trusted then, and the daemon must recover
    /// from its log.
    pub(super) fn append(&mut self, id: RunnerId, kind: EventKind) -> u64 {
        if let Some(running) = self.core.untold.take(id) {
            self.append(id, running);
        }
        let event = Event { seq: self.core.next_seq, runner: id, at: self.now.wall, kind };
        self.core.next_seq += 1;
        self.core.changed.insert(id);
        if let Some(active) = self.core.active.get_mut(&id) {
            let was_idle = active.record.state == State::Idle;
            job::apply(Arc::make_mut(&mut active.record), &event).unwrap_or_else(distrust);
            let state = active.record.state;
            self.core.idle = self.core.idle + usize::from(state == State::Idle) - usize::from(was_idle);
            if !runs(state) && std::mem::take(&mut active.slots) {
                self.core.line.give_back(&active.record);
            }
            if matches!(state, State::Queued | State::Closed) {
                self.deactivate(id);
            }
        } else if let Some(waiting) = self.core.waiting.get_mut(id) {
            let record = waiting.record.as_mut().expect("the record is read back before it changes");
            job::apply(Arc::make_mut(record), &event).unwrap_or_else(distrust);
            let released = waiting.ready == Ready::Held && !record.held;
            if record.state != State::Queued {
                self.leave_queue(id);
            } else if released {
                self.unqueue(id).into_iter().for_each(|record| self.enter_queue(record));
            } else {
                self.core.unsettled.push_back((event.seq, id));
            }
        } else {
            let record = job::create(&event).unwrap_or_else(distrust);
            self.enter_queue(Arc::new(record));
        }
        let seq = event.seq;
        self.out.batch.events.push(event);
        seq
    }

    fn enter_queue(&mut self, record: Arc<Record>) {
        let id = record.id;
        let ticket = self.core.line.enter(&record);
        let ready = match record.ready_at() {
            _ if record.held => Ready::Held,
            Some(at) if at > self.now.wall => Ready::Later(at),
            Some(_) | None => Ready::Now,
        };
        match ready {
            Ready::Now => self.core.line.push(&ticket),
            // A time of day is the wall clock's; a wait is not, and a jump of that clock neither ends nor extends it.
            Ready::Later(at) if record.attempt().is_none() && *record.spec.start_at == Some(at) => {
                self.core.timers.at(id, at);
            }
            Ready::Later(at) => self.set_timer(id, Timer::Ready, until(self.now.wall, at)),
            Ready::Held => {}
        }
        self.core.unsettled.push_back((record.last_seq, id));
        self.core.waiting.insert(id, Waiting { ticket, ready, record: Some(record) });
    }

    /// Takes it out of its queue; gives its record, if that is in memory.
    fn unqueue(&mut self, id: RunnerId) -> Option<Arc<Record>> {
        let Waiting { ticket, ready, record } = self.core.waiting.remove(id)?;
        self.core.line.leave(&ticket);
        self.core.timers.clear(id, Timer::Ready);
        if let Ready::Later(at) = ready {
            self.core.timers.clear_at(id, at);
        }
        record
    }

    fn leave_queue(&mut self, id: RunnerId) {
        let Some(waiting) = self.core.waiting.get(id) else { return };
        let starts = waiting.record.as_ref().is_some_and(|record| record.state == State::Starting);
        if starts {
            // Before it leaves: its key must not look free in between.
            let ticket = waiting.ticket.clone();
            self.core.line.take(&ticket, id);
        }
        let Some(record) = self.unqueue(id) else { return };
        if record.attempt().is_some() && record.state != State::Closed {
            self.core.active.insert(id, Active { record, gone: false, slots: starts });
        } else {
            self.retire(record);
        }
    }

    fn deactivate(&mut self, id: RunnerId) {
        self.core.timers.clear(id, Timer::Timeout);
        self.core.timers.clear(id, Timer::Grace);
        let Some(Active { record, .. }) = self.core.active.remove(&id) else { return };
        if record.state == State::Closed { self.retire(record) } else { self.enter_queue(record) }
    }

    fn retire(&mut self, record: Arc<Record>) {
        self.core.timers.clear_all(record.id);
        self.core.changed.remove(&record.id);
        self.core.retired.push(record);
    }

    fn set_timer(&mut self, id: RunnerId, timer: Timer, after: Duration) {
        self.core.timers.set(id, timer, self.now.mono.saturating_add(after));
    }
}

/// The store has no such record, or a damaged one: somebody else changed it under the daemon.
fn missing(what: &dyn std::fmt::Display) {
    tracing::error!(runner = %what, "the record of a queued job is not in the store any more: it does not wait");
}

fn distrust<T>(illegal: Illegal) -> T {
    panic!("the state in memory does not fit the log: {illegal}")
}

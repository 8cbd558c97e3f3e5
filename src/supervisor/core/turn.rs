//! The decisions: what one input leads to.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use super::{
    Active, Answer, Core, Denied, Effect, Now, Output, Phase, RECORDS_KEPT, SETTLE, Timer, Token, Waiting,
    verdict,
};
use crate::{
    job::{
        self, Action, AttemptKey, CancelReason, CloseFacts, Drain, Event, EventKind, Illegal, OnLost,
        Outcome, Record, Requester, RequeueReason, RunnerId, Spec, State,
    },
    supervisor::ports::{End, IdempotencyKey, KeyedSubmission, News, Records, Report},
};

/// One input being handled.
pub(super) struct Turn<'a> {
    pub(super) core: &'a mut Core,
    pub(super) now: Now,
    pub(super) records: &'a dyn Records,
    pub(super) out: Output,
}

impl Turn<'_> {
    pub(super) fn submit(
        &mut self,
        id: RunnerId,
        spec: Arc<Spec>,
        key: Option<IdempotencyKey>,
        token: Token,
    ) {
        let denied = match self.core.phase {
            Phase::Open if self.core.waiting.len() >= self.core.limits.max_queued => Some(Denied::QueueFull),
            Phase::Open => None,
            Phase::Draining { .. } | Phase::Forcing { .. } | Phase::Finished => Some(Denied::Draining),
        };
        if let Some(denied) = denied {
            return self.reply(token, Answer::Denied(denied));
        }
        let seq = self.append(id, EventKind::Submitted { spec });
        self.core.submitted.push_back((seq, id));
        self.out.keys.extend(key.map(|key| KeyedSubmission { key, runner: id }));
        self.reply(token, Answer::Accepted);
    }

    /// A cancellation on request. `escalate`: a second one forces.
    pub(super) fn cancel(&mut self, id: RunnerId, by: Requester, escalate: bool) -> Answer {
        let reason = CancelReason::Requested;
        if self.core.waiting.contains_key(&id) {
            if self.waiting_record(id).is_none() {
                return Answer::Unknown;
            }
            self.append(id, EventKind::CancelRequested { by, reason, force: false });
            let facts = CloseFacts { outcome: Outcome::Cancelled, drain: None };
            self.append(id, EventKind::Closed(facts));
            return Answer::Accepted;
        }
        let Some(active) = self.core.active.get(&id) else { return Answer::Unknown };
        match (active.record.state, &active.record.cancel) {
            (State::Draining, _) => Answer::AlreadySo,
            (_, None) => {
                self.cancel_active(id, by, reason);
                Answer::Accepted
            }
            (_, Some(receipt)) if escalate && !receipt.forced => {
                self.append(id, EventKind::CancelRequested { by, reason, force: true });
                self.force(id);
                Answer::Accepted
            }
            (_, Some(_)) => Answer::AlreadySo,
        }
    }

    /// The first request to an active Runner, or a higher reason.
    fn cancel_active(&mut self, id: RunnerId, by: Requester, reason: CancelReason) {
        let Some(active) = self.core.active.get_mut(&id) else { return };
        let first = active.record.cancel.is_none();
        let key = active.key;
        let grace = active.record.spec.cancel_grace;
        if active.record.state == State::Draining {
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
    fn force(&mut self, id: RunnerId) {
        self.clear_timer(id, Timer::Grace);
        let Some(effect) = self.core.active.get(&id).map(|active| Effect::Force(active.key)) else { return };
        match self.core.phase {
            Phase::Forcing { .. } => self.out.now.push(effect),
            Phase::Open | Phase::Draining { .. } | Phase::Finished => self.out.held.push(effect),
        }
    }

    pub(super) fn report(&mut self, Report { runner: id, key, news }: Report) {
        let Some(active) = self.core.active.get(&id) else { return };
        if active.key != key {
            return;
        }
        match news {
            News::Running { pid, start_time } => {
                self.append(id, EventKind::Running { pid, start_time });
                let timeout = self.core.active.get(&id).and_then(|active| active.record.spec.timeout);
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
                let outcome = active.record.attempt().and_then(|attempt| attempt.outcome);
                self.close(id, outcome.unwrap_or(Outcome::Lost), drain);
            }
        }
    }

    fn ended(&mut self, id: RunnerId, end: End) {
        let Some(active) = self.core.active.get(&id) else { return };
        let key = active.key;
        let outcome = verdict(&active.record, &end);
        let on_lost = active.record.spec.on_lost;
        let again = outcome == Outcome::Lost && active.record.cancel.is_none() && on_lost != OnLost::Fail;
        let End { exit, error, output, swept, result, context, closed, lost: _ } = end;
        self.append(id, EventKind::AttemptEnded { outcome, exit, error, output, swept, result, context });
        self.out.held.push(Effect::Settled(key));
        self.clear_timer(id, Timer::Grace);
        self.clear_timer(id, Timer::Timeout);
        if again {
            self.append(
                id,
                EventKind::Requeued { reason: RequeueReason::Lost, held: on_lost == OnLost::Hold, not_before: None },
            );
            return;
        }
        self.append(id, EventKind::Draining);
        if let Some(drain) = closed {
            self.close(id, outcome, drain);
        }
    }

    fn close(&mut self, id: RunnerId, outcome: Outcome, drain: Drain) {
        self.append(id, EventKind::Closed(CloseFacts { outcome, drain: Some(drain) }));
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
        while let Some((seq, id)) = self.core.submitted.front().copied()
            && seq <= upto
        {
            self.core.submitted.pop_front();
            if self.core.waiting.len() > RECORDS_KEPT
                && let Some(waiting) = self.core.waiting.get_mut(&id)
                && !self.core.changed.contains(&id)
            {
                waiting.record = None;
            }
        }
    }

    pub(super) fn refused(&mut self, ids: &[RunnerId]) {
        for &id in ids {
            if let Some(waiting) = self.core.waiting.remove(&id) {
                self.core.queue.remove(&waiting.place);
            }
            self.clear_timer(id, Timer::Timeout);
            self.clear_timer(id, Timer::Grace);
            // It was never told to go: for that its submission had to be durable.
            if let Some(active) = self.core.active.remove(&id) {
                self.out.now.push(Effect::Abort(active.key));
            }
            self.core.changed.remove(&id);
        }
        self.core.starting.retain(|(_, id)| !ids.contains(id));
        self.core.submitted.retain(|(_, id)| !ids.contains(id));
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
            }
            Phase::Draining { .. } => self.force_all(&Requester(name.into())),
            Phase::Forcing { .. } | Phase::Finished => {}
        }
    }

    /// A Runner that was not told to go yet keeps its place in the queue; the others are cancelled.
    fn stop_for_shutdown(&mut self, id: RunnerId, name: &'static str) {
        let Some(active) = self.core.active.get(&id) else { return };
        if active.record.state == State::Starting && !active.gone {
            self.out.now.push(Effect::Abort(active.key));
            self.core.starting.retain(|(_, starting)| *starting != id);
            self.append(id, EventKind::Requeued { reason: RequeueReason::NotExecuted, held: false, not_before: None });
        } else {
            self.cancel_active(id, Requester(name.into()), CancelReason::Shutdown);
        }
    }

    fn force_all(&mut self, by: &Requester) {
        self.core.phase = Phase::Forcing { until: self.now.mono + SETTLE };
        let ids: Vec<RunnerId> = self.core.active.keys().copied().collect();
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
        while let Some(&(at, id, timer)) = self.core.timers.first()
            && at <= self.now.mono
        {
            self.core.timers.pop_first();
            match timer {
                Timer::Timeout => self.cancel_active(id, Requester("timeout".into()), CancelReason::Timeout),
                Timer::Grace => {
                    self.append(id, EventKind::CancelStep { action: Action::GraceExpired, target: None });
                    self.force(id);
                }
            }
        }
        match self.core.phase {
            Phase::Draining { deadline } if deadline <= self.now.mono => {
                self.force_all(&Requester("shutdown deadline".into()));
            }
            Phase::Forcing { until } if until <= self.now.mono => {
                self.core.phase = Phase::Finished;
                let abandoned = self.core.active.keys().copied().collect();
                self.out.held.push(Effect::Finished { abandoned });
            }
            Phase::Open | Phase::Draining { .. } | Phase::Forcing { .. } | Phase::Finished => {}
        }
    }

    pub(super) fn finish_if_drained(&mut self) {
        match self.core.phase {
            Phase::Draining { .. } | Phase::Forcing { .. } if self.core.active.is_empty() => {
                self.core.phase = Phase::Finished;
                self.out.held.push(Effect::Finished { abandoned: Vec::new() });
            }
            Phase::Draining { .. } | Phase::Forcing { .. } | Phase::Open | Phase::Finished => {}
        }
    }

    /// Starts what may start.
    pub(super) fn schedule(&mut self) {
        while self.core.phase == Phase::Open
            && self.core.active.len() < self.core.limits.max_running
            && let Some((_, _, id)) = self.core.queue.first().copied()
        {
            let Some(record) = self.waiting_record(id) else {
                // The store has no such record: somebody else changed it under the daemon.
                tracing::error!(runner = %id, "a queued job is not in the store any more");
                continue;
            };
            let (run, attempts) = record.position().unwrap_or((1, 0));
            let key = AttemptKey::new();
            let boot_id = self.core.boot_id.clone();
            let seq = self.append(id, EventKind::Starting { run, attempt: attempts + 1, key, boot_id, context_version: 0 });
            self.core.starting.push_back((seq, id));
            self.out.now.push(Effect::Prepare(id, key));
            self.out.held.push(Effect::Go(key));
        }
    }

    /// The record of a waiting Runner, read back if need be. Without one it does not wait any more.
    fn waiting_record(&mut self, id: RunnerId) -> Option<&Record> {
        let waiting = self.core.waiting.get_mut(&id)?;
        if waiting.record.is_none() {
            waiting.record = self.records.load(id).map(Box::new);
        }
        if waiting.record.is_none() {
            self.core.queue.remove(&waiting.place);
            self.core.waiting.remove(&id);
        }
        self.core.waiting.get(&id)?.record.as_deref()
    }

    pub(super) fn reply(&mut self, token: Token, answer: Answer) {
        self.out.held.push(Effect::Reply(token, answer));
    }

    /// Records what happened and moves the Runner to where it belongs now.
    ///
    /// # Panics
    /// If the transition is illegal: the state in memory can't be trusted then, and the daemon must recover
    /// from its log.
    fn append(&mut self, id: RunnerId, kind: EventKind) -> u64 {
        let event = Event { seq: self.core.next_seq, runner: id, at: self.now.wall, kind };
        self.core.next_seq += 1;
        self.core.changed.insert(id);
        if let Some(active) = self.core.active.get_mut(&id) {
            job::apply(&mut active.record, &event).unwrap_or_else(distrust);
            match active.record.state {
                State::Queued | State::Closed => self.deactivate(id),
                State::Starting | State::Running | State::Idle | State::Cancelling | State::Draining => {}
            }
        } else if let Some(waiting) = self.core.waiting.get_mut(&id) {
            let record = waiting.record.as_mut().expect("the record is read back before it changes");
            job::apply(record, &event).unwrap_or_else(distrust);
            if record.state != State::Queued {
                self.leave_queue(id);
            }
        } else {
            let record = job::create(&event).unwrap_or_else(distrust);
            self.enter_queue(Box::new(record));
        }
        let seq = event.seq;
        self.out.events.push(event);
        seq
    }

    fn enter_queue(&mut self, record: Box<Record>) {
        let id = record.id;
        let place = (Reverse(record.spec.priority), record.submitted_seq, id);
        if !record.held {
            self.core.queue.insert(place);
        }
        self.core.waiting.insert(id, Waiting { place, record: Some(record) });
    }

    fn leave_queue(&mut self, id: RunnerId) {
        let Some(Waiting { place, record: Some(record) }) = self.core.waiting.remove(&id) else { return };
        self.core.queue.remove(&place);
        match record.attempt() {
            Some(attempt) if record.state != State::Closed => {
                let key = attempt.key;
                self.core.active.insert(id, Active { record, key, gone: false, timeout: None, grace: None });
            }
            Some(_) | None => self.retire(record),
        }
    }

    fn deactivate(&mut self, id: RunnerId) {
        self.clear_timer(id, Timer::Timeout);
        self.clear_timer(id, Timer::Grace);
        let Some(Active { record, .. }) = self.core.active.remove(&id) else { return };
        if record.state == State::Closed { self.retire(record) } else { self.enter_queue(record) }
    }

    fn retire(&mut self, record: Box<Record>) {
        self.core.changed.remove(&record.id);
        self.core.retired.push(Arc::from(record));
    }

    fn set_timer(&mut self, id: RunnerId, timer: Timer, after: Duration) {
        self.clear_timer(id, timer);
        let at = self.now.mono.saturating_add(after);
        if let Some(active) = self.core.active.get_mut(&id) {
            *active.timer(timer) = Some(at);
            self.core.timers.insert((at, id, timer));
        }
    }

    fn clear_timer(&mut self, id: RunnerId, timer: Timer) {
        if let Some(at) = self.core.active.get_mut(&id).and_then(|active| active.timer(timer).take()) {
            self.core.timers.remove(&(at, id, timer));
        }
    }
}

impl Active {
    fn timer(&mut self, timer: Timer) -> &mut Option<Duration> {
        match timer {
            Timer::Timeout => &mut self.timeout,
            Timer::Grace => &mut self.grace,
        }
    }
}

fn distrust<T>(illegal: Illegal) -> T {
    panic!("the state in memory does not fit the log: {illegal}")
}

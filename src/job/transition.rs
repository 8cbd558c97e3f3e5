//! The one transition function, for live changes and for replay.

use std::sync::Arc;

use super::{
    event::{Action, CancelReason, Event, EventKind, RequeueReason},
    rare::Rare,
    record::{Attempt, Receipt, Record, Run, Step},
    state::{AttemptState, Outcome, State},
};

/// An event that can't happen to a Runner in its state. Never ignored: it is a bug or a damaged store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {seq} ({event}) can't happen to a Runner that is {state}")]
pub struct Illegal {
    /// The event's place.
    pub seq: u64,
    /// Its kind.
    pub event: &'static str,
    /// The Runner's state, or `absent`.
    pub state: &'static str,
}

/// The record of a Runner that was just submitted.
///
/// # Errors
/// [`Illegal`] for any other event: nothing else can happen to a Runner that is absent.
pub fn create(event: &Event) -> Result<Record, Illegal> {
    let EventKind::Submitted { spec } = &event.kind else { return Err(illegal(event, "absent")) };
    Ok(Record {
        id: event.runner,
        submitted_seq: event.seq,
        last_seq: event.seq,
        spec: Arc::clone(spec),
        state: State::Queued,
        outcome: None,
        held: false,
        not_before: Rare::default(),
        closing: false,
        again: false,
        due: None,
        variables: Rare::default(),
        created_at: event.at,
        started_at: None,
        closed_at: Rare::default(),
        runs: Vec::new(),
        cancel: None,
        drain: None,
    })
}

/// Applies one event to a Runner that exists.
///
/// # Errors
/// [`Illegal`], and then `record` is as it was.
pub fn apply(record: &mut Record, event: &Event) -> Result<(), Illegal> {
    step(record, event).ok_or_else(|| illegal(event, record.state.as_str()))?;
    record.last_seq = event.seq;
    Ok(())
}

/// The record that a Runner's events, from its submission on, add up to; `None` without events.
///
/// # Errors
/// [`Illegal`] at the first event that does not fit those before it.
pub fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Option<Record>, Illegal> {
    let mut record = None;
    for event in events {
        match &mut record {
            None => record = Some(create(event)?),
            Some(record) => apply(record, event)?,
        }
    }
    Ok(record)
}

fn illegal(event: &Event, state: &'static str) -> Illegal {
    Illegal { seq: event.seq, event: event.kind.name(), state }
}

/// `None` where the event is illegal; every check comes before the first change.
fn step(record: &mut Record, event: &Event) -> Option<()> {
    use State::{Cancelling, Closed, Draining, Idle, Queued, Running, Starting};
    let at = event.at;
    match &event.kind {
        EventKind::Submitted { .. } => return None,
        EventKind::Starting { run, attempt, key, boot_id, context_version } => {
            allow(record.state == Queued && !record.held && record.cancel.is_none())?;
            let new = Attempt {
                attempt: *attempt,
                key: *key,
                state: AttemptState::Starting,
                outcome: None,
                pid: None,
                start_time: None,
                boot_id: Arc::clone(boot_id),
                exit: None,
                error: None,
                output: Rare::default(),
                swept: 0,
                result: None,
                context_version: *context_version,
                cancel: None,
                started_at: at,
                ended_at: Rare::default(),
            };
            let (runs, attempts) = record.position().unwrap_or((0, 0));
            if *run == runs && *attempt == attempts + 1 {
                current_run(record)?.attempts.push(new);
            } else if *run == runs + 1 && *attempt == 1 {
                match record.runs.iter().position(|known| known.run >= *run) {
                    Some(place) if record.runs[place].run == *run => record.runs[place].attempts.push(new),
                    Some(_) | None => {
                        // Most have no other: tens of thousands of records can be in memory.
                        record.runs.reserve_exact(1);
                        record.runs.insert(begun(record), Run { run: *run, job: None, attempts: vec![new] });
                    }
                }
            } else {
                return None;
            }
            record.state = Starting;
            record.again = false;
            record.not_before = Rare::default();
            record.started_at.get_or_insert(at);
        }
        EventKind::Running { pid, start_time } => {
            // A cancellation may overtake the start: the state stays, the facts are kept.
            allow(matches!(record.state, Starting | Cancelling))?;
            let attempt = current(record)?;
            allow(attempt.state == AttemptState::Starting)?;
            attempt.state = AttemptState::Running;
            attempt.pid = *pid;
            attempt.start_time = *start_time;
            if record.state == Starting {
                record.state = Running;
            }
        }
        EventKind::CancelRequested { by, reason, force } => {
            allow(matches!(record.state, Queued | Starting | Running | Idle | Cancelling | Draining))?;
            let step = Step {
                at,
                action: if *force { Action::ForceRequested } else { Action::Requested },
                target: Some(by.0.clone()),
            };
            match &mut record.cancel {
                None => {
                    record.cancel = Some(Box::new(Receipt {
                        requested_at: at,
                        by: by.clone(),
                        reason: *reason,
                        escalated_to: *reason,
                        forced: *force,
                        steps: vec![step],
                        survivors: None,
                        ended_at: None,
                    }));
                }
                Some(receipt) => {
                    // Reasons only escalate.
                    allow(*reason > receipt.escalated_to || (*force && !receipt.was_forced_by_request()))?;
                    receipt.escalated_to = receipt.escalated_to.max(*reason);
                    receipt.forced |= *force;
                    receipt.steps.push(step);
                }
            }
            if matches!(record.state, Starting | Running | Idle) {
                record.state = Cancelling;
            }
        }
        EventKind::CancelStep { action, target } => {
            allow(matches!(record.state, Cancelling | Draining))?;
            let receipt = record.cancel.as_mut()?;
            receipt.forced |= matches!(action, Action::GraceExpired | Action::Kill);
            receipt.steps.push(Step { at, action: *action, target: target.clone() });
        }
        EventKind::AttemptEnded { outcome, exit, error, output, swept, result, context } => {
            allow(matches!(record.state, Starting | Running | Cancelling))?;
            let attempt = current(record)?;
            allow(attempt.state != AttemptState::Ended)?;
            attempt.state = AttemptState::Ended;
            attempt.outcome = Some(*outcome);
            attempt.exit = *exit;
            attempt.error.clone_from(error);
            attempt.output = (*output).into();
            attempt.swept = *swept;
            attempt.result.clone_from(result);
            attempt.ended_at = Some(at).into();
            if !context.is_empty() {
                let mut variables = std::mem::take(&mut record.variables).into_inner();
                variables.extend(context.iter().map(|(name, value)| (name.clone(), value.clone())));
                record.variables = variables.into();
            }
            if let Some(receipt) = &mut record.cancel {
                end(receipt, at);
            }
        }
        EventKind::Requeued { reason, held, not_before } => {
            let ended = current(record)?.state == AttemptState::Ended;
            match reason {
                // What somebody cancelled never runs again.
                RequeueReason::NotExecuted => {
                    allow(record.state == Starting && record.cancel.is_none())?;
                    forget_attempt(record);
                }
                RequeueReason::Lost => {
                    allow(matches!(record.state, Starting | Running) && record.cancel.is_none() && ended)?;
                }
                RequeueReason::Retry => {
                    allow(matches!(record.state, Starting | Running | Cancelling) && ended)?;
                    allow(record.cancel.as_deref().is_none_or(Receipt::is_timeout_alone))?;
                }
                RequeueReason::Shutdown => {
                    allow(record.state == Cancelling && ended)?;
                    allow(record.cancel.as_deref().is_some_and(Receipt::is_shutdown_alone))?;
                }
                RequeueReason::NextRun => {
                    allow(matches!(record.state, Starting | Running | Cancelling) && ended)?;
                    allow(!record.closing && record.next_run().is_some())?;
                }
            }
            keep_receipt(record);
            record.state = Queued;
            record.again = match reason {
                RequeueReason::NotExecuted => record.again,
                RequeueReason::Lost | RequeueReason::Retry | RequeueReason::Shutdown => true,
                RequeueReason::NextRun => false,
            };
            record.held = *held;
            record.not_before = (*not_before).into();
        }
        EventKind::Released { .. } => {
            allow(record.state == Queued && record.held)?;
            record.held = false;
        }
        EventKind::Idle => {
            allow(record.spec.keep_open && !record.closing)?;
            allow(matches!(record.state, Starting | Running | Cancelling))?;
            allow(current(record)?.state == AttemptState::Ended)?;
            keep_receipt(record);
            record.state = Idle;
        }
        EventKind::RunAdded { run, job } => {
            allow(record.spec.keep_open && !record.closing)?;
            allow(matches!(record.state, Queued | Starting | Running | Idle | Cancelling))?;
            // The first run is the job that the Runner was made for, and may not have begun.
            allow(*run == record.runs.last().map_or(1, |run| run.run) + 1)?;
            record.runs.push(Run { run: *run, job: Some(Arc::clone(job)), attempts: Vec::new() });
            if record.state == Idle {
                record.state = Queued;
            }
        }
        EventKind::CloseRequested { .. } => {
            allow(!record.closing)?;
            allow(matches!(record.state, Queued | Starting | Running | Idle | Cancelling))?;
            record.closing = true;
        }
        EventKind::Draining { outcome } => {
            // In the queue only where there is a Runner of earlier attempts.
            let waits = record.state == Queued && record.attempt().is_some() && record.cancel.is_some();
            allow(waits || matches!(record.state, Starting | Running | Idle | Cancelling))?;
            allow(record.attempt().is_none_or(|attempt| attempt.state == AttemptState::Ended))?;
            record.state = Draining;
            record.held = false;
            record.not_before = Rare::default();
            record.due = *outcome;
        }
        EventKind::Closed(facts) => {
            let reason = record.cancel.as_ref().map(|receipt| receipt.reason);
            let in_queue = record.state == Queued
                && match facts.outcome {
                    Outcome::Cancelled => reason.is_some(),
                    Outcome::TimedOut => reason == Some(CancelReason::Deadline),
                    Outcome::Succeeded | Outcome::Failed | Outcome::Killed | Outcome::Lost => false,
                };
            let lost = record.state != Closed && facts.outcome == Outcome::Lost;
            allow(record.state == Draining || in_queue || lost)?;
            record.state = Closed;
            record.held = false;
            record.not_before = Rare::default();
            record.due = None;
            record.outcome = Some(facts.outcome);
            record.drain.clone_from(&facts.drain);
            record.closed_at = Some(at).into();
            if let Some(receipt) = &mut record.cancel {
                end(receipt, at);
            }
        }
    }
    Some(())
}

fn allow(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// How many runs have begun: the others come after them.
fn begun(record: &Record) -> usize {
    record.runs.iter().filter(|run| !run.attempts.is_empty()).count()
}

fn current_run(record: &mut Record) -> Option<&mut Run> {
    record.runs.iter_mut().rev().find(|run| !run.attempts.is_empty())
}

fn current(record: &mut Record) -> Option<&mut Attempt> {
    current_run(record)?.attempts.last_mut()
}

/// A receipt belongs to the attempt that it stopped; the next one begins without.
fn keep_receipt(record: &mut Record) {
    let receipt = record.cancel.take();
    if let Some(attempt) = current(record)
        && receipt.is_some()
    {
        attempt.cancel = receipt;
    }
}

/// An attempt that never executed leaves no trace: the next one takes its number and its directory.
fn forget_attempt(record: &mut Record) {
    let Some(run) = current_run(record) else { return };
    run.attempts.pop();
    let again = !run.attempts.is_empty();
    record.again = again;
    record.runs.retain(|run| run.job.is_some() || !run.attempts.is_empty());
    if record.attempt().is_none() {
        record.started_at = None;
    }
}

/// The end of a cancellation, once: by then nothing of the job lives.
fn end(receipt: &mut Receipt, at: jiff::Timestamp) {
    if receipt.ended_at.is_none() {
        receipt.ended_at = Some(at);
        receipt.survivors = Some(0);
        receipt.steps.push(Step { at, action: Action::Ended, target: None });
    }
}

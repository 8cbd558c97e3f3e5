//! The one transition function, for live changes and for replay.

use std::sync::Arc;

use super::{
    event::{Action, Event, EventKind, RequeueReason},
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
        created_at: event.at,
        started_at: None,
        closed_at: None,
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
        EventKind::Starting { run, attempt, key, boot_id } => {
            allow(record.state == Queued && !record.held && record.cancel.is_none())?;
            let new = Attempt {
                attempt: *attempt,
                key: *key,
                state: AttemptState::Starting,
                outcome: None,
                pid: None,
                start_time: None,
                boot_id: boot_id.clone(),
                exit: None,
                error: None,
                output: None,
                swept: 0,
                started_at: at,
                ended_at: None,
            };
            let (runs, attempts) = record.position().unwrap_or((0, 0));
            if *run == runs && *attempt == attempts + 1 {
                record.runs.last_mut()?.attempts.push(new);
            } else if *run == runs + 1 && *attempt == 1 {
                record.runs.push(Run { run: *run, attempts: vec![new] });
            } else {
                return None;
            }
            record.state = Starting;
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
                    record.cancel = Some(Receipt {
                        requested_at: at,
                        by: by.clone(),
                        reason: *reason,
                        escalated_to: *reason,
                        forced: *force,
                        steps: vec![step],
                        survivors: None,
                        ended_at: None,
                    });
                }
                Some(receipt) => {
                    // Reasons only escalate.
                    allow(*reason > receipt.escalated_to || (*force && !receipt.forced))?;
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
        EventKind::AttemptEnded { outcome, exit, error, output, swept } => {
            allow(matches!(record.state, Starting | Running | Cancelling))?;
            let attempt = current(record)?;
            allow(attempt.state != AttemptState::Ended)?;
            attempt.state = AttemptState::Ended;
            attempt.outcome = Some(*outcome);
            attempt.exit = *exit;
            attempt.error = error.clone();
            attempt.output = *output;
            attempt.swept = *swept;
            attempt.ended_at = Some(at);
            if let Some(receipt) = &mut record.cancel {
                end(receipt, at);
            }
        }
        EventKind::Requeued { reason, held } => {
            // What was cancelled never runs again.
            allow(record.cancel.is_none())?;
            match reason {
                RequeueReason::NotExecuted => {
                    allow(record.state == Starting)?;
                    forget_attempt(record);
                }
                RequeueReason::Lost => {
                    allow(matches!(record.state, Starting | Running))?;
                    allow(current(record)?.state == AttemptState::Ended)?;
                }
            }
            record.state = Queued;
            record.held = *held;
        }
        EventKind::Draining => {
            allow(matches!(record.state, Starting | Running | Idle | Cancelling))?;
            allow(record.attempt().is_none_or(|attempt| attempt.state == AttemptState::Ended))?;
            record.state = Draining;
        }
        EventKind::Closed(facts) => {
            let cancelled_in_queue = record.state == Queued && facts.outcome == Outcome::Cancelled;
            let lost = record.state != Closed && facts.outcome == Outcome::Lost;
            allow(record.state == Draining || cancelled_in_queue || lost)?;
            record.state = Closed;
            record.outcome = Some(facts.outcome);
            record.drain = facts.drain.clone();
            record.closed_at = Some(at);
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

fn current(record: &mut Record) -> Option<&mut Attempt> {
    record.runs.last_mut()?.attempts.last_mut()
}

/// An attempt that never executed leaves no trace: the next one takes its number and its directory.
fn forget_attempt(record: &mut Record) {
    let Some(run) = record.runs.last_mut() else { return };
    run.attempts.pop();
    if run.attempts.is_empty() {
        record.runs.pop();
    }
    if record.runs.is_empty() {
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

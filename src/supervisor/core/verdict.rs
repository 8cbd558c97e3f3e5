//! What became of an attempt, and what follows it. Pure: the supervisor and recovery decide alike.

use jiff::Timestamp;

use crate::{
    job::{CancelReason, EventKind, Exit, OnLost, Outcome, Receipt, Record, RequeueReason},
    supervisor::ports::End,
};

/// A job that was lost with the daemon this often in one run may be what took it down: it is held.
const POISON: usize = 2;

/// The outcome of an attempt. What stopped it first decides.
pub(in crate::supervisor) fn verdict(record: &Record, end: &End) -> Outcome {
    match &record.cancel {
        // Force had been asked for; that the daemon's death carried it out makes no difference.
        Some(receipt) if end.lost && receipt.forced => Outcome::Killed,
        Some(_) | None if end.lost => Outcome::Lost,
        // As with asyncio: who swallows the cancellation and returns a value has succeeded.
        Some(receipt) if !receipt.forced && returned(record, end) => Outcome::Succeeded,
        Some(receipt) if matches!(receipt.reason, CancelReason::Timeout | CancelReason::Deadline) => {
            Outcome::TimedOut
        }
        Some(receipt) if receipt.forced => Outcome::Killed,
        // And who raises something else instead has failed.
        Some(_) if record.job().is_coroutine() && end.error.is_some() => Outcome::Failed,
        Some(_) => Outcome::Cancelled,
        None if returned(record, end) => Outcome::Succeeded,
        None => match (end.exit, &end.error) {
            (Some(Exit::Code(0)), None) => Outcome::Succeeded,
            (Some(Exit::Code(_) | Exit::Signal(_)) | None, _) => Outcome::Failed,
        },
    }
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum Next {
    /// Another attempt or run.
    Again {
        /// Why.
        reason: RequeueReason,
        /// Whether somebody has to decide first.
        held: bool,
    },
    /// Nothing for now: it is kept open.
    Idle,
    /// Nothing: it is closed.
    Close,
}

/// What follows an attempt that has ended, and is recorded so.
pub(in crate::supervisor) fn what_follows(record: &Record, stopping: bool) -> Next {
    let Some(attempt) = record.attempt() else { return Next::Close };
    let Some(outcome) = attempt.outcome else { return Next::Close };
    let (spec, receipt) = (&*record.spec, record.cancel.as_ref());
    let again = |reason, fate: OnLost| Next::Again { reason, held: fate == OnLost::Hold };
    if !record.closing {
        if outcome == Outcome::Lost && receipt.is_none() && spec.on_lost != OnLost::Fail {
            let Next::Again { reason, held } = again(RequeueReason::Lost, spec.on_lost) else { return Next::Close };
            return Next::Again { reason, held: held || is_poison(record) };
        }
        let tried_again = match outcome {
            Outcome::Failed => receipt.is_none(),
            Outcome::TimedOut => receipt.is_some_and(Receipt::is_timeout_alone),
            Outcome::Succeeded | Outcome::Cancelled | Outcome::Killed | Outcome::Lost => false,
        };
        if tried_again && attempt.attempt < spec.retry.max_attempts && spec.retry.covers(attempt.exit) {
            return again(RequeueReason::Retry, OnLost::Requeue);
        }
        let stopped = matches!(outcome, Outcome::Cancelled | Outcome::Killed);
        let by_shutdown = receipt.is_some_and(Receipt::is_shutdown_alone);
        if stopped && by_shutdown && spec.on_shutdown != OnLost::Fail {
            return again(RequeueReason::Shutdown, spec.on_shutdown);
        }
        let too_late = receipt.is_some_and(|receipt| receipt.escalated_to == CancelReason::Deadline);
        if spec.keep_open && !too_late {
            // What was accepted stays, also over a shutdown.
            if record.next_run().is_some() {
                return again(RequeueReason::NextRun, OnLost::Requeue);
            }
            if !stopping && !by_shutdown {
                return Next::Idle;
            }
        }
    }
    Next::Close
}

/// The event of another attempt or run.
pub(in crate::supervisor) fn requeued(
    record: &Record,
    reason: RequeueReason,
    held: bool,
    now: Timestamp,
    jitter: f64,
) -> EventKind {
    let not_before = match reason {
        RequeueReason::Retry => {
            let attempts = record.attempt().map_or(1, |attempt| attempt.attempt);
            now.checked_add(record.spec.retry.backoff(attempts, jitter)).ok()
        }
        RequeueReason::NotExecuted
        | RequeueReason::Lost
        | RequeueReason::Shutdown
        | RequeueReason::NextRun => None,
    };
    EventKind::Requeued { reason, held, not_before }
}

/// What a Runner with nothing left to run will have become.
pub(in crate::supervisor) fn final_outcome(record: &Record) -> Outcome {
    let last = record.attempt().and_then(|attempt| attempt.outcome);
    record.due.or(last).unwrap_or(Outcome::Lost)
}

fn is_poison(record: &Record) -> bool {
    let lost = |attempt: &&crate::job::Attempt| {
        attempt.error.as_ref().is_some_and(|error| error.kind == "daemon_lost")
    };
    record.run().is_some_and(|run| run.attempts.iter().filter(lost).count() >= POISON)
}

fn returned(record: &Record, end: &End) -> bool {
    record.job().is_coroutine() && end.result.is_some() && end.error.is_none()
}

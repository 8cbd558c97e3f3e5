//! What became of an attempt, and what follows it. Pure: the supervisor and recovery decide alike.

use jiff::Timestamp;

use crate::{
    job::{CancelReason, EventKind, Exit, Failure, Job, OnLost, Outcome, Receipt, Record, RequeueReason},
    supervisor::ports::End,
};

/// A job that was lost with the daemon this often in one run may be what took it down: it is held.
const POISON: usize = 2;

/// The variables that the runs of one Runner may have set, and their bytes: they are in its record, which is written
/// whole, and in the environment of its next run.
const MAX_VARIABLES: usize = 1000;
const MAX_VARIABLE_BYTES: usize = 256 << 10;

/// What is recorded of the end of an attempt.
pub(in crate::supervisor) fn ended(record: &Record, mut end: End) -> EventKind {
    let kept = record.variables.iter().filter(|(name, _)| !end.context.contains_key(*name));
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in kept.chain(&end.context) {
        count += 1;
        bytes += name.len() + value.as_ref().map_or(0, String::len);
    }
    if !end.context.is_empty() && (count > MAX_VARIABLES || bytes > MAX_VARIABLE_BYTES) {
        end.context.clear();
        let message = format!(
            "with the variables that it set, its runner has {count} of them with {bytes} bytes; {MAX_VARIABLES} and \
             {MAX_VARIABLE_BYTES} bytes are the most, so none of them was set"
        );
        end.error.get_or_insert_with(|| Failure::new("bad_context", message));
    }
    let outcome = verdict(record, &end);
    end.into_event(outcome)
}

/// The outcome of an attempt. What stopped it first decides.
fn verdict(record: &Record, end: &End) -> Outcome {
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
        Some(_) if raised(record, end) => Outcome::Failed,
        Some(_) => Outcome::Cancelled,
        None if returned(record, end) => Outcome::Succeeded,
        None => match (end.exit, &end.error) {
            (Some(Exit::Code(code)), None) if succeeds(record, code) => Outcome::Succeeded,
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
    let (spec, receipt) = (&*record.spec, record.cancel.as_deref());
    let again = |reason, held| Next::Again { reason, held };
    if !record.closing {
        if outcome == Outcome::Lost && receipt.is_none() && spec.on_lost != OnLost::Fail {
            return again(RequeueReason::Lost, spec.on_lost == OnLost::Hold || is_poison(record));
        }
        let tried_again = match outcome {
            Outcome::Failed => receipt.is_none(),
            Outcome::TimedOut => receipt.is_some_and(Receipt::is_timeout_alone),
            Outcome::Succeeded | Outcome::Cancelled | Outcome::Killed | Outcome::Lost => false,
        };
        if tried_again && attempt.attempt < spec.retry.max_attempts && spec.retry.covers(attempt.exit) {
            return again(RequeueReason::Retry, false);
        }
        let stopped = matches!(outcome, Outcome::Cancelled | Outcome::Killed);
        let by_shutdown = receipt.is_some_and(Receipt::is_shutdown_alone);
        if stopped && by_shutdown && spec.on_shutdown != OnLost::Fail {
            return again(RequeueReason::Shutdown, spec.on_shutdown == OnLost::Hold);
        }
        let too_late = receipt.is_some_and(|receipt| receipt.escalated_to == CancelReason::Deadline);
        if spec.keep_open && !too_late {
            // What was accepted stays, also over a shutdown.
            if record.next_run().is_some() {
                return again(RequeueReason::NextRun, false);
            }
            if spec.on_shutdown != OnLost::Fail || !stopping && !by_shutdown {
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
    jitter: fn() -> f64,
) -> EventKind {
    let not_before = match reason {
        RequeueReason::Retry => {
            let attempts = record.attempt().map_or(1, |attempt| attempt.attempt);
            now.checked_add(record.spec.retry.backoff(attempts, jitter())).ok()
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

fn succeeds(record: &Record, code: i32) -> bool {
    record.job().process().map_or(code == 0, |process| process.succeeds_with(code))
}

fn returned(record: &Record, end: &End) -> bool {
    let returned = match record.job() {
        Job::Command(_) | Job::Script(_) => false,
        // It may return nothing, which is nothing to keep.
        Job::Python(_) => end.exit == Some(Exit::Code(0)),
        Job::Http(_) | Job::Handler(_) => end.result.is_some(),
    };
    returned && end.error.is_none()
}

fn raised(record: &Record, end: &End) -> bool {
    // A coroutine may cancel itself as well.
    record.job().is_coroutine() && end.error.as_ref().is_some_and(|error| error.kind != "cancelled")
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::job::{
        AttemptKey, Event, EventKind, Failure, Handler, Job, Requester, RunnerId, Spec, replay,
    };

    /// A handler that was asked to stop for this reason, if it was.
    fn stopped(reason: Option<(CancelReason, bool)>) -> Record {
        let id = RunnerId::new();
        let job = Job::Handler(Handler { name: "x".into(), args: json!(null).into() });
        let spec = Arc::new(Spec::new(job, Duration::ZERO));
        let key = AttemptKey::new();
        let starting =
            EventKind::Starting { run: 1, attempt: 1, key, boot_id: "b".into(), context_version: 0 };
        let cancel = reason.map(|(reason, force)| {
            let by = Requester("x".into());
            EventKind::CancelRequested { by, reason, force }
        });
        let running = EventKind::Running { pid: None, start_time: None };
        let kinds = [EventKind::Submitted { spec }, starting, running].into_iter().chain(cancel);
        let events: Vec<Event> = (1..)
            .zip(kinds)
            .map(|(seq, kind)| Event { seq, runner: id, at: Timestamp::UNIX_EPOCH, kind })
            .collect();
        replay(&events).expect("legal").expect("a record")
    }

    #[test]
    fn what_a_coroutine_makes_of_its_cancellation_counts() {
        let value = || End { result: Some(json!(null)), ..End::default() };
        let error = || End { error: Some(Failure::new("x", "y")), ..End::default() };
        // A value with an error beside it: an answer that was not expected.
        let both = || End { result: Some(json!(1)), ..error() };
        let (requested, timeout) = (CancelReason::Requested, CancelReason::Timeout);
        for (reason, end, outcome) in [
            (None, value(), Outcome::Succeeded),
            (None, error(), Outcome::Failed),
            (None, both(), Outcome::Failed),
            (Some((requested, false)), value(), Outcome::Succeeded),
            (Some((requested, false)), error(), Outcome::Failed),
            (Some((requested, false)), End::default(), Outcome::Cancelled),
            (Some((requested, true)), value(), Outcome::Killed),
            (Some((timeout, false)), value(), Outcome::Succeeded),
            (Some((timeout, false)), End::default(), Outcome::TimedOut),
        ] {
            assert_eq!(verdict(&stopped(reason), &end), outcome, "{reason:?} {end:?}");
        }
    }
}

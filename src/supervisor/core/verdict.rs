//! What became of an attempt.

use crate::{
    job::{CancelReason, Exit, Outcome, Record},
    supervisor::ports::End,
};

/// The outcome of an attempt. What stopped it first decides.
pub(in crate::supervisor) fn verdict(record: &Record, end: &End) -> Outcome {
    match &record.cancel {
        // Force had been asked for; that the daemon's death carried it out makes no difference.
        Some(receipt) if end.lost && receipt.forced => Outcome::Killed,
        Some(_) | None if end.lost => Outcome::Lost,
        // As with asyncio: who swallows the cancellation and returns a value has succeeded.
        Some(receipt) if !receipt.forced && returned(record, end) => Outcome::Succeeded,
        Some(receipt) if receipt.reason == CancelReason::Timeout => Outcome::TimedOut,
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

fn returned(record: &Record, end: &End) -> bool {
    record.job().is_coroutine() && end.result.is_some() && end.error.is_none()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::job::{AttemptKey, Event, EventKind, Failure, Handler, Job, Requester, RunnerId, Spec, replay};

    /// A handler that was asked to stop for this reason, if it was.
    fn stopped(reason: Option<(CancelReason, bool)>) -> Record {
        let id = RunnerId::new();
        let job = Job::Handler(Handler { name: "x".into(), args: json!(null) });
        let spec = Arc::new(Spec::new(job, Duration::ZERO));
        let key = AttemptKey::new();
        let starting = EventKind::Starting { run: 1, attempt: 1, key, boot_id: "b".into(), context_version: 0 };
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

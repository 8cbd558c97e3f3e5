//! Puts the records right after the daemon's last end. Decides only: the plan is carried out at start, before
//! anything else happens.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    core::{Next, Now, ended, final_outcome, requeued, what_follows},
    ports::{Batch, End},
};
use crate::job::{
    self, AttemptState, CloseFacts, Event, EventKind, Failure, Illegal, Record, RequeueReason, State,
};

/// What is known of an attempt that was under way, from what its shim left. Certain, because by then every
/// process of it is dead.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each attempt, and hardly any is kept")]
pub enum Evidence {
    /// It was never told to go.
    NotExecuted,
    /// It had ended, and this is how; or it was killed because the daemon had died, and the end says so.
    Ended(End),
    /// It was executed, and nobody knows how it ended.
    Unknown,
}

/// What happens to the Runners that were neither waiting nor closed.
///
/// # Errors
/// [`Illegal`], if the plan does not fit the records: a bug.
pub fn plan(
    unfinished: Vec<Record>,
    look: impl Fn(&Record) -> Evidence,
    mut next_seq: u64,
    now: Now,
) -> Result<Batch, Illegal> {
    let mut batch = Batch::default();
    for mut record in unfinished {
        let mut happened = |record: &mut Record, kind, at| {
            let event = Event { seq: next_seq, runner: record.id, at, kind };
            next_seq += 1;
            job::apply(record, &event)?;
            batch.events.push(event);
            Ok(())
        };
        let evidence = look(&record);
        let at = ended_at(&record, &evidence, now);
        if let Some(ended) = end(&record, evidence) {
            happened(&mut record, ended, at)?;
        }
        if record.state != State::Queued {
            for kind in fate(&record, now) {
                happened(&mut record, kind, now.wall)?;
            }
        }
        batch.records.push(Arc::new(record));
    }
    Ok(batch)
}

/// When the attempt under way was over: as its shim tells, but not before the start that is on record, nor after now.
fn ended_at(record: &Record, evidence: &Evidence, now: Now) -> Timestamp {
    let told = match evidence {
        Evidence::Ended(end) => end.at,
        Evidence::NotExecuted | Evidence::Unknown => None,
    };
    let began = record.attempt().map(|attempt| attempt.started_at);
    told.map_or(now.wall, |told| told.max(began.unwrap_or(told)).min(now.wall))
}

/// What became of the attempt under way; `None` where it had ended.
fn end(record: &Record, evidence: Evidence) -> Option<EventKind> {
    let under_way = record.attempt().is_some_and(|attempt| attempt.state != AttemptState::Ended);
    if record.state == State::Draining || !under_way {
        return None;
    }
    let ran = record.attempt().is_some_and(|attempt| attempt.state == AttemptState::Running);
    let end = match evidence {
        // It is on record that it ran, so the evidence is gone.
        Evidence::NotExecuted if ran => lost(),
        Evidence::NotExecuted if record.cancel.is_none() => {
            let reason = RequeueReason::NotExecuted;
            return Some(EventKind::Requeued { reason, held: false, not_before: None });
        }
        Evidence::NotExecuted => End::default(),
        Evidence::Ended(end) => end,
        Evidence::Unknown => lost(),
    };
    Some(ended(record, end))
}

fn lost() -> End {
    let error = Failure::new("daemon_lost", "the daemon or the host died under it");
    End { error: Some(error), lost: true, ..End::default() }
}

/// What follows it: as it would have been while the daemon lived, but that nothing is left to drain.
fn fate(record: &Record, now: Now) -> Vec<EventKind> {
    let close = |outcome| EventKind::Closed(CloseFacts { outcome, drain: None });
    let outcome = final_outcome(record);
    if record.state == State::Draining {
        return vec![close(outcome)];
    }
    match what_follows(record, false) {
        Next::Again { reason, held } => vec![requeued(record, reason, held, now.wall, now.jitter)],
        Next::Idle => vec![EventKind::Idle],
        Next::Close => vec![EventKind::Draining { outcome: Some(outcome) }, close(outcome)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{
        AttemptKey, CancelReason, Command, Exit, Job, OnLost, Outcome, Requester, RunnerId, Spec,
    };

    const NOW: Now = Now { wall: Timestamp::UNIX_EPOCH, mono: std::time::Duration::ZERO, jitter: || 1.0 };

    fn record(on_lost: OnLost, then: Vec<EventKind>) -> Record {
        let id = RunnerId::new();
        let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
        let spec = Arc::new(Spec { on_lost, ..Spec::new(job, std::time::Duration::from_secs(300)) });
        let starting = EventKind::Starting {
            run: 1,
            attempt: 1,
            key: AttemptKey::new(),
            boot_id: "b".into(),
            context_version: 0,
        };
        let kinds = [EventKind::Submitted { spec }, starting].into_iter().chain(then);
        let events: Vec<Event> = (1..)
            .zip(kinds)
            .map(|(seq, kind)| Event { seq, runner: id, at: Timestamp::UNIX_EPOCH, kind })
            .collect();
        job::replay(&events).expect("legal").expect("a record")
    }

    fn running() -> EventKind {
        EventKind::Running { pid: Some(1), start_time: Some(1) }
    }

    fn cancel(force: bool) -> EventKind {
        EventKind::CancelRequested { by: Requester("x".into()), reason: CancelReason::Requested, force }
    }

    fn recover(record: Record, evidence: Evidence) -> Arc<Record> {
        let batch = plan(vec![record], |_| evidence.clone(), 100, NOW).expect("legal");
        Arc::clone(&batch.records[0])
    }

    fn exited(code: i32) -> Evidence {
        Evidence::Ended(End { exit: Some(Exit::Code(code)), ..End::default() })
    }

    #[test]
    fn a_start_that_never_went_is_queued_again_as_if_it_had_not_been() {
        let after = recover(record(OnLost::Fail, vec![]), Evidence::NotExecuted);
        assert_eq!((after.state, after.runs.len(), after.started_at), (State::Queued, 0, None));
    }

    #[test]
    fn one_that_ran_is_lost_where_the_evidence_of_it_is_gone() {
        let after = recover(record(OnLost::Fail, vec![running()]), Evidence::NotExecuted);
        assert_eq!((after.state, after.outcome), (State::Closed, Some(Outcome::Lost)));
    }

    #[test]
    fn a_lost_job_has_the_fate_it_declared() {
        for (on_lost, state, held) in [
            (OnLost::Fail, State::Closed, false),
            (OnLost::Requeue, State::Queued, false),
            (OnLost::Hold, State::Queued, true),
        ] {
            let after = recover(record(on_lost, vec![running()]), Evidence::Unknown);
            assert_eq!((after.state, after.held), (state, held), "{on_lost}");
            let attempt = after.attempt().expect("its attempt is kept");
            assert_eq!(attempt.outcome, Some(Outcome::Lost));
        }
    }

    #[test]
    fn an_exit_that_was_not_recorded_is_adopted() {
        let after = recover(record(OnLost::Requeue, vec![running()]), exited(0));
        assert_eq!((after.state, after.outcome), (State::Closed, Some(Outcome::Succeeded)));
        // The start was executed though its record says no more than that it was about to be.
        let after = recover(record(OnLost::Requeue, vec![]), exited(3));
        assert_eq!(after.outcome, Some(Outcome::Failed));
    }

    #[test]
    fn an_adopted_exit_has_the_time_at_which_it_was() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let now = Now { wall: at(100), ..NOW };
        for (told, recorded) in [(Some(40), 40), (None, 100), (Some(-5), 0), (Some(200), 100)] {
            let end = End { exit: Some(Exit::Code(0)), at: told.map(at), ..End::default() };
            let evidence = Evidence::Ended(end);
            let batch = plan(vec![record(OnLost::Fail, vec![running()])], |_| evidence.clone(), 100, now)
                .expect("legal");
            let times: Vec<_> = batch.events.iter().map(|event| event.at).collect();
            assert_eq!(times, [at(recorded), at(100), at(100)], "{told:?}: ended, draining, closed");
            assert_eq!(batch.records[0].attempt().and_then(|attempt| *attempt.ended_at), Some(at(recorded)));
        }
    }

    #[test]
    fn what_was_cancelled_never_runs_again() {
        for (evidence, outcome) in [
            (Evidence::NotExecuted, Outcome::Cancelled),
            (exited(143), Outcome::Cancelled),
            (Evidence::Unknown, Outcome::Lost),
        ] {
            let after = recover(record(OnLost::Requeue, vec![cancel(false)]), evidence);
            assert_eq!((after.state, after.outcome), (State::Closed, Some(outcome)));
            let receipt = after.cancel.as_ref().expect("a receipt");
            assert_eq!((receipt.survivors, receipt.ended_at.is_some()), (Some(0), true));
        }
        let forced = vec![running(), cancel(false), cancel(true)];
        assert_eq!(
            recover(record(OnLost::Requeue, forced), Evidence::Unknown).outcome,
            Some(Outcome::Killed)
        );
    }

    #[test]
    fn more_variables_than_a_record_holds_are_none() {
        let setting = |count: usize| {
            let context = (0..count).map(|n| (format!("V{n}"), Some("x".into()))).collect();
            Evidence::Ended(End { exit: Some(Exit::Code(0)), context, ..End::default() })
        };
        let after = recover(record(OnLost::Fail, vec![running()]), setting(1000));
        assert_eq!((after.outcome, after.variables.len()), (Some(Outcome::Succeeded), 1000));
        let after = recover(record(OnLost::Fail, vec![running()]), setting(1001));
        assert_eq!((after.outcome, after.variables.len()), (Some(Outcome::Failed), 0));
        let error = after.attempt().and_then(|attempt| attempt.error.as_ref()).expect("an error");
        assert_eq!(error.kind, "bad_context");
    }

    #[test]
    fn a_drain_that_was_interrupted_keeps_the_outcome() {
        let end = End { exit: Some(Exit::Code(0)), ..End::default() };
        let ended = end.into_event(Outcome::Succeeded);
        let after = recover(
            record(OnLost::Requeue, vec![running(), ended, EventKind::Draining { outcome: None }]),
            Evidence::Unknown,
        );
        assert_eq!((after.state, after.outcome), (State::Closed, Some(Outcome::Succeeded)));
    }
}

//! What somebody asks of one Runner.

use std::sync::Arc;

use super::{Answer, Denied, Phase, Request, final_outcome, turn::Turn};
use crate::job::{CancelReason, CloseFacts, EventKind, Job, Outcome, Requester, RunnerId, State};

/// The runs that one Runner may have in all: its record holds them, and is written whole.
const MAX_RUNS: u32 = 1000;

impl Turn<'_> {
    pub(super) fn ask(&mut self, id: RunnerId, request: Request) -> Answer {
        let Some(active) = self.core.active.get(&id) else { return self.ask_waiting(id, request) };
        let (state, kept_open) = (active.record.state, active.record.spec.keep_open);
        match request {
            Request::Cancel(_) if state == State::Idle => Answer::Denied(Denied::Idle),
            Request::Cancel(by) => self.cancel(id, by, true),
            Request::Close(by) if kept_open => self.close_kept_open(id, by),
            Request::Close(by) => self.cancel(id, by, false),
            Request::Release(_) => Answer::AlreadySo,
            Request::AddRun(job) => self.add_run(id, job),
        }
    }

    fn ask_waiting(&mut self, id: RunnerId, request: Request) -> Answer {
        match self.recall(id) {
            Ok(true) => {}
            Ok(false) => return Answer::Unknown,
            Err(error) => {
                tracing::error!(runner = %id, %error, "a queued job could not be read back");
                return Answer::Denied(Denied::Unreadable);
            }
        }
        let answer = match request {
            Request::Cancel(by) | Request::Close(by) => {
                self.cancel_waiting(id, by, CancelReason::Requested, Outcome::Cancelled);
                Answer::Accepted
            }
            Request::Release(by) if self.core.waiting.record(id).is_some_and(|record| record.held) => {
                self.append(id, EventKind::Released { by });
                Answer::Accepted
            }
            Request::Release(_) => Answer::AlreadySo,
            Request::AddRun(job) => self.add_run(id, job),
        };
        self.core.waiting.trim(id, self.core.committed);
        answer
    }

    pub(super) fn cancel_waiting(
        &mut self,
        id: RunnerId,
        by: Requester,
        reason: CancelReason,
        outcome: Outcome,
    ) {
        self.append(id, EventKind::CancelRequested { by, reason, force: false });
        if self.core.waiting.record(id).is_some_and(|record| record.attempt().is_some()) {
            self.wind_up(id, outcome);
        } else {
            self.append(id, EventKind::Closed(CloseFacts { outcome, drain: None }));
        }
    }

    /// A cancellation on request of one that is active. `escalate`: a second one forces.
    fn cancel(&mut self, id: RunnerId, by: Requester, escalate: bool) -> Answer {
        let Some(active) = self.core.active.get(&id) else { return Answer::Unknown };
        let reason = CancelReason::Requested;
        match (active.record.state, &active.record.cancel) {
            (State::Draining, _) => Answer::AlreadySo,
            (_, None) => {
                self.cancel_active(id, by, reason);
                Answer::Accepted
            }
            (_, Some(receipt)) => {
                // One that is killed since its time was up would be tried again, unless somebody asked too.
                let retried = receipt.reason == CancelReason::Timeout && !receipt.was_forced_by_request();
                let forces = escalate && (!receipt.forced || retried);
                // A shutdown would let it run again; nobody who cancels a job means that.
                let answer = match receipt.reason {
                    CancelReason::Shutdown => self.close_for_good(id, by.clone()),
                    _ if !escalate => self.close_for_good(id, by.clone()),
                    CancelReason::Requested | CancelReason::Timeout | CancelReason::Deadline => {
                        Answer::AlreadySo
                    }
                };
                if forces {
                    self.append(id, EventKind::CancelRequested { by, reason, force: true });
                    self.force(id);
                    return Answer::Accepted;
                }
                answer
            }
        }
    }

    /// What stops it already, a time-out or a shutdown, would have let it run again.
    fn close_for_good(&mut self, id: RunnerId, by: Requester) -> Answer {
        match self.core.active.get(&id) {
            Some(active) if !active.record.closing => {
                self.append(id, EventKind::CloseRequested { by });
                Answer::Accepted
            }
            Some(_) | None => Answer::AlreadySo,
        }
    }

    fn close_kept_open(&mut self, id: RunnerId, by: Requester) -> Answer {
        let Some(active) = self.core.active.get(&id) else { return Answer::Unknown };
        if active.record.state == State::Draining {
            return Answer::AlreadySo;
        }
        if self.close_for_good(id, by.clone()) == Answer::AlreadySo {
            return Answer::AlreadySo;
        }
        self.close_idle(id);
        self.cancel_active(id, by, CancelReason::Requested);
        Answer::Accepted
    }

    /// Closes a Runner with nothing to run, as what its last run has become.
    pub(super) fn close_idle(&mut self, id: RunnerId) {
        if let Some(active) = self.core.active.get(&id)
            && active.record.state == State::Idle
        {
            let outcome = final_outcome(&active.record);
            self.wind_up(id, outcome);
        }
    }

    fn add_run(&mut self, id: RunnerId, job: Arc<Job>) -> Answer {
        if self.core.phase != Phase::Open {
            return Answer::Denied(Denied::Draining);
        }
        let active = self.core.active.get(&id).map(|active| &active.record);
        let Some(record) = active.or_else(|| self.core.waiting.record(id)) else { return Answer::Unknown };
        let run = record.runs.last().map_or(1, |run| run.run) + 1;
        let denied = match record.state {
            _ if !record.spec.keep_open => Some(Denied::NotKeptOpen),
            State::Draining | State::Closed => Some(Denied::Closing),
            _ if record.closing => Some(Denied::Closing),
            _ if run > MAX_RUNS => Some(Denied::TooManyRuns { max: MAX_RUNS }),
            _ if job.in_process() != record.spec.job.in_process() => Some(Denied::OtherLoop),
            _ if job.identity() != record.spec.job.identity() => Some(Denied::OtherUser),
            State::Queued | State::Starting | State::Running | State::Idle | State::Cancelling => None,
        };
        if let Some(denied) = denied {
            return Answer::Denied(denied);
        }
        self.append(id, EventKind::RunAdded { run, job });
        Answer::Run(run)
    }
}

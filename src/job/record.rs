//! What the events of a Runner add up to.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    event::{Action, CancelReason, Exit, OutputFacts, Requester},
    id::{AttemptKey, RunnerId},
    rare::Rare,
    spec::{Job, Spec},
    state::{AttemptState, Outcome, State},
};

/// Everything that is known of a Runner. What most lack while they run is in boxes: tens of thousands are in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: RunnerId,
    /// The place of its submission in the order of all events: what queues and pages are ordered by.
    pub submitted_seq: u64,
    /// The place of the last event in it.
    pub last_seq: u64,
    /// What was asked for.
    pub spec: Arc<Spec>,
    /// Where it is.
    pub state: State,
    /// What became of it; only when closed.
    pub outcome: Option<Outcome>,
    /// Waits, but is not to be started until somebody decides.
    #[serde(default)]
    pub held: bool,
    /// Waits, but its turn may only come then.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub not_before: Rare<Option<Timestamp>>,
    /// To be closed when its attempt is over, whatever would follow otherwise.
    #[serde(default)]
    pub closing: bool,
    /// Waits for another attempt of the run that was the last to begin, not for the next run.
    #[serde(default)]
    pub again: bool,
    /// What its outcome will be when its executor has drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Outcome>,
    /// Variables that runs set for the next ones; `None`: unset.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub variables: Rare<BTreeMap<String, Option<String>>>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it was closed.
    #[serde(default)]
    pub closed_at: Rare<Option<Timestamp>>,
    /// Its runs.
    pub runs: Vec<Run>,
    /// The record of its cancellation: of the attempt under way or the last one, or of its wait for a turn.
    pub cancel: Option<Box<Receipt>>,
    /// How its executor drained.
    pub drain: Option<Box<Drain>>,
}

/// One execution of a job on a Runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// What to do, where it is not the job that the Runner was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Arc<Job>>,
    /// Its attempts; none as long as it waits for its turn.
    pub attempts: Vec<Attempt>,
}

/// One try of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// The name the processes below know it by.
    pub key: AttemptKey,
    /// Where it is.
    pub state: AttemptState,
    /// What became of it; only when ended.
    pub outcome: Option<Outcome>,
    /// Its main process. Never signalled by number: it is here for people.
    pub pid: Option<u32>,
    /// When that process started, in clock ticks since boot.
    pub start_time: Option<u64>,
    /// The boot it runs in.
    pub boot_id: Arc<str>,
    /// How the main process ended.
    pub exit: Option<Exit>,
    /// What went wrong.
    pub error: Option<Box<Failure>>,
    /// What it wrote.
    #[serde(default)]
    pub output: Rare<Option<OutputFacts>>,
    /// Processes of it that outlived its main process and were killed then.
    #[serde(default)]
    pub swept: u32,
    /// What it gave back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<Value>>,
    /// The version of the shared context that it saw.
    #[serde(default)]
    pub context_version: u64,
    /// The record of its cancellation, where another attempt or run came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<Box<Receipt>>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it was over.
    #[serde(default)]
    pub ended_at: Rare<Option<Timestamp>>,
}

/// Why an attempt failed, where it is not the exit that tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable word: `start_failed`, `exception`, `bad_result`, `oom`, `killed_by_other`, `shim_lost`, `daemon_lost`,
    /// `panicked`, …
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    /// The step that failed: `exec`, `cwd`, `user`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The error number of that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The exception that was raised. In a box, for most failures have none.
    #[serde(flatten)]
    pub raised: Option<Box<Raised>>,
}

/// An exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// Its type, with its module.
    pub exception: String,
    /// Where it was raised, as the language tells it; of a long one the end.
    pub traceback: String,
}

impl Failure {
    /// A failure with nothing but its kind and a sentence.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), stage: None, errno: None, raised: None }
    }
}

/// The record of a cancellation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// When it was first asked for.
    pub requested_at: Timestamp,
    /// Who asked first.
    pub by: Requester,
    /// Why, as first asked for: it decides the outcome.
    pub reason: CancelReason,
    /// The highest reason so far.
    pub escalated_to: CancelReason,
    /// Whether force was asked for.
    pub forced: bool,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// Processes of the job that outlived it. Always 0 in an ended receipt; unknown before.
    pub survivors: Option<u32>,
    /// When nothing of it lived any more.
    pub ended_at: Option<Timestamp>,
}

/// One step of a cancellation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When.
    pub at: Timestamp,
    /// What was done.
    pub action: Action,
    /// To what, or by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// How a Runner's executor drained: its close report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// Left-over tasks that were cancelled.
    pub tasks_cancelled: u64,
    /// Left-over tasks that ended with an error.
    pub task_errors: u64,
    /// Blocking work, by name, that did not end in time. A thread can't be killed.
    pub abandoned: Vec<String>,
    /// How long closing took, in microseconds.
    pub elapsed_us: u64,
}

impl Record {
    /// The run that is under way or was the last to begin.
    pub fn run(&self) -> Option<&Run> {
        self.runs.iter().rev().find(|run| !run.attempts.is_empty())
    }

    /// The attempt that is under way or was the last.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.run()?.attempts.last()
    }

    /// The number of the run under way or the last to begin, and of its last attempt.
    pub fn position(&self) -> Option<(u32, u32)> {
        let run = self.run()?;
        Some((run.run, run.attempts.last()?.attempt))
    }

    /// The first run that waits for its turn behind those that began.
    pub fn next_run(&self) -> Option<&Run> {
        self.runs.iter().find(|run| run.attempts.is_empty())
    }

    /// What became of a run: of its last attempt, if no other follows; of one that never began when the Runner
    /// closed, that it was cancelled.
    pub fn outcome_of(&self, run: &Run) -> Option<Outcome> {
        match run.attempts.last() {
            Some(_) if self.again && self.run().is_some_and(|last| last.run == run.run) => None,
            Some(attempt) => attempt.outcome,
            None if matches!(self.state, State::Draining | State::Closed) => Some(Outcome::Cancelled),
            None => None,
        }
    }

    /// The run and attempt that come next, if its turn comes.
    pub fn next_position(&self) -> (u32, u32) {
        match self.position() {
            Some((run, attempt)) if self.again => (run, attempt + 1),
            Some((run, _)) => (run + 1, 1),
            None => (1, 1),
        }
    }

    /// Whether a run is over: no further attempt of it follows.
    pub fn is_over(&self, run: u32) -> bool {
        let current = self.position().map_or(0, |(current, _)| current);
        match self.state {
            State::Closed => true,
            State::Queued => current > run || (current == run && !self.again),
            State::Idle | State::Draining => current >= run,
            State::Starting | State::Running | State::Cancelling => current > run,
        }
    }

    /// Whether all that was submitted is over: the Runner is closed, or its first run is over where it is kept open.
    pub fn is_over_as_submitted(&self) -> bool {
        match self.spec.keep_open {
            true => self.is_over(1),
            false => self.state == State::Closed,
        }
    }

    /// When its turn may come, where that is not at once: for its first start its delay or its time, for later
    /// ones its backoff.
    pub fn ready_at(&self) -> Option<Timestamp> {
        if self.attempt().is_some() || self.not_before.is_some() {
            return *self.not_before;
        }
        let delayed = self.spec.delay.and_then(|delay| self.created_at.checked_add(delay).ok());
        delayed.max(*self.spec.start_at)
    }

    /// When the time for all of it is up.
    pub fn deadline_at(&self) -> Option<Timestamp> {
        self.created_at.checked_add((*self.spec.deadline)?).ok()
    }

    /// What the run under way or the last to begin is to do.
    pub fn job(&self) -> &Job {
        self.run().and_then(|run| run.job.as_deref()).unwrap_or(&self.spec.job)
    }
}

impl Receipt {
    /// Whether nothing but the time of the attempt made it stop.
    pub fn is_timeout_alone(&self) -> bool {
        self.escalated_to == CancelReason::Timeout && !self.was_forced_by_request()
    }

    /// Whether nothing but a shutdown made it stop, by force or not.
    pub fn is_shutdown_alone(&self) -> bool {
        self.reason == CancelReason::Shutdown
    }

    /// Whether somebody asked for force, not only a grace that ran out.
    pub fn was_forced_by_request(&self) -> bool {
        self.steps.iter().any(|step| step.action == Action::ForceRequested)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_of_a_job_that_runs_is_small() {
        assert!(size_of::<Spec>() <= 184, "{}", size_of::<Spec>());
        assert!(size_of::<Record>() <= 152, "{}", size_of::<Record>());
        assert!(size_of::<Attempt>() <= 144, "{}", size_of::<Attempt>());
    }
}

//! What the events of a Runner add up to.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    event::{Action, CancelReason, Exit, OutputFacts, Requester},
    id::{AttemptKey, RunnerId},
    spec::Spec,
    state::{AttemptState, Outcome, State},
};

/// Everything that is known of a Runner.
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
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
    /// Its runs.
    pub runs: Vec<Run>,
    /// The record of its cancellation.
    pub cancel: Option<Receipt>,
    /// How its executor drained.
    pub drain: Option<Drain>,
}

/// One execution of a job on a Runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// Its attempts.
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
    pub boot_id: String,
    /// How the main process ended.
    pub exit: Option<Exit>,
    /// What went wrong.
    pub error: Option<Failure>,
    /// What it wrote.
    pub output: Option<OutputFacts>,
    /// Processes of it that outlived its main process and were killed then.
    #[serde(default)]
    pub swept: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

/// Why an attempt failed, where it is not the exit that tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable word: `start_failed`, `oom`, `killed_by_other`, `shim_lost`, `daemon_lost`, `panicked`, …
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    /// The step that failed: `exec`, `cwd`, `user`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The error number of that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

impl Failure {
    /// A failure with nothing but its kind and a sentence.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), stage: None, errno: None }
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
    /// The attempt that is under way or was the last.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.runs.last()?.attempts.last()
    }

    /// The number of the last run and of its last attempt.
    pub fn position(&self) -> Option<(u32, u32)> {
        let run = self.runs.last()?;
        Some((run.run, run.attempts.last()?.attempt))
    }
}

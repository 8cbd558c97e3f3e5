//! What happened to a Runner. Events are the truth; a record is what they add up to.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    id::{AttemptKey, RunnerId},
    record::{Drain, Failure},
    spec::{Job, Spec},
    state::{Outcome, words},
};

/// One thing that happened, at a place in the order of all that happened. What few have is in boxes: thousands are
/// committed at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its place: unique, rising, with gaps where an append was refused.
    pub seq: u64,
    /// The Runner it happened to.
    pub runner: RunnerId,
    /// When, by the wall clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kinds of event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// Accepted and queued.
    Submitted {
        /// What was asked for.
        spec: Arc<Spec>,
    },
    /// Its turn has come. Nothing executes before this is durable.
    Starting {
        /// Which run, from 1.
        run: u32,
        /// Which attempt of the run, from 1.
        attempt: u32,
        /// The name the processes below know it by.
        key: AttemptKey,
        /// The boot it runs in.
        boot_id: Arc<str>,
        /// The version of the shared context that it sees.
        #[serde(default)]
        context_version: u64,
    },
    /// The job executes.
    Running {
        /// The main process, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// Its start time in clock ticks since boot (field 22 of `/proc/PID/stat`): with the boot id it tells
        /// the process from a later one with the same number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start_time: Option<u64>,
    },
    /// Somebody or something asked it to stop.
    CancelRequested {
        /// Who asked.
        by: Requester,
        /// Why.
        reason: CancelReason,
        /// Whether by force.
        force: bool,
    },
    /// A step of a cancellation was taken.
    CancelStep {
        /// What was done.
        action: Action,
        /// To what.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// The attempt is over, and nothing of it lives.
    AttemptEnded {
        /// What became of it.
        outcome: Outcome,
        /// How its main process ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
        /// What went wrong, where it is not the exit that tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Box<Failure>>,
        /// What it wrote.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<OutputFacts>,
        /// Processes of it that outlived its main process and were killed then.
        #[serde(default)]
        swept: u32,
        /// What it gave back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<Box<Value>>,
        /// Variables it set for the next run of its Runner; `None` unsets one.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        context: BTreeMap<String, Option<String>>,
    },
    /// It waits for its turn again.
    Requeued {
        /// Why.
        reason: RequeueReason,
        /// Whether it is held until somebody decides.
        held: bool,
        /// When its turn may come again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
    },
    /// Somebody decided that a held one may start.
    Released {
        /// Who.
        by: Requester,
    },
    /// Kept open, with nothing to run: it waits for the next run.
    Idle,
    /// Another run was asked for on a Runner that is kept open.
    RunAdded {
        /// Which run.
        run: u32,
        /// What to do.
        job: Arc<Job>,
    },
    /// Somebody asked for a Runner to be closed that is kept open, or that would run again otherwise.
    CloseRequested {
        /// Who.
        by: Requester,
    },
    /// Nothing of it is to be run any more; the executor finishes.
    Draining {
        /// What became of the job.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
    },
    /// Done, for good.
    Closed(CloseFacts),
}

/// How a Runner was closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloseFacts {
    /// What became of the job.
    pub outcome: Outcome,
    /// How its executor drained; `None` where it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Box<Drain>>,
}

impl EventKind {
    /// The word for its kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::CancelRequested { .. } => "cancel_requested",
            Self::CancelStep { .. } => "cancel_step",
            Self::AttemptEnded { .. } => "attempt_ended",
            Self::Requeued { .. } => "requeued",
            Self::Released { .. } => "released",
            Self::Idle => "idle",
            Self::RunAdded { .. } => "run_added",
            Self::CloseRequested { .. } => "close_requested",
            Self::Draining { .. } => "draining",
            Self::Closed(_) => "closed",
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What an attempt wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFacts {
    /// Bytes it wrote, both streams together.
    pub bytes: u64,
    /// Bytes of these that were not kept: over the quota, or not writable.
    pub dropped: u64,
    /// Somebody still held its output open a second after it had ended.
    pub incomplete: bool,
}

words! {
    /// Why a Runner was asked to stop. Each outranks the ones before it.
    #[derive(PartialOrd, Ord)]
    CancelReason {
        /// Somebody asked.
        Requested = "requested",
        /// The time of an attempt was up.
        Timeout = "timeout",
        /// The time for all of it was up.
        Deadline = "deadline",
        /// The daemon stops.
        Shutdown = "shutdown",
    }
}

words! {
    /// Why a Runner waits for its turn again.
    RequeueReason {
        /// The daemon ended before the job was executed.
        NotExecuted = "not_executed",
        /// The daemon or the host died under it, and the job asks for another attempt then.
        Lost = "lost",
        /// The attempt failed, and the job asks for another one.
        Retry = "retry",
        /// A shutdown stopped it, and the job asks for another attempt then.
        Shutdown = "shutdown",
        /// A run is over, and the next one waits already.
        NextRun = "next_run",
    }
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Requester(pub String);

words! {
    /// What was done to stop a job.
    Action {
        /// The request was accepted.
        Requested = "requested",
        /// The main task was cancelled.
        CancelMainTask = "cancel_main_task",
        /// A signal was sent; the target names it and the process group.
        Signal = "signal",
        /// The grace ran out.
        GraceExpired = "grace_expired",
        /// A second request: force.
        ForceRequested = "force_requested",
        /// The whole tree was killed.
        Kill = "kill",
        /// Something of it does not die yet (uninterruptible sleep).
        KillPending = "kill_pending",
        /// Nothing of it lives.
        Ended = "ended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_small() {
        assert!(size_of::<Event>() <= 144, "{}", size_of::<Event>());
    }
}

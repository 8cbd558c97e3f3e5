//! What happened, as the API shows it.

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    job::Job,
    runner::{Drain, Exit, Failure, Output, time},
};
use crate::job;

/// One thing that happened to a Runner.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Event<'a> {
    /// Its place in the order of all events: unique and rising, with gaps.
    pub seq: u64,
    /// The Runner.
    pub runner: String,
    /// When.
    pub at: String,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind<'a>,
}

/// What happened; `type` tells the kind.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum EventKind<'a> {
    /// Accepted and queued.
    Submitted {
        /// What to do.
        job: Box<Job<'a>>,
        /// Its name.
        name: Option<&'a str>,
        /// The queue it waits in.
        queue: &'a str,
    },
    /// Its turn has come.
    Starting {
        /// Which run.
        run: u32,
        /// Which attempt of it.
        attempt: u32,
    },
    /// The job executes.
    Running {
        /// Its main process.
        pid: Option<u32>,
    },
    /// It was asked to stop.
    CancelRequested {
        /// Who asked.
        by: &'a str,
        /// `requested`, `timeout`, `deadline` or `shutdown`.
        reason: &'static str,
        /// Whether by force.
        force: bool,
    },
    /// A step of a cancellation.
    CancelStep {
        /// What was done.
        action: &'static str,
        /// To what.
        target: Option<&'a str>,
    },
    /// The attempt is over, and nothing of it lives.
    AttemptEnded {
        /// What became of it.
        outcome: &'static str,
        /// How the main process ended.
        exit: Option<Exit>,
        /// What went wrong, where it is not the exit that tells.
        error: Option<Failure<'a>>,
        /// What it wrote.
        output: Option<Output>,
        /// Processes of it that outlived its main process and were killed then.
        swept: u32,
        /// What it gave back.
        result: Option<&'a serde_json::Value>,
    },
    /// It waits for its turn again.
    Requeued {
        /// `not_executed`, `lost`, `retry`, `shutdown` or `next_run`.
        reason: &'static str,
        /// Whether it is held until somebody decides.
        held: bool,
        /// When its turn may come again.
        not_before: Option<String>,
    },
    /// Somebody decided that a held one may start.
    Released {
        /// Who.
        by: &'a str,
    },
    /// Kept open, with nothing to run.
    Idle,
    /// Another run was asked for.
    RunAdded {
        /// Which run.
        run: u32,
        /// What to do.
        job: Job<'a>,
    },
    /// Somebody asked for a Runner that is kept open to be closed.
    CloseRequested {
        /// Who.
        by: &'a str,
    },
    /// The main task is done; the executor finishes.
    Draining,
    /// Done, for good.
    Closed {
        /// What became of the job.
        outcome: &'static str,
        /// How its executor drained.
        drain: Option<Drain<'a>>,
    },
}

/// A page of events, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventPage<'a> {
    /// The events.
    pub items: Vec<Event<'a>>,
    /// For `cursor` of the next page; `null` where there is nothing more for now.
    pub next_cursor: Option<String>,
}

impl<'a> From<&'a job::Event> for Event<'a> {
    fn from(event: &'a job::Event) -> Self {
        Self {
            seq: event.seq,
            runner: event.runner.to_string(),
            at: time(event.at),
            kind: EventKind::from(&event.kind),
        }
    }
}

impl<'a> From<&'a job::EventKind> for EventKind<'a> {
    fn from(kind: &'a job::EventKind) -> Self {
        match kind {
            job::EventKind::Submitted { spec } => Self::Submitted {
                job: Box::new(Job::from(&spec.job)),
                name: spec.name.as_deref(),
                queue: &spec.queue,
            },
            // The key and the boot concern recovery only.
            job::EventKind::Starting { run, attempt, key: _, boot_id: _, context_version: _ } => {
                Self::Starting { run: *run, attempt: *attempt }
            }
            job::EventKind::Running { pid, start_time: _ } => Self::Running { pid: *pid },
            job::EventKind::CancelRequested { by, reason, force } => {
                Self::CancelRequested { by: &by.0, reason: reason.as_str(), force: *force }
            }
            job::EventKind::CancelStep { action, target } => {
                Self::CancelStep { action: action.as_str(), target: target.as_deref() }
            }
            job::EventKind::AttemptEnded { outcome, exit, error, output, swept, result, context: _ } => {
                Self::AttemptEnded {
                    outcome: outcome.as_str(),
                    exit: exit.map(Exit::from),
                    error: error.as_deref().map(Failure::from),
                    output: output.map(Output::from),
                    swept: *swept,
                    result: result.as_deref(),
                }
            }
            job::EventKind::Requeued { reason, held, not_before } => {
                Self::Requeued { reason: reason.as_str(), held: *held, not_before: not_before.map(time) }
            }
            job::EventKind::Released { by } => Self::Released { by: &by.0 },
            job::EventKind::Idle => Self::Idle,
            job::EventKind::RunAdded { run, job } => Self::RunAdded { run: *run, job: Job::from(&**job) },
            job::EventKind::CloseRequested { by } => Self::CloseRequested { by: &by.0 },
            job::EventKind::Draining { outcome: _ } => Self::Draining,
            job::EventKind::Closed(facts) => Self::Closed {
                outcome: facts.outcome.as_str(),
                drain: facts.drain.as_deref().map(Drain::from),
            },
        }
    }
}

//! Why: what keeps a Runner from running, what it is at, what ended it. Pure: from the record and its place among
//! the others to one sentence, and the facts that it is made of.

mod ended;
#[cfg(test)]
mod tests;
mod waiting;

use std::{fmt, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::core::{Limit, Standing};
use crate::job::{Action, Attempt, CancelReason, Exit, Failure, Outcome, Receipt, Record, RunnerId, State};

/// The answer to "why?".
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// For people.
    pub sentence: String,
    /// For programs.
    pub facts: Facts,
}

/// What a sentence is made of. What has nothing to do with the reason is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Which of the reasons it is.
    pub reason: Reason,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// When it will be over, at the latest or at the earliest, as the reason says.
    pub until: Option<Timestamp>,
    /// The run that it is about.
    pub run: Option<u32>,
    /// The attempt that it is about.
    pub attempt: Option<u32>,
    /// The attempts that a run may have.
    pub max_attempts: Option<u32>,
    /// The queue.
    pub queue: Option<String>,
    /// The place among those that could start, from 1, and how many these are.
    pub line: Option<(usize, usize)>,
    /// The first of those before it.
    pub ahead: Vec<RunnerId>,
    /// What has no slot for it.
    pub limit: Option<Limit>,
    /// The first of those that have the slots.
    pub running: Vec<RunnerId>,
    /// The concurrency key, and who has it.
    pub key: Option<(String, RunnerId)>,
    /// The main process.
    pub pid: Option<u32>,
    /// Who asked for it to stop.
    pub by: Option<String>,
    /// The cancellation's reason.
    pub cancel_reason: Option<CancelReason>,
    /// Whether force was used.
    pub forced: Option<bool>,
    /// What became of it.
    pub outcome: Option<Outcome>,
    /// How the main process ended.
    pub exit: Option<Exit>,
    /// Where that was a signal: whether runward sent it.
    pub signal_is_ours: Option<bool>,
    /// What went wrong.
    pub error: Option<Failure>,
}

macro_rules! reasons {
    ($($(#[$meta:meta])+ $variant:ident = $word:literal,)+) => {
        /// Why a Runner is where it is.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum Reason { $($(#[$meta])+ $variant,)+ }

        impl Reason {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable word for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// Its turn has come.
    #[default]
    NextToStart = "next_to_start",
    /// Others are before it, or have all slots.
    InLine = "in_line",
    /// Another one has its concurrency key.
    KeyTaken = "key_taken",
    /// Its queue is paused.
    QueuePaused = "queue_paused",
    /// Its delay is not over.
    Delayed = "delayed",
    /// Its time has not come.
    Scheduled = "scheduled",
    /// An attempt failed, and the wait before the next one is not over.
    Backoff = "backoff",
    /// The daemon died under it, and `on_lost` says to hold it then.
    HeldAfterLoss = "held_after_loss",
    /// The daemon died under it again and again.
    HeldAsPoison = "held_as_poison",
    /// A shutdown stopped it, and `on_shutdown` says to hold it then.
    HeldAfterShutdown = "held_after_shutdown",
    /// The daemon stops; it waits for the next start.
    DaemonStopping = "daemon_stopping",
    /// The store takes nothing, so nothing is started.
    StoreFailing = "store_failing",
    /// It is being prepared.
    Starting = "starting",
    /// It runs.
    Running = "running",
    /// It is kept open and has nothing to run.
    Idle = "idle",
    /// It was asked to stop, and cleans up.
    CleaningUp = "cleaning_up",
    /// It is being killed.
    BeingKilled = "being_killed",
    /// Its executor finishes.
    Draining = "draining",
    /// It did what it was to do.
    Succeeded = "succeeded",
    /// It exited with a code that is no success.
    ExitCode = "exit_code",
    /// A signal ended it that runward did not send.
    Signal = "signal",
    /// It needed more memory than it may have, or than there was.
    OutOfMemory = "out_of_memory",
    /// It could not be started.
    StartFailed = "start_failed",
    /// Something else went wrong: the error tells.
    Error = "error",
    /// The time of an attempt was up.
    TimedOut = "timed_out",
    /// The time for all of it was up.
    DeadlinePassed = "deadline_passed",
    /// The daemon or the host died under it.
    LostWithDaemon = "lost_with_daemon",
    /// It is not known how it ended; the error tells more.
    Lost = "lost",
    /// Somebody cancelled it before it ran, or between two attempts.
    CancelledInQueue = "cancelled_in_queue",
    /// Somebody cancelled it.
    Cancelled = "cancelled",
    /// Somebody cancelled it, and force was needed.
    Killed = "killed",
    /// A shutdown of the daemon stopped it.
    Shutdown = "shutdown",
    /// It was kept open, and closed before it ran anything.
    ClosedUnused = "closed_unused",
}

/// Says why a Runner is where it is. `standing`: why it does not run, if it waits; `grace`: that of a job that sets
/// none.
pub fn explain(record: &Record, standing: Option<&Standing>, grace: Duration) -> Explanation {
    let mut facts = of_attempt(record);
    let sentence = match record.state {
        State::Queued => waiting::sentence(record, standing, &mut facts),
        State::Starting => {
            facts.reason = Reason::Starting;
            facts.since = record.attempt().map(|attempt| attempt.started_at);
            format!("It has been starting{}{}", since(facts.since), which(record))
        }
        State::Running => {
            facts.reason = Reason::Running;
            facts.since = record.attempt().map(|attempt| attempt.started_at);
            let process = facts.pid.map_or_else(String::new, |pid| format!(", as the process {pid}"));
            format!("It has been running{}{process}{}", since(facts.since), which(record))
        }
        State::Idle => {
            facts.since = record.attempt().and_then(|attempt| *attempt.ended_at);
            let run = facts.run.unwrap_or(1);
            let last = record.attempt().map_or_else(String::new, |last| match last.outcome {
                Some(Outcome::Lost) => ended::lost(last, &mut facts),
                Some(_) | None => {
                    format!("is over: {}", ended::how(last, last.cancel.as_deref(), "it", &mut facts))
                }
            });
            facts.reason = Reason::Idle;
            format!("It is kept open and waits for the next run; the last one, run {run}, {last}")
        }
        State::Cancelling => cancelling(record, grace, &mut facts),
        State::Draining => {
            facts.reason = Reason::Draining;
            facts.since = record.attempt().and_then(|attempt| *attempt.ended_at);
            facts.until = facts.since.and_then(|at| at.checked_add(record.spec.drain_timeout).ok());
            let until =
                facts.until.map_or_else(String::new, |at| format!(", until {} at the latest", Time(at)));
            format!("Nothing of it has run{}; its executor finishes{until}", since(facts.since))
        }
        State::Closed => ended::sentence(record, &mut facts),
    };
    Explanation { sentence: format!("{}.", sentence.trim_end_matches('.')), facts }
}

/// What can be said of any Runner that has begun.
fn of_attempt(record: &Record) -> Facts {
    let mut facts = Facts { outcome: record.outcome, ..Facts::default() };
    if let Some((run, attempt)) = record.position() {
        facts.run = Some(run);
        facts.attempt = Some(attempt);
        facts.max_attempts = Some(record.spec.retry.max_attempts);
    }
    if let Some(attempt) = record.attempt()
        && matches!(record.state, State::Starting | State::Running | State::Cancelling)
    {
        facts.pid = attempt.pid;
    }
    facts
}

fn of_receipt(receipt: &Receipt, facts: &mut Facts) {
    facts.by = Some(receipt.by.0.clone());
    facts.cancel_reason = Some(receipt.reason);
    facts.forced = Some(receipt.forced);
}

fn cancelling(record: &Record, grace: Duration, facts: &mut Facts) -> String {
    let Some(receipt) = &record.cancel else {
        // A Runner that cancels has a receipt: see `job::apply`.
        facts.reason = Reason::CleaningUp;
        return "It was asked to stop".into();
    };
    of_receipt(receipt, facts);
    facts.since = Some(receipt.requested_at);
    let why = asked(record, receipt);
    if receipt.forced {
        facts.reason = Reason::BeingKilled;
        let stuck = receipt.steps.iter().any(|step| step.action == Action::KillPending);
        let stuck =
            if stuck { ", but something of it does not die: it is in uninterruptible sleep" } else { "" };
        return format!("It {why}, and is being killed{}{stuck}", because_forced(record, receipt));
    }
    facts.reason = Reason::CleaningUp;
    let patience = match receipt.reason {
        CancelReason::Requested | CancelReason::Timeout | CancelReason::Deadline => {
            Some(record.spec.cancel_grace.unwrap_or(grace))
        }
        CancelReason::Shutdown => *record.spec.cancel_grace,
    };
    facts.until = patience.and_then(|patience| receipt.requested_at.checked_add(patience).ok());
    match facts.until {
        Some(until) => {
            format!("It {why}, and cleans up; it is killed at {} if it is not done by then", Time(until))
        }
        None => format!("It {why}, and cleans up; it is killed when the time for the shutdown is up"),
    }
}

/// Who asked it to stop, when and why: goes on after "it".
fn asked(record: &Record, receipt: &Receipt) -> String {
    let (by, at) = (&receipt.by.0, Time(receipt.requested_at));
    match receipt.reason {
        CancelReason::Requested => format!("was cancelled by {by} at {at}"),
        CancelReason::Timeout => {
            let limit = record.spec.timeout.map_or_else(String::new, |limit| format!(" of {}", span(limit)));
            format!("was asked to stop at {at}, when its timeout{limit} was up")
        }
        CancelReason::Deadline => {
            let limit = record.spec.deadline.map_or_else(String::new, |limit| format!(" of {}", span(limit)));
            format!("was asked to stop at {at}, when its deadline{limit} was up")
        }
        CancelReason::Shutdown => format!("was asked to stop at {at}, when the daemon was shut down ({by})"),
    }
}

/// Why force was needed: goes on after "killed".
fn because_forced(record: &Record, receipt: &Receipt) -> String {
    for step in &receipt.steps {
        match (step.action, &step.target) {
            (Action::GraceExpired, _) => {
                let grace =
                    record.spec.cancel_grace.map_or_else(String::new, |grace| format!(" of {}", span(grace)));
                return format!(" because it was not done when its grace{grace} was up");
            }
            (Action::ForceRequested, Some(by)) => return format!(" because {by} asked for force"),
            (Action::ForceRequested, None) => return " because force was asked for".into(),
            (
                Action::Requested
                | Action::CancelMainTask
                | Action::Signal
                | Action::Kill
                | Action::KillPending
                | Action::Ended,
                _,
            ) => {}
        }
    }
    String::new()
}

/// Which run and attempt, where there is more than one to tell apart.
fn which(record: &Record) -> String {
    let Some((run, attempt)) = record.position() else { return String::new() };
    let max = record.spec.retry.max_attempts;
    let mut text = String::new();
    if record.spec.keep_open {
        text.push_str(&format!(", in run {run}"));
    }
    if attempt > max {
        // Those after a loss or a shutdown are no retries.
        text.push_str(&format!(", in attempt {attempt}"));
    } else if max > 1 {
        text.push_str(&format!(", in attempt {attempt} of {max}"));
    }
    text
}

fn since(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| format!(" since {}", Time(at)))
}

/// A time to the second: for people.
struct Time(Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}", self.0)
    }
}

/// A duration, as people write it.
fn span(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |span| format!("{span:#}"))
}

/// The first of many.
fn names(ids: &[RunnerId], all: usize) -> String {
    let mut text = String::new();
    let more = all.saturating_sub(ids.len());
    for (place, id) in ids.iter().enumerate() {
        let last = place + 1 == ids.len() && more == 0;
        text.push_str(match (place, last) {
            (0, _) => "",
            (_, true) => " and ",
            (_, false) => ", ",
        });
        text.push_str(&id.to_string());
    }
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// The name of a signal.
fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// Whether an attempt is one that the end of the daemon ended.
fn lost_with_daemon(attempt: &Attempt) -> bool {
    attempt.error.as_ref().is_some_and(|error| error.kind == "daemon_lost")
}

//! A Runner, as the API shows it.

use std::collections::BTreeMap;

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::Serialize;
use utoipa::ToSchema;

use super::job::Job;
use crate::http::duration;
use crate::job::{self, RunnerId};

/// RFC 3339, UTC, always six digits after the point: equal in length, so texts sort as times do.
pub(crate) fn time(at: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    PRINTER.timestamp_to_string(&at)
}

/// A Runner.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Runner<'a> {
    /// Its id, a UUIDv7.
    #[schema(value_type = String)]
    id: RunnerId,
    /// The name it was given.
    name: Option<&'a str>,
    /// `queued`, `starting`, `running`, `idle`, `cancelling`, `draining` or `closed`.
    state: &'static str,
    /// Only in `closed`: `succeeded`, `failed`, `cancelled`, `killed`, `timed_out` or `lost`.
    outcome: Option<&'static str>,
    /// It is queued but does not start until somebody decides.
    held: bool,
    /// It is queued, and its turn may only come then: a delay, a time, a backoff.
    not_before: Option<String>,
    /// The queue it waits in.
    queue: &'a str,
    /// Higher goes first.
    priority: i32,
    /// How many slots it takes.
    weight: u32,
    /// Of the jobs with the same key only one is started at a time.
    concurrency_key: Option<&'a str>,
    /// Labels to find it by.
    labels: &'a BTreeMap<String, String>,
    /// What to do.
    job: Job<'a>,
    /// How long all of it may take, waiting and retries included.
    deadline: Option<String>,
    /// When a failed attempt is followed by another.
    retry: Retry<'a>,
    /// How long an attempt may take.
    timeout: Option<String>,
    /// How long its main task may clean up after a cancellation; `null`: the daemon's default.
    cancel_grace: Option<String>,
    /// How long its executor may drain.
    drain_timeout: String,
    /// What happens when the daemon or the host dies under it.
    on_lost: &'static str,
    /// What happens when a shutdown stops it.
    on_shutdown: &'static str,
    /// Whether it stays open after a run.
    keep_open: bool,
    /// Who is told when it has closed.
    on_close: Option<Webhook<'a>>,
    /// Its debug mode; `null`: the daemon's.
    debug: Option<bool>,
    /// When it was accepted.
    created_at: String,
    /// When its first attempt began.
    started_at: Option<String>,
    /// When it was closed.
    closed_at: Option<String>,
    /// Its runs.
    runs: Vec<Run<'a>>,
    /// The receipt of its cancellation.
    cancel: Option<Receipt<'a>>,
    /// How its executor drained.
    drain: Option<Drain<'a>>,
}

/// When a failed attempt is followed by another.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Retry<'a> {
    /// Attempts in all.
    max_attempts: u32,
    /// The longest wait before the second attempt; it doubles for each further one.
    initial_backoff: String,
    /// The longest wait before any.
    max_backoff: String,
    /// The exit codes that are tried again; empty: any failure.
    on_exit_codes: &'a [i32],
}

/// Who is told when a Runner has closed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Webhook<'a> {
    /// Where.
    url: &'a str,
    /// The variable of the shared context that holds the key to sign with.
    secret: Option<&'a str>,
}

/// One execution of a job.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Run<'a> {
    /// Its number, from 1.
    run: u32,
    /// What it did.
    job: Job<'a>,
    /// What became of it: `null` as long as it waits, runs, or is to be tried again.
    outcome: Option<&'static str>,
    /// What its last attempt gave back.
    result: Option<&'a serde_json::Value>,
    /// Its attempts.
    attempts: Vec<Attempt<'a>>,
}

/// One try of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Attempt<'a> {
    /// Its number, from 1.
    attempt: u32,
    /// `starting`, `running` or `ended`.
    state: &'static str,
    /// Only in `ended`.
    outcome: Option<&'static str>,
    /// Its main process.
    pid: Option<u32>,
    /// How the main process ended.
    exit: Option<Exit>,
    /// What went wrong, where it is not the exit that tells.
    error: Option<Failure<'a>>,
    /// What it wrote.
    output: Option<Output>,
    /// Processes of it that outlived its main process and were killed then.
    swept: u32,
    /// The version of the shared context that it saw.
    context_version: u64,
    /// The receipt of its cancellation, where another attempt or run came after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel: Option<Receipt<'a>>,
    /// When it began.
    started_at: String,
    /// When it was over.
    ended_at: Option<String>,
}

/// How a process ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Why an attempt failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Failure<'a> {
    /// A stable word: `start_failed`, `oom`, `killed_by_other`, `shim_lost`, `daemon_lost`, …
    kind: &'a str,
    /// A sentence for people.
    message: &'a str,
    /// The step that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    /// The error number of that step.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    /// The type of the exception that was raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    exception: Option<&'a str>,
    /// Where it was raised; of a long one the end, 16 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    traceback: Option<&'a str>,
}

/// What an attempt wrote.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Output {
    /// Bytes, both streams together.
    bytes: u64,
    /// Bytes of these that were not kept.
    dropped: u64,
    /// Somebody still held its output open a second after it had ended.
    incomplete: bool,
}

/// The record of a cancellation.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Receipt<'a> {
    /// When it was first asked for.
    requested_at: String,
    /// Who asked first.
    by: &'a str,
    /// Why: `requested`, `timeout`, `deadline` or `shutdown`.
    reason: &'static str,
    /// The highest reason so far.
    escalated_to: &'static str,
    /// Whether force was asked for, or was needed.
    forced: bool,
    /// What was done, in order.
    steps: Vec<Step<'a>>,
    /// Processes of the job that outlived it: 0 in an ended receipt, `null` before.
    survivors: Option<u32>,
    /// When nothing of it lived any more.
    ended_at: Option<String>,
}

/// One step of a cancellation.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Step<'a> {
    /// When.
    at: String,
    /// What was done.
    action: &'static str,
    /// To what, or by whom.
    target: Option<&'a str>,
}

/// How an executor drained.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Drain<'a> {
    /// Left-over tasks that were cancelled.
    tasks_cancelled: u64,
    /// Left-over tasks that ended with an error.
    task_errors: u64,
    /// Blocking work that did not end in time, by name.
    abandoned: &'a [String],
    /// How long closing took.
    elapsed: String,
}

/// A page of Runners, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunnerPage<'a> {
    /// The Runners.
    pub items: Vec<Runner<'a>>,
    /// For `cursor` of the next page; `null` on the last.
    pub next_cursor: Option<String>,
}

/// How a cancellation was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cancelled<'a> {
    /// The Runner.
    #[schema(value_type = String)]
    id: RunnerId,
    /// Its state now.
    state: &'static str,
    /// Its outcome, if it is closed by now.
    outcome: Option<&'static str>,
    /// The receipt so far.
    cancel: Option<Receipt<'a>>,
}

impl<'a> From<&'a job::Record> for Cancelled<'a> {
    fn from(record: &'a job::Record) -> Self {
        Self {
            id: record.id,
            state: record.state.as_str(),
            outcome: record.outcome.map(job::Outcome::as_str),
            cancel: record.cancel.as_deref().map(Receipt::from),
        }
    }
}

impl<'a> From<&'a job::Record> for Runner<'a> {
    fn from(record: &'a job::Record) -> Self {
        let spec = &*record.spec;
        let run = |run: &'a job::Run| Run {
            run: run.run,
            job: Job::from(run.job.as_deref().unwrap_or(&spec.job)),
            outcome: record.outcome_of(run).map(job::Outcome::as_str),
            result: run.attempts.last().and_then(|attempt| attempt.result.as_deref()),
            attempts: run.attempts.iter().map(Attempt::from).collect(),
        };
        Self {
            id: record.id,
            name: spec.name.as_deref(),
            state: record.state.as_str(),
            outcome: record.outcome.map(job::Outcome::as_str),
            held: record.held,
            not_before: not_before(record).map(time),
            queue: &spec.queue,
            priority: spec.priority,
            weight: spec.weight,
            concurrency_key: spec.concurrency_key.as_deref(),
            labels: &spec.labels,
            job: Job::from(&spec.job),
            deadline: spec.deadline.map(duration::format),
            retry: Retry::from(&*spec.retry),
            timeout: spec.timeout.map(duration::format),
            cancel_grace: spec.cancel_grace.map(duration::format),
            drain_timeout: duration::format(spec.drain_timeout),
            on_lost: spec.on_lost.as_str(),
            on_shutdown: spec.on_shutdown.as_str(),
            keep_open: spec.keep_open,
            on_close: spec.on_close.as_deref().map(Webhook::from),
            debug: spec.debug,
            created_at: time(record.created_at),
            started_at: record.started_at.map(time),
            closed_at: record.closed_at.map(time),
            runs: record.runs.iter().map(run).collect(),
            cancel: record.cancel.as_deref().map(Receipt::from),
            drain: record.drain.as_deref().map(Drain::from),
        }
    }
}

/// Only as long as it waits for that.
fn not_before(record: &job::Record) -> Option<Timestamp> {
    if record.state == job::State::Queued { record.ready_at() } else { None }
}

impl<'a> From<&'a job::Retry> for Retry<'a> {
    fn from(retry: &'a job::Retry) -> Self {
        Self {
            max_attempts: retry.max_attempts,
            initial_backoff: duration::format(retry.initial_backoff),
            max_backoff: duration::format(retry.max_backoff),
            on_exit_codes: &retry.on_exit_codes,
        }
    }
}

impl<'a> From<&'a job::Webhook> for Webhook<'a> {
    fn from(webhook: &'a job::Webhook) -> Self {
        let job::Webhook { url, secret } = webhook;
        Self { url, secret: secret.as_deref() }
    }
}

impl<'a> From<&'a job::Attempt> for Attempt<'a> {
    fn from(attempt: &'a job::Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            state: attempt.state.as_str(),
            outcome: attempt.outcome.map(job::Outcome::as_str),
            pid: attempt.pid,
            exit: attempt.exit.map(Exit::from),
            error: attempt.error.as_deref().map(Failure::from),
            output: attempt.output.map(Output::from),
            swept: attempt.swept,
            context_version: attempt.context_version,
            cancel: attempt.cancel.as_deref().map(Receipt::from),
            started_at: time(attempt.started_at),
            ended_at: attempt.ended_at.map(time),
        }
    }
}

impl From<job::Exit> for Exit {
    fn from(exit: job::Exit) -> Self {
        match exit {
            job::Exit::Code(code) => Self::Code(code),
            job::Exit::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl<'a> From<&'a job::Failure> for Failure<'a> {
    fn from(failure: &'a job::Failure) -> Self {
        let job::Failure { kind, message, stage, errno, raised } = failure;
        let raised = raised.as_deref().map(|raised| (&*raised.exception, &*raised.traceback));
        let (exception, traceback) = raised.unzip();
        Self { kind, message, stage: stage.as_deref(), errno: *errno, exception, traceback }
    }
}

impl From<job::OutputFacts> for Output {
    fn from(facts: job::OutputFacts) -> Self {
        let job::OutputFacts { bytes, dropped, incomplete } = facts;
        Self { bytes, dropped, incomplete }
    }
}

impl<'a> From<&'a job::Receipt> for Receipt<'a> {
    fn from(receipt: &'a job::Receipt) -> Self {
        let step = |step: &'a job::Step| Step {
            at: time(step.at),
            action: step.action.as_str(),
            target: step.target.as_deref(),
        };
        Self {
            requested_at: time(receipt.requested_at),
            by: &receipt.by.0,
            reason: receipt.reason.as_str(),
            escalated_to: receipt.escalated_to.as_str(),
            forced: receipt.forced,
            steps: receipt.steps.iter().map(step).collect(),
            survivors: receipt.survivors,
            ended_at: receipt.ended_at.map(time),
        }
    }
}

impl<'a> From<&'a job::Drain> for Drain<'a> {
    fn from(drain: &'a job::Drain) -> Self {
        Self {
            tasks_cancelled: drain.tasks_cancelled,
            task_errors: drain.task_errors,
            abandoned: &drain.abandoned,
            elapsed: duration::format(std::time::Duration::from_micros(drain.elapsed_us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sort_as_their_texts_do() {
        let texts = [-1, 0, 1, 1_500_000, 86_400_000_000]
            .map(|micros| time(Timestamp::from_microsecond(micros).expect("a time")));
        assert_eq!(texts[0], "1969-12-31T23:59:59.999999Z");
        assert_eq!(texts[1], "1970-01-01T00:00:00.000000Z");
        assert_eq!(texts[3], "1970-01-01T00:00:01.500000Z");
        assert!(texts.is_sorted());
    }
}

//! What became of jobs, counted from the events that were made durable.

use std::{sync::Arc, time::Duration};

use foldhash::HashMap;
use jiff::Timestamp;

use super::{Counter, Histogram, SLOW, Text, Type};
use crate::job::{Attempt, CancelReason, Event, EventKind, Job, Outcome, Record, RequeueReason, RunnerId};

/// The kinds of job, as [`kind_of`] numbers them.
const KINDS: [&str; 5] = ["command", "script", "http", "handler", "python"];

const OUTCOMES: usize = Outcome::ALL.len();

/// Runners and their attempts.
#[derive(Debug)]
pub struct Jobs {
    submitted: [Counter; KINDS.len()],
    started: [Counter; KINDS.len()],
    ended: [[Counter; OUTCOMES]; KINDS.len()],
    closed: [[Counter; OUTCOMES]; KINDS.len()],
    requeued: [Counter; RequeueReason::ALL.len()],
    /// Without force, and by force.
    cancelled: [[Counter; 2]; CancelReason::ALL.len()],
    wait: [Histogram; KINDS.len()],
    duration: [Histogram; KINDS.len()],
    abandoned: Counter,
    swept: Counter,
    log_bytes: Counter,
    log_dropped: Counter,
    /// Closed ones that were forgotten.
    pub purged: Counter,
}

impl Default for Jobs {
    fn default() -> Self {
        let slow = || std::array::from_fn(|_| Histogram::new(SLOW));
        Self {
            submitted: Default::default(),
            started: Default::default(),
            ended: Default::default(),
            closed: Default::default(),
            requeued: Default::default(),
            cancelled: Default::default(),
            wait: slow(),
            duration: slow(),
            abandoned: Counter::default(),
            swept: Counter::default(),
            log_bytes: Counter::default(),
            log_dropped: Counter::default(),
            purged: Counter::default(),
        }
    }
}

fn kind_of(job: &Job) -> usize {
    match job {
        Job::Command(_) => 0,
        Job::Script(_) => 1,
        Job::Http(_) => 2,
        Job::Handler(_) => 3,
        Job::Python(_) => 4,
    }
}

fn place<T: PartialEq>(all: &[T], one: &T) -> usize {
    all.iter().position(|known| known == one).unwrap_or_default()
}

impl Jobs {
    /// Counts what was made durable, and gives how many are to be told of a close. `records` are as the last of the
    /// events leaves them.
    pub fn committed(
        &self,
        events: &[Event],
        records: &[Arc<Record>],
        refused: impl Fn(RunnerId) -> bool,
    ) -> i64 {
        let records: HashMap<RunnerId, &Record> =
            records.iter().map(|record| (record.id, &**record)).collect();
        let mut messages = 0;
        for event in events.iter().filter(|event| !refused(event.runner)) {
            let record = records.get(&event.runner).copied();
            self.count(event, record);
            if matches!(event.kind, EventKind::Closed(_))
                && record.is_some_and(|it| it.spec.on_close.is_some())
            {
                messages += 1;
            }
        }
        messages
    }

    fn count(&self, event: &Event, record: Option<&Record>) {
        let kind = record.map_or(0, |record| kind_of(record.job()));
        match &event.kind {
            EventKind::Submitted { spec } => self.submitted[kind_of(&spec.job)].inc(),
            EventKind::Starting { run, attempt, .. } => {
                self.started[kind].inc();
                if let Some(record) = record
                    && (*run, *attempt) == (1, 1)
                {
                    self.wait[kind].observe(between(ready_since(record), event.at));
                }
            }
            EventKind::AttemptEnded { outcome, output, swept, .. } => {
                self.ended[kind][place(Outcome::ALL, outcome)].inc();
                self.swept.add(u64::from(*swept));
                if let Some(output) = output {
                    self.log_bytes.add(output.bytes);
                    self.log_dropped.add(output.dropped);
                }
                if let Some(attempt) = record.and_then(|record| ended_at(record, event.at)) {
                    self.duration[kind].observe(between(attempt.started_at, event.at));
                }
            }
            EventKind::CancelRequested { reason, force, by: _ } => {
                self.cancelled[place(CancelReason::ALL, reason)][usize::from(*force)].inc();
            }
            EventKind::Requeued { reason, .. } => self.requeued[place(RequeueReason::ALL, reason)].inc(),
            EventKind::Closed(facts) => {
                self.closed[kind][place(Outcome::ALL, &facts.outcome)].inc();
                let abandoned = facts.drain.as_ref().map_or(0, |drain| drain.abandoned.len());
                self.abandoned.add(abandoned as u64);
            }
            EventKind::Running { .. }
            | EventKind::CancelStep { .. }
            | EventKind::Released { .. }
            | EventKind::Idle
            | EventKind::RunAdded { .. }
            | EventKind::CloseRequested { .. }
            | EventKind::Draining { .. } => {}
        }
    }

    pub(super) fn write(&self, text: &mut Text) {
        let name = "runward_runners_submitted_total";
        text.family(name, Type::Counter, "Runners that were accepted, by the kind of their job.");
        by_kind(text, name, &self.submitted);
        let name = "runward_runners_closed_total";
        text.family(
            name,
            Type::Counter,
            "Runners that were closed, by the kind of their last job and its outcome.",
        );
        by_outcome(text, name, &self.closed);
        text.counter("runward_runners_purged_total", "Closed Runners that were forgotten.", &self.purged);
        let name = "runward_attempts_started_total";
        text.family(
            name,
            Type::Counter,
            "Attempts that were started; none executes before that is on record.",
        );
        by_kind(text, name, &self.started);
        let name = "runward_attempts_ended_total";
        text.family(name, Type::Counter, "Attempts that are over, by kind and outcome.");
        by_outcome(text, name, &self.ended);
        let name = "runward_requeued_total";
        text.family(
            name,
            Type::Counter,
            "How often a Runner waited for its turn again, by why; retry: after a failure.",
        );
        for (reason, counter) in RequeueReason::ALL.iter().zip(&self.requeued) {
            text.sample(name, &[("reason", reason.as_str())], counter.get());
        }
        let name = "runward_cancellations_total";
        text.family(name, Type::Counter, "Requests to stop a job, by why, and whether by force.");
        for (reason, counters) in CancelReason::ALL.iter().zip(&self.cancelled) {
            for (force, counter) in ["false", "true"].into_iter().zip(counters) {
                text.sample(name, &[("reason", reason.as_str()), ("force", force)], counter.get());
            }
        }
        let name = "runward_queue_wait_seconds";
        let help = "How long Runners waited for their first start, from when that was allowed.";
        text.family(name, Type::Histogram, help);
        histograms(text, name, &self.wait);
        let name = "runward_attempt_duration_seconds";
        text.family(name, Type::Histogram, "How long attempts took, from their start to their end.");
        histograms(text, name, &self.duration);
        let help = "Blocking work that did not end in time when its Runner was closed.";
        text.counter("runward_blocking_abandoned_total", help, &self.abandoned);
        let help = "Processes that outlived their job's main process and were killed.";
        text.counter("runward_processes_swept_total", help, &self.swept);
        text.counter(
            "runward_log_bytes_total",
            "Bytes that jobs wrote, of attempts that are over.",
            &self.log_bytes,
        );
        let help = "Bytes of these that were not kept: over the quota, or not writable.";
        text.counter("runward_log_dropped_bytes_total", help, &self.log_dropped);
    }
}

fn by_kind(text: &mut Text, name: &str, counters: &[Counter]) {
    for (kind, counter) in KINDS.iter().zip(counters) {
        text.sample(name, &[("kind", kind)], counter.get());
    }
}

fn by_outcome(text: &mut Text, name: &str, counters: &[[Counter; OUTCOMES]]) {
    for (kind, counters) in KINDS.iter().zip(counters) {
        for (outcome, counter) in Outcome::ALL.iter().zip(counters) {
            text.sample(name, &[("kind", kind), ("outcome", outcome.as_str())], counter.get());
        }
    }
}

fn histograms(text: &mut Text, name: &str, histograms: &[Histogram]) {
    for (kind, histogram) in KINDS.iter().zip(histograms) {
        text.histogram(name, &[("kind", kind)], histogram);
    }
}

/// When it might have started first.
fn ready_since(record: &Record) -> Timestamp {
    let delayed = record.spec.delay.and_then(|delay| record.created_at.checked_add(delay).ok());
    [delayed, *record.spec.start_at].into_iter().flatten().fold(record.created_at, Ord::max)
}

/// The attempt that was over then: others may have followed in the same commit.
fn ended_at(record: &Record, at: Timestamp) -> Option<&Attempt> {
    let mut latest = record.runs.iter().rev().flat_map(|run| run.attempts.iter().rev());
    latest.find(|attempt| *attempt.ended_at == Some(at))
}

/// Nothing where the clock was set back.
fn between(since: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Command, Handler};

    #[test]
    fn the_kinds_have_the_words_that_users_see() {
        let jobs = [
            Job::Command(Command::default()),
            Job::Handler(Handler { name: "x".into(), args: serde_json::Value::Null.into() }),
        ];
        for job in jobs {
            assert_eq!(KINDS[kind_of(&job)], job.kind());
        }
    }
}

//! Why a Runner is where it is, in the API.

use serde::Serialize;
use utoipa::ToSchema;

use super::runner::{Exit, Failure, time};
use crate::{
    job::{self, Record, RunnerId},
    supervisor::{
        self,
        explain::{self, Explanation},
    },
};

/// Why a runner is where it is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Explained<'a> {
    /// The runner.
    id: String,
    /// Where it is.
    state: &'static str,
    /// One sentence for people.
    sentence: &'a str,
    /// What it is made of.
    facts: Facts<'a>,
}

/// What the sentence is made of; what has nothing to do with the reason is left out.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
struct Facts<'a> {
    /// Why it does not run: `next_to_start`, `in_line`, `key_taken`, `queue_paused`, `delayed`, `scheduled`, `backoff`,
    /// `held_after_loss`, `held_as_poison`, `held_after_shutdown`, `daemon_stopping`, `store_failing`. What it is at: `starting`,
    /// `running`, `idle`, `cleaning_up`, `being_killed`, `draining`. Why it ended: `succeeded`, `exit_code`, `signal`,
    /// `out_of_memory`, `start_failed`, `error`, `timed_out`, `deadline_passed`, `lost_with_daemon`, `lost`,
    /// `cancelled_in_queue`, `cancelled`, `killed`, `shutdown`, `closed_unused`.
    reason: &'static str,
    /// Since when it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// When that will be over: when it may start, is killed, or has drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    /// The run under way, or the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<u32>,
    /// The attempt under way, or the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// The attempts that a run may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// The queue it waits in.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a str>,
    /// Its place among those of its queue that could start, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    /// How many these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<usize>,
    /// The runners before it, ten at the most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ahead: Vec<String>,
    /// What has no slot for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    /// The runners that have the slots, ten at the most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    running: Vec<String>,
    /// Its concurrency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_key: Option<&'a str>,
    /// The runner that has that key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_holder: Option<String>,
    /// Its main process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// Who asked for it to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled_by: Option<&'a str>,
    /// Why: `requested`, `timeout`, `deadline` or `shutdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_reason: Option<&'static str>,
    /// Whether force was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    forced: Option<bool>,
    /// What became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    /// How the main process of that attempt ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<Exit>,
    /// Where it ended by a signal: whether runward sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal_sent_by_runward: Option<bool>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure<'a>>,
}

/// What bounds how many run.
#[derive(Serialize, ToSchema)]
struct Limit {
    /// Whose it is: `queue`, `daemon`, or `in_process` for the daemon's limit of jobs without a process.
    of: &'static str,
    /// How many slots that are.
    max: u32,
}

impl<'a> Explained<'a> {
    pub(crate) fn new(record: &Record, explanation: &'a Explanation) -> Self {
        Self {
            id: record.id.to_string(),
            state: record.state.as_str(),
            sentence: &explanation.sentence,
            facts: Facts::from(&explanation.facts),
        }
    }
}

impl<'a> From<&'a explain::Facts> for Facts<'a> {
    fn from(facts: &'a explain::Facts) -> Self {
        let ids = |ids: &[RunnerId]| ids.iter().map(RunnerId::to_string).collect();
        let key = facts.key.as_ref();
        let (concurrency_key, key_holder) = key.map(|(key, holder)| (&**key, holder.to_string())).unzip();
        let (position, of) = facts.line.unzip();
        Self {
            reason: facts.reason.as_str(),
            since: facts.since.map(time),
            until: facts.until.map(time),
            run: facts.run,
            attempt: facts.attempt,
            max_attempts: facts.max_attempts,
            queue: facts.queue.as_deref(),
            position,
            of,
            ahead: ids(&facts.ahead),
            limit: facts.limit.as_ref().map(Limit::from),
            running: ids(&facts.running),
            concurrency_key,
            key_holder,
            pid: facts.pid,
            cancelled_by: facts.by.as_deref(),
            cancel_reason: facts.cancel_reason.map(job::CancelReason::as_str),
            forced: facts.forced,
            outcome: facts.outcome.map(job::Outcome::as_str),
            exit: facts.exit.map(Exit::from),
            signal_sent_by_runward: facts.signal_is_ours,
            error: facts.error.as_ref().map(Failure::from),
        }
    }
}

impl From<&supervisor::core::Limit> for Limit {
    fn from(limit: &supervisor::core::Limit) -> Self {
        match limit {
            supervisor::core::Limit::Queue { name: _, max } => Self { of: "queue", max: *max },
            supervisor::core::Limit::Daemon { max } => Self { of: "daemon", max: *max },
            supervisor::core::Limit::InProcess { max } => Self { of: "in_process", max: *max },
        }
    }
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    #[test]
    fn every_reason_is_described() {
        let schema = serde_json::to_value(Facts::schema()).expect("JSON");
        let described = schema["properties"]["reason"]["description"].as_str().expect("a description");
        for reason in explain::Reason::ALL {
            assert!(described.contains(&format!("`{}`", reason.as_str())), "{reason:?}");
        }
    }
}

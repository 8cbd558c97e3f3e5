//! What the supervisor needs of the world, as traits: the store below it and the Runners beside it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use foldhash::HashSet;
use jiff::Timestamp;

use crate::job::{
    AttemptKey, Drain, Event, EventKind, Exit, Failure, Outcome, OutputFacts, QueueSettings, Record,
    RunnerId, SharedContext, Variable,
};

/// What is made durable at once: all of it or nothing, but for refused submissions.
#[derive(Debug, Default)]
pub struct Batch {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// The records that changed, as the last of these events leaves them: those of all these events.
    pub records: Vec<Arc<Record>>,
    /// The idempotency keys of submissions among the events.
    pub keys: Vec<KeyedSubmission>,
    /// Queues as they are now; `None`: back to what the settings say.
    pub queues: Vec<(String, Option<QueueSettings>)>,
    /// Changes of the shared context.
    pub context: Vec<ContextChange>,
    /// Closed Runners to be forgotten, with all that belongs to them.
    pub purged: Vec<RunnerId>,
    /// What became of messages that were to be sent.
    pub webhooks: Vec<(RunnerId, Delivery)>,
}

impl Batch {
    /// Adds what happened later. The newer of two records stands.
    pub fn append(&mut self, later: Self) {
        let Self { events, records, keys, queues, context, purged, webhooks } = later;
        self.events.extend(events);
        if !records.is_empty() {
            if !self.records.is_empty() {
                let newer: HashSet<RunnerId> = records.iter().map(|record| record.id).collect();
                self.records.retain(|old| !newer.contains(&old.id));
            }
            self.records.extend(records);
        }
        self.keys.extend(keys);
        self.queues.extend(queues);
        self.context.extend(context);
        self.purged.extend(purged);
        self.webhooks.extend(webhooks);
    }

    /// Whether nobody waits for what is in it: it is to be told of a Runner that goes on, and after a crash is found out
    /// again from what that has left.
    pub fn can_wait(&self) -> bool {
        let Self { events, records, keys, queues, context, purged, webhooks } = self;
        let others = records.is_empty()
            && keys.is_empty()
            && queues.is_empty()
            && context.is_empty()
            && purged.is_empty()
            && webhooks.is_empty();
        let can_wait = |event: &Event| match event.kind {
            EventKind::CancelStep { .. } | EventKind::Draining { .. } => true,
            EventKind::Submitted { .. }
            | EventKind::Starting { .. }
            | EventKind::Running { .. }
            | EventKind::CancelRequested { .. }
            | EventKind::AttemptEnded { .. }
            | EventKind::Requeued { .. }
            | EventKind::Released { .. }
            | EventKind::Idle
            | EventKind::RunAdded { .. }
            | EventKind::CloseRequested { .. }
            | EventKind::Closed(_) => false,
        };
        others && events.iter().all(can_wait)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        let Self { events, records, keys, queues, context, purged, webhooks } = self;
        events.is_empty()
            && records.is_empty()
            && keys.is_empty()
            && queues.is_empty()
            && context.is_empty()
            && purged.is_empty()
            && webhooks.is_empty()
    }
}

/// A variable of the shared context that was set or unset.
#[derive(Clone, Debug)]
pub struct ContextChange {
    /// The version of the context with it.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// The variable as it is now; `None`: unset.
    pub variable: Option<Variable>,
}

/// What became of an attempt to tell somebody that a Runner has closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It was taken, or is given up.
    Done,
    /// It is tried again then.
    Retry {
        /// How often it was tried.
        attempts: u32,
        /// When next.
        at: Timestamp,
    },
}

/// A client's key for a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key as sent.
    pub key: String,
    /// What it was sent with: the same key with another body is refused.
    pub body: [u8; 32],
}

/// A submission that came with a key.
#[derive(Clone, Debug)]
pub struct KeyedSubmission {
    /// The key.
    pub key: IdempotencyKey,
    /// The Runner it made.
    pub runner: RunnerId,
}

/// A submission that the store did not take, with all of its events in the batch. The rest was committed.
#[derive(Clone, Debug)]
pub struct Duplicate {
    /// The submission.
    pub runner: RunnerId,
    /// The Runner that the key made before.
    pub original: RunnerId,
    /// Whether it was made from the same body.
    pub same_body: bool,
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written; it may work later (no space left, a quota).
    #[error("the store takes nothing: {0}")]
    Refused(String),
    /// Nobody knows what was written: the daemon must end and recover.
    #[error("the store failed: {0}")]
    Broken(String),
}

/// The event log, as its one writer sees it.
pub trait EventLog: Send + 'static {
    /// Makes a batch durable. Blocking. An empty one is a commit too: it tells whether the store takes records.
    ///
    /// # Errors
    /// [`AppendError`]; then nothing of the batch is visible.
    fn append(&mut self, batch: &Batch) -> Result<Vec<Duplicate>, AppendError>;
    /// Nothing has been written for a while: lets go of what only makes the next append faster.
    fn rest(&mut self) {}
}

/// A record that could not be read this time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// Records of Runners that are not in memory. Blocking, for one row by its key.
pub trait Records {
    /// The record, as last committed. `None` where there is none, and where it is damaged for good.
    ///
    /// # Errors
    /// [`Unreadable`]; it may work later.
    fn load(&self, id: RunnerId) -> Result<Option<Record>, Unreadable>;
    /// The same by the place of its submission.
    ///
    /// # Errors
    /// As [`Records::load`].
    fn load_at(&self, submitted_seq: u64) -> Result<Option<Record>, Unreadable>;
}

/// The Runners, one for each job that was started.
pub trait Runners {
    /// Makes the Runner, or takes the one of an earlier run, and prepares all that can be prepared; nothing of
    /// the job executes. The Runner copies the context.
    fn prepare(&mut self, record: Arc<Record>, key: AttemptKey, context: Arc<SharedContext>);
    /// The start is durable: execute. Unknown attempts are ignored, here and below.
    fn go(&mut self, key: AttemptKey);
    /// Cancels the main task.
    fn cancel(&mut self, key: AttemptKey);
    /// Kills what can be killed.
    fn force(&mut self, key: AttemptKey);
    /// The same without the moment that a second interrupt gives: the daemon is about to end.
    fn force_at_once(&mut self, key: AttemptKey) {
        self.force(key);
    }
    /// Forgets a Runner that was never told to go.
    fn abort(&mut self, key: AttemptKey);
    /// The end is durable: what was held until then may go.
    fn settled(&mut self, key: AttemptKey);
    /// Closes a Runner that waits for another attempt or run; [`News::Closed`] follows. One that has no Runner
    /// is closed already.
    fn close(&mut self, record: Arc<Record>, key: AttemptKey);
    /// What is on a Runner's loop; `None` where the attempt is over.
    fn get_loop(&self, key: AttemptKey) -> Option<LoopFacts>;
}

/// What is on a Runner's loop at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoopFacts {
    /// Its tasks, oldest first.
    pub tasks: Vec<TaskFacts>,
    /// Blocking work on its executor.
    pub blocking: usize,
    /// The tasks as a tree, for people.
    pub tree: String,
}

/// A task at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFacts {
    /// Unique in the daemon.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: String,
    /// The line that started it: `file:line`.
    pub source: String,
    /// The task that started it.
    pub parent: Option<u64>,
    /// Since it was started.
    pub age: Duration,
    /// How often it was polled.
    pub polls: u64,
    /// The time spent in its polls.
    pub busy: Duration,
    /// Polls longer than the loop's threshold.
    pub slow_polls: u32,
}

/// What a Runner tells.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which Runner.
    pub runner: RunnerId,
    /// Which attempt: a report of an earlier one is of no interest.
    pub key: AttemptKey,
    /// What.
    pub news: News,
}

/// The kinds of report.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each attempt, and hardly any is kept")]
pub enum News {
    /// The job executes.
    Running {
        /// Its main process.
        pid: Option<u32>,
        /// When that started, in clock ticks since boot.
        start_time: Option<u64>,
    },
    /// A step of a cancellation was taken.
    Step {
        /// What was done.
        action: crate::job::Action,
        /// To what.
        target: Option<String>,
    },
    /// The attempt is over and nothing of it lives; the executor may still drain.
    Ended(End),
    /// The Runner is closed. Follows `Ended`, or comes with it.
    Closed(Drain),
}

/// How an attempt ended.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// How the main process ended.
    pub exit: Option<Exit>,
    /// What went wrong, where it is not the exit that tells.
    pub error: Option<Failure>,
    /// What it wrote.
    pub output: Option<OutputFacts>,
    /// Processes of it that outlived its main process and were killed then.
    pub swept: u32,
    /// What it gave back.
    pub result: Option<serde_json::Value>,
    /// Variables it set for the next run of its Runner; `None` unsets one.
    pub context: BTreeMap<String, Option<String>>,
    /// Whether it is not known how it ended.
    pub lost: bool,
    /// When its main process ended, where that was told: recovery hears of it much later.
    pub at: Option<Timestamp>,
    /// Where closing took no time, and no other attempt or run can follow: the close report, so that one commit
    /// tells all.
    pub closed: Option<Drain>,
}

impl End {
    /// What is recorded of it.
    pub fn into_event(self, outcome: Outcome) -> EventKind {
        let Self { exit, error, output, swept, result, context, lost: _, at: _, closed: _ } = self;
        let (error, result) = (error.map(Box::new), result.map(Box::new));
        EventKind::AttemptEnded { outcome, exit, error, output, swept, result, context }
    }
}

//! What the core is told and what it answers with.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    job::{AttemptKey, ContextValue, Job, QueueSettings, Requester, RunnerId, Spec},
    supervisor::ports::{Batch, Delivery, IdempotencyKey, Report},
};

/// What the operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Slots for jobs that are processes.
    pub max_running: u32,
    /// Slots for jobs that are tasks of the daemon's own.
    pub max_in_process: u32,
    /// Jobs that wait at once.
    pub max_queued: usize,
    /// The grace of a job that sets none.
    pub cancel_grace: Duration,
    /// How long a shutdown may take.
    pub shutdown: Duration,
}

/// The time of an input: the wall clock for records, the monotonic one for time-outs.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For records.
    pub wall: Timestamp,
    /// Since some fixed moment.
    pub mono: Duration,
    /// Draws a random number from 0 to 1, for backoffs.
    pub jitter: fn() -> f64,
}

/// Whom to answer: the request's Runner and a number, which is 0 for its submission.
pub type Token = (RunnerId, u64);

/// What the core is told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "taken one at a time, and none is kept")]
pub enum Input {
    /// Somebody submits a job.
    Submit {
        /// The id of the Runner to make.
        id: RunnerId,
        /// The job.
        spec: Arc<Spec>,
        /// The client's key.
        key: Option<Box<IdempotencyKey>>,
        /// Whom to answer.
        token: Token,
    },
    /// Somebody asks something of one Runner.
    Ask {
        /// Which.
        id: RunnerId,
        /// What.
        request: Request,
        /// Whom to answer.
        token: Token,
    },
    /// Somebody changes what holds for all.
    Change {
        /// What.
        change: Change,
        /// Whom to answer.
        token: Token,
    },
    /// A Runner tells something.
    Report(Report),
    /// Everything up to this event is durable.
    Committed {
        /// The last event's place.
        upto: u64,
    },
    /// The store did not take these submissions; nobody will hear of them again.
    Refused(Vec<RunnerId>),
    /// A signal: the first drains, the next ones force.
    Signal {
        /// Its name, for the record.
        name: &'static str,
    },
    /// Time has passed.
    Tick,
}

/// What can be asked of one Runner.
#[derive(Clone, Debug)]
pub enum Request {
    /// Cancel the main task; the second time by force.
    Cancel(Requester),
    /// Close it. Never forces.
    Close(Requester),
    /// Let a held one start.
    Release(Requester),
    /// Run this too, on a Runner that is kept open.
    AddRun(Arc<Job>),
}

/// What can be changed for all.
#[derive(Clone, Debug)]
pub enum Change {
    /// What the operator's settings say of limits and of queues. What was changed over the API still holds.
    Settings(Limits, BTreeMap<String, QueueSettings>),
    /// A queue; `None`: back to the operator's settings.
    Queue(String, Option<QueueSettings>),
    /// A variable of the shared context; `None` unsets it.
    Variable(String, Option<ContextValue>),
    /// Closed Runners are to be forgotten.
    Purge(Vec<RunnerId>),
    /// What became of a message.
    Delivered(RunnerId, Delivery),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make the Runner, or take that of an earlier attempt, and prepare it.
    Prepare(RunnerId, AttemptKey),
    /// Execute. Held.
    Go(AttemptKey),
    /// Cancel the main task. Held.
    Cancel(AttemptKey),
    /// Kill. Held, unless everything is being killed.
    Force(AttemptKey),
    /// Forget a Runner that never went.
    Abort(AttemptKey),
    /// Close a Runner that has no main task any more.
    Close(RunnerId, AttemptKey),
    /// Let go of what was held until the end was durable. Held.
    Settled(AttemptKey),
    /// Answer. Held.
    Reply(Token, Answer),
    /// Everything has ended: the daemon may. Held.
    Finished {
        /// What was left behind, if the time was up.
        abandoned: Vec<RunnerId>,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done, or begun.
    Accepted,
    /// So it was already.
    AlreadySo,
    /// The run that was added has this number.
    Run(u32),
    /// The shared context has this version now.
    Version(u64),
    /// Not done.
    Denied(Denied),
    /// The core does not know it: it is closed, or never was.
    Unknown,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The daemon stops.
    Draining,
    /// Too many wait already.
    QueueFull,
    /// It takes more slots than there are.
    TooHeavy {
        /// How many there are.
        max: u32,
    },
    /// Nothing runs on it that could be cancelled.
    Idle,
    /// Its record can't be read.
    Unreadable,
    /// It is not kept open.
    NotKeptOpen,
    /// It is being closed.
    Closing,
    /// It has had as many runs as one record holds.
    TooManyRuns {
        /// How many that are.
        max: u32,
    },
    /// One is a process, the other a task of the daemon's: they don't share a loop.
    OtherLoop,
    /// It runs as somebody else than the Runner's first job: variables that one user sets would reach the other's
    /// processes.
    OtherUser,
}

/// What an input leads to.
#[derive(Debug, Default)]
pub struct Output {
    /// What is to be made durable, but for the records.
    pub batch: Batch,
    /// To be done at once.
    pub now: Vec<Effect>,
    /// To be done when the batch is durable.
    pub held: Vec<Effect>,
}

/// Where the supervisor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes jobs and starts them.
    Open,
    /// A signal came: nothing new, and what runs is being cancelled.
    Draining {
        /// When the patience ends.
        deadline: Duration,
    },
    /// The patience has ended: everything is being killed.
    Forcing {
        /// When the daemon ends whatever still lives.
        until: Duration,
    },
    /// Nothing runs any more, or the daemon has given up.
    Finished,
}

/// How many Runners are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting.
    pub queued: usize,
    /// From their start to their close, but for those that are kept open with nothing to run.
    pub active: usize,
}

/// A Runner that waited when the daemon ended: what the core is told of it. The record stays in the store.
#[derive(Clone, Copy, Debug)]
pub struct Restored<'a> {
    /// Which.
    pub id: RunnerId,
    /// The queue it waits in.
    pub queue: &'a str,
    /// Its priority.
    pub priority: i32,
    /// The place of its submission.
    pub submitted_seq: u64,
    /// Whether it is held until somebody decides.
    pub held: bool,
    /// How many slots it takes.
    pub weight: u32,
    /// The key that only one of its jobs may have.
    pub concurrency_key: Option<&'a str>,
    /// When its turn may come, if not at once.
    pub ready_at: Option<Timestamp>,
    /// When the time for all of it is up.
    pub deadline_at: Option<Timestamp>,
    /// Whether it is a task of the daemon's own.
    pub in_process: bool,
}

/// Why a waiting Runner is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Somebody has to decide first.
    Held,
    /// Its turn may only come then.
    Until {
        /// When.
        at: Timestamp,
    },
    /// Another one has its key.
    Key {
        /// The key.
        key: String,
        /// Who has it.
        holder: RunnerId,
    },
    /// Its queue is paused.
    Paused {
        /// Which.
        queue: String,
    },
    /// The daemon stops: it waits for the next start.
    Stopping,
    /// Its turn has come, but nothing can be recorded, so nothing is started.
    StoreFailing,
    /// All slots are taken.
    Line {
        /// Its place among those that could start, from 1.
        position: usize,
        /// How many these are.
        of: usize,
        /// The first of those before it.
        ahead: Vec<RunnerId>,
        /// What has no slot for it.
        limit: Limit,
        /// The first of those that have the slots.
        running: Vec<RunnerId>,
    },
}

/// What bounds how many run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A queue's own limit.
    Queue {
        /// Which queue.
        name: String,
        /// Its slots.
        max: u32,
    },
    /// The daemon's limit for processes.
    Daemon {
        /// Its slots.
        max: u32,
    },
    /// The daemon's limit for tasks of its own.
    InProcess {
        /// Its slots.
        max: u32,
    },
}

/// A queue at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// What holds for it.
    pub settings: QueueSettings,
    /// Whether that was set over the API, not by the operator's settings.
    pub changed: bool,
    /// Jobs that wait in it, for whatever reason.
    pub queued: usize,
    /// Jobs of it that could start if there were a slot.
    pub ready: usize,
    /// Jobs of it that run.
    pub running: usize,
    /// Slots that these take.
    pub slots: u64,
}

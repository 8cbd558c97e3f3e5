//! What the core is told and what it answers with.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    job::{AttemptKey, Event, Requester, RunnerId, Spec},
    supervisor::ports::{IdempotencyKey, KeyedSubmission, Report},
};

/// What the operator decides.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs that run at once.
    pub max_running: usize,
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
}

/// Whom to answer: the request's Runner and a number, which is 0 for its submission.
pub type Token = (RunnerId, u64);

/// What the core is told.
#[derive(Debug)]
pub enum Input {
    /// Somebody submits a job.
    Submit {
        /// The id of the Runner to make.
        id: RunnerId,
        /// The job.
        spec: Arc<Spec>,
        /// The client's key.
        key: Option<IdempotencyKey>,
        /// Whom to answer.
        token: Token,
    },
    /// Somebody wants a Runner cancelled; the second time by force.
    Cancel {
        /// Which.
        id: RunnerId,
        /// Who.
        by: Requester,
        /// Whom to answer.
        token: Token,
    },
    /// Somebody wants a Runner closed. Never forces.
    Close {
        /// Which.
        id: RunnerId,
        /// Who.
        by: Requester,
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

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make the Runner and prepare it.
    Prepare(RunnerId, AttemptKey),
    /// Execute. Held.
    Go(AttemptKey),
    /// Cancel the main task. Held.
    Cancel(AttemptKey),
    /// Kill. Held, unless everything is being killed.
    Force(AttemptKey),
    /// Forget a Runner that never went.
    Abort(AttemptKey),
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
}

/// What an input leads to.
#[derive(Debug, Default)]
pub struct Output {
    /// What happened.
    pub events: Vec<Event>,
    /// Keys of submissions among them.
    pub keys: Vec<KeyedSubmission>,
    /// To be done at once.
    pub now: Vec<Effect>,
    /// To be done when the events are durable.
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
    /// From their start to their close.
    pub active: usize,
}

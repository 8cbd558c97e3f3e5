//! What the rest of the program holds of the supervisor: cheap to clone, with plain verbs.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    core::{Answer, Counts},
    hub::{Hub, Subscription},
    ports::{IdempotencyKey, LoopFacts},
};
use crate::job::{Event, Outcome, Record, Requester, RunnerId, Spec, State};

/// A handle on the supervisor.
#[derive(Clone)]
pub struct Supervisor {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) hub: Arc<Hub>,
    pub(super) archive: Arc<dyn Archive>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) log_root: Arc<PathBuf>,
}

/// What is asked of the supervisor.
#[derive(Debug)]
pub(super) enum Command {
    Submit { id: RunnerId, spec: Arc<Spec>, key: Option<IdempotencyKey>, reply: oneshot::Sender<Reply> },
    Cancel { id: RunnerId, by: Requester, reply: oneshot::Sender<Reply> },
    Close { id: RunnerId, by: Requester, reply: oneshot::Sender<Reply> },
    Loop { id: RunnerId, reply: oneshot::Sender<Option<LoopFacts>> },
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Answer(Answer),
    Duplicate { original: RunnerId, same_body: bool },
    StoreFailing(String),
    NotRecorded(String),
}

/// What the supervisor says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Where it is.
    pub stage: Stage,
    /// How many Runners are where.
    pub counts: Counts,
}

/// Where the supervisor is.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// It puts the records right after the last end.
    Recovering,
    /// It takes jobs and runs them.
    Ready,
    /// The store takes nothing; what runs goes on.
    StoreFailing {
        /// Why.
        reason: String,
    },
    /// A signal came; what runs is being cancelled.
    Draining {
        /// When everything that is left is killed.
        deadline: Instant,
    },
    /// It has ended.
    Ended,
}

/// A submission that was accepted: it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// The Runner.
    pub id: RunnerId,
    /// Whether an earlier submission with this key made it.
    pub replayed: bool,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The daemon stops.
    #[error("the daemon is shutting down")]
    Draining,
    /// Too many jobs wait.
    #[error("too many jobs are queued already")]
    QueueFull,
    /// The key was used for another body.
    #[error("the idempotency key was used for another body, for the Runner {original}")]
    KeyReused {
        /// The Runner it made.
        original: RunnerId,
    },
    /// The store takes nothing.
    #[error("the store takes nothing: {0}")]
    StoreFailing(String),
    /// It is being done, but it is not on record, and would be forgotten if the daemon died now.
    #[error("it is being carried out but can't be recorded: {0}")]
    NotRecorded(String),
    /// There is no such Runner.
    #[error("there is no Runner {0}")]
    NotFound(RunnerId),
    /// It is closed, and was not cancelled.
    #[error("the Runner is closed already: {outcome}")]
    Closed {
        /// How it ended.
        outcome: Outcome,
    },
    /// Nothing runs on it that could be cancelled.
    #[error("nothing runs on it")]
    Idle,
    /// It is not kept open.
    #[error("it is not kept open")]
    NotKeptOpen,
    /// It is being closed.
    #[error("it is being closed")]
    Closing,
    /// It takes more slots than there are.
    #[error("it takes more than all {max} slots")]
    TooHeavy {
        /// How many there are.
        max: u32,
    },
    /// It has had as many runs as one record holds.
    #[error("it has had {max} runs")]
    TooManyRuns {
        /// How many that are.
        max: u32,
    },
    /// One is a process, the other a task of the daemon's.
    #[error("another loop")]
    OtherLoop,
    /// The supervisor has ended.
    #[error("the supervisor has ended")]
    Ended,
}

/// How a cancellation was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was accepted and is durable.
    Accepted,
    /// It was so already.
    AlreadySo,
}

/// The store could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store could not be read: {0}")]
pub struct ReadError(pub String);

/// A read that runs off the async workers.
pub type Reading<T> = Pin<Box<dyn Future<Output = Result<T, ReadError>> + Send>>;

/// Which Runners to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In one of these states; empty: in any.
    pub states: Vec<State>,
    /// With one of these outcomes; empty: any or none.
    pub outcomes: Vec<Outcome>,
    /// In this queue.
    pub queue: Option<String>,
    /// With this name.
    pub name: Option<String>,
    /// With all of these labels.
    pub labels: Vec<(String, String)>,
    /// Submitted before the Runner with this `submitted_seq`.
    pub before: Option<u64>,
    /// How many at the most.
    pub limit: usize,
}

/// Committed records and events, to be read by anybody at any time.
pub trait Archive: Send + Sync + 'static {
    /// One record.
    fn record(&self, id: RunnerId) -> Reading<Option<Record>>;
    /// Records, newest first.
    fn list(&self, filter: Filter) -> Reading<Vec<Record>>;
    /// Events after a place, oldest first, of one Runner or of all.
    fn events(&self, after: u64, runner: Option<RunnerId>, limit: usize) -> Reading<Vec<Event>>;
    /// The Runner that a key made, and the hash of its body.
    fn keyed(&self, key: String) -> Reading<Option<(RunnerId, [u8; 32])>>;
}

impl Supervisor {
    /// Submits a job. Answered when it is durable. Dropping the future does not take it back: it is
    /// committed or absent, never half.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing was accepted.
    pub async fn submit(
        &self,
        id: RunnerId,
        spec: Arc<Spec>,
        key: Option<IdempotencyKey>,
    ) -> Result<Submitted, Refusal> {
        let replay = |original, same_body| match same_body {
            true => Ok(Submitted { id: original, replayed: true }),
            false => Err(Refusal::KeyReused { original }),
        };
        if let Some(key) = &key {
            let known = self.archive.keyed(key.key.clone()).await;
            if let Some((original, body)) = known.map_err(|error| Refusal::StoreFailing(error.0))? {
                return replay(original, body == key.body);
            }
        }
        match self.ask(|reply| Command::Submit { id, spec, key, reply }).await? {
            Reply::Duplicate { original, same_body } => replay(original, same_body),
            Reply::StoreFailing(reason) | Reply::NotRecorded(reason) => Err(Refusal::StoreFailing(reason)),
            Reply::Answer(answer) => match answer {
                Answer::Accepted | Answer::AlreadySo => Ok(Submitted { id, replayed: false }),
                Answer::Denied(denied) => Err(denied.into()),
                Answer::Unknown => Err(Refusal::Ended),
            },
        }
    }

    /// Cancels a Runner's main task; the second time by force. Answered when it is durable.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Closed`] where there was nothing left to cancel, or
    /// [`Refusal::NotRecorded`].
    pub async fn cancel(&self, id: RunnerId, by: Requester) -> Result<Taken, Refusal> {
        let reply = self.ask(|reply| Command::Cancel { id, by, reply }).await?;
        self.taken(id, reply, true).await
    }

    /// Closes a Runner: cancels, drains, closes. Never forces; closing a closed one is no error.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] or [`Refusal::NotRecorded`].
    pub async fn close(&self, id: RunnerId, by: Requester) -> Result<Taken, Refusal> {
        let reply = self.ask(|reply| Command::Close { id, by, reply }).await?;
        self.taken(id, reply, false).await
    }

    /// What is on a Runner's loop. One that has not started yet has nothing on it: Runners are lazy.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], or [`Refusal::Closed`] as on any closed Runner.
    pub async fn get_loop(&self, id: RunnerId) -> Result<LoopFacts, Refusal> {
        if let Some(facts) = self.ask(|reply| Command::Loop { id, reply }).await? {
            return Ok(facts);
        }
        let record = self.archive.record(id).await.map_err(|error| Refusal::StoreFailing(error.0))?;
        match record.ok_or(Refusal::NotFound(id))?.outcome {
            Some(outcome) => Err(Refusal::Closed { outcome }),
            None => Ok(LoopFacts::default()),
        }
    }

    async fn taken(&self, id: RunnerId, reply: Reply, cancel: bool) -> Result<Taken, Refusal> {
        let answer = match reply {
            Reply::Answer(answer) => answer,
            Reply::Duplicate { .. } => Answer::Unknown,
            Reply::StoreFailing(reason) | Reply::NotRecorded(reason) => {
                return Err(Refusal::NotRecorded(reason));
            }
        };
        match answer {
            Answer::Accepted => Ok(Taken::Accepted),
            Answer::AlreadySo => Ok(Taken::AlreadySo),
            Answer::Denied(denied) => Err(denied.into()),
            Answer::Unknown => {
                let record = self.archive.record(id).await.map_err(|error| Refusal::StoreFailing(error.0))?;
                let record = record.ok_or(Refusal::NotFound(id))?;
                match record.outcome {
                    Some(outcome) if cancel && record.cancel.is_none() => Err(Refusal::Closed { outcome }),
                    Some(_) | None => Ok(Taken::AlreadySo),
                }
            }
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Refusal::Ended)?;
        answer.await.map_err(|_| Refusal::Ended)
    }

    /// Listens to one Runner's committed changes.
    pub fn subscribe(&self, id: RunnerId) -> Subscription {
        self.hub.subscribe(id)
    }

    /// The place of the last committed event, and its changes.
    pub fn last_event(&self) -> watch::Receiver<u64> {
        self.hub.last()
    }

    /// Committed records and events.
    pub fn archive(&self) -> &dyn Archive {
        &*self.archive
    }

    /// What the supervisor says of itself, and its changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Where the output of an attempt is.
    pub fn log_dir(&self, id: RunnerId, run: u32, attempt: u32) -> PathBuf {
        super::attempt_dir(&self.log_root, id, run, attempt)
    }
}

impl From<super::core::Denied> for Refusal {
    fn from(denied: super::core::Denied) -> Self {
        match denied {
            super::core::Denied::Draining => Self::Draining,
            super::core::Denied::QueueFull => Self::QueueFull,
        }
    }
}

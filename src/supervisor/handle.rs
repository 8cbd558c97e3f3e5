//! What the rest of the program holds of the supervisor: cheap to clone, with plain verbs.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    core::{Answer, Change, Counts, Limits, QueueStatus, Request, Standing},
    hub::{Hub, Subscription},
    ports::{Delivery, IdempotencyKey, LoopFacts},
};
use crate::job::{
    ContextValue, Event, Job, Outcome, QueueSettings, Record, Requester, RunnerId, SharedContext, Spec, State,
};

/// A handle on the supervisor.
#[derive(Clone)]
pub struct Supervisor {
    pub(super) commands: mpsc::Sender<Sent<Command>>,
    /// Taken between commits only: see [`super::actor`].
    pub(super) submissions: mpsc::Sender<Sent<Submitting>>,
    pub(super) hub: Arc<Hub>,
    pub(super) archive: Arc<dyn Archive>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) context: watch::Receiver<Arc<SharedContext>>,
    pub(super) log_root: Arc<PathBuf>,
}

/// A request, and when it was sent.
#[derive(Debug)]
pub(super) struct Sent<T> {
    pub(super) at: Instant,
    pub(super) what: T,
}

impl<T> From<T> for Sent<T> {
    fn from(what: T) -> Self {
        Self { at: Instant::now(), what }
    }
}

/// A submission, and who waits for what became of it.
#[derive(Debug)]
pub(super) struct Submitting {
    pub(super) submission: Submission,
    pub(super) until: Until,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// What an answer waits for. Who waits for an end is woken for that alone.
#[derive(Clone, Debug)]
pub(super) enum Until {
    /// What was asked for is durable, or refused.
    Durable,
    /// What was submitted is over, or refused. This becomes true when it is durable.
    Over(Arc<AtomicBool>),
}

impl Until {
    pub(super) fn is_met_by(&self, reply: &Reply) -> bool {
        match (self, reply) {
            (Self::Over(durable), Reply::Submitted(record)) => {
                durable.store(true, Ordering::Release);
                record.is_over_as_submitted()
            }
            (Self::Over(_), Reply::Answer(Answer::Accepted)) => false,
            _ => true,
        }
    }
}

/// What is asked of the supervisor.
#[derive(Debug)]
pub(super) enum Command {
    /// All of them in one transaction.
    Submit(Vec<Submitting>),
    Ask {
        id: RunnerId,
        request: Request,
        reply: oneshot::Sender<Reply>,
    },
    Change {
        change: Change,
        reply: oneshot::Sender<Reply>,
    },
    Loop {
        id: RunnerId,
        reply: oneshot::Sender<Option<LoopFacts>>,
    },
    Standing {
        id: RunnerId,
        reply: oneshot::Sender<Option<Standing>>,
    },
    Queues {
        reply: oneshot::Sender<Vec<QueueStatus>>,
    },
    Pulse {
        reply: oneshot::Sender<()>,
    },
}

/// A job to be accepted.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The id of the Runner to make.
    pub id: RunnerId,
    /// The job.
    pub spec: Arc<Spec>,
    /// The client's key, which few have: a thousand may come at once.
    pub key: Option<Box<IdempotencyKey>>,
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Answer(Answer),
    Submitted(Arc<Record>),
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
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// The Runner.
    pub id: RunnerId,
    /// Whether an earlier submission with this key made it.
    pub replayed: bool,
    /// Its record as it was made durable, or as it was waited for; `None` where an earlier submission made it, or where the
    /// wait was up.
    pub record: Option<Arc<Record>>,
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
    /// It takes more slots than there are.
    #[error("it takes more slots than there are: {max}")]
    TooHeavy {
        /// How many there are.
        max: u32,
    },
    /// Nothing runs on it that could be cancelled.
    #[error("nothing runs on the Runner; close it instead")]
    Idle,
    /// It is not kept open.
    #[error("the Runner is not kept open: it takes no other run")]
    NotKeptOpen,
    /// It is being closed.
    #[error("the Runner is being closed")]
    Closing,
    /// It has had as many runs as one record holds.
    #[error("the Runner has had {max} runs, and takes no more")]
    TooManyRuns {
        /// How many that are.
        max: u32,
    },
    /// One is a process, the other a task of the daemon's: they don't share a loop.
    #[error("a Runner takes either processes or jobs that run in the daemon, as its first job was")]
    OtherLoop,
    /// It runs as somebody else than the Runner's first job.
    #[error("all runs of a Runner run as the same user and group")]
    OtherUser,
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

/// Runners that are looked at for one page, so that it takes milliseconds whatever is asked. A page of those that are
/// rare among many ends early then.
pub const LOOKS: usize = 2000;

/// A part of a list.
#[derive(Debug)]
pub struct Listed<T = Record> {
    /// What was found, newest first.
    pub found: Vec<T>,
    /// The place to go on before ([`Filter::before`]); `None` where there are no more.
    pub next: Option<u64>,
    /// How many were looked at to find these.
    pub looked: usize,
}

/// Committed records and events, to be read by anybody at any time.
pub trait Archive: Send + Sync + 'static {
    /// One record.
    fn record(&self, id: RunnerId) -> Reading<Option<Record>>;
    /// Records, newest first: as many as are asked for, or those among the next [`LOOKS`].
    fn list(&self, filter: Filter) -> Reading<Listed>;
    /// The same of nothing but who they are and where: a record is read event by event.
    fn list_states(&self, filter: Filter) -> Reading<Listed<(RunnerId, State)>>;
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
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, Refusal> {
        if let Some(known) = self.earlier(&submission).await? {
            return Ok(known);
        }
        let (id, until) = (submission.id, Until::Durable);
        let reply = ask(&self.submissions, |reply| Submitting { submission, until, reply }).await?;
        submitted(id, reply)
    }

    /// The same, but answered when the Runner is over, or its first run where it is kept open; or when `up` is, though
    /// not before it is durable. What an earlier submission made is not waited for.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing was accepted.
    pub async fn submit_and_wait(
        &self,
        submission: Submission,
        up: impl Future<Output = ()>,
    ) -> Result<Submitted, Refusal> {
        if let Some(known) = self.earlier(&submission).await? {
            return Ok(known);
        }
        let (id, durable) = (submission.id, Arc::<AtomicBool>::default());
        let until = Until::Over(Arc::clone(&durable));
        let mut over = pin!(ask(&self.submissions, |reply| Submitting { submission, until, reply }));
        let ended = tokio::select! {
            biased;
            reply = &mut over => match reply {
                Ok(reply) => return submitted(id, reply),
                Err(ended) => Some(ended),
            },
            () = up => None,
        };
        // Listens first: the commit is told of after it has become true.
        let mut changes = self.subscribe(id);
        if durable.load(Ordering::Acquire) {
            return Ok(Submitted { id, replayed: false, record: None });
        }
        if let Some(ended) = ended {
            return Err(ended);
        }
        tokio::select! {
            biased;
            reply = over => submitted(id, reply?),
            record = changes.changed() => Ok(Submitted { id, replayed: false, record: Some(record) }),
        }
    }

    /// What an earlier submission with the same key made.
    async fn earlier(&self, submission: &Submission) -> Result<Option<Submitted>, Refusal> {
        let Some(key) = &submission.key else { return Ok(None) };
        let known = self.archive.keyed(key.key.clone()).await;
        match known.map_err(|error| Refusal::StoreFailing(error.0))? {
            Some((original, body)) => replay(original, body == key.body).map(Some),
            None => Ok(None),
        }
    }

    /// Submits jobs in one transaction, with an answer for each, in their order. Answered, and dropped, as
    /// [`Supervisor::submit`].
    ///
    /// # Errors
    /// [`Refusal`] for each that was not accepted; the others were.
    pub async fn submit_batch(&self, jobs: Vec<Submission>) -> Vec<Result<Submitted, Refusal>> {
        let ids: Vec<RunnerId> = jobs.iter().map(|job| job.id).collect();
        let (jobs, answers): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .map(|submission| {
                let (reply, answer) = oneshot::channel();
                (Submitting { submission, until: Until::Durable, reply }, answer)
            })
            .unzip();
        // Nobody there: then no answer comes, which says the same.
        drop(self.commands.send(Command::Submit(jobs).into()).await);
        let mut results = Vec::with_capacity(ids.len());
        for (id, answer) in ids.into_iter().zip(answers) {
            results.push(answer.await.map_err(|_| Refusal::Ended).and_then(|reply| submitted(id, reply)));
        }
        results
    }

    /// Cancels a Runner's main task; the second time by force. Answered when it is durable.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Closed`] where there was nothing left to cancel, [`Refusal::Idle`], or
    /// [`Refusal::NotRecorded`].
    pub async fn cancel(&self, id: RunnerId, by: Requester) -> Result<Taken, Refusal> {
        let reply = self.request(id, Request::Cancel(by)).await?;
        self.taken(id, reply, true).await
    }

    /// Closes a Runner: cancels, drains, closes. Never forces; closing a closed one is no error.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] or [`Refusal::NotRecorded`].
    pub async fn close(&self, id: RunnerId, by: Requester) -> Result<Taken, Refusal> {
        let reply = self.request(id, Request::Close(by)).await?;
        self.taken(id, reply, false).await
    }

    /// Lets a held Runner start. One that is not held is no error.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::Closed`] or [`Refusal::NotRecorded`].
    pub async fn release(&self, id: RunnerId, by: Requester) -> Result<Taken, Refusal> {
        let reply = self.request(id, Request::Release(by)).await?;
        self.taken(id, reply, true).await
    }

    /// Runs another job on a Runner that is kept open, after those that were asked for before. Gives the number of
    /// the run. Answered when it is durable.
    ///
    /// # Errors
    /// [`Refusal`]; then it was not accepted.
    pub async fn add_run(&self, id: RunnerId, job: Arc<Job>) -> Result<u32, Refusal> {
        match self.request(id, Request::AddRun(job)).await? {
            Reply::Answer(Answer::Run(run)) => Ok(run),
            reply => match self.taken(id, reply, false).await? {
                Taken::Accepted | Taken::AlreadySo => Err(self.closed(id).await),
            },
        }
    }

    async fn closed(&self, id: RunnerId) -> Refusal {
        match self.archive.record(id).await {
            Ok(Some(Record { outcome: Some(outcome), .. })) => Refusal::Closed { outcome },
            Ok(Some(_)) => Refusal::Closing,
            Ok(None) => Refusal::NotFound(id),
            Err(error) => Refusal::StoreFailing(error.0),
        }
    }

    /// Changes a queue; `None`: back to the operator's settings. Answered when it is durable.
    ///
    /// # Errors
    /// [`Refusal::NotRecorded`]
    pub async fn set_queue(&self, name: String, settings: Option<QueueSettings>) -> Result<(), Refusal> {
        self.change(Change::Queue(name, settings)).await.map(drop)
    }

    /// Takes over what the operator's settings say of limits and queues now. Nothing that runs is touched.
    ///
    /// # Errors
    /// [`Refusal::Ended`]
    pub async fn set_settings(
        &self,
        limits: Limits,
        queues: BTreeMap<String, QueueSettings>,
    ) -> Result<(), Refusal> {
        match self.change(Change::Settings(limits, queues)).await {
            // It is in the settings, not in the store.
            Ok(_) | Err(Refusal::NotRecorded(_)) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// The queues that are configured, were changed or are used.
    ///
    /// # Errors
    /// [`Refusal::Ended`]
    pub async fn queues(&self) -> Result<Vec<QueueStatus>, Refusal> {
        self.ask(|reply| Command::Queues { reply }).await
    }

    /// Sets a variable of the shared context; `None` unsets it. Gives the version of the context with it. Answered
    /// when it is durable.
    ///
    /// # Errors
    /// [`Refusal::NotRecorded`]
    pub async fn set_variable(&self, name: String, value: Option<ContextValue>) -> Result<u64, Refusal> {
        match self.change(Change::Variable(name, value)).await? {
            Answer::Version(version) => Ok(version),
            Answer::Accepted | Answer::AlreadySo | Answer::Run(_) | Answer::Denied(_) | Answer::Unknown => {
                Ok(self.context().version)
            }
        }
    }

    /// The shared context, as it was last made durable.
    pub fn context(&self) -> Arc<SharedContext> {
        Arc::clone(&self.context.borrow())
    }

    /// Forgets closed Runners, with all that belongs to them but the output. Others are left. Answered when it is
    /// durable.
    ///
    /// # Errors
    /// [`Refusal::NotRecorded`]
    pub async fn purge(&self, ids: Vec<RunnerId>) -> Result<(), Refusal> {
        self.change(Change::Purge(ids)).await.map(drop)
    }

    /// Records what became of a message. Answered when it is durable.
    ///
    /// # Errors
    /// [`Refusal::NotRecorded`]
    pub async fn delivered(&self, id: RunnerId, delivery: Delivery) -> Result<(), Refusal> {
        self.change(Change::Delivered(id, delivery)).await.map(drop)
    }

    /// Goes once through the supervisor and the store's writer, and comes back when a commit was tried: what hangs in
    /// either shows as no answer.
    ///
    /// # Errors
    /// [`Refusal::Ended`]
    pub async fn pulse(&self) -> Result<(), Refusal> {
        self.ask(|reply| Command::Pulse { reply }).await
    }

    /// Why a waiting Runner is not running; `None` where it does not wait.
    ///
    /// # Errors
    /// [`Refusal::Ended`]
    pub async fn standing(&self, id: RunnerId) -> Result<Option<Standing>, Refusal> {
        self.ask(|reply| Command::Standing { id, reply }).await
    }

    async fn request(&self, id: RunnerId, request: Request) -> Result<Reply, Refusal> {
        self.ask(|reply| Command::Ask { id, request, reply }).await
    }

    async fn change(&self, change: Change) -> Result<Answer, Refusal> {
        match self.ask(|reply| Command::Change { change, reply }).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Duplicate { .. } => Ok(Answer::Unknown),
            Reply::Submitted(_) => Ok(Answer::Accepted),
            Reply::StoreFailing(reason) | Reply::NotRecorded(reason) => Err(Refusal::NotRecorded(reason)),
        }
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
            Reply::Submitted(_) => Answer::Accepted,
            Reply::StoreFailing(reason) | Reply::NotRecorded(reason) => {
                return Err(Refusal::NotRecorded(reason));
            }
        };
        match answer {
            Answer::Accepted | Answer::Run(_) | Answer::Version(_) => Ok(Taken::Accepted),
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
        ask(&self.commands, command).await
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

async fn ask<Q, T>(
    supervisor: &mpsc::Sender<Sent<Q>>,
    question: impl FnOnce(oneshot::Sender<T>) -> Q,
) -> Result<T, Refusal> {
    let place = supervisor.reserve().await.map_err(|_| Refusal::Ended)?;
    let (reply, answer) = oneshot::channel();
    place.send(question(reply).into());
    answer.await.map_err(|_| Refusal::Ended)
}

fn replay(original: RunnerId, same_body: bool) -> Result<Submitted, Refusal> {
    match same_body {
        true => Ok(Submitted { id: original, replayed: true, record: None }),
        false => Err(Refusal::KeyReused { original }),
    }
}

fn submitted(id: RunnerId, reply: Reply) -> Result<Submitted, Refusal> {
    match reply {
        Reply::Duplicate { original, same_body } => replay(original, same_body),
        Reply::Submitted(record) => Ok(Submitted { id, replayed: false, record: Some(record) }),
        Reply::StoreFailing(reason) | Reply::NotRecorded(reason) => Err(Refusal::StoreFailing(reason)),
        Reply::Answer(answer) => match answer {
            Answer::Accepted | Answer::AlreadySo | Answer::Run(_) | Answer::Version(_) => {
                Ok(Submitted { id, replayed: false, record: None })
            }
            Answer::Denied(denied) => Err(denied.into()),
            Answer::Unknown => Err(Refusal::Ended),
        },
    }
}

impl From<super::core::Denied> for Refusal {
    fn from(denied: super::core::Denied) -> Self {
        match denied {
            super::core::Denied::Draining => Self::Draining,
            super::core::Denied::QueueFull => Self::QueueFull,
            super::core::Denied::TooHeavy { max } => Self::TooHeavy { max },
            super::core::Denied::Idle => Self::Idle,
            super::core::Denied::Unreadable => Self::StoreFailing("its record can't be read".into()),
            super::core::Denied::NotKeptOpen => Self::NotKeptOpen,
            super::core::Denied::Closing => Self::Closing,
            super::core::Denied::TooManyRuns { max } => Self::TooManyRuns { max },
            super::core::Denied::OtherLoop => Self::OtherLoop,
            super::core::Denied::OtherUser => Self::OtherUser,
        }
    }
}

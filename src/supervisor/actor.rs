//! Awaits an input, lets the core decide, performs the effects. The only writer of the supervisor's state.
//!
//! Single submissions are taken between commits only: while one is under way they could do no more than wait for the
//! next, and each would wake this loop. Whatever else is asked is taken at once, as the disk may be slow.

use std::{
    collections::hash_map::Entry,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashSet};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant as TokioInstant, Sleep, sleep_until},
};

use super::{
    core::{Core, Effect, Input, Now, Output, Phase, Standing, Token},
    handle::{Archive, Command, Reply, Sent, Stage, Status, Submission, Submitting, Supervisor, Until},
    hub::Hub,
    ports::{AppendError, Batch, EventLog, Records, Report, Runners},
    wall_clock::WallClock,
    writer::{Writer, Written},
};
use crate::{
    job::{Outcome, Record, RunnerId, SharedContext},
    metrics::Metrics,
};

/// Requests taken from the API and not yet handled, and as many submissions. Beyond it callers wait: what they asked
/// for was not accepted yet.
const COMMANDS: usize = 1024;

/// Reports of Runners not yet handled. Beyond it a Runner's driver waits with its shim, and nothing is lost.
pub const REPORTS: usize = 1024;

/// Inputs handled before the effects of the first are performed and a commit is started.
const TURN: usize = 256;

/// Events that may wait for a commit. Beyond it no request is taken until the store has caught up.
const UNCOMMITTED: usize = 8192;

/// How long an event that nobody waits for waits for another one to be committed with. The start of a short job is
/// followed by its end within that time, and two commits do for its life; who follows events sees it so much later at the
/// most.
const LINGER: Duration = Duration::from_millis(5);

/// How long a store that takes nothing is left alone before it is tried again: no event tells of free space.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// How often a shutdown says what it waits for, at most.
const PROGRESS: Duration = Duration::from_secs(1);

/// Answers that wait, before those are looked for whom nobody waits for any more: who waited for an end may have gone.
const SWEEP: usize = 4096;

/// The number of a submission among the requests for its Runner.
const SUBMISSION: u64 = 0;

/// What overtakes all other inputs.
#[derive(Debug)]
pub enum Urgent {
    /// A signal to the daemon: the first drains, the second forces.
    Signal(&'static str),
    /// Nothing can be supervised any more: end at once, and recover at the next start.
    Fatal(Fatal),
}

/// What ends the daemon without a clean shutdown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The keeper died, and with it every job.
    #[error("the keeper process died")]
    KeeperDied,
    /// Nobody knows what the store holds.
    #[error("{0}")]
    StoreBroken(String),
}

/// How the supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After a signal, with everything closed and recorded. `forced`: a second signal came.
    Drained {
        /// Whether force was needed.
        forced: bool,
    },
    /// The time was up; these did not end.
    Abandoned(Vec<RunnerId>),
    /// See [`Fatal`].
    Fatal(Fatal),
}

/// The supervisor's actor. [`Actor::run`] it to the end.
pub struct Actor<R, S> {
    core: Core,
    runners: R,
    records: S,
    commands: mpsc::Receiver<Sent<Command>>,
    submissions: mpsc::Receiver<Sent<Submitting>>,
    reports: mpsc::Receiver<Report>,
    urgent: mpsc::Receiver<Urgent>,
    writer: Writer,
    hub: Arc<Hub>,
    status: watch::Sender<Status>,
    context: watch::Sender<Arc<SharedContext>>,
    metrics: Arc<Metrics>,
    wall_clock: WallClock,
    start: Instant,
    replies: HashMap<Token, Asked>,
    /// How many there may be before those are dropped whom nobody waits for any more.
    sweep_at: usize,
    requests: u64,
    /// Who waits for the next commit, whatever it holds.
    pulses: Vec<oneshot::Sender<()>>,
    /// What the next commit holds; nothing of it is to be done at once any more.
    pending: Output,
    /// Until when it waits for more, where nobody waits for it.
    linger: Option<TokioInstant>,
    /// What the commit under way holds back.
    in_flight: Option<InFlight>,
    /// When the last one ended: submissions waited for that, not for this loop.
    written_at: Instant,
    /// Why the store takes nothing, and when it is tried again.
    failing: Option<(String, TokioInstant)>,
    forced: bool,
    ended: Option<Ended>,
}

/// Who waits for an answer, and what it waits for.
struct Asked {
    reply: oneshot::Sender<Reply>,
    until: Until,
}

struct InFlight {
    held: Vec<Effect>,
    pulses: Vec<oneshot::Sender<()>>,
    /// The shared context, as the commit leaves it.
    context: Arc<SharedContext>,
}

/// What an actor is made of.
pub struct Parts<R, S> {
    /// The core, with what recovery left to do in it.
    pub core: Core,
    /// The Runners.
    pub runners: R,
    /// What they tell; [`REPORTS`] is its capacity.
    pub reports: mpsc::Receiver<Report>,
    /// Signals and the like.
    pub urgent: mpsc::Receiver<Urgent>,
    /// The event log, for the writer thread.
    pub log: Box<dyn EventLog>,
    /// Records that are not in memory.
    pub records: S,
    /// The place of the last committed event.
    pub last_seq: u64,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl<R: Runners, S: Records> Actor<R, S> {
    /// An actor, and the handle for everybody else.
    ///
    /// # Errors
    /// When the writer thread can't be started.
    pub fn new(
        parts: Parts<R, S>,
        archive: Arc<dyn Archive>,
        log_root: std::path::PathBuf,
    ) -> std::io::Result<(Self, Supervisor)> {
        let (commands, received_commands) = mpsc::channel(COMMANDS);
        let (submissions, received_submissions) = mpsc::channel(COMMANDS);
        let hub = Hub::new(parts.last_seq);
        let status = Status { stage: Stage::Recovering, counts: parts.core.counts() };
        let (status, watched) = watch::channel(status);
        let (context, watched_context) = watch::channel(parts.core.context());
        let supervisor = Supervisor {
            commands,
            submissions,
            hub: Arc::clone(&hub),
            archive,
            status: watched,
            context: watched_context,
            log_root: Arc::new(log_root),
        };
        let actor = Self {
            core: parts.core,
            runners: parts.runners,
            records: parts.records,
            commands: received_commands,
            submissions: received_submissions,
            reports: parts.reports,
            urgent: parts.urgent,
            writer: Writer::start(parts.log, Arc::clone(&parts.metrics))?,
            hub,
            status,
            context,
            metrics: parts.metrics,
            wall_clock: WallClock::default(),
            start: Instant::now(),
            replies: HashMap::default(),
            sweep_at: SWEEP,
            requests: 0,
            pulses: Vec::new(),
            pending: Output::default(),
            linger: None,
            in_flight: None,
            written_at: Instant::now(),
            failing: None,
            forced: false,
            ended: None,
        };
        Ok((actor, supervisor))
    }

    /// Runs until a signal has ended everything. The store is open until this is dropped.
    pub async fn run(&mut self) -> Ended {
        let mut told = Instant::now();
        let mut alarm = pin!(sleep_until(far().into()));
        // What waited when the daemon ended may start.
        self.input(Input::Tick);
        loop {
            self.flush();
            if let Some(ended) = self.ended.take() {
                self.status.send_modify(|status| status.stage = Stage::Ended);
                return ended;
            }
            self.publish_status();
            if self.draining() && told.elapsed() >= PROGRESS {
                told = Instant::now();
                self.tell_progress();
            }
            self.turn(alarm.as_mut()).await;
        }
    }

    /// Waits for an input, and handles it with all that came along.
    async fn turn(&mut self, mut alarm: Pin<&mut Sleep>) {
        let deadline = self.core.next_deadline().map(|at| self.start + at);
        let retry = self.failing.as_ref().map(|(_, at)| at.into_std());
        let progress = self.draining().then(|| Instant::now() + PROGRESS);
        let linger = self.linger.map(TokioInstant::into_std);
        let wake = [deadline, retry, progress, linger].into_iter().flatten().min();
        if let Some(wake) = wake.map(TokioInstant::from_std)
            && (alarm.is_elapsed() || alarm.deadline() != wake)
        {
            // One alarm that is set again: a new one for each turn wakes this very loop.
            alarm.as_mut().reset(wake);
        }
        self.wall_clock.set(self.core.next_wall_deadline());
        let behind = self.is_behind();
        let between_commits = self.in_flight.is_none();
        tokio::select! {
            biased;
            Some(urgent) = self.urgent.recv() => self.urgent(urgent),
            written = self.writer.written(), if !between_commits => self.written(written),
            Some(report) = self.reports.recv() => self.input(Input::Report(report)),
            Some(command) = self.commands.recv(), if !behind => self.command(command),
            Some(submitting) = self.submissions.recv(), if !behind && between_commits => self.submit(submitting),
            () = self.wall_clock.rings() => self.input(Input::Tick),
            () = alarm, if wake.is_some() => self.input(Input::Tick),
        }
        for _ in 0..TURN {
            let mut came = self.reports.try_recv().map(|report| self.input(Input::Report(report))).is_ok();
            // One command may be a thousand submissions.
            if !self.is_behind() {
                came |= self.commands.try_recv().map(|command| self.command(command)).is_ok();
                if self.in_flight.is_none() {
                    came |= self.submissions.try_recv().map(|submitting| self.submit(submitting)).is_ok();
                }
            }
            if !came {
                break;
            }
        }
    }

    fn is_behind(&self) -> bool {
        self.pending.batch.events.len() >= UNCOMMITTED
    }

    fn draining(&self) -> bool {
        matches!(self.core.phase(), Phase::Draining { .. } | Phase::Forcing { .. })
    }

    fn urgent(&mut self, urgent: Urgent) {
        match urgent {
            Urgent::Signal(name) => {
                self.forced |= self.draining();
                match self.forced {
                    false => tracing::info!(signal = name, "stopping: every job is being cancelled"),
                    true => tracing::warn!(signal = name, "second signal: everything is being killed"),
                }
                self.input(Input::Signal { name });
            }
            Urgent::Fatal(fatal) => self.ended = Some(Ended::Fatal(fatal)),
        }
    }

    fn submit(&mut self, Sent { at, what }: Sent<Submitting>) {
        self.metrics.core_lag.observe(at.max(self.written_at).elapsed());
        self.accept(what);
    }

    fn accept(&mut self, Submitting { submission, until, reply }: Submitting) {
        if let Some((reason, _)) = &self.failing {
            // The client may have gone: then there is nobody to tell. So below.
            drop(reply.send(Reply::StoreFailing(reason.clone())));
            return;
        }
        let Submission { id, spec, key } = submission;
        let token = (id, SUBMISSION);
        if self.replies.len() >= self.sweep_at {
            self.replies.retain(|_, asked| !asked.reply.is_closed());
            self.sweep_at = SWEEP.max(2 * self.replies.len());
        }
        self.replies.insert(token, Asked { reply, until });
        self.input(Input::Submit { id, spec, key, token });
    }

    fn command(&mut self, Sent { at, what }: Sent<Command>) {
        self.metrics.core_lag.observe(at.elapsed());
        match what {
            Command::Submit(submissions) => submissions.into_iter().for_each(|one| self.accept(one)),
            Command::Ask { id, request, reply } => {
                let token = self.expect_reply(id, reply);
                self.input(Input::Ask { id, request, token });
            }
            Command::Change { change, reply } => {
                let token = self.expect_reply(RunnerId::from_u128(0), reply);
                self.input(Input::Change { change, token });
            }
            Command::Loop { id, reply } => {
                let facts = self.core.attempt(id).and_then(|key| self.runners.get_loop(key));
                drop(reply.send(facts));
            }
            Command::Standing { id, reply } => {
                // One whose start could not be recorded does not wait for the core any more.
                let starts =
                    || self.failing.as_ref().and(self.core.attempt(id)).map(|_| Standing::StoreFailing);
                drop(reply.send(self.core.standing(id, &self.records).or_else(starts)));
            }
            Command::Queues { reply } => drop(reply.send(self.core.queues())),
            Command::Pulse { reply } => self.pulses.push(reply),
        }
    }

    fn expect_reply(&mut self, id: RunnerId, reply: oneshot::Sender<Reply>) -> Token {
        self.requests += 1;
        let token = (id, self.requests);
        self.replies.insert(token, Asked { reply, until: Until::Durable });
        token
    }

    fn input(&mut self, input: Input) {
        let now = Now { wall: now(), mono: self.start.elapsed(), jitter };
        self.core.handle_into(&mut self.pending, now, input, &self.records);
        let mut now = std::mem::take(&mut self.pending.now);
        now.drain(..).for_each(|effect| self.perform(effect));
        self.pending.now = now;
    }

    /// Starts a commit, if there is something to commit and none is under way.
    fn flush(&mut self) {
        if self.in_flight.is_some() || self.failing.as_ref().is_some_and(|(_, at)| *at > TokioInstant::now())
        {
            return;
        }
        if self.pending.batch.is_empty() {
            for effect in std::mem::take(&mut self.pending.held) {
                self.perform(effect);
            }
            // Otherwise there is nothing to be written, but somebody to be told whether the store takes it.
            if self.pulses.is_empty() && self.failing.is_none() {
                return;
            }
        }
        if self.lingers() {
            return;
        }
        self.linger = None;
        let mut batch = std::mem::take(&mut self.pending.batch);
        let held = std::mem::take(&mut self.pending.held);
        // About as many come during this commit.
        self.pending.batch.events.reserve(batch.events.len().min(TURN));
        self.pending.held.reserve(held.len().min(TURN));
        let records = self.core.take_changed();
        // After a failed commit there are older snapshots; the newer ones hold all that they do.
        batch.append(Batch { records, ..Batch::default() });
        let pulses = std::mem::take(&mut self.pulses);
        self.in_flight = Some(InFlight { held, pulses, context: self.core.context() });
        self.writer.write(batch);
    }

    /// Whether nobody waits for what is pending, and it may wait for more.
    fn lingers(&mut self) -> bool {
        let Output { batch, held, now: _ } = &self.pending;
        if !held.is_empty() || !self.pulses.is_empty() || self.failing.is_some() || !batch.can_wait() {
            return false;
        }
        let now = TokioInstant::now();
        now < *self.linger.get_or_insert(now + LINGER)
    }

    fn written(&mut self, Written { batch, result, at }: Written) {
        self.written_at = at;
        // A store that refuses is not one that is stuck.
        for pulse in self.in_flight.iter_mut().flat_map(|in_flight| in_flight.pulses.drain(..)) {
            pulse.send(()).ok();
        }
        match result {
            Ok(duplicates) => {
                if self.failing.take().is_some() {
                    tracing::info!("the store takes records again");
                }
                let refused: HashSet<RunnerId> =
                    duplicates.iter().map(|duplicate| duplicate.runner).collect();
                for duplicate in duplicates {
                    let reply =
                        Reply::Duplicate { original: duplicate.original, same_body: duplicate.same_body };
                    self.answer((duplicate.runner, SUBMISSION), reply);
                }
                let upto = batch.events.last().map_or(0, |event| event.seq);
                let mut records = batch.records;
                records.retain(|record| !refused.contains(&record.id));
                self.forget(refused);
                records.iter().for_each(|record| tell_end(record));
                // Before the held answers, which say no more than that it was accepted.
                for record in &records {
                    if !self.replies.is_empty() {
                        self.answer((record.id, SUBMISSION), Reply::Submitted(Arc::clone(record)));
                    }
                }
                self.hub.publish(&records, upto);
                self.input(Input::Committed { upto });
                if let Some(InFlight { held, context, pulses: _ }) = self.in_flight.take() {
                    self.context.send_if_modified(|known| {
                        let newer = context.version > known.version;
                        if newer {
                            *known = context;
                        }
                        newer
                    });
                    held.into_iter().for_each(|effect| self.perform(effect));
                }
                give_back(batch.events);
            }
            Err(AppendError::Refused(reason)) => {
                let held = self.in_flight.take().map(|in_flight| in_flight.held);
                self.store_refused(batch, held.unwrap_or_default(), reason);
            }
            Err(AppendError::Broken(reason)) => self.ended = Some(Ended::Fatal(Fatal::StoreBroken(reason))),
        }
    }

    /// The submissions are given back, the rest is kept and tried again: supervision goes on.
    fn store_refused(&mut self, batch: Batch, held: Vec<Effect>, reason: String) {
        if self.failing.is_none() {
            tracing::error!(%reason, "the store takes nothing: new jobs are refused until it does");
        }
        self.failing = Some((reason.clone(), TokioInstant::now() + STORE_RETRY));
        let refused: HashSet<RunnerId> = (batch.events.iter())
            .filter(|event| matches!(event.kind, crate::job::EventKind::Submitted { .. }))
            .map(|event| event.runner)
            .collect();
        for id in &refused {
            self.answer((*id, SUBMISSION), Reply::StoreFailing(reason.clone()));
        }
        let newer = std::mem::replace(&mut self.pending, Output { batch, held, now: Vec::new() });
        self.pending.batch.append(newer.batch);
        self.pending.held.extend(newer.held);
        self.forget(refused);
        // What is to be stopped is stopped, whatever the disk does; but nobody is told that it is on record.
        for effect in std::mem::take(&mut self.pending.held) {
            match effect {
                Effect::Reply(token, _) => self.answer(token, Reply::NotRecorded(reason.clone())),
                Effect::Cancel(_) | Effect::Force(_) => self.perform(effect),
                // Waiting for room could take for ever. What ended is with the shims, for the next start.
                Effect::Finished { .. } => {
                    self.ended = Some(Ended::Fatal(Fatal::StoreBroken(reason.clone())));
                }
                Effect::Prepare(..)
                | Effect::Go(_)
                | Effect::Abort(_)
                | Effect::Close(..)
                | Effect::Settled(_) => self.pending.held.push(effect),
            }
        }
    }

    /// Drops all that is still to be written of submissions that the store did not take.
    fn forget(&mut self, ids: HashSet<RunnerId>) {
        if ids.is_empty() {
            return;
        }
        self.pending.batch.events.retain(|event| !ids.contains(&event.runner));
        self.pending.batch.records.retain(|record| !ids.contains(&record.id));
        self.pending.batch.keys.retain(|keyed| !ids.contains(&keyed.runner));
        self.input(Input::Refused(ids.into_iter().collect()));
    }

    fn answer(&mut self, token: Token, reply: Reply) {
        if let Entry::Occupied(asked) = self.replies.entry(token)
            && asked.get().until.is_met_by(&reply)
        {
            // The client may have gone.
            drop(asked.remove().reply.send(reply));
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare(id, key) => {
                if let Some(record) = self.core.record(id) {
                    self.runners.prepare(record, key, self.core.context());
                }
            }
            Effect::Go(key) => self.runners.go(key),
            Effect::Cancel(key) => self.runners.cancel(key),
            Effect::Force(key) => match self.core.phase() {
                Phase::Forcing { .. } | Phase::Finished => self.runners.force_at_once(key),
                Phase::Open | Phase::Draining { .. } => self.runners.force(key),
            },
            Effect::Abort(key) => {
                let in_flight = self.in_flight.as_mut().map(|in_flight| &mut in_flight.held);
                let held = in_flight.into_iter().chain([&mut self.pending.held]);
                held.for_each(|held| held.retain(|held| *held != Effect::Go(key)));
                self.runners.abort(key);
            }
            Effect::Close(id, key) => {
                if let Some(record) = self.core.record(id) {
                    self.runners.close(record, key);
                }
            }
            Effect::Settled(key) => self.runners.settled(key),
            Effect::Reply(token, answer) => self.answer(token, Reply::Answer(answer)),
            Effect::Finished { abandoned } if abandoned.is_empty() => {
                self.ended = Some(Ended::Drained { forced: self.forced });
            }
            Effect::Finished { abandoned } => self.ended = Some(Ended::Abandoned(abandoned)),
        }
    }

    fn publish_status(&self) {
        let stage = match (self.core.phase(), &self.failing) {
            (Phase::Draining { deadline } | Phase::Forcing { until: deadline }, _) => {
                Stage::Draining { deadline: self.start + deadline }
            }
            (Phase::Open | Phase::Finished, Some((reason, _))) => {
                Stage::StoreFailing { reason: reason.clone() }
            }
            (Phase::Open | Phase::Finished, None) => Stage::Ready,
        };
        let new = Status { stage, counts: self.core.counts() };
        self.status.send_if_modified(|old| {
            let modified = *old != new;
            *old = new;
            modified
        });
    }

    fn tell_progress(&self) {
        let left: Vec<String> = self.core.under_way().take(NAMED).map(name_of).collect();
        let deadline = match self.core.phase() {
            Phase::Draining { deadline } | Phase::Forcing { until: deadline } => deadline,
            Phase::Open | Phase::Finished => return,
        };
        let seconds = deadline.saturating_sub(self.start.elapsed()).as_secs();
        let count = self.core.counts().active;
        tracing::info!(left = count, seconds, jobs = left.join(", "), "waiting for jobs to clean up");
    }
}

/// Drops what may be large, as something small: glibc takes the largest piece of its own that was ever freed for what a
/// program often needs, and then keeps twice as much at the end of each thread's memory.
fn give_back<T>(mut large: Vec<T>) {
    large.clear();
    large.shrink_to(1);
}

/// How many Runners a line of progress names.
const NAMED: usize = 5;

fn name_of(record: &Record) -> String {
    match &*record.spec.name {
        Some(name) => format!("{name} ({})", record.id),
        None => record.id.to_string(),
    }
}

/// A line for each job that is over, so that the log alone tells what happened.
fn tell_end(record: &Record) {
    let Some(outcome) = record.outcome else { return };
    let (runner, name) = (record.id, record.spec.name.as_deref());
    let exit = record.attempt().and_then(|attempt| attempt.exit);
    let (run, attempt) = record.position().unzip();
    let error =
        record.attempt().and_then(|attempt| attempt.error.as_ref()).map(|error| error.message.as_str());
    let exit = exit.map(tracing::field::debug);
    match outcome {
        Outcome::Succeeded => tracing::debug!(%runner, run, attempt, name, %outcome, "closed"),
        Outcome::Cancelled | Outcome::Killed | Outcome::TimedOut => {
            let by = record.cancel.as_ref().map(|receipt| receipt.by.0.as_str());
            tracing::info!(%runner, run, attempt, name, %outcome, exit, by, "closed");
        }
        Outcome::Failed => tracing::info!(%runner, run, attempt, name, %outcome, exit, error, "closed"),
        Outcome::Lost => tracing::warn!(%runner, run, attempt, name, %outcome, error, "closed"),
    }
}

/// As the store keeps it, in microseconds: what is told at once is what is read back later.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// From 0 to 1, as good as random.
pub(crate) fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // Each state has keys of its own, which begin as random numbers.
    RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64
}

/// A deadline for a timer that is switched off.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

//! The supervisor's core under random schedules, with a virtual clock and crashes at any moment, against a
//! small model of the world: a store that commits when it likes and Runners that end when they like.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use proptest::prelude::*;
use runward::{
    job::{
        self, AttemptKey, Command, Drain, Event, EventKind, Exit, Handler, Job, OnLost, Outcome,
        QueueSettings, Record, Requester, Retry, RunnerId, Spec, State,
    },
    supervisor::{
        core::{
            Answer, Change, Core, Effect, Input, Limits, Now, Phase, Request, Restored, SETTLE, Standing,
            Token,
        },
        ports::{End, News, Records, Report, Unreadable},
        recovery::{self, Evidence},
    },
};

const LIMITS: Limits = Limits {
    max_running: 3,
    max_in_process: 2,
    max_queued: 12,
    cancel_grace: Duration::from_secs(30),
    shutdown: Duration::from_secs(300),
};

/// Fewer than there often wait, so that records are read back all the time.
const RECORDS_KEPT: usize = 1;

/// The queue that has slots of its own, and how many.
const NARROW: (&str, u32) = ("narrow", 2);

/// Later than any deadline, delay, backoff or time of day of a schedule.
const LONG: u64 = 2_000;

#[derive(Clone, Debug)]
enum Op {
    Submit(Asking),
    AddRun(prop::sample::Index),
    Release(prop::sample::Index),
    Pause {
        narrow: bool,
        paused: bool,
    },
    /// The operator decides how many processes run at once.
    Settings(u32),
    /// Somebody sets the wall clock.
    Jump(i64),
    Cancel(prop::sample::Index),
    Close(prop::sample::Index),
    Commit,
    RefuseSubmissions,
    /// From now on the store can, or can't, be read.
    Readable(bool),
    Execute(prop::sample::Index),
    End {
        which: prop::sample::Index,
        code: i32,
        lost: bool,
        drains: bool,
    },
    Drained(prop::sample::Index),
    Pass(u64),
    Signal,
    Crash {
        batch_survives: bool,
    },
}

/// What a submission says.
#[derive(Clone, Debug, Default)]
struct Asking {
    priority: i32,
    on_lost: OnLost,
    on_shutdown: OnLost,
    timeout: Option<u64>,
    grace: Option<u64>,
    delay: Option<u64>,
    start_in: Option<u64>,
    deadline: Option<u64>,
    weight: u32,
    key: Option<bool>,
    narrow: bool,
    in_process: bool,
    keep_open: bool,
    attempts: u32,
}

fn asking() -> impl Strategy<Value = Asking> {
    let fate = || prop::sample::select(OnLost::ALL);
    let seconds = |weight| prop::option::weighted(weight, 0..60_u64);
    let when = (seconds(0.3), seconds(0.3), seconds(0.15), seconds(0.1), seconds(0.1));
    let what = (1..4_u32, prop::option::weighted(0.3, any::<bool>()), prop::bool::weighted(0.3));
    let how = (prop::bool::weighted(0.2), prop::bool::weighted(0.2), 1..4_u32);
    (-2..3, fate(), fate(), when, what, how).prop_map(|(priority, on_lost, on_shutdown, when, what, how)| {
        let (timeout, grace, delay, start_in, deadline) = when;
        let (weight, key, narrow) = what;
        let (in_process, keep_open, attempts) = how;
        // Nothing that takes more slots than there are is accepted; narrower queues let it run alone.
        let weight = if in_process { weight.min(2) } else { weight };
        Asking {
            priority,
            on_lost,
            on_shutdown,
            timeout,
            grace,
            delay,
            start_in,
            deadline,
            weight,
            key,
            narrow,
            in_process,
            keep_open,
            attempts,
        }
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let index = any::<prop::sample::Index>;
    let op = prop_oneof![
        8 => asking().prop_map(Op::Submit),
        2 => index().prop_map(Op::AddRun),
        1 => index().prop_map(Op::Release),
        1 => any::<(bool, bool)>().prop_map(|(narrow, paused)| Op::Pause { narrow, paused }),
        1 => (1..=LIMITS.max_running).prop_map(Op::Settings),
        1 => (-100..100_i64).prop_map(Op::Jump),
        4 => index().prop_map(Op::Cancel),
        1 => index().prop_map(Op::Close),
        10 => Just(Op::Commit),
        1 => Just(Op::RefuseSubmissions),
        1 => any::<bool>().prop_map(Op::Readable),
        6 => index().prop_map(Op::Execute),
        6 => (index(), 0..3, prop::bool::weighted(0.1), prop::bool::weighted(0.2))
            .prop_map(|(which, code, lost, drains)| Op::End { which, code, lost, drains }),
        2 => index().prop_map(Op::Drained),
        3 => (0..40_u64).prop_map(Op::Pass),
        1 => Just(Op::Signal),
        1 => any::<bool>().prop_map(|batch_survives| Op::Crash { batch_survives }),
    ];
    prop::collection::vec(op, 0..120)
}

/// One attempt, as the world knows it.
#[derive(Clone, Debug)]
struct Attempt {
    runner: RunnerId,
    gone: bool,
    told_running: bool,
    ended: Option<End>,
    drains: bool,
}

#[derive(Default)]
struct Store(BTreeMap<RunnerId, Vec<Event>>, Cell<bool>);

impl Store {
    fn unreadable(&self, unreadable: bool) -> bool {
        self.1.replace(unreadable)
    }

    fn record(&self, id: RunnerId) -> Option<Record> {
        job::replay(self.0.get(&id)?).expect("committed events fit each other")
    }
}

impl Records for Store {
    fn load(&self, id: RunnerId) -> Result<Option<Record>, Unreadable> {
        if self.1.get() { Err(Unreadable("not now".into())) } else { Ok(self.record(id)) }
    }

    fn load_at(&self, submitted_seq: u64) -> Result<Option<Record>, Unreadable> {
        let submitted = |(_, events): &(&RunnerId, &Vec<Event>)| events[0].seq == submitted_seq;
        self.0.iter().find(submitted).map_or(Ok(None), |(id, _)| self.load(*id))
    }
}

struct World {
    core: Core,
    store: Store,
    now: Duration,
    wall: Timestamp,
    jumped: bool,
    paused: [bool; 2],
    max_running: u32,
    pending: (Vec<Event>, Vec<Effect>),
    in_flight: Option<(Vec<Event>, Vec<Effect>)>,
    attempts: HashMap<AttemptKey, Attempt>,
    submitted: Vec<RunnerId>,
    /// Submissions that were answered: these must never be lost.
    acknowledged: HashSet<RunnerId>,
    /// Cancellations that were answered: these must never execute again.
    cancelled: HashSet<RunnerId>,
    asked: HashMap<Token, Asked>,
    tokens: u64,
    finished: bool,
    /// Those that were to wait, and until when.
    waits: HashMap<RunnerId, Timestamp>,
    /// Runners between attempts that are to be closed.
    closing: Vec<(RunnerId, AttemptKey)>,
}

#[derive(Clone, Copy)]
enum Asked {
    Submit(RunnerId),
    Cancel { id: RunnerId, closes: bool },
    Else,
}

impl World {
    fn new() -> Self {
        Self {
            core: core(1, [false; 2]),
            store: Store::default(),
            now: Duration::ZERO,
            wall: Timestamp::UNIX_EPOCH,
            jumped: false,
            paused: [false; 2],
            max_running: LIMITS.max_running,
            pending: Default::default(),
            in_flight: None,
            attempts: HashMap::new(),
            submitted: Vec::new(),
            acknowledged: HashSet::new(),
            cancelled: HashSet::new(),
            asked: HashMap::new(),
            tokens: 0,
            finished: false,
            waits: HashMap::new(),
            closing: Vec::new(),
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        let output = self.core.handle(now, input, &self.store);
        self.pending.0.extend(output.batch.events);
        self.pending.1.extend(output.held);
        for effect in &output.now {
            if let Effect::Prepare(id, _) = effect {
                self.check_start(*id);
            }
        }
        for effect in output.now {
            self.perform(effect);
        }
        self.check_slots();
    }

    fn now(&self) -> Now {
        Now { wall: self.wall, mono: self.now, jitter: || 0.5 }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.wall += Duration::from_secs(seconds);
        self.input(Input::Tick);
    }

    /// All that something of may run: they have slots and keys.
    fn running(&self) -> Vec<&Record> {
        let runs = |record: &&Record| record.state != State::Idle;
        self.core.active().filter(runs).collect()
    }

    fn check_slots(&self) {
        let running = self.running();
        let slots = |like: &dyn Fn(&Record) -> bool| -> (u32, usize) {
            let taken: Vec<u32> =
                running.iter().filter(|record| like(record)).map(|record| record.spec.weight).collect();
            (taken.iter().sum(), taken.len())
        };
        // Closing a Runner that waited for another attempt takes no slot.
        let began = |record: &Record| record.state != State::Draining;
        let (processes, _) = slots(&|record| began(record) && !record.spec.job.in_process());
        assert!(processes <= LIMITS.max_running, "never more than max_running");
        let (in_process, _) = slots(&|record| began(record) && record.spec.job.in_process());
        assert!(in_process <= LIMITS.max_in_process, "never more than max_in_process");
        let (narrow, count) = slots(&|record| began(record) && record.spec.queue == NARROW.0);
        assert!(narrow <= NARROW.1 || count == 1, "a queue has its own slots, and a heavy one runs alone");
        for key in ["true", "false"] {
            let (_, count) =
                slots(&|record| began(record) && record.spec.concurrency_key.as_deref() == Some(key));
            assert!(count <= 1, "never two of a key");
        }
    }

    /// Nobody is overtaken in a queue but by those that could not start yet.
    fn check_start(&self, id: RunnerId) {
        let started = self.core.active().find(|record| record.id == id).expect("it was prepared");
        assert!(
            !self.paused[usize::from(started.spec.queue == NARROW.0)],
            "nothing starts in a paused queue"
        );
        assert!(!started.held);
        let processes = |record: &&&Record| record.state != State::Draining && !record.spec.job.in_process();
        let running = self.running();
        let weights: Vec<u32> = running.iter().filter(processes).map(|record| record.spec.weight).collect();
        let fits = weights.iter().sum::<u32>() <= self.max_running || weights.len() == 1;
        assert!(started.spec.job.in_process() || fits, "it starts within what the operator decided last");
        let place = |record: &Record| (std::cmp::Reverse(record.spec.priority), record.submitted_seq);
        let unreadable = self.store.unreadable(false);
        for other in self.submitted.iter().filter(|other| **other != id) {
            let Some(Standing::Line { .. }) = self.core.standing(*other, &self.store) else { continue };
            let other = self.latest(*other).expect("it waits");
            if other.spec.queue == started.spec.queue {
                assert!(place(started) < place(&other), "priority, then acceptance");
            }
        }
        self.store.unreadable(unreadable);
    }

    /// What the core says of those that wait is so.
    fn check_queued(&self) {
        let unreadable = self.store.unreadable(false);
        let latest = |id: &RunnerId| self.latest(*id).filter(|record| record.state == State::Queued);
        let waiting: Vec<Record> = self.submitted.iter().filter_map(latest).collect();
        assert_eq!(self.core.counts().queued, waiting.len());
        for id in &self.submitted {
            let waits = waiting.iter().find(|record| record.id == *id);
            let standing = self.core.standing(*id, &self.store);
            assert_eq!(standing.is_some(), waits.is_some(), "what waits has a standing");
            let (Some(Standing::Line { position, of, ahead, .. }), Some(record)) = (standing, waits) else {
                continue;
            };
            assert!(position <= of && ahead.len() == (position - 1).min(10));
            let place = |record: &Record| (std::cmp::Reverse(record.spec.priority), record.submitted_seq);
            let is_before =
                |other: &&Record| other.spec.queue == record.spec.queue && place(other) < place(record);
            let before: HashSet<RunnerId> = waiting.iter().filter(is_before).map(|other| other.id).collect();
            assert!(ahead.iter().all(|id| before.contains(id)), "those ahead of it come before it");
        }
        self.store.unreadable(unreadable);
    }

    /// A record as it is with all that is not durable yet.
    fn latest(&self, id: RunnerId) -> Option<Record> {
        let mut events = self.store.0.get(&id).cloned().unwrap_or_default();
        let newer = self.in_flight.iter().flat_map(|(events, _)| events).chain(&self.pending.0);
        events.extend(newer.filter(|event| event.runner == id).cloned());
        job::replay(&events).expect("legal")
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare(runner, key) => {
                let attempt =
                    Attempt { runner, gone: false, told_running: false, ended: None, drains: false };
                assert!(self.attempts.insert(key, attempt).is_none(), "an attempt is prepared once");
            }
            Effect::Go(key) => {
                let Some(attempt) = self.attempts.get_mut(&key) else { return };
                assert!(!attempt.gone, "go is given once");
                attempt.gone = true;
                let runner = attempt.runner;
                let record = self.store.record(runner).expect("go only after the start is durable");
                assert_eq!(record.attempt().map(|attempt| attempt.key), Some(key));
                assert!(!self.cancelled.contains(&runner), "what was cancelled never runs again");
                let tried = |attempt: &&job::Attempt| {
                    matches!(attempt.outcome, Some(Outcome::Failed | Outcome::TimedOut))
                };
                let tries = record.run().map_or(0, |run| run.attempts.iter().filter(tried).count());
                assert!(tries < record.spec.retry.max_attempts as usize, "no more attempts than asked for");
                let wait = if self.jumped { None } else { self.waits.remove(&runner) };
                assert!(wait.is_none_or(|until| until <= self.wall), "nothing starts before its time");
            }
            Effect::Cancel(_) | Effect::Force(_) => {}
            Effect::Close(runner, key) => {
                let closes = self.attempts.get(&key).is_some_and(|attempt| attempt.drains);
                if !closes {
                    self.closing.push((runner, key));
                }
            }
            Effect::Abort(key) => {
                let attempt = self.attempts.remove(&key).expect("an aborted attempt was prepared");
                assert!(!attempt.gone, "only what never went is aborted");
            }
            Effect::Settled(key) => {
                let attempt = self.attempts.get(&key).expect("a settled attempt exists");
                assert!(attempt.ended.is_some());
                let record = self.store.record(attempt.runner).expect("settled only when durable");
                let known = record
                    .runs
                    .iter()
                    .flat_map(|run| &run.attempts)
                    .any(|known| known.key == key && known.ended_at.is_some());
                assert!(known, "the end is durable before the shim lets go");
            }
            Effect::Reply(token, answer) => self.answered(token, &answer),
            Effect::Finished { abandoned } => {
                assert!(!self.finished, "finished once");
                self.finished = true;
                if abandoned.is_empty() {
                    assert_eq!(self.core.counts().active, 0);
                }
            }
        }
    }

    fn answered(&mut self, token: Token, answer: &Answer) {
        match (self.asked.remove(&token).expect("each request is answered once"), answer) {
            (Asked::Submit(id), Answer::Accepted) => {
                assert!(self.store.record(id).is_some(), "accepted means durable");
                self.acknowledged.insert(id);
            }
            (Asked::Cancel { id, closes }, Answer::Accepted | Answer::AlreadySo) => {
                let record = self.store.record(id).expect("cancelled means known");
                let cancelled = record.cancel.is_some() || record.closing;
                let over = matches!(record.state, State::Draining | State::Closed);
                assert!(cancelled || over || record.spec.keep_open);
                // Of one that is kept open only the run is cancelled.
                if cancelled && (closes || !record.spec.keep_open) {
                    self.cancelled.insert(id);
                }
            }
            (Asked::Submit(_) | Asked::Cancel { .. } | Asked::Else, _) => {}
        }
    }

    fn commit(&mut self) {
        self.check_queued();
        if self.in_flight.is_none() {
            // The snapshots must be what the events add up to.
            let changed = self.core.take_changed();
            self.in_flight = Some(std::mem::take(&mut self.pending));
            let mut after = BTreeMap::new();
            for event in &self.in_flight.as_ref().expect("just set").0 {
                let events = after
                    .entry(event.runner)
                    .or_insert_with(|| self.store.0.get(&event.runner).cloned().unwrap_or_default());
                events.push(event.clone());
            }
            for record in changed {
                let events = after.get(&record.id).expect("what changed has events");
                let replayed = job::replay(events).expect("legal").expect("a record");
                assert_eq!(*record, replayed, "replay gives the same state");
            }
            return;
        }
        let (events, held) = self.in_flight.take().expect("just seen");
        let upto = events.last().map(|event| event.seq);
        self.persist(events);
        if let Some(upto) = upto {
            self.input(Input::Committed { upto });
        }
        for effect in held {
            self.perform(effect);
        }
    }

    fn persist(&mut self, events: Vec<Event>) {
        for event in events {
            self.store.0.entry(event.runner).or_default().push(event);
        }
    }

    /// The store has no room: submissions of the batch under way are given back, the rest waits.
    fn refuse(&mut self) {
        let Some((events, held)) = self.in_flight.take() else { return };
        let refused: Vec<RunnerId> = events
            .iter()
            .filter(|event| matches!(event.kind, EventKind::Submitted { .. }))
            .map(|event| event.runner)
            .collect();
        let newer = std::mem::replace(&mut self.pending, (events, held));
        self.pending.0.extend(newer.0);
        self.pending.1.extend(newer.1);
        self.pending.0.retain(|event| !refused.contains(&event.runner));
        self.pending.1.retain(|effect| match effect {
            Effect::Reply(token, _) => !refused.contains(&token.0),
            _ => true,
        });
        self.submitted.retain(|id| !refused.contains(id));
        self.asked.retain(|token, _| !refused.contains(&token.0));
        self.input(Input::Refused(refused));
        // The snapshots were taken for the batch that failed; the actor keeps them.
        self.core.take_changed();
    }

    fn crash(&mut self, batch_survives: bool) {
        if let Some((events, _)) = self.in_flight.take()
            && batch_survives
        {
            self.persist(events);
        }
        self.pending = Default::default();
        self.asked.clear();
        self.finished = false;
        let last = self.store.0.values().flatten().map(|event| event.seq).max().unwrap_or(0);
        let records: Vec<Record> = self.store.0.keys().filter_map(|id| self.store.record(*id)).collect();
        let under_way = records
            .into_iter()
            .filter(|record| !matches!(record.state, State::Queued | State::Idle | State::Closed));
        let attempts = &self.attempts;
        let look = |record: &Record| {
            let attempt = record.attempt().and_then(|attempt| attempts.get(&attempt.key));
            match attempt {
                Some(Attempt { gone: true, ended: Some(end), .. }) => Evidence::Ended(end.clone()),
                Some(Attempt { gone: true, ended: None, .. }) => Evidence::Unknown,
                Some(Attempt { gone: false, .. }) | None => Evidence::NotExecuted,
            }
        };
        let batch = recovery::plan(under_way.collect(), look, last + 1, self.now()).expect("legal");
        let last = batch.events.last().map_or(last, |event| event.seq);
        self.persist(batch.events);
        self.core = core(last + 1, self.paused);
        self.max_running = LIMITS.max_running;
        // What ran is dead, and nobody reports of it any more.
        self.attempts.clear();
        self.closing.clear();
        let now = self.now();
        for id in self.store.0.keys() {
            let record = self.store.record(*id).expect("it has events");
            match record.state {
                State::Queued => {
                    self.core.restore(restored(&record), now);
                }
                State::Idle => self.core.restore_idle(record, now),
                State::Closed => {}
                other => panic!("after recovery a Runner is {other}"),
            }
        }
        self.submitted.retain(|id| self.store.0.contains_key(id));
        for id in &self.acknowledged {
            assert!(self.store.0.contains_key(id), "what was acknowledged is not lost");
        }
        self.input(Input::Tick);
    }

    fn pick<T: Clone>(index: prop::sample::Index, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| index.get(from).clone())
    }

    fn attempts_that(&self, like: impl Fn(&Attempt) -> bool) -> Vec<AttemptKey> {
        let mut keys: Vec<_> =
            self.attempts.iter().filter(|(_, attempt)| like(attempt)).map(|(key, _)| *key).collect();
        keys.sort();
        keys
    }

    fn report(&mut self, key: AttemptKey, news: News) {
        let runner = self.attempts[&key].runner;
        self.input(Input::Report(Report { runner, key, news }));
    }

    fn end(&mut self, key: AttemptKey, code: i32, lost: bool, drains: bool) {
        let record = self.latest(self.attempts[&key].runner).expect("it runs");
        let in_process = record.job().in_process();
        let end = match in_process {
            true => End { result: Some(code.into()), lost, ..End::default() },
            false => End { exit: Some(Exit::Code(code)), lost, ..End::default() },
        };
        let attempt = self.attempts.get_mut(&key).expect("picked");
        attempt.ended = Some(end.clone());
        attempt.drains = drains;
        let closed = (!drains).then(Drain::default);
        self.report(key, News::Ended(End { closed, ..end }));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit(asking) => {
                let id = RunnerId::new();
                let spec = Arc::new(spec(&asking, self.wall));
                let delayed = spec.delay.map(|delay| self.wall + delay);
                if let Some(until) = delayed.max(*spec.start_at) {
                    self.waits.insert(id, until);
                }
                let token = (id, 0);
                self.asked.insert(token, Asked::Submit(id));
                self.submitted.push(id);
                self.input(Input::Submit { id, spec, key: None, token });
            }
            Op::Cancel(index) | Op::Close(index) => {
                let Some(id) = Self::pick(index, &self.submitted) else { return };
                self.tokens += 1;
                let token = (id, self.tokens);
                let closes = matches!(op, Op::Close(_));
                self.asked.insert(token, Asked::Cancel { id, closes });
                let by = Requester("somebody".into());
                let request = match op {
                    Op::Cancel(_) => Request::Cancel(by),
                    _ => Request::Close(by),
                };
                self.input(Input::Ask { id, request, token });
            }
            Op::AddRun(index) | Op::Release(index) => {
                let Some(id) = Self::pick(index, &self.submitted) else { return };
                let Some(record) = self.latest(id) else { return };
                self.tokens += 1;
                let token = (id, self.tokens);
                self.asked.insert(token, Asked::Else);
                let in_process = record.spec.job.in_process();
                let request = match op {
                    Op::AddRun(_) => Request::AddRun(Arc::new(job(in_process))),
                    _ => Request::Release(Requester("somebody".into())),
                };
                self.input(Input::Ask { id, request, token });
            }
            Op::Pause { narrow, paused } => {
                self.paused[usize::from(narrow)] = paused;
                self.tokens += 1;
                let token = (RunnerId::from_u128(0), self.tokens);
                self.asked.insert(token, Asked::Else);
                let (name, settings) = queue(narrow, paused);
                self.input(Input::Change { change: Change::Queue(name.into(), Some(settings)), token });
            }
            Op::Settings(max_running) => {
                self.max_running = max_running;
                self.tokens += 1;
                let token = (RunnerId::from_u128(0), self.tokens);
                self.asked.insert(token, Asked::Else);
                let limits = Limits { max_running, ..LIMITS };
                // What it says of queues was changed over the API since.
                let queues = BTreeMap::from([(
                    NARROW.0.to_owned(),
                    QueueSettings { max_running: Some(99), paused: true },
                )]);
                self.input(Input::Change { change: Change::Settings(limits, queues), token });
            }
            Op::Jump(seconds) => {
                self.jumped = true;
                self.wall += jiff::SignedDuration::from_secs(seconds);
                self.input(Input::Tick);
            }
            Op::Commit => self.commit(),
            Op::RefuseSubmissions => self.refuse(),
            Op::Readable(readable) => drop(self.store.unreadable(!readable)),
            Op::Execute(index) => {
                let ready = self.attempts_that(|attempt| {
                    attempt.gone && !attempt.told_running && attempt.ended.is_none()
                });
                let Some(key) = Self::pick(index, &ready) else { return };
                self.attempts.get_mut(&key).expect("picked").told_running = true;
                self.report(key, News::Running { pid: Some(7), start_time: Some(7) });
            }
            Op::End { which, code, lost, drains } => {
                let running = self.attempts_that(|attempt| attempt.gone && attempt.ended.is_none());
                let Some(key) = Self::pick(which, &running) else { return };
                self.end(key, code, lost, drains);
            }
            Op::Drained(index) => {
                let draining = self.attempts_that(|attempt| attempt.ended.is_some() && attempt.drains);
                let Some(key) = Self::pick(index, &draining) else { return };
                self.attempts.get_mut(&key).expect("picked").drains = false;
                self.report(key, News::Closed(Drain::default()));
            }
            Op::Pass(seconds) => self.pass(seconds),
            Op::Signal => self.input(Input::Signal { name: "SIGTERM" }),
            Op::Crash { batch_survives } => self.crash(batch_survives),
        }
    }

    /// Lets everything come to rest: all commits, all ends, all drains.
    fn settle(&mut self) {
        self.store.unreadable(false);
        for narrow in [false, true] {
            if self.core.phase() == Phase::Open {
                self.apply(Op::Pause { narrow, paused: false });
            }
        }
        for _ in 0..1000 {
            while self.in_flight.is_some() || !self.pending.0.is_empty() || !self.pending.1.is_empty() {
                self.commit();
            }
            if let Some((runner, key)) = self.closing.pop() {
                let news = News::Closed(Drain::default());
                self.input(Input::Report(Report { runner, key, news }));
                continue;
            }
            let unfinished = self.attempts_that(|attempt| attempt.gone && attempt.ended.is_none());
            let draining = self.attempts_that(|attempt| attempt.ended.is_some() && attempt.drains);
            if let Some(key) = unfinished.first() {
                self.end(*key, 0, false, false);
            } else if let Some(key) = draining.first() {
                self.attempts.get_mut(key).expect("listed").drains = false;
                self.report(*key, News::Closed(Drain::default()));
            } else if self.core.phase() == Phase::Finished {
                break;
            } else if let Some(key) = self
                .attempts_that(|attempt| !attempt.gone && attempt.ended.is_none())
                .into_iter()
                .find(|key| self.core.attempt(self.attempts[key].runner) == Some(*key))
            {
                // Cancelled before it went: such a main task ends by itself.
                self.attempts.get_mut(&key).expect("listed").ended = Some(End::default());
                self.report(key, News::Ended(End { closed: Some(Drain::default()), ..End::default() }));
            } else if self.core.next_deadline().is_some() || self.core.next_wall_deadline().is_some() {
                self.pass(LONG);
            } else {
                break;
            }
        }
    }

    fn check_end(&mut self) {
        self.settle();
        assert!(self.asked.is_empty(), "every request was answered");
        for id in &self.acknowledged {
            let record = self.store.record(*id).expect("what was acknowledged is not lost");
            match record.state {
                State::Closed => assert!(record.outcome.is_some()),
                State::Queued => {
                    let stopped = self.core.phase() != Phase::Open;
                    assert!(stopped || record.held, "nothing waits for ever while the daemon is open");
                }
                State::Idle => assert!(record.spec.keep_open && record.next_run().is_none()),
                other => panic!("at rest a Runner is {other}"),
            }
            if self.cancelled.contains(id) {
                assert_eq!(record.state, State::Closed, "a cancelled Runner closes");
                let survivors = record.cancel.as_ref().map(|receipt| receipt.survivors);
                assert!(survivors == Some(Some(0)) || survivors.is_none() && record.closing, "a receipt");
            }
        }
    }
}

fn core(next_seq: u64, paused: [bool; 2]) -> Core {
    let mut core = Core::new(LIMITS, "boot".into(), next_seq);
    core.keep_records(RECORDS_KEPT);
    let configured = BTreeMap::from([(NARROW.0.to_owned(), queue(true, false).1)]);
    let changed = [(false, paused[0]), (true, paused[1])];
    let changed = changed.into_iter().map(|(narrow, paused)| queue(narrow, paused));
    core.configure(configured, changed.map(|(name, settings)| (name.to_owned(), settings)).collect());
    core
}

fn queue(narrow: bool, paused: bool) -> (&'static str, QueueSettings) {
    match narrow {
        true => (NARROW.0, QueueSettings { max_running: Some(NARROW.1), paused }),
        false => (Spec::DEFAULT_QUEUE, QueueSettings { max_running: None, paused }),
    }
}

fn restored(record: &Record) -> Restored<'_> {
    let spec = &*record.spec;
    Restored {
        id: record.id,
        queue: &spec.queue,
        priority: spec.priority,
        submitted_seq: record.submitted_seq,
        held: record.held,
        weight: spec.weight,
        concurrency_key: spec.concurrency_key.as_deref(),
        ready_at: record.ready_at(),
        deadline_at: record.deadline_at(),
        in_process: spec.job.in_process(),
    }
}

fn job(in_process: bool) -> Job {
    match in_process {
        true => Job::Handler(Handler { name: "echo".into(), args: serde_json::Value::Null.into() }),
        false => Job::Command(Command { argv: vec!["true".into()], ..Command::default() }),
    }
}

fn spec(asking: &Asking, now: Timestamp) -> Spec {
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    let queue = if asking.narrow { NARROW.0 } else { Spec::DEFAULT_QUEUE };
    Spec {
        priority: asking.priority,
        queue: queue.into(),
        weight: asking.weight.max(1),
        timeout: seconds(asking.timeout).into(),
        cancel_grace: seconds(asking.grace).into(),
        delay: seconds(asking.delay).into(),
        start_at: seconds(asking.start_in).map(|wait| now + wait).into(),
        deadline: seconds(asking.deadline).into(),
        concurrency_key: asking.key.map(|key| key.to_string()).into(),
        keep_open: asking.keep_open,
        retry: Retry { max_attempts: asking.attempts.max(1), ..Retry::default() }.into(),
        on_lost: asking.on_lost,
        on_shutdown: asking.on_shutdown,
        ..Spec::new(job(asking.in_process), Duration::from_secs(300))
    }
}

proptest! {
    // RUNWARD_SCHEDULES=100000 runs as many; a failure prints its smallest schedule.
    #![proptest_config(ProptestConfig {
        cases: std::env::var("RUNWARD_SCHEDULES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_schedule_breaks_an_invariant(ops in ops()) {
        let mut world = World::new();
        for op in ops {
            if !world.finished {
                world.apply(op);
            }
        }
        if !world.finished {
            world.check_end();
        }
    }
}

fn started(world: &World) -> Vec<i32> {
    let priority = |attempt: &Attempt| {
        let record = world.core.record(attempt.runner).expect("it is active");
        record.spec.priority
    };
    world.attempts.values().map(priority).collect()
}

#[test]
fn the_highest_priority_starts_first_and_equals_in_order() {
    let mut world = World::new();
    let submit = |priority| Op::Submit(Asking { priority, ..Asking::default() });
    for priority in [0, 0, 0, 1, 5, 3] {
        world.apply(submit(priority));
    }
    world.settle_starts();
    // Three slots were free for the first three; as each ends the highest of the waiting follows.
    let mut order = Vec::new();
    for _ in 0..3 {
        let first = world.attempts_that(|attempt| attempt.gone && attempt.ended.is_none())[0];
        let before: HashSet<_> = world.attempts.keys().copied().collect();
        world.end(first, 0, false, false);
        let new =
            world.attempts.keys().find(|key| !before.contains(key)).copied().expect("the next one starts");
        order.push(world.core.record(world.attempts[&new].runner).expect("active").spec.priority);
        world.settle_starts();
        world.attempts.remove(&first);
    }
    assert_eq!(order, [5, 3, 1]);
    assert_eq!(started(&world).len(), 3);
}

#[test]
fn a_deadline_forces_and_then_names_what_does_not_die() {
    let mut world = World::new();
    world.apply(Op::Submit(Asking::default()));
    world.settle_starts();
    world.input(Input::Signal { name: "SIGTERM" });
    world.now += LIMITS.shutdown;
    world.input(Input::Tick);
    assert!(matches!(world.core.phase(), Phase::Forcing { .. }));
    world.now += SETTLE;
    let now = world.now();
    let output = world.core.handle(now, Input::Tick, &world.store);
    assert!(
        matches!(&output.held[..], [Effect::Finished { abandoned }] if abandoned.len() == 1),
        "{:?}",
        output.held
    );
}

impl World {
    /// Commits until nothing is left to commit.
    fn settle_starts(&mut self) {
        while self.in_flight.is_some() || !self.pending.0.is_empty() || !self.pending.1.is_empty() {
            self.commit();
        }
    }
}

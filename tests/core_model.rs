//! The supervisor's core under random schedules, with a virtual clock and crashes at any moment, against a
//! small model of the world: a store that commits when it likes and Runners that end when they like.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use proptest::prelude::*;
use runward::{
    job::{
        self, AttemptKey, Command, Drain, Event, EventKind, Exit, Job, OnLost, Record, Requester, RunnerId,
        Spec, State,
    },
    supervisor::{
        core::{Answer, Core, Effect, Input, Limits, Now, Phase, SETTLE, Token},
        ports::{End, News, Records, Report},
        recovery::{self, Evidence},
    },
};

const LIMITS: Limits = Limits {
    max_running: 3,
    max_queued: 12,
    cancel_grace: Duration::from_secs(30),
    shutdown: Duration::from_secs(300),
};

#[derive(Clone, Debug)]
enum Op {
    Submit { priority: i32, on_lost: OnLost, timeout: Option<u64>, grace: Option<u64> },
    Cancel(prop::sample::Index),
    Close(prop::sample::Index),
    Commit,
    RefuseSubmissions,
    Execute(prop::sample::Index),
    End { which: prop::sample::Index, code: i32, lost: bool, drains: bool },
    Drained(prop::sample::Index),
    Pass(u64),
    Signal,
    Crash { batch_survives: bool },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let index = any::<prop::sample::Index>;
    let on_lost = prop::sample::select(OnLost::ALL);
    let seconds = || prop::option::weighted(0.3, 0..60_u64);
    let op = prop_oneof![
        8 => (-2..3, on_lost, seconds(), seconds())
            .prop_map(|(priority, on_lost, timeout, grace)| Op::Submit { priority, on_lost, timeout, grace }),
        4 => index().prop_map(Op::Cancel),
        1 => index().prop_map(Op::Close),
        10 => Just(Op::Commit),
        1 => Just(Op::RefuseSubmissions),
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
struct Store(BTreeMap<RunnerId, Vec<Event>>);

impl Store {
    fn record(&self, id: RunnerId) -> Option<Record> {
        job::replay(self.0.get(&id)?).expect("committed events fit each other")
    }
}

impl Records for Store {
    fn load(&self, id: RunnerId) -> Option<Record> {
        self.record(id)
    }
}

struct World {
    core: Core,
    store: Store,
    now: Duration,
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
}

#[derive(Clone, Copy)]
enum Asked {
    Submit(RunnerId),
    Cancel(RunnerId),
}

impl World {
    fn new() -> Self {
        Self {
            core: Core::new(LIMITS, "boot".into(), 1),
            store: Store::default(),
            now: Duration::ZERO,
            pending: Default::default(),
            in_flight: None,
            attempts: HashMap::new(),
            submitted: Vec::new(),
            acknowledged: HashSet::new(),
            cancelled: HashSet::new(),
            asked: HashMap::new(),
            tokens: 0,
            finished: false,
        }
    }

    fn input(&mut self, input: Input) {
        let now = Now { wall: Timestamp::UNIX_EPOCH, mono: self.now };
        let output = self.core.handle(now, input, &self.store);
        self.pending.0.extend(output.events);
        self.pending.1.extend(output.held);
        for effect in output.now {
            self.perform(effect);
        }
        assert!(self.core.counts().active <= LIMITS.max_running, "never more than max_running");
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
            }
            Effect::Cancel(_) | Effect::Force(_) => {}
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
            (Asked::Cancel(id), Answer::Accepted | Answer::AlreadySo) => {
                let record = self.store.record(id).expect("cancelled means known");
                assert!(
                    record.cancel.is_some()
                        || record.state == State::Draining
                        || record.state == State::Closed
                );
                if record.cancel.is_some() {
                    self.cancelled.insert(id);
                }
            }
            (Asked::Submit(_) | Asked::Cancel(_), _) => {}
        }
    }

    fn commit(&mut self) {
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
        let under_way =
            records.into_iter().filter(|record| !matches!(record.state, State::Queued | State::Closed));
        let attempts = &self.attempts;
        let look = |record: &Record| {
            let attempt = record.attempt().and_then(|attempt| attempts.get(&attempt.key));
            match attempt {
                Some(Attempt { gone: true, ended: Some(end), .. }) => Evidence::Ended(end.clone()),
                Some(Attempt { gone: true, ended: None, .. }) => Evidence::Unknown,
                Some(Attempt { gone: false, .. }) | None => Evidence::NotExecuted,
            }
        };
        let batch =
            recovery::plan(under_way.collect(), look, last + 1, Timestamp::UNIX_EPOCH).expect("legal");
        let last = batch.events.last().map_or(last, |event| event.seq);
        self.persist(batch.events);
        self.core = Core::new(LIMITS, "boot".into(), last + 1);
        for id in self.store.0.keys() {
            let record = self.store.record(*id).expect("it has events");
            match record.state {
                State::Queued => {
                    self.core.restore(*id, record.spec.priority, record.submitted_seq, record.held)
                }
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
        let end = End { exit: Some(Exit::Code(code)), lost, ..End::default() };
        let attempt = self.attempts.get_mut(&key).expect("picked");
        attempt.ended = Some(end.clone());
        attempt.drains = drains;
        let closed = (!drains).then(Drain::default);
        self.report(key, News::Ended(End { closed, ..end }));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit { priority, on_lost, timeout, grace } => {
                let id = RunnerId::new();
                let spec = Arc::new(spec(priority, on_lost, timeout, grace));
                let token = (id, 0);
                self.asked.insert(token, Asked::Submit(id));
                self.submitted.push(id);
                self.input(Input::Submit { id, spec, key: None, token });
            }
            Op::Cancel(index) | Op::Close(index) => {
                let Some(id) = Self::pick(index, &self.submitted) else { return };
                self.tokens += 1;
                let token = (id, self.tokens);
                self.asked.insert(token, Asked::Cancel(id));
                let by = Requester("somebody".into());
                self.input(match op {
                    Op::Cancel(_) => Input::Cancel { id, by, token },
                    _ => Input::Close { id, by, token },
                });
            }
            Op::Commit => self.commit(),
            Op::RefuseSubmissions => self.refuse(),
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
            Op::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.input(Input::Tick);
            }
            Op::Signal => self.input(Input::Signal { name: "SIGTERM" }),
            Op::Crash { batch_survives } => self.crash(batch_survives),
        }
    }

    /// Lets everything come to rest: all commits, all ends, all drains.
    fn settle(&mut self) {
        for _ in 0..400 {
            while self.in_flight.is_some() || !self.pending.0.is_empty() || !self.pending.1.is_empty() {
                self.commit();
            }
            let unfinished = self.attempts_that(|attempt| attempt.gone && attempt.ended.is_none());
            let draining = self.attempts_that(|attempt| attempt.ended.is_some() && attempt.drains);
            if let Some(key) = unfinished.first() {
                self.end(*key, 0, false, false);
            } else if let Some(key) = draining.first() {
                self.attempts.get_mut(key).expect("listed").drains = false;
                self.report(*key, News::Closed(Drain::default()));
            } else if self.attempts_that(|attempt| !attempt.gone).is_empty()
                || self.core.phase() == Phase::Finished
            {
                break;
            } else {
                // Cancelled before it went: such a main task ends by itself.
                let waiting = self.attempts_that(|attempt| !attempt.gone && attempt.ended.is_none());
                let Some(key) = waiting.first() else { break };
                self.attempts.get_mut(key).expect("listed").ended = Some(End::default());
                self.report(*key, News::Ended(End { closed: Some(Drain::default()), ..End::default() }));
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
                other => panic!("at rest a Runner is {other}"),
            }
            if self.cancelled.contains(id) {
                assert_eq!(record.state, State::Closed, "a cancelled Runner closes");
                let receipt = record.cancel.as_ref().expect("a receipt");
                assert_eq!(receipt.survivors, Some(0));
            }
        }
    }
}

fn spec(priority: i32, on_lost: OnLost, timeout: Option<u64>, grace: Option<u64>) -> Spec {
    let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
    Spec {
        priority,
        timeout: timeout.map(Duration::from_secs),
        cancel_grace: grace.map(Duration::from_secs),
        on_lost,
        ..Spec::new(job, Duration::from_secs(300))
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
    let submit = |priority| Op::Submit { priority, on_lost: OnLost::Fail, timeout: None, grace: None };
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
    world.apply(Op::Submit { priority: 0, on_lost: OnLost::Fail, timeout: None, grace: None });
    world.settle_starts();
    world.input(Input::Signal { name: "SIGTERM" });
    world.now += LIMITS.shutdown;
    world.input(Input::Tick);
    assert!(matches!(world.core.phase(), Phase::Forcing { .. }));
    world.now += SETTLE;
    let now = Now { wall: Timestamp::UNIX_EPOCH, mono: world.now };
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

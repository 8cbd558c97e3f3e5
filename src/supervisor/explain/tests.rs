mod ended;

use std::sync::Arc;

use super::*;
use crate::job::{
    self, AttemptKey, CloseFacts, Command, Event, EventKind, Job, OnLost, Rare, Requester, RequeueReason,
    Retry, Spec,
};

const GRACE: Duration = Duration::from_secs(30);

/// So many seconds after 06:00.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_896_069_600 + seconds).expect("a time")
}

fn id(number: u128) -> RunnerId {
    RunnerId::from_u128(number)
}

fn spec(with: impl FnOnce(&mut Spec)) -> Spec {
    let job = Job::Command(Command { argv: vec!["x".into()], ..Command::default() });
    let mut spec = Spec::new(job, Duration::from_secs(300));
    with(&mut spec);
    spec
}

fn tried(max_attempts: u32) -> Rare<Retry> {
    Retry { max_attempts, ..Retry::default() }.into()
}

/// What a Runner's events add up to; each with its second.
fn record(spec: Spec, events: Vec<(i64, EventKind)>) -> Record {
    let submitted = EventKind::Submitted { spec: Arc::new(spec) };
    let events = [(0, submitted)].into_iter().chain(events);
    let events: Vec<Event> = events
        .zip(1..)
        .map(|((second, kind), seq)| Event { seq, runner: id(1), at: at(second), kind })
        .collect();
    job::replay(&events).expect("legal").expect("a record")
}

fn starting(run: u32, attempt: u32) -> EventKind {
    EventKind::Starting { run, attempt, key: AttemptKey::new(), boot_id: "b".into(), context_version: 0 }
}

fn running() -> EventKind {
    EventKind::Running { pid: Some(4711), start_time: None }
}

fn ended(outcome: Outcome, exit: Option<Exit>) -> EventKind {
    failed(outcome, exit, None)
}

fn failed(outcome: Outcome, exit: Option<Exit>, error: Option<Failure>) -> EventKind {
    let end = crate::supervisor::ports::End { exit, error, ..Default::default() };
    end.into_event(outcome)
}

fn lost() -> EventKind {
    failed(Outcome::Lost, None, Some(Failure::new("daemon_lost", "the daemon died under it")))
}

fn again(reason: RequeueReason, held: bool, until: Option<i64>) -> EventKind {
    EventKind::Requeued { reason, held, not_before: until.map(at) }
}

fn cancel(by: &str, reason: CancelReason, force: bool) -> EventKind {
    EventKind::CancelRequested { by: Requester(by.into()), reason, force }
}

fn step(action: Action, target: &str) -> EventKind {
    EventKind::CancelStep { action, target: (!target.is_empty()).then(|| target.into()) }
}

fn draining() -> EventKind {
    EventKind::Draining { outcome: None }
}

fn closed(outcome: Outcome) -> EventKind {
    EventKind::Closed(CloseFacts { outcome, drain: Some(Box::default()) })
}

fn code(code: i32) -> Option<Exit> {
    Some(Exit::Code(code))
}

fn signal(signal: i32) -> Option<Exit> {
    Some(Exit::Signal(signal))
}

/// What happened, to its very end: started at 1, running at 2.
fn to_the_end(spec: Spec, then: Vec<(i64, EventKind)>, outcome: Outcome) -> Record {
    let begin = vec![(1, starting(1, 1)), (2, running())];
    let end = vec![(90, draining()), (91, closed(outcome))];
    record(spec, begin.into_iter().chain(then).chain(end).collect())
}

fn check(record: &Record, standing: Option<Standing>, reason: Reason, sentence: &str) -> Facts {
    let explanation = explain(record, standing.as_ref(), GRACE);
    assert_eq!(explanation.sentence, sentence);
    assert_eq!(explanation.facts.reason, reason, "{sentence}");
    explanation.facts
}

fn some(with: impl FnOnce(&mut Spec)) -> Record {
    record(spec(with), vec![])
}

fn plain() -> Spec {
    spec(|_| {})
}

#[test]
fn why_it_waits_its_turn() {
    let line = |position, of, ahead: &[u128], limit, running: &[u128]| {
        let ids = |list: &[u128]| list.iter().map(|number| id(*number)).collect();
        Some(Standing::Line { position, of, ahead: ids(ahead), limit, running: ids(running) })
    };
    let queue = || Limit::Queue { name: "q".into(), max: 2 };
    let in_q = || some(|spec| spec.queue = "q".into());
    let name = |number: u128| id(number).to_string();
    let (two, three, four, five) = (name(2), name(3), name(4), name(5));
    let facts = check(
        &in_q(),
        line(3, 7, &[2, 3], queue(), &[4, 5]),
        Reason::InLine,
        &format!(
            "It is at position 3 of 7 in the queue \"q\", after {two} and {three}; the queue \"q\" has 2 slots, taken by \
             {four} and {five}."
        ),
    );
    assert_eq!(
        (facts.line, facts.ahead, facts.running),
        (Some((3, 7)), vec![id(2), id(3)], vec![id(4), id(5)])
    );
    assert_eq!((facts.queue.as_deref(), facts.limit), (Some("q"), Some(queue())));
    check(
        &in_q(),
        line(30, 70, &[2, 3], queue(), &[4]),
        Reason::InLine,
        &format!(
            "It is at position 30 of 70 in the queue \"q\", after {two}, {three} and 27 more; the queue \"q\" has 2 slots, \
             taken by {four}."
        ),
    );
    check(
        &some(|spec| spec.weight = 3),
        line(1, 1, &[], Limit::Daemon { max: 4 }, &[2, 3, 4]),
        Reason::InLine,
        &format!(
            "It is the first of 1 that wait in the queue \"default\"; the daemon has 4 slots, taken by {two}, {three} and \
             {four}, and this job needs 3 of them."
        ),
    );
    check(
        &in_q(),
        line(1, 2, &[], Limit::InProcess { max: 1 }, &[2]),
        Reason::InLine,
        &format!(
            "It is the first of 2 that wait in the queue \"q\"; the daemon, for jobs without a process, has 1 slot, taken \
             by {two}."
        ),
    );
    check(&in_q(), None, Reason::NextToStart, "It is queued, and its turn is just coming.");
    let key = Standing::Key { key: "dump app".into(), holder: id(2) };
    let facts = check(
        &in_q(),
        Some(key),
        Reason::KeyTaken,
        &format!("It waits because {two} has its concurrency key \"dump app\"."),
    );
    assert_eq!(facts.key, Some(("dump app".into(), id(2))));
    let paused = Standing::Paused { queue: "q".into() };
    check(&in_q(), Some(paused), Reason::QueuePaused, "It waits because the queue \"q\" is paused.");
    check(
        &in_q(),
        Some(Standing::Stopping),
        Reason::DaemonStopping,
        "It stays queued because the daemon is stopping; it may run after the next start.",
    );
}

#[test]
fn until_when_it_waits() {
    let until = |second| Some(Standing::Until { at: at(second) });
    let delayed = some(|spec| spec.delay = Some(Duration::from_secs(90)).into());
    let facts = check(
        &delayed,
        until(90),
        Reason::Delayed,
        "It waits until 2030-01-31T06:01:30Z, because of its delay of 1m 30s.",
    );
    assert_eq!(facts.until, Some(at(90)));
    let scheduled = some(|spec| spec.start_at = Some(at(3600)).into());
    check(&scheduled, until(3600), Reason::Scheduled, "It waits until 2030-01-31T07:00:00Z, its `start_at`.");
    let backoff = record(
        spec(|spec| spec.retry = tried(5)),
        vec![
            (1, starting(1, 1)),
            (2, running()),
            (3, ended(Outcome::Failed, code(3))),
            (3, again(RequeueReason::Retry, false, Some(8))),
        ],
    );
    let facts = check(
        &backoff,
        until(8),
        Reason::Backoff,
        "It waits until 2030-01-31T06:00:08Z before it is tried again: attempt 1 of 5 failed, it exited with code 3 at \
         2030-01-31T06:00:03Z.",
    );
    assert_eq!((facts.attempt, facts.max_attempts, facts.exit), (Some(1), Some(5), code(3)));
    let timed_out = record(
        spec(|spec| (spec.retry, spec.timeout) = (tried(2), Some(Duration::from_secs(1)).into())),
        vec![
            (1, starting(1, 1)),
            (2, running()),
            (3, cancel("timeout", CancelReason::Timeout, false)),
            (4, ended(Outcome::TimedOut, signal(15))),
            (4, again(RequeueReason::Retry, false, Some(6))),
        ],
    );
    check(
        &timed_out,
        until(6),
        Reason::Backoff,
        "It waits until 2030-01-31T06:00:06Z before it is tried again: attempt 1 of 2 failed, it was ended at \
         2030-01-31T06:00:04Z by SIGTERM, which runward sent.",
    );
}

#[test]
fn why_it_is_held() {
    let held = |on_lost, times: u32| {
        let mut events = Vec::new();
        for attempt in 1..=times {
            events.extend([(1, starting(1, attempt)), (2, running()), (3, lost())]);
            events.push((3, again(RequeueReason::Lost, attempt == times, None)));
        }
        record(spec(|spec| spec.on_lost = on_lost), events)
    };
    check(
        &held(OnLost::Hold, 1),
        Some(Standing::Held),
        Reason::HeldAfterLoss,
        "It is held because the daemon or the host died under it, and its `on_lost` is \"hold\"; release it to have it \
         run again, or cancel it.",
    );
    check(
        &held(OnLost::Requeue, 2),
        Some(Standing::Held),
        Reason::HeldAsPoison,
        "It is held because the daemon or the host died under it 2 times (attempts 1, 2), and it may have been the \
         cause; release it to have it run again, or cancel it.",
    );
    let stopped = record(
        spec(|spec| spec.on_shutdown = OnLost::Hold),
        vec![
            (1, starting(1, 1)),
            (2, running()),
            (3, cancel("SIGTERM", CancelReason::Shutdown, false)),
            (4, ended(Outcome::Cancelled, signal(15))),
            (4, again(RequeueReason::Shutdown, true, None)),
        ],
    );
    let facts = check(
        &stopped,
        Some(Standing::Held),
        Reason::HeldAfterShutdown,
        "It is held because a shutdown of the daemon stopped it at 2030-01-31T06:00:03Z, and its `on_shutdown` is \
         \"hold\"; release it to have it run again, or cancel it.",
    );
    assert_eq!((facts.by.as_deref(), facts.since), (Some("SIGTERM"), Some(at(4))));
}

#[test]
fn what_it_is_at() {
    check(
        &record(plain(), vec![(1, starting(1, 1))]),
        None,
        Reason::Starting,
        "It has been starting since 2030-01-31T06:00:01Z.",
    );
    let facts = check(
        &record(plain(), vec![(1, starting(1, 1)), (2, running())]),
        None,
        Reason::Running,
        "It has been running since 2030-01-31T06:00:01Z, as the process 4711.",
    );
    assert_eq!((facts.pid, facts.since), (Some(4711), Some(at(1))));
    let kept_open = || spec(|spec| (spec.keep_open, spec.retry) = (true, tried(3)));
    let run_once = || {
        vec![
            (1, starting(1, 1)),
            (2, running()),
            (3, ended(Outcome::Succeeded, code(0))),
            (3, EventKind::Idle),
        ]
    };
    let facts = check(
        &record(kept_open(), run_once()),
        None,
        Reason::Idle,
        "It is kept open and waits for the next run; the last one, run 1, is over: it exited with code 0 at \
         2030-01-31T06:00:03Z.",
    );
    assert_eq!((facts.since, facts.run), (Some(at(3)), Some(1)));
    let job = Arc::new(plain().job);
    let mut again = run_once();
    again.extend([(4, EventKind::RunAdded { run: 2, job }), (5, starting(2, 1)), (6, running())]);
    check(
        &record(kept_open(), again),
        None,
        Reason::Running,
        "It has been running since 2030-01-31T06:00:05Z, as the process 4711, in run 2, in attempt 1 of 3.",
    );
    let finishing =
        vec![(1, starting(1, 1)), (2, running()), (3, ended(Outcome::Succeeded, code(0))), (3, draining())];
    check(
        &record(plain(), finishing),
        None,
        Reason::Draining,
        "Nothing of it has run since 2030-01-31T06:00:03Z; its executor finishes, until 2030-01-31T06:05:03Z at \
         the latest.",
    );
}

#[test]
fn why_it_stops() {
    let stopping = |with: fn(&mut Spec), then: Vec<(i64, EventKind)>| {
        let begin = vec![(1, starting(1, 1)), (2, running())];
        record(spec(with), begin.into_iter().chain(then).collect())
    };
    let requested = || cancel("user 0 on the unix socket", CancelReason::Requested, false);
    let facts = check(
        &stopping(|_| {}, vec![(3, requested())]),
        None,
        Reason::CleaningUp,
        "It was cancelled by user 0 on the unix socket at 2030-01-31T06:00:03Z, and cleans up; it is killed at \
         2030-01-31T06:00:33Z if it is not done by then.",
    );
    assert_eq!((facts.until, facts.forced), (Some(at(33)), Some(false)));
    check(
        &stopping(
            |spec| {
                (spec.timeout, spec.cancel_grace) =
                    (Some(Duration::from_secs(60)).into(), Some(Duration::from_secs(5)).into())
            },
            vec![(62, cancel("timeout", CancelReason::Timeout, false))],
        ),
        None,
        Reason::CleaningUp,
        "It was asked to stop at 2030-01-31T06:01:02Z, when its timeout of 1m was up, and cleans up; it is killed at \
         2030-01-31T06:01:07Z if it is not done by then.",
    );
    check(
        &stopping(|_| {}, vec![(3, cancel("SIGTERM", CancelReason::Shutdown, false))]),
        None,
        Reason::CleaningUp,
        "It was asked to stop at 2030-01-31T06:00:03Z, when the daemon was shut down (SIGTERM), and cleans up; it is \
         killed when the time for the shutdown is up.",
    );
    check(
        &stopping(
            |spec| spec.cancel_grace = Some(Duration::from_secs(2)).into(),
            vec![(3, requested()), (5, step(Action::GraceExpired, ""))],
        ),
        None,
        Reason::BeingKilled,
        "It was cancelled by user 0 on the unix socket at 2030-01-31T06:00:03Z, and is being killed because it was not \
         done when its grace of 2s was up.",
    );
    let stuck = vec![
        (3, requested()),
        (4, cancel("user 1 on the unix socket", CancelReason::Requested, true)),
        (9, step(Action::KillPending, "processes 4711")),
    ];
    check(
        &stopping(|_| {}, stuck),
        None,
        Reason::BeingKilled,
        "It was cancelled by user 0 on the unix socket at 2030-01-31T06:00:03Z, and is being killed because user 1 on \
         the unix socket asked for force, but something of it does not die: it is in uninterruptible sleep.",
    );
}

#[test]
fn every_reason_has_its_own_word() {
    let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Reason::ALL.len());
}

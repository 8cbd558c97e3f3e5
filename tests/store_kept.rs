//! What the store keeps besides events and records, what it forgets, and how an older file becomes a newer one.

use std::{
    collections::BTreeMap, fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use runward::{
    job::{
        self, Action, AttemptKey, CancelReason, CloseFacts, Command, ContextValue, Event, EventKind, Job,
        Outcome, OutputFacts, QueueSettings, Record, Requester, RunnerId, Spec, State, Variable, Webhook,
    },
    store::{self, Log, Lookup, Readers},
    supervisor::{
        Archive, Filter, Reading,
        ports::{Batch, ContextChange, Delivery, EventLog, IdempotencyKey, KeyedSubmission, Records},
    },
};

struct Store {
    path: PathBuf,
    log: Option<Log>,
    seq: u64,
    _dir: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("runward.db");
        let log = Some(store::open(&path, false).expect("a store"));
        Self { path, log, seq: 0, _dir: dir }
    }

    fn append(&mut self, batch: &Batch) {
        self.log.as_mut().expect("open").append(batch).expect("appended");
    }

    fn reopen(&mut self) {
        drop(self.log.take());
        self.log = Some(store::open(&self.path, true).expect("a store"));
    }

    fn lookup(&self) -> Lookup {
        Lookup::open(&self.path).expect("readable")
    }

    fn readers(&self) -> Readers {
        Readers::start(&self.path).expect("readers")
    }

    fn last_seq(&self) -> u64 {
        self.log.as_ref().expect("open").last_seq().expect("readable")
    }

    /// Makes a Runner to which this happens, a second after the one before, and commits it.
    fn runner(&mut self, spec: Spec, kinds: Vec<EventKind>) -> Arc<Record> {
        self.runner_with_steps(spec, kinds, 1)
    }

    /// The same, so many seconds apart.
    fn runner_with_steps(&mut self, spec: Spec, kinds: Vec<EventKind>, seconds: u64) -> Arc<Record> {
        let start = self.seq;
        let id = RunnerId::new();
        let submitted = EventKind::Submitted { spec: Arc::new(spec) };
        let mut events = Vec::new();
        for kind in [submitted].into_iter().chain(kinds) {
            self.seq += 1;
            let at = start + (self.seq - start) * seconds;
            let at = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(i64::try_from(at).expect("small"));
            events.push(Event { seq: self.seq, runner: id, at, kind });
        }
        let record = Arc::new(job::replay(&events).expect("legal").expect("a record"));
        let key = IdempotencyKey { key: format!("key of {id}"), body: [7; 32] };
        let keys = vec![KeyedSubmission { key, runner: id }];
        self.append(&Batch { events, keys, records: vec![Arc::clone(&record)], ..Batch::default() });
        record
    }

    fn closed(&mut self, spec: Spec, bytes: u64) -> Arc<Record> {
        self.runner(spec, life(bytes))
    }
}

fn loaded(lookup: &Lookup, id: RunnerId) -> Option<Record> {
    lookup.load(id).expect("readable")
}

fn read<T>(reading: Reading<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(reading).expect("readable")
}

fn spec() -> Spec {
    let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
    Spec {
        labels: BTreeMap::from([("team".into(), "data".into())]).into(),
        ..Spec::new(job, Duration::from_secs(300))
    }
}

fn life(bytes: u64) -> Vec<EventKind> {
    let output = Some(OutputFacts { bytes: bytes + 5, dropped: 5, incomplete: false });
    vec![
        EventKind::Starting {
            run: 1,
            attempt: 1,
            key: AttemptKey::new(),
            boot_id: "b".into(),
            context_version: 0,
        },
        EventKind::Running { pid: None, start_time: None },
        EventKind::AttemptEnded {
            outcome: Outcome::Succeeded,
            exit: None,
            error: None,
            output,
            swept: 0,
            result: None,
            context: Default::default(),
        },
        EventKind::Draining { outcome: None },
        EventKind::Closed(CloseFacts { outcome: Outcome::Succeeded, drain: None }),
    ]
}

fn telling() -> Spec {
    Spec { on_close: Some(Box::new(Webhook { url: "http://hook.example/".into(), secret: None })), ..spec() }
}

fn plain(text: &str, version: u64) -> Option<Variable> {
    Some(Variable { value: ContextValue::Plain(text.into()), version, set_at: Timestamp::UNIX_EPOCH })
}

/// Records had the time to the nanosecond; what their events have, and all that is read from now on, is microseconds.
fn in_micros(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) => match text.parse::<Timestamp>() {
            Ok(at) => Timestamp::from_microsecond(at.as_microsecond()).expect("a time").to_string().into(),
            Err(_) => value.clone(),
        },
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), in_micros(value))).collect()
        }
        serde_json::Value::Array(items) => items.iter().map(in_micros).collect(),
        other => other.clone(),
    }
}

#[test]
fn a_store_of_version_1_keeps_all_it_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("runward.db");
    let old = rusqlite::Connection::open(&path).expect("a database");
    old.execute_batch(include_str!("fixtures/store_v1.sql")).expect("the tables of version 1");
    let before: Vec<String> = old
        .prepare("SELECT record FROM runners ORDER BY n")
        .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
        .expect("records");
    drop(old);
    let log = store::open(&path, true).expect("it is migrated");
    assert_eq!(log.last_seq().expect("readable"), 16);
    let lookup = Lookup::open(&path).expect("readable");

    let mut count = 0;
    let told = lookup.waiting(|waiting| {
        count += 1;
        assert_eq!((waiting.priority, waiting.submitted_seq, waiting.weight), (5, 16, 1));
        assert_eq!((waiting.queue, waiting.ready_at, waiting.deadline_at), ("default", None, None));
    });
    told.expect("readable");
    assert_eq!(count, 1);
    let under_way = lookup.under_way().expect("its events add up");
    assert_eq!(under_way.len(), 1);
    assert_eq!((under_way[0].spec.name.as_deref(), under_way[0].state), (Some("long"), State::Running));
    for text in &before {
        let was: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let id: RunnerId = was["id"].as_str().expect("an id").parse().expect("an id");
        let record = serde_json::to_value(loaded(&lookup, id).expect("it is there")).expect("JSON");
        for (key, value) in was.as_object().expect("a record") {
            if !["spec", "runs"].contains(&key.as_str()) {
                assert_eq!(record[key], in_micros(value), "{key}");
            }
        }
        assert_eq!(record["spec"]["job"], was["spec"]["job"]);
        assert_eq!(record["runs"].as_array().map(Vec::len), was["runs"].as_array().map(Vec::len));
    }

    let readers = Readers::start(&path).expect("readers");
    let totals = read(readers.totals());
    assert_eq!((totals.records, totals.log_bytes), (2, 11));
    let closed = read(readers.oldest_closed(10));
    let at: Vec<i64> = closed.iter().map(|closed| closed.at.as_microsecond()).collect();
    assert_eq!(at, [1_795_395_969_743_072, 1_795_395_969_755_708], "exactly when they closed");
    assert!(read(readers.keyed("one".into())).is_some_and(|(id, _)| id == closed[0].id));
    let labelled = Filter { labels: vec![("team".into(), "data".into())], limit: 9, ..Filter::default() };
    assert_eq!(read(readers.list(labelled)).found.len(), 1);
    assert_eq!(lookup.context().expect("readable").version, 0);
    drop(log);
    store::open(&path, true).expect("it opens as one of this version");
}

#[test]
fn a_store_of_version_2_keeps_all_it_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("runward.db");
    let old = rusqlite::Connection::open(&path).expect("a database");
    old.execute_batch(include_str!("fixtures/store_v2.sql")).expect("the tables of version 2");
    let before: Vec<Record> = old
        .prepare("SELECT record FROM runners ORDER BY n DESC")
        .and_then(|mut rows| rows.query_map([], |row| row.get::<_, String>(0))?.collect())
        .map(|texts: Vec<String>| {
            let record = |text: String| {
                let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                serde_json::from_value(in_micros(&value)).expect("a record")
            };
            texts.into_iter().map(record).collect()
        })
        .expect("records");
    drop(old);
    let log = store::open(&path, true).expect("it is migrated");
    assert_eq!(log.last_seq().expect("readable"), 21);
    let states: Vec<State> = before.iter().map(|record| record.state).collect();
    assert_eq!(states, [State::Queued, State::Running, State::Idle, State::Closed, State::Closed]);

    let readers = Readers::start(&path).expect("readers");
    let all = read(readers.list(Filter { limit: 9, ..Filter::default() }));
    assert_eq!(all.found, before, "what the events add up to is what was stored");
    let lookup = Lookup::open(&path).expect("readable");
    let told = lookup.waiting(|waiting| {
        assert_eq!((waiting.id, waiting.weight, waiting.priority), (before[0].id, 2, 5));
        assert_eq!(waiting.ready_at, before[0].ready_at());
    });
    told.expect("readable");
    assert_eq!(lookup.under_way().expect("readable"), [before[1].clone()]);
    assert_eq!(lookup.idle().expect("readable"), [before[2].clone()]);
    let nightly = Filter { queue: Some("nightly".into()), limit: 9, ..Filter::default() };
    assert_eq!(read(readers.list(nightly)).found, [before[3].clone()]);
    let labelled = Filter { labels: vec![("team".into(), "data".into())], limit: 9, ..Filter::default() };
    assert_eq!(read(readers.list(labelled)).found, [before[0].clone(), before[4].clone()]);
    let events = read(readers.events(5, None, 3));
    let of: Vec<_> = events.iter().map(|event| (event.seq, event.runner, event.kind.name())).collect();
    let (first, second) = (before[4].id, before[3].id);
    assert_eq!(of, [(6, first, "closed"), (7, second, "submitted"), (8, second, "starting")]);
    assert_eq!(read(readers.events(0, Some(first), 9)).len(), 6);
    let totals = read(readers.totals());
    assert_eq!((totals.records, totals.log_bytes), (2, 11));
    assert!(read(readers.keyed("one".into())).is_some_and(|(id, _)| id == first));
}

#[test]
fn what_waits_is_restored_without_its_record() {
    let mut store = Store::new();
    let start = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
    let record = store.runner(
        Spec {
            queue: "heavy".into(),
            priority: -2,
            weight: 3,
            concurrency_key: Some("app".into()).into(),
            delay: Some(Duration::from_secs(10)).into(),
            start_at: Some(start).into(),
            deadline: Some(Duration::from_secs(60)).into(),
            ..spec()
        },
        vec![],
    );
    let lookup = store.lookup();
    let mut count = 0;
    let told = lookup.waiting(|waiting| {
        count += 1;
        assert_eq!((waiting.id, waiting.queue, waiting.priority), (record.id, "heavy", -2));
        assert_eq!((waiting.weight, waiting.concurrency_key), (3, Some("app")));
        assert_eq!(waiting.ready_at, Some(start));
        assert_eq!(waiting.deadline_at, Some(record.created_at + SignedDuration::from_secs(60)));
        assert!(!waiting.held && !waiting.in_process);
        assert_eq!(lookup.load_at(waiting.submitted_seq).expect("readable").as_ref(), Some(&*record));
    });
    told.expect("readable");
    assert_eq!(count, 1);
    assert!(lookup.load_at(record.submitted_seq + 1).expect("readable").is_none());
}

#[test]
fn an_idle_runner_is_neither_waiting_nor_under_way() {
    let mut store = Store::new();
    let mut kinds = life(0);
    kinds.truncate(3);
    kinds.push(EventKind::Idle);
    let record = store.runner(Spec { keep_open: true, ..spec() }, kinds);
    let lookup = store.lookup();
    lookup.waiting(|waiting| panic!("{waiting:?}")).expect("readable");
    assert!(lookup.under_way().expect("readable").is_empty());
    assert_eq!(lookup.idle().expect("readable"), [Record::clone(&record)]);
}

#[test]
fn what_happened_at_one_moment_is_stored_together_and_read_one_by_one() {
    let mut store = Store::new();
    let mut kinds = life(3);
    let step = EventKind::CancelStep { action: Action::Signal, target: None };
    let by = Requester("socket:0".into());
    let asked = EventKind::CancelRequested { by, reason: CancelReason::Requested, force: false };
    kinds.splice(2..2, [asked].into_iter().chain(vec![step; 29]));
    let spread = store.closed(spec(), 3);
    let at_once = store.runner_with_steps(spec(), kinds, 0);
    let last_seq = at_once.last_seq;
    assert_eq!((spread.last_seq, last_seq), (6, 42));
    let rows: Vec<u64> = rusqlite::Connection::open(&store.path)
        .and_then(|connection| {
            connection.prepare("SELECT count FROM events")?.query_map([], |row| row.get(0))?.collect()
        })
        .expect("readable");
    assert_eq!(rows, [1, 1, 1, 1, 1, 1, 16, 16, 4]);
    assert_eq!(store.last_seq(), last_seq);

    let (readers, lookup) = (store.readers(), store.lookup());
    assert_eq!(loaded(&lookup, at_once.id).as_ref(), Some(&*at_once));
    let seqs = |after, id, limit| -> Vec<u64> {
        read(readers.events(after, id, limit)).iter().map(|event| event.seq).collect()
    };
    for after in 0..=last_seq {
        for limit in [1, 2, 5, 99] {
            let expected = |first: u64| (first..=last_seq).take(limit).collect::<Vec<_>>();
            assert_eq!(seqs(after, None, limit), expected(after + 1));
            assert_eq!(seqs(after, Some(at_once.id), limit), expected(after.max(6) + 1));
        }
        assert_eq!(lookup.at(after).is_some(), after > 0);
    }
    assert_eq!(lookup.at(last_seq), *at_once.closed_at);
    assert_eq!(lookup.at(last_seq + 1), None);

    store.append(&Batch { purged: vec![at_once.id], ..Batch::default() });
    assert_eq!(store.last_seq(), last_seq, "places do not come again");
    assert_eq!(lookup.at(last_seq), None);
}

fn change(name: &str, version: u64, variable: Option<Variable>) -> ContextChange {
    ContextChange { version, name: name.into(), variable }
}

#[test]
fn queues_and_context_survive() {
    let mut store = Store::new();
    let settings = QueueSettings { max_running: Some(3), paused: true };
    let sealed =
        Variable { value: ContextValue::Sealed(vec![0, 255, 3]), version: 2, set_at: Timestamp::UNIX_EPOCH };
    store.append(&Batch {
        queues: vec![("a".into(), Some(settings)), ("b".into(), Some(settings)), ("b".into(), None)],
        context: vec![
            change("A", 1, plain("1", 1)),
            change("S", 2, Some(sealed.clone())),
            change("A", 3, plain("2", 3)),
        ],
        ..Batch::default()
    });
    store.reopen();
    let lookup = store.lookup();
    assert_eq!(lookup.queues().expect("readable"), [("a".to_owned(), settings)].into());
    let context = lookup.context().expect("readable");
    assert_eq!(context.version, 3);
    let expected = [("A".to_owned(), plain("2", 3).expect("some")), ("S".to_owned(), sealed)];
    assert_eq!(context.variables, expected.into());
}

#[test]
fn the_version_of_the_context_never_goes_back() {
    let mut store = Store::new();
    store.append(&Batch { context: vec![change("A", 1, plain("1", 1))], ..Batch::default() });
    store.append(&Batch { context: vec![change("A", 2, None)], ..Batch::default() });
    store.reopen();
    let context = store.lookup().context().expect("readable");
    assert_eq!((context.version, context.variables.len()), (2, 0));
    store.append(&Batch {
        context: vec![change("A", 3, plain("1", 3)), change("A", 4, None)],
        ..Batch::default()
    });
    assert_eq!(store.lookup().context().expect("readable").version, 4);
}

#[test]
fn who_is_read_while_it_is_forgotten_is_closed_or_not_there() {
    let mut store = Store::new();
    let ids: Vec<RunnerId> = (0..300).map(|_| store.closed(spec(), 1).id).collect();
    let (readers, ids) = (store.readers(), &ids);
    std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            for id in ids {
                while let Some(record) = read(readers.record(*id)) {
                    assert_eq!(record.state, State::Closed, "{id} has closed long ago");
                }
            }
        });
        for id in ids {
            if read.is_finished() {
                break;
            }
            store.append(&Batch { purged: vec![*id], ..Batch::default() });
        }
    });
}

#[test]
fn the_purged_leave_nothing_and_places_of_events_never_come_again() {
    let mut store = Store::new();
    let kept = store.closed(spec(), 10);
    let gone = store.closed(telling(), 20);
    let open = store.runner(spec(), vec![]);
    let last = store.closed(spec(), 30);
    let last_seq = store.last_seq();
    store.append(&Batch { purged: vec![gone.id, open.id, last.id], ..Batch::default() });
    let lookup = store.lookup();
    assert!(loaded(&lookup, kept.id).is_some());
    assert!(loaded(&lookup, open.id).is_some(), "what is open is not forgotten");
    let readers = store.readers();
    for id in [gone.id, last.id] {
        assert!(loaded(&lookup, id).is_none());
        assert!(read(readers.events(0, Some(id), 10)).is_empty());
        assert!(read(readers.keyed(format!("key of {id}"))).is_none());
    }
    assert!(read(readers.keyed(format!("key of {}", kept.id))).is_some());
    assert!(read(readers.messages(Timestamp::now(), 10)).0.is_empty());
    assert_eq!(store.last_seq(), last_seq);
    store.reopen();
    assert_eq!(store.last_seq(), last_seq, "also after the next start");
    let labels: u64 = rusqlite::Connection::open(&store.path)
        .and_then(|connection| connection.query_row("SELECT count(*) FROM labels", [], |row| row.get(0)))
        .expect("readable");
    assert_eq!(labels, 2);
}

#[test]
fn a_message_is_queued_with_the_close_and_goes_when_it_was_taken() {
    let mut store = Store::new();
    let tally = store.log.as_ref().expect("open").tally();
    store.closed(spec(), 1);
    let mut open = life(1);
    open.pop();
    store.runner(telling(), open);
    let telling = store.closed(telling(), 1);
    assert_eq!((tally.borrow().closed, tally.borrow().messages), (2, 1));
    store.reopen();
    let readers = store.readers();
    let now = Timestamp::now();
    let (due, next) = read(readers.messages(now, 10));
    assert_eq!(due.iter().map(|message| message.record.id).collect::<Vec<_>>(), [telling.id]);
    assert_eq!((due[0].attempts, next), (0, None));
    let oldest = read(readers.oldest_closed(10));
    assert!(oldest.iter().all(|closed| closed.id != telling.id), "not forgotten before it was told");

    let later = now + SignedDuration::from_secs(60);
    let retry = Delivery::Retry { attempts: 1, at: later };
    store.append(&Batch { webhooks: vec![(telling.id, retry)], ..Batch::default() });
    let (due, next) = read(readers.messages(now, 10));
    assert!(due.is_empty());
    assert_eq!(next, Timestamp::from_microsecond(later.as_microsecond()).ok());
    assert_eq!(read(readers.messages(later, 10)).0[0].attempts, 1);

    store.append(&Batch { webhooks: vec![(telling.id, Delivery::Done)], ..Batch::default() });
    assert!(read(readers.messages(later, 10)).0.is_empty());
    assert_eq!(read(readers.oldest_closed(10)).len(), 2);
}

#[test]
fn retention_sees_the_oldest_first() {
    let mut store = Store::new();
    let first = store.closed(spec(), 100);
    store.runner(spec(), vec![]);
    let second = store.closed(spec(), 23);
    let readers = store.readers();
    let totals = read(readers.totals());
    assert_eq!((totals.records, totals.log_bytes), (2, 123));
    let oldest = read(readers.oldest_closed(10));
    assert_eq!(oldest.iter().map(|closed| closed.id).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!((oldest[0].log_bytes, Some(oldest[0].at)), (100, *first.closed_at));
    assert_eq!(read(readers.oldest_closed(1)).len(), 1);
}

#[test]
fn nobody_else_can_read_its_files_also_those_of_an_older_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("runward.db");
    let files = || ["", "-wal", "-shm"].map(|suffix| PathBuf::from(format!("{}{suffix}", path.display())));
    let modes = || files().map(|file| file.metadata().expect("it is there").permissions().mode() & 0o7777);
    let log = store::open(&path, false).expect("a store");
    assert_eq!(modes(), [0o600; 3]);
    drop(log);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("changed");
    // As a crash leaves them.
    for file in &files()[1..] {
        std::fs::write(file, "").expect("written");
        std::fs::set_permissions(file, Permissions::from_mode(0o644)).expect("changed");
    }
    let _log = store::open(&path, true).expect("a store");
    let _readers = Readers::start(&path).expect("readers");
    assert_eq!(modes(), [0o600; 3]);
}

//! Lists of the store: what is asked for is found, whatever else there is, and a page is never looked for long.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use runward::{
    job::{
        self, AttemptKey, CloseFacts, Command, Event, EventKind, Job, Outcome, Record, RunnerId, Spec, State,
    },
    store::{self, Log, Readers},
    supervisor::{
        Archive, Filter, LOOKS, Listed,
        ports::{Batch, EventLog},
    },
};

struct Store {
    log: Log,
    readers: Readers,
    seq: u64,
    _dir: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("runward.db");
        let log = store::open(&path, false).expect("a store");
        Self { log, readers: Readers::start(&path).expect("readers"), seq: 0, _dir: dir }
    }

    fn event(&mut self, runner: RunnerId, kind: EventKind) -> Event {
        self.seq += 1;
        let at = Timestamp::UNIX_EPOCH + SignedDuration::from_millis(i64::try_from(self.seq).expect("small"));
        Event { seq: self.seq, runner, at, kind }
    }

    /// Commits one batch of Runners, and gives their records, newest first.
    fn runners(&mut self, specs_and_lives: Vec<(Spec, Vec<EventKind>)>) -> Vec<Record> {
        let mut batch = Batch::default();
        for (spec, life) in specs_and_lives {
            let id = RunnerId::new();
            let submitted = EventKind::Submitted { spec: Arc::new(spec) };
            let kinds = [submitted].into_iter().chain(life);
            let events: Vec<Event> = kinds.map(|kind| self.event(id, kind)).collect();
            batch.records.push(Arc::new(job::replay(&events).expect("legal").expect("a record")));
            batch.events.extend(events);
        }
        self.log.append(&batch).expect("appended");
        batch.records.iter().rev().map(|record| Record::clone(record)).collect()
    }

    /// More happens to one that is there.
    fn goes_on(&mut self, record: &mut Record, kinds: Vec<EventKind>) {
        let events: Vec<Event> = kinds.into_iter().map(|kind| self.event(record.id, kind)).collect();
        for event in &events {
            job::apply(record, event).expect("legal");
        }
        let records = vec![Arc::new(record.clone())];
        self.log.append(&Batch { events, records, ..Batch::default() }).expect("appended");
    }

    fn list(&self, filter: &Filter) -> Listed {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let listed = runtime.block_on(self.readers.list(filter.clone())).expect("readable");
        let states = runtime.block_on(self.readers.list_states(filter.clone())).expect("readable");
        assert!(states.found.into_iter().eq(listed.found.iter().map(|record| (record.id, record.state))));
        assert_eq!((states.next, states.looked), (listed.next, listed.looked));
        listed
    }

    /// All pages, and how many there were.
    fn pages(&self, mut filter: Filter) -> (Vec<Record>, usize) {
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let listed = self.list(&filter);
            assert!(listed.looked <= LOOKS && listed.found.len() <= filter.limit);
            pages += 1;
            found.extend(listed.found);
            match listed.next {
                Some(next) => filter.before = Some(next),
                None => return (found, pages),
            }
        }
    }
}

fn spec(queue: &str) -> Spec {
    let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
    Spec { queue: queue.into(), ..Spec::new(job, Duration::from_secs(300)) }
}

fn started() -> Vec<EventKind> {
    let (key, boot_id) = (AttemptKey::new(), "b".into());
    vec![
        EventKind::Starting { run: 1, attempt: 1, key, boot_id, context_version: 0 },
        EventKind::Running { pid: Some(7), start_time: Some(7) },
    ]
}

fn ended(outcome: Outcome) -> Vec<EventKind> {
    vec![
        EventKind::AttemptEnded {
            outcome,
            exit: None,
            error: None,
            output: None,
            swept: 0,
            result: None,
            context: Default::default(),
        },
        EventKind::Draining { outcome: Some(outcome) },
        EventKind::Closed(CloseFacts { outcome, drain: None }),
    ]
}

#[test]
fn a_page_of_what_is_not_closed_shows_what_its_events_say() {
    let mut store = Store::new();
    let mut records = store.runners(vec![(spec("default"), vec![]), (spec("default"), vec![])]);
    store.goes_on(&mut records[0], started());
    let open = Filter { states: vec![State::Queued, State::Running], limit: 9, ..Filter::default() };
    assert_eq!(store.list(&open).found, records);
    assert_eq!(records[0].attempt().and_then(|attempt| attempt.pid), Some(7));
    store.goes_on(&mut records[0], ended(Outcome::Failed));
    assert_eq!(store.list(&open).found, records[1..]);
    let failed = Filter { outcomes: vec![Outcome::Failed], limit: 9, ..Filter::default() };
    assert_eq!(store.list(&failed).found, records[..1]);
}

#[test]
fn filters_and_their_combinations_find_what_a_look_at_all_finds() {
    let mut store = Store::new();
    let outcomes = [Outcome::Succeeded, Outcome::Failed, Outcome::Lost];
    let jobs = (0..240).map(|number: usize| {
        let mut spec = spec(["default", "nightly", "x"][number % 3]);
        spec.name = number.is_multiple_of(4).then(|| ["a", "b"][number / 4 % 2].to_owned()).into();
        let mut labels = BTreeMap::new();
        if number % 5 < 3 {
            labels.insert("team".into(), ["data", "web"][number % 2].into());
        }
        if number.is_multiple_of(7) {
            labels.insert("tier".into(), "1".into());
        }
        spec.labels = labels.into();
        let life = match number % 8 {
            0 | 1 => vec![],
            2 => started(),
            _ => [started(), ended(outcomes[number % 3])].concat(),
        };
        (spec, life)
    });
    let all = store.runners(jobs.collect());
    let some = |word: Option<&str>| word.map(str::to_owned);
    let labelled = |labels: &[(&str, &str)]| {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let mut tried = 0;
    for states in [vec![], vec![State::Queued], vec![State::Running, State::Queued], vec![State::Closed]] {
        for outcomes in [vec![], vec![Outcome::Failed], vec![Outcome::Succeeded, Outcome::Lost]] {
            for queue in [None, Some("default"), Some("nightly"), Some("none")] {
                for name in [None, Some("a")] {
                    for labels in [vec![], vec![("team", "data")], vec![("team", "data"), ("tier", "1")]] {
                        let filter = Filter {
                            states: states.clone(),
                            outcomes: outcomes.clone(),
                            queue: some(queue),
                            name: some(name),
                            labels: labelled(&labels),
                            before: None,
                            limit: 7,
                        };
                        let fits = |record: &&Record| {
                            (states.is_empty() || states.contains(&record.state))
                                && (outcomes.is_empty()
                                    || record.outcome.is_some_and(|outcome| outcomes.contains(&outcome)))
                                && queue.is_none_or(|queue| record.spec.queue == queue)
                                && name.is_none_or(|name| record.spec.name.as_deref() == Some(name))
                                && labels.iter().all(|(key, value)| {
                                    record.spec.labels.get(*key).is_some_and(|known| known == value)
                                })
                        };
                        let expected: Vec<&Record> = all.iter().filter(fits).collect();
                        let (found, _) = store.pages(filter.clone());
                        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
                        tried += usize::from(!expected.is_empty());
                    }
                }
            }
        }
    }
    assert!(tried > 50, "{tried} of them found something");
}

#[test]
fn what_is_rare_among_many_is_found_at_once_or_page_by_page() {
    let mut store = Store::new();
    let rare = Spec { name: Some("rare".into()).into(), ..spec("default") };
    let rare = store.runners(vec![(rare, vec![]), (spec("small"), vec![])]);
    store.runners((0..LOOKS + 10).map(|_| (spec("large"), vec![])).collect());
    for (filter, expected) in [
        (Filter { name: Some("rare".into()), ..Filter::default() }, &rare[1]),
        (Filter { queue: Some("small".into()), states: vec![State::Queued], ..Filter::default() }, &rare[0]),
    ] {
        let listed = store.list(&Filter { limit: 10, ..filter });
        assert_eq!(
            (listed.found.as_slice(), listed.looked, listed.next),
            ([expected.clone()].as_slice(), 1, None)
        );
    }
    // No index tells these from the others: the first page is empty, and says where to go on.
    let filter = Filter { queue: Some("default".into()), limit: 10, ..Filter::default() };
    let first = store.list(&filter);
    assert!(first.found.is_empty() && first.next.is_some() && first.looked == LOOKS);
    let (found, pages) = store.pages(filter);
    assert_eq!((found.as_slice(), pages), (&rare[1..], 2));
}

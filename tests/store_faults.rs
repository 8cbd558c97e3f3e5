//! Hard case 32: the store has no room, or breaks. The log is a fake behind its trait; the actor is the real one.

#[path = "common/nothing.rs"]
mod nothing;

use std::{
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::poll;
use nothing::Nothing;
use runward::{
    job::{
        AttemptKey, Command, Drain, Event, Exit, Job, Outcome, Record, Requester, RunnerId, SharedContext,
        Spec, State,
    },
    metrics::{Metrics, Text},
    supervisor::{
        Actor, Ended, Fatal, Parts, REPORTS, Refusal, Stage, Submission, Supervisor, Urgent,
        core::{Core, Limits},
        ports::{AppendError, Batch, Duplicate, End, EventLog, LoopFacts, News, Report, Runners},
    },
};
use tokio::sync::{mpsc, oneshot};

const WELL: u8 = 0;
const FULL: u8 = 1;
const BROKEN: u8 = 2;

/// What the disk does, and what it holds.
#[derive(Clone, Default)]
struct Disk {
    health: Arc<AtomicU8>,
    events: Arc<Mutex<Vec<Event>>>,
    /// How many events each commit had.
    commits: Arc<Mutex<Vec<usize>>>,
    /// What the next commit waits for: that the other end is dropped.
    hanging: Arc<Mutex<Option<std::sync::mpsc::Receiver<()>>>>,
}

impl Disk {
    fn becomes(&self, health: u8) {
        self.health.store(health, Ordering::SeqCst);
    }

    /// The next commit hangs until what is returned is dropped.
    fn hangs(&self) -> std::sync::mpsc::Sender<()> {
        let (release, released) = std::sync::mpsc::channel();
        *self.hanging.lock().expect("unpoisoned") = Some(released);
        release
    }

    fn events_of(&self, id: RunnerId) -> Vec<&'static str> {
        let events = self.events.lock().expect("unpoisoned");
        events.iter().filter(|event| event.runner == id).map(|event| event.kind.name()).collect()
    }
}

impl EventLog for Disk {
    fn append(&mut self, batch: &Batch) -> Result<Vec<Duplicate>, AppendError> {
        let hanging = self.hanging.lock().expect("unpoisoned").take();
        if let Some(released) = hanging {
            released.recv().expect_err("nothing is sent");
        }
        match self.health.load(Ordering::SeqCst) {
            WELL => {
                self.commits.lock().expect("unpoisoned").push(batch.events.len());
                self.events.lock().expect("unpoisoned").extend(batch.events.iter().cloned());
            }
            FULL => return Err(AppendError::Refused("no space left on device".into())),
            _ => return Err(AppendError::Broken("a sync failed".into())),
        }
        Ok(Vec::new())
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Prepare(RunnerId, AttemptKey),
    Go(AttemptKey),
    Cancel(AttemptKey),
    Force(AttemptKey),
    Abort(AttemptKey),
    Settled(AttemptKey),
}

/// Runners that do nothing but tell what they were told.
struct Listening(mpsc::UnboundedSender<Told>);

impl Listening {
    fn hear(&self, told: Told) {
        self.0.send(told).expect("the test listens");
    }
}

impl Runners for Listening {
    fn prepare(&mut self, record: Arc<Record>, key: AttemptKey, _: Arc<SharedContext>) {
        self.hear(Told::Prepare(record.id, key));
    }

    fn go(&mut self, key: AttemptKey) {
        self.hear(Told::Go(key));
    }

    fn cancel(&mut self, key: AttemptKey) {
        self.hear(Told::Cancel(key));
    }

    fn force(&mut self, key: AttemptKey) {
        self.hear(Told::Force(key));
    }

    fn abort(&mut self, key: AttemptKey) {
        self.hear(Told::Abort(key));
    }

    fn settled(&mut self, key: AttemptKey) {
        self.hear(Told::Settled(key));
    }

    fn close(&mut self, _: Arc<Record>, _: AttemptKey) {}

    fn get_loop(&self, _: AttemptKey) -> Option<LoopFacts> {
        Some(LoopFacts::default())
    }
}

struct Rig {
    disk: Disk,
    supervisor: Supervisor,
    told: mpsc::UnboundedReceiver<Told>,
    reports: mpsc::Sender<Report>,
    urgent: mpsc::Sender<Urgent>,
    actor: tokio::task::JoinHandle<Ended>,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn start() -> Self {
        let disk = Disk::default();
        let limits = Limits {
            max_running: 2,
            max_in_process: 2,
            max_queued: 10,
            cancel_grace: Duration::from_secs(30),
            shutdown: Duration::from_secs(300),
        };
        let (sender, told) = mpsc::unbounded_channel();
        let metrics = Arc::<Metrics>::default();
        let (reports, report_receiver) = mpsc::channel(REPORTS);
        let (urgent, urgent_receiver) = mpsc::channel(4);
        let parts = Parts {
            core: Core::new(limits, "boot".into(), 1),
            runners: Listening(sender),
            reports: report_receiver,
            urgent: urgent_receiver,
            log: Box::new(disk.clone()),
            records: Nothing,
            last_seq: 0,
            metrics: Arc::clone(&metrics),
        };
        let (mut actor, supervisor) =
            Actor::new(parts, Arc::new(Nothing), "/nowhere".into()).expect("the actor is made");
        let actor = tokio::runtime::Handle::current().spawn(async move { actor.run().await });
        Self { disk, supervisor, told, reports, urgent, actor, metrics }
    }

    async fn submit(&self) -> Result<RunnerId, Refusal> {
        let id = RunnerId::new();
        self.supervisor
            .submit(Submission { id, spec: Arc::new(spec()), key: None })
            .await
            .map(|submitted| submitted.id)
    }

    /// A job that executes.
    async fn running(&mut self) -> (RunnerId, AttemptKey) {
        let id = RunnerId::new();
        let mut subscription = self.supervisor.subscribe(id);
        self.supervisor.submit(Submission { id, spec: Arc::new(spec()), key: None }).await.expect("accepted");
        let Some(Told::Prepare(_, key)) = self.told.recv().await else { panic!("it is prepared first") };
        assert_eq!(self.told.recv().await, Some(Told::Go(key)));
        self.report(id, key, News::Running { pid: Some(7), start_time: Some(7) }).await;
        while subscription.changed().await.state != State::Running {}
        (id, key)
    }

    /// A sample as it is told.
    fn counts(&self, sample: &str) -> bool {
        let mut text = Text::default();
        self.metrics.write(&mut text);
        text.into_string().lines().any(|line| line == sample)
    }

    async fn report(&self, runner: RunnerId, key: AttemptKey, news: News) {
        self.reports.send(Report { runner, key, news }).await.expect("the actor listens");
    }

    async fn stage(&self, fits: impl Fn(&Stage) -> bool) {
        let mut status = self.supervisor.status();
        status.wait_for(|status| fits(&status.stage)).await.expect("the actor lives");
    }
}

fn spec() -> Spec {
    let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
    Spec::new(job, Duration::from_secs(300))
}

#[tokio::test(start_paused = true)]
async fn case_32_a_full_disk_refuses_new_jobs_and_what_runs_is_supervised_on() {
    let mut rig = Rig::start();
    let (running, key) = rig.running().await;
    rig.disk.becomes(FULL);
    let refused = rig.submit().await.expect_err("nothing can be accepted that can't be kept");
    assert!(
        matches!(&refused, Refusal::StoreFailing(reason) if reason.contains("no space left")),
        "{refused}"
    );
    rig.stage(|stage| matches!(stage, Stage::StoreFailing { .. })).await;
    assert!(
        rig.counts(r#"runward_runners_submitted_total{kind="command"} 1"#),
        "only what is on record is counted"
    );
    // What was made ready for the refused one is taken back; it never goes.
    let Some(Told::Prepare(_, second)) = rig.told.recv().await else { panic!("it was prepared") };
    assert_eq!(rig.told.recv().await, Some(Told::Abort(second)));
    // A cancellation is carried out all the same.
    let taken = rig.supervisor.cancel(running, Requester("somebody".into())).await;
    assert!(
        matches!(taken, Err(Refusal::NotRecorded(_))),
        "a 202 would say that it never runs again: {taken:?}"
    );
    assert_eq!(rig.told.recv().await, Some(Told::Cancel(key)));
    let end = End { exit: Some(Exit::Code(0)), closed: Some(Drain::default()), ..End::default() };
    let mut subscription = rig.supervisor.subscribe(running);
    rig.report(running, key, News::Ended(end)).await;

    assert!(rig.counts(r#"runward_cancellations_total{reason="requested",force="false"} 0"#));
    rig.disk.becomes(WELL);
    assert_eq!(rig.told.recv().await, Some(Told::Settled(key)), "the shim lets go only when the end is kept");
    let mut record = subscription.changed().await;
    while record.state != State::Closed {
        record = subscription.changed().await;
    }
    assert_eq!(record.outcome, Some(Outcome::Cancelled));
    let kept = rig.disk.events_of(running);
    assert_eq!(
        kept,
        ["submitted", "starting", "running", "cancel_requested", "attempt_ended", "draining", "closed"],
        "nothing that happened meanwhile is missing"
    );
    rig.stage(|stage| *stage == Stage::Ready).await;
    let accepted = rig.submit().await.expect("accepted again");
    assert!(rig.disk.events_of(accepted).contains(&"submitted"));
    assert!(rig.counts(r#"runward_runners_submitted_total{kind="command"} 2"#));
    assert!(rig.counts(r#"runward_cancellations_total{reason="requested",force="false"} 1"#));
    let seqs: Vec<u64> = rig.disk.events.lock().expect("unpoisoned").iter().map(|event| event.seq).collect();
    assert!(seqs.is_sorted(), "{seqs:?}");
}

#[tokio::test(start_paused = true)]
async fn case_32_a_store_that_breaks_ends_the_daemon_and_nothing_is_answered_that_was_not_kept() {
    let mut rig = Rig::start();
    let (running, _) = rig.running().await;
    rig.disk.becomes(BROKEN);
    let refused = rig.submit().await.expect_err("it is not known to be kept");
    assert_eq!(refused, Refusal::Ended);
    let ended = rig.actor.await.expect("no panic");
    assert_eq!(ended, Ended::Fatal(Fatal::StoreBroken("a sync failed".into())));
    assert_eq!(rig.disk.events_of(running), ["submitted", "starting", "running"]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_on_a_full_disk_still_stops_what_runs() {
    let mut rig = Rig::start();
    let (_, key) = rig.running().await;
    rig.disk.becomes(FULL);
    rig.urgent.send(Urgent::Signal("SIGTERM")).await.expect("the actor listens");
    assert_eq!(rig.told.recv().await, Some(Told::Cancel(key)));
    rig.urgent.send(Urgent::Signal("SIGTERM")).await.expect("the actor listens");
    assert_eq!(rig.told.recv().await, Some(Told::Force(key)));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_on_a_full_disk_ends_when_everything_has() {
    let mut rig = Rig::start();
    let (running, key) = rig.running().await;
    rig.disk.becomes(FULL);
    rig.urgent.send(Urgent::Signal("SIGTERM")).await.expect("the actor listens");
    assert_eq!(rig.told.recv().await, Some(Told::Cancel(key)));
    let end = End { exit: Some(Exit::Code(0)), closed: Some(Drain::default()), ..End::default() };
    rig.report(running, key, News::Ended(end)).await;
    let ended = rig.actor.await.expect("no panic");
    assert!(
        matches!(&ended, Ended::Fatal(Fatal::StoreBroken(reason)) if reason.contains("no space")),
        "{ended:?}"
    );
    assert_eq!(
        rig.told.recv().await,
        None,
        "no shim was told to let go: they keep the ends for the next start"
    );
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_waits_for_is_committed_with_the_end_of_a_short_job() {
    let mut rig = Rig::start();
    let id = RunnerId::new();
    let mut subscription = rig.supervisor.subscribe(id);
    rig.supervisor.submit(Submission { id, spec: Arc::new(spec()), key: None }).await.expect("accepted");
    let Some(Told::Prepare(_, key)) = rig.told.recv().await else { panic!("it is prepared first") };
    assert_eq!(rig.told.recv().await, Some(Told::Go(key)));
    rig.report(id, key, News::Running { pid: Some(7), start_time: Some(7) }).await;
    let end = End { exit: Some(Exit::Code(0)), closed: Some(Drain::default()), ..End::default() };
    rig.report(id, key, News::Ended(end)).await;
    while subscription.changed().await.state != State::Closed {}
    assert_eq!(*rig.disk.commits.lock().expect("unpoisoned"), [2, 4], "two commits for all of its life");
    assert_eq!(rig.told.recv().await, Some(Told::Settled(key)));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_waits_for_is_committed_soon_and_delays_nobody() {
    let mut rig = Rig::start();
    let before = tokio::time::Instant::now();
    let (first, _) = rig.running().await;
    assert!(before.elapsed() < Duration::from_millis(20), "it was not left until something else happened");
    assert_eq!(rig.disk.events_of(first), ["submitted", "starting", "running"]);

    let id = RunnerId::new();
    let mut subscription = rig.supervisor.subscribe(id);
    rig.supervisor.submit(Submission { id, spec: Arc::new(spec()), key: None }).await.expect("accepted");
    let Some(Told::Prepare(_, key)) = rig.told.recv().await else { panic!("it is prepared first") };
    assert_eq!(rig.told.recv().await, Some(Told::Go(key)));
    let before = tokio::time::Instant::now();
    rig.report(id, key, News::Running { pid: Some(7), start_time: Some(7) }).await;
    let another = rig.submit().await.expect("accepted");
    assert_eq!(before.elapsed(), Duration::ZERO, "who waits is not delayed");
    assert_eq!(rig.disk.events_of(another), ["submitted"]);
    while subscription.changed().await.state != State::Running {}
    assert!(before.elapsed() < Duration::from_millis(20), "nor is the start by what others commit");
    assert_eq!(rig.disk.events_of(id), ["submitted", "starting", "running"]);
}

#[tokio::test(start_paused = true)]
async fn a_start_is_on_record_before_what_happens_next() {
    let mut rig = Rig::start();
    let id = RunnerId::new();
    rig.supervisor.submit(Submission { id, spec: Arc::new(spec()), key: None }).await.expect("accepted");
    let Some(Told::Prepare(_, key)) = rig.told.recv().await else { panic!("it is prepared first") };
    assert_eq!(rig.told.recv().await, Some(Told::Go(key)));
    rig.report(id, key, News::Running { pid: Some(7), start_time: Some(7) }).await;
    rig.supervisor.cancel(id, Requester("somebody".into())).await.expect("accepted");
    assert_eq!(rig.told.recv().await, Some(Told::Cancel(key)));
    assert_eq!(rig.disk.events_of(id), ["submitted", "starting", "running", "cancel_requested"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_submitted_during_a_commit_shares_the_next_one_and_all_else_is_answered_meanwhile() {
    let mut rig = Rig::start();
    let release = rig.disk.hangs();
    let supervisor = rig.supervisor.clone();
    let submit = || {
        let submission = Submission { id: RunnerId::new(), spec: Arc::new(spec()), key: None };
        Box::pin(supervisor.submit(submission))
    };
    let mut first = submit();
    assert!(poll!(&mut first).is_pending());
    let Some(Told::Prepare(..)) = rig.told.recv().await else { panic!("it is prepared first") };
    let mut others = [submit(), submit(), submit()];
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    let queues = supervisor.queues().await.expect("answered");
    assert_eq!((queues[0].queued, queues[0].running), (0, 1), "the others were not taken yet");
    drop(release);
    first.await.expect("accepted");
    for other in others {
        other.await.expect("accepted");
    }
    assert_eq!(*rig.disk.commits.lock().expect("unpoisoned"), [2, 4], "all three in one commit");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_end_is_answered_when_the_time_is_up_but_not_before_the_job_is_on_record() {
    let mut rig = Rig::start();
    let release = rig.disk.hangs();
    let supervisor = rig.supervisor.clone();
    let submission = || Submission { id: RunnerId::new(), spec: Arc::new(spec()), key: None };
    let mut early = Box::pin(supervisor.submit_and_wait(submission(), ready(())));
    assert!(poll!(&mut early).is_pending());
    let Some(Told::Prepare(..)) = rig.told.recv().await else { panic!("it is prepared first") };
    assert!(poll!(&mut early).is_pending(), "its time is up, but nobody knows whether it will be kept");
    drop(release);
    assert!(early.await.expect("accepted").record.expect("as it was committed").state != State::Closed);

    let (up, time) = oneshot::channel();
    let late = submission();
    let id = late.id;
    let mut changes = rig.supervisor.subscribe(id);
    let mut late = Box::pin(supervisor.submit_and_wait(late, async { time.await.expect("it comes") }));
    assert!(poll!(&mut late).is_pending());
    changes.changed().await;
    assert!(poll!(&mut late).is_pending(), "it is accepted, but not over");
    up.send(()).expect("it is waited for");
    let submitted = late.await.expect("accepted");
    assert_eq!((submitted.id, submitted.replayed, submitted.record), (id, false, None));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_end_is_told_at_once_that_a_job_was_refused_or_has_ended() {
    let mut rig = Rig::start();
    let supervisor = rig.supervisor.clone();
    let submission = Submission { id: RunnerId::new(), spec: Arc::new(spec()), key: None };
    let id = submission.id;
    let mut ending = Box::pin(supervisor.submit_and_wait(submission, pending()));
    assert!(poll!(&mut ending).is_pending());
    let Some(Told::Prepare(_, key)) = rig.told.recv().await else { panic!("it is prepared first") };
    assert_eq!(rig.told.recv().await, Some(Told::Go(key)));
    assert!(poll!(&mut ending).is_pending());
    let end = End { exit: Some(Exit::Code(0)), closed: Some(Drain::default()), ..End::default() };
    rig.report(id, key, News::Ended(end)).await;
    assert_eq!(ending.await.expect("accepted").record.expect("as it ended").state, State::Closed);

    rig.disk.becomes(FULL);
    let submission = Submission { id: RunnerId::new(), spec: Arc::new(spec()), key: None };
    let refused = supervisor.submit_and_wait(submission, pending()).await;
    assert!(matches!(refused, Err(Refusal::StoreFailing(_))), "{refused:?}");
}

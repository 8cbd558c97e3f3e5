//! What the supervisor and one attempt's Runner tell each other.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::sync::{Notify, mpsc};

use super::process::Hold;
use crate::{
    job::{AttemptKey, Job, Record, RunnerId, Spec},
    supervisor::ports::{News, Report},
};

/// An attempt, as all that belongs to it shares it: in one piece, for there are tens of thousands. It keeps what stays
/// of its record, not the record: that changes as soon as the job runs, and the old one would be in memory too.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) runner: RunnerId,
    /// Its run and its own number.
    pub(super) position: (u32, u32),
    pub(super) spec: Arc<Spec>,
    /// Where it is not the job of the spec.
    job: Option<Arc<Job>>,
    pub(super) key: AttemptKey,
    reports: mpsc::Sender<Report>,
    /// What was given of [`Orders`], and of the two below.
    flags: AtomicU8,
    changed: Notify,
    /// What is held until its end is durable.
    hold: Mutex<Option<Hold>>,
}

const GO: u8 = 1;
const FORCE: u8 = 1 << 1;
const AT_ONCE: u8 = 1 << 2;
const SETTLED: u8 = 1 << 3;
/// The supervisor does not wait for it any more.
const ABORTED: u8 = 1 << 4;
/// Its Runner is closed, or somebody else's to close, and that has been told.
const CLOSED: u8 = 1 << 5;

/// What the supervisor wants of an attempt; each is given once and stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Orders {
    pub(super) go: bool,
    pub(super) force: bool,
    /// The daemon is about to end: kill, and wait for nothing.
    pub(super) at_once: bool,
    pub(super) settled: bool,
}

/// As its Runner is called.
impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runner.fmt(f)
    }
}

impl Attempt {
    pub(super) fn new(record: &Record, key: AttemptKey, reports: mpsc::Sender<Report>) -> Arc<Self> {
        Arc::new(Self {
            runner: record.id,
            position: record.position().unwrap_or((1, 1)),
            spec: Arc::clone(&record.spec),
            job: record.run().and_then(|run| run.job.clone()),
            key,
            reports,
            flags: AtomicU8::new(0),
            changed: Notify::new(),
            hold: Mutex::default(),
        })
    }

    /// What it is to do.
    pub(super) fn job(&self) -> &Job {
        self.job.as_deref().unwrap_or(&self.spec.job)
    }

    fn give(&self, flags: u8) {
        self.flags.fetch_or(flags, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    fn held(&self) -> MutexGuard<'_, Option<Hold>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds this until the end is durable. Call it before that is told.
    pub(super) fn hold(&self, hold: Option<Hold>) {
        *self.held() = hold;
    }

    pub(super) fn closed(&self) {
        self.flags.fetch_or(CLOSED, Ordering::AcqRel);
    }
}

/// The supervisor's end. When it is dropped nobody waits for the attempt any more.
#[derive(Debug)]
pub(super) struct Commander(pub(super) Arc<Attempt>);

impl Commander {
    pub(super) fn go(&self) {
        self.0.give(GO);
    }

    pub(super) fn force(&self) {
        self.0.give(FORCE);
    }

    pub(super) fn force_at_once(&self) {
        self.0.give(FORCE | AT_ONCE);
    }

    /// Lets go of what is held at once: the daemon may end before the driver has its turn, and would leave it.
    pub(super) fn settled(&self) {
        if let Some(hold) = self.0.held().take() {
            hold.release();
        }
        self.0.give(SETTLED);
    }

    /// Whether its Runner is closed, and that has been told.
    pub(super) fn is_closed(&self) -> bool {
        self.0.has(CLOSED)
    }
}

impl Drop for Commander {
    fn drop(&mut self) {
        self.0.give(ABORTED);
    }
}

/// The attempt's end of its orders.
#[derive(Clone, Debug)]
pub(super) struct Link(pub(super) Arc<Attempt>);

/// The attempt was aborted: nobody waits for it any more.
pub(super) struct Aborted;

impl Link {
    /// Waits for orders. Cancel-safe.
    pub(super) async fn until(&mut self, mut given: impl FnMut(&Orders) -> bool) -> Result<(), Aborted> {
        loop {
            // It hears of what is given from here on, so nothing is missed in between.
            let changed = self.0.changed.notified();
            let flags = self.0.flags.load(Ordering::Acquire);
            let has = |flag| flags & flag != 0;
            let orders =
                Orders { go: has(GO), force: has(FORCE), at_once: has(AT_ONCE), settled: has(SETTLED) };
            if given(&orders) {
                return Ok(());
            }
            if has(ABORTED) {
                return Err(Aborted);
            }
            changed.await;
        }
    }
}

/// Reports of one attempt.
#[derive(Clone, Debug)]
pub(super) struct Reporter(pub(super) Arc<Attempt>);

impl Deref for Reporter {
    type Target = Arc<Attempt>;

    fn deref(&self) -> &Arc<Attempt> {
        &self.0
    }
}

impl Reporter {
    /// Waits for room, then reports: giving up while waiting loses nothing that was not handed over.
    pub(super) async fn send(&self, news: News) {
        self.send_made(|| news).await;
    }

    /// The same of news that are made when there is room: what waits is small.
    pub(super) async fn send_made(&self, news: impl FnOnce() -> News) {
        // Without a supervisor there is nobody to tell.
        if let Ok(room) = self.reports.reserve().await {
            room.send(Report { runner: self.runner, key: self.key, news: news() });
        }
    }
}

//! Runs jobs: one Runner for each, one file for each kind.
//!
//! A process job's main task only exchanges messages with its shim, so these Runners share the supervisor's
//! own loop and can't block it.

mod ending;
mod environment;
mod handover;
mod process;
mod script;

use std::{collections::HashMap, future::poll_fn, path::PathBuf, pin::pin, sync::Arc, task::Poll};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};

pub use ending::end_of_spooled;
pub use environment::Environment;
pub use handover::Handover;

use crate::{
    job::{AttemptKey, Drain, Failure, Record},
    process::Launcher,
    runner::{AsyncRunner, CloseReport, EventLoop, LoopFactory, MainTask, RunError, Runner, RunnerHandle},
    supervisor::ports::{End, LoopFacts, News, Report, Runners, TaskFacts},
};

/// What all process jobs share.
#[derive(Debug)]
pub struct Shared {
    /// Where shims come from.
    pub launcher: Launcher,
    /// What a job's environment starts from.
    pub environment: Environment,
    /// Where output goes.
    pub log_root: PathBuf,
    /// Where files for jobs of other users are.
    pub handover: Handover,
    /// The size of a file of output, bytes.
    pub segment_bytes: u64,
    /// All output of an attempt that is kept, bytes.
    pub max_log_bytes: u64,
}

/// The Runners of all jobs that were started.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    runtime: Handle,
    reports: mpsc::Sender<Report>,
    hosted: HashMap<AttemptKey, Hosted>,
    drivers: JoinSet<()>,
}

#[derive(Debug)]
struct Hosted {
    orders: watch::Sender<Orders>,
    runner: RunnerHandle,
    event_loop: Option<EventLoop>,
}

/// What the supervisor wants of an attempt; each is given once and stands.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    go: bool,
    force: bool,
    settled: bool,
}

/// The attempt's end of its orders.
#[derive(Clone, Debug)]
struct Link(watch::Receiver<Orders>);

/// The attempt was aborted: nobody waits for it any more.
struct Aborted;

impl Link {
    async fn until(&mut self, given: impl FnMut(&Orders) -> bool) -> Result<(), Aborted> {
        self.0.wait_for(given).await.map(drop).map_err(|_| Aborted)
    }
}

/// What a main task gives: how it ended, and what is held until that is durable.
struct Done {
    end: End,
    hold: Option<process::Hold>,
}

impl Fleet {
    /// A fleet without Runners. They will live on `runtime`.
    pub fn new(shared: Shared, runtime: Handle, reports: mpsc::Sender<Report>) -> Self {
        Self { shared: Arc::new(shared), runtime, reports, hosted: HashMap::new(), drivers: JoinSet::new() }
    }

    fn order(&self, key: AttemptKey, change: impl FnOnce(&mut Orders)) {
        if let Some(hosted) = self.hosted.get(&key) {
            hosted.orders.send_modify(change);
        }
    }

    fn reap_drivers(&mut self) {
        while let Some(ended) = self.drivers.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a Runner's driver ended badly");
            }
        }
    }
}

impl Runners for Fleet {
    fn prepare(&mut self, record: Arc<Record>, key: AttemptKey) {
        self.reap_drivers();
        let (orders, link) = watch::channel(Orders::default());
        let link = Link(link);
        let mut runner = Runner::builder()
            .name(record.id.to_string())
            .debug(record.spec.debug)
            .loop_factory(LoopFactory::shared(self.runtime.clone()))
            .drain_timeout(record.spec.drain_timeout)
            .build_async();
        let reporter = Reporter { reports: self.reports.clone(), record: Arc::clone(&record), key };
        let main = process::start(
            &mut runner,
            Arc::clone(&self.shared),
            record,
            key,
            link.clone(),
            reporter.clone(),
        );
        let event_loop = runner.get_loop().ok();
        self.hosted.insert(key, Hosted { orders, runner: runner.handle(), event_loop });
        self.drivers.spawn_on(drive(runner, main, link, reporter), &self.runtime);
    }

    fn go(&mut self, key: AttemptKey) {
        self.order(key, |orders| orders.go = true);
    }

    fn cancel(&mut self, key: AttemptKey) {
        if let Some(hosted) = self.hosted.get(&key) {
            hosted.runner.cancel();
        }
    }

    fn force(&mut self, key: AttemptKey) {
        self.order(key, |orders| orders.force = true);
    }

    fn abort(&mut self, key: AttemptKey) {
        self.hosted.remove(&key);
    }

    fn settled(&mut self, key: AttemptKey) {
        self.order(key, |orders| orders.settled = true);
        self.hosted.remove(&key);
    }

    fn get_loop(&self, key: AttemptKey) -> Option<LoopFacts> {
        let event_loop = self.hosted.get(&key)?.event_loop.as_ref()?;
        let tree = event_loop.task_tree();
        let tasks = tree.tasks().iter().map(|task| TaskFacts {
            id: task.id,
            name: task.name.clone(),
            state: task.state.to_string(),
            source: format!("{}:{}", task.source.file(), task.source.line()),
            parent: task.parent,
            age: task.age,
            polls: task.polls,
            busy: task.busy,
            slow_polls: task.slow_polls,
        });
        Some(LoopFacts {
            tasks: tasks.collect(),
            blocking: event_loop.blocking_tasks(),
            tree: tree.to_string(),
        })
    }
}

/// Reports of one attempt.
#[derive(Clone, Debug)]
struct Reporter {
    reports: mpsc::Sender<Report>,
    record: Arc<Record>,
    key: AttemptKey,
}

impl Reporter {
    /// Waits for room, then reports: giving up while waiting loses nothing that was not handed over.
    async fn send(&self, news: News) {
        // Without a supervisor there is nobody to tell.
        drop(self.reports.send(Report { runner: self.record.id, key: self.key, news }).await);
    }
}

type Main = Result<MainTask<Result<Done, process::Stopped>>, RunError>;

/// Takes a Runner from its main task to its close.
async fn drive(mut runner: AsyncRunner, main: Main, mut link: Link, reporter: Reporter) {
    let ended = match main {
        Ok(main) => main.await,
        Err(error) => Err(error),
    };
    let Done { mut end, hold } = match ended {
        Ok(Ok(done)) => done,
        // Nothing was executed.
        Ok(Err(process::Stopped::Cancelled(_))) | Err(RunError::Cancelled(_)) => {
            Done { end: End::default(), hold: None }
        }
        Ok(Err(process::Stopped::Aborted)) => return,
        Err(error) => {
            tracing::error!(runner = %reporter.record.id, %error, "a main task of runward's own failed");
            let failure = Failure::new("internal", format!("runward's own main task failed: {error}"));
            Done { end: End { error: Some(failure), lost: true, ..End::default() }, hold: None }
        }
    };
    let mut close = pin!(runner.close());
    // Mostly there is nothing to close: then one commit tells the end and the close.
    end.closed = poll_fn(|cx| match close.as_mut().poll(cx) {
        Poll::Ready(report) => Poll::Ready(Some(drain(report))),
        Poll::Pending => Poll::Ready(None),
    })
    .await;
    let closed = end.closed.is_some();
    reporter.send(News::Ended(end)).await;
    if !closed {
        reporter.send(News::Closed(drain(close.await))).await;
    }
    if link.until(|orders| orders.settled).await.is_ok()
        && let Some(hold) = hold
    {
        hold.release().await;
    }
}

fn drain(report: CloseReport) -> Drain {
    Drain {
        tasks_cancelled: report.tasks_cancelled as u64,
        task_errors: report.task_errors as u64,
        abandoned: report.tasks_abandoned.into_iter().chain(report.executor_abandoned).collect(),
        elapsed_us: u64::try_from(report.elapsed.as_micros()).unwrap_or(u64::MAX),
    }
}

//! Runs jobs: one Runner for each, one file for each kind.
//!
//! A process job's main task only exchanges messages with its shim, so these Runners share the supervisor's
//! own loop and can't block it. The main task of an in-process job is somebody's code: it runs on a loop that all of
//! them share, and only the code that waits for it is on the supervisor's: what blocks there can still be recorded.

mod ending;
mod environment;
mod handler;
mod handover;
mod http;
mod inside;
mod link;
mod output;
mod process;
mod python;
mod run_files;
mod script;
mod told;
mod variables;

use std::{
    future::{pending, poll_fn},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use foldhash::HashMap;
use futures_util::future::Either;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};
use tracing::Span;

pub use ending::end_of_spooled;
pub use environment::Environment;
pub use handler::{Call, HandlerError, HandlerResult, Handlers};
pub use handover::Handover;
pub use http::{Client as HttpClient, HttpRules, Place as HttpPlace};
pub use inside::Inside;
use link::{Attempt, Commander, Link, Reporter};
use output::Output;
pub use output::Outputs;
use process::Stopped;
use variables::Context;
pub use variables::Variables;

use crate::{
    job::{AttemptKey, Drain, Failure, Record, RunnerId, SharedContext},
    process::Launcher,
    runner::{AsyncRunner, CloseReport, EventLoop, LoopFactory, RunError, Runner, RunnerHandle},
    secrets::Vault,
    supervisor::ports::{End, LoopFacts, News, Report, Runners, TaskFacts},
};

/// What all process jobs share.
#[derive(Debug)]
pub struct Shared {
    /// Where shims come from.
    pub launcher: Launcher,
    /// What a job's environment starts from.
    pub environment: Environment,
    /// What reveals secrets to jobs.
    pub vault: Arc<Vault>,
    /// Where output goes.
    pub log_root: PathBuf,
    /// Where the files of jobs that run are: a directory that is the daemon's alone.
    pub files: PathBuf,
    /// Where files for jobs of other users are.
    pub handover: Handover,
    /// How much of an attempt's output is kept, for those that begin from now on.
    pub quota: watch::Receiver<LogQuota>,
}

/// How much of an attempt's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogQuota {
    /// The size of a file of output, bytes.
    pub segment_bytes: u64,
    /// All output of an attempt that is kept, bytes.
    pub max_bytes: u64,
}

/// The most of a result in its JSON, bytes: it is in the record, which is read and sent whole.
const MAX_RESULT: usize = 64 << 10;

/// The Runners of all jobs that were started.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    inside: Arc<Inside>,
    runtime: Handle,
    reports: mpsc::Sender<Report>,
    /// Attempts of in-process jobs that were not told to go: there is nothing to prepare, so nothing was made.
    prepared: HashMap<AttemptKey, (Arc<Record>, Context)>,
    hosted: HashMap<AttemptKey, Hosted>,
    /// Runners that another attempt or run can follow on.
    parked: HashMap<RunnerId, Parked>,
    /// Parked ones that are being closed.
    closing: HashMap<AttemptKey, RunnerHandle>,
    drivers: JoinSet<Driven>,
}

/// What a driver was there for, and nobody needs any more.
#[derive(Debug)]
enum Driven {
    Attempt(AttemptKey),
    /// The close of a parked Runner. Its last attempt may still wait to be settled.
    Close(AttemptKey),
}

#[derive(Debug)]
struct Hosted {
    orders: Commander,
    runner: RunnerHandle,
    /// Force drops its main task: there is nothing of it to kill.
    inside: bool,
    event_loop: Option<EventLoop>,
}

/// A Runner between attempts or runs. Its driver hands it over when the main task is done.
#[derive(Debug)]
struct Parked {
    runner: oneshot::Receiver<AsyncRunner>,
    handle: RunnerHandle,
    event_loop: Option<EventLoop>,
}

/// What a main task gives: how it ended, and what is held until that is durable.
struct Done {
    end: End,
    hold: Option<process::Hold>,
}

impl Fleet {
    /// A fleet without Runners. Those of process jobs will live on `runtime`, and what waits for any Runner.
    pub fn new(shared: Shared, inside: Inside, runtime: Handle, reports: mpsc::Sender<Report>) -> Self {
        Self {
            shared: Arc::new(shared),
            inside: Arc::new(inside),
            runtime,
            reports,
            prepared: HashMap::default(),
            hosted: HashMap::default(),
            parked: HashMap::default(),
            closing: HashMap::default(),
            drivers: JoinSet::new(),
        }
    }

    /// Makes the Runner, or takes the one of an earlier attempt or run, and starts its main task.
    fn start(&mut self, record: Arc<Record>, key: AttemptKey, context: Context) {
        let id = record.id;
        let inside = record.job().in_process();
        let output = inside.then(|| self.inside.outputs.of(&record));
        let park = can_follow(&record).then(oneshot::channel);
        let (park, next) = park.unzip();
        let attempt = Attempt::new(&record, key, self.reports.clone());
        let (debug, drain_timeout) = (record.spec.debug, record.spec.drain_timeout);
        let start = {
            let (shared, inside) = (Arc::clone(&self.shared), Arc::clone(&self.inside));
            let (attempt, output) = (Arc::clone(&attempt), output.clone());
            move |runner: &mut AsyncRunner| match output {
                None => process::start(runner, shared, record, attempt, context).map(Either::Left),
                Some(output) => {
                    inside::start(runner, inside, record, attempt, context, output).map(Either::Right)
                }
            }
        };
        let drive = Drive { attempt: Arc::clone(&attempt), output, park };
        let (runner, event_loop) = match self.parked.remove(&id) {
            Some(Parked { runner, handle, event_loop }) => {
                let driver = async move {
                    // Its last driver hands it over before anything else.
                    match runner.await {
                        Ok(mut runner) => {
                            let main = start(&mut runner);
                            Box::pin(drive.run(runner, main)).await
                        }
                        Err(_) => Driven::Attempt(key),
                    }
                };
                self.drivers.spawn_on(driver, &self.runtime);
                (handle, event_loop)
            }
            None => {
                let runtime = if inside { &self.inside.runtime } else { &self.runtime };
                let mut runner = Runner::builder()
                    .named_by(Arc::clone(&attempt) as _)
                    .debug(debug)
                    .loop_factory(LoopFactory::shared(runtime.clone()))
                    .drain_timeout(drain_timeout)
                    .build_async();
                let main = start(&mut runner);
                let facts = (runner.handle(), runner.get_loop().ok());
                self.drivers.spawn_on(drive.run(runner, main), &self.runtime);
                facts
            }
        };
        if let Some(next) = next {
            let parked = Parked { runner: next, handle: runner.clone(), event_loop: event_loop.clone() };
            self.parked.insert(id, parked);
        }
        let orders = Commander(attempt);
        self.hosted.insert(key, Hosted { orders, runner, inside, event_loop });
    }

    /// What was started of an attempt. There is a Runner from here on.
    fn started(&mut self, key: AttemptKey) -> Option<&Hosted> {
        if let Some((record, context)) = self.prepared.remove(&key) {
            self.start(record, key, context);
        }
        self.hosted.get(&key)
    }

    fn reap_drivers(&mut self) {
        while let Some(ended) = self.drivers.try_join_next() {
            match ended {
                Ok(Driven::Attempt(key)) => drop(self.hosted.remove(&key)),
                Ok(Driven::Close(key)) => drop(self.closing.remove(&key)),
                Err(error) => tracing::error!(%error, "a Runner's driver ended badly"),
            }
        }
    }
}

impl Runners for Fleet {
    fn prepare(&mut self, record: Arc<Record>, key: AttemptKey, context: Arc<SharedContext>) {
        self.reap_drivers();
        let context = Context::new(context, Arc::clone(&self.shared.vault));
        match record.job().in_process() {
            true => drop(self.prepared.insert(key, (record, context))),
            false => self.start(record, key, context),
        }
    }

    fn go(&mut self, key: AttemptKey) {
        if let Some(hosted) = self.started(key) {
            hosted.orders.go();
        }
    }

    fn cancel(&mut self, key: AttemptKey) {
        if let Some(hosted) = self.started(key) {
            hosted.runner.cancel();
        }
    }

    fn force(&mut self, key: AttemptKey) {
        if let Some(hosted) = self.started(key) {
            hosted.orders.force();
        }
        if let Some(handle) = self.closing.get(&key) {
            handle.interrupt();
        } else if let Some(hosted) = self.hosted.get(&key).filter(|hosted| hosted.inside) {
            // The first one cancels, the second one abandons: what a second Ctrl-C does.
            hosted.runner.interrupt();
            hosted.runner.interrupt();
        }
    }

    fn force_at_once(&mut self, key: AttemptKey) {
        if let Some(hosted) = self.started(key) {
            hosted.orders.force_at_once();
        }
        self.force(key);
    }

    fn abort(&mut self, key: AttemptKey) {
        self.prepared.remove(&key);
        self.hosted.remove(&key);
    }

    fn settled(&mut self, key: AttemptKey) {
        // Its executor may still drain, and force must find it: the end of its driver removes it.
        if let Some(hosted) = self.hosted.get(&key) {
            hosted.orders.settled();
        }
        self.reap_drivers();
    }

    fn close(&mut self, record: Arc<Record>, key: AttemptKey) {
        self.reap_drivers();
        // A driver that is still closing its Runner tells so itself.
        let told = self.hosted.get(&key).is_none_or(|hosted| hosted.orders.is_closed());
        let parked = self.parked.remove(&record.id);
        if parked.is_none() && !told {
            return;
        }
        let reporter = Reporter(Attempt::new(&record, key, self.reports.clone()));
        let runner = parked.map(|parked| {
            self.closing.insert(key, parked.handle);
            parked.runner
        });
        let limit = reporter.spec.drain_timeout;
        let driver = async move {
            let report = match runner {
                Some(runner) => match runner.await {
                    // Force interrupts it through its handle.
                    Ok(mut runner) => drain(close(&mut runner, limit, pending()).await),
                    Err(_) => Drain::default(),
                },
                None => Drain::default(),
            };
            reporter.send(News::Closed(report)).await;
            Driven::Close(key)
        };
        self.drivers.spawn_on(driver, &self.runtime);
    }

    fn get_loop(&self, key: AttemptKey) -> Option<LoopFacts> {
        if self.prepared.contains_key(&key) {
            return Some(LoopFacts::default());
        }
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

impl Done {
    fn failed(failure: Failure) -> Box<Self> {
        Box::new(Self { end: End { error: Some(failure), ..End::default() }, hold: None })
    }
}

/// A main task that was started.
trait Main: Future<Output = Result<Ended, RunError>> + Send + Unpin + 'static {}

impl<F: Future<Output = Result<Ended, RunError>> + Send + Unpin + 'static> Main for F {}

/// In a box: a task has room for what it gives from its start on.
type Ended = Result<Box<Done>, Stopped>;

/// Whether another attempt or run can follow on the same Runner.
fn can_follow(record: &Record) -> bool {
    let attempt = record.attempt().map_or(1, |attempt| attempt.attempt);
    record.spec.keep_open || attempt < record.spec.retry.max_attempts
}

/// What takes a Runner from its main task to its close, or to the next attempt.
struct Drive {
    attempt: Arc<Attempt>,
    /// Of an in-process job.
    output: Option<Output>,
    /// Where the Runner goes if another attempt or run can follow.
    park: Option<oneshot::Sender<AsyncRunner>>,
}

impl Drive {
    /// Small as long as it waits for the main task: there are tens of thousands that do.
    #[expect(clippy::manual_async_fn, reason = "an async function would keep what it is given twice")]
    fn run(self, runner: AsyncRunner, mut main: Result<impl Main, RunError>) -> impl Future<Output = Driven> {
        async move {
            let ended = match &mut main {
                Ok(main) => main.await,
                Err(error) => Err(std::mem::replace(error, RunError::Closed)),
            };
            Box::pin(self.end(runner, ended)).await
        }
    }

    /// Small too: of those that are cancelled together most wait for room to tell that they have ended.
    #[expect(clippy::manual_async_fn, reason = "an async function would keep what it is given twice")]
    fn end(self, mut runner: AsyncRunner, ended: Result<Ended, RunError>) -> impl Future<Output = Driven> {
        async move {
            let Self { attempt, output, park } = self;
            let driven = Driven::Attempt(attempt.key);
            let (mut link, reporter) = (Link(Arc::clone(&attempt)), Reporter(attempt));
            let Some(mut done) = done(ended, output.is_some(), &reporter) else { return driven };
            let holds = done.hold.is_some();
            reporter.hold(done.hold.take());
            if let Some(output) = &output {
                done.end.output = Some(Box::pin(output.flush()).await);
            }
            if let Some(park) = park {
                // Nobody takes it any more only when the supervisor is gone.
                drop(park.send(runner));
                reporter.closed();
                reporter.send_made(|| News::Ended(done.end)).await;
            } else {
                let limit = reporter.spec.drain_timeout;
                // What is left over may have to be told of.
                let left = runner.get_loop().is_ok_and(|own| own.live_tasks() + own.blocking_tasks() > 0);
                let mut close = Box::pin(close(&mut runner, limit, forced(&mut link)));
                let closed = poll_fn(|cx| {
                    let span = left.then(|| reporter.span());
                    let _entered = span.as_ref().map(Span::enter);
                    Poll::Ready(close.as_mut().poll(cx))
                });
                // Mostly there is nothing to close: then one commit tells the end and the close.
                if let Poll::Ready(report) = closed.await {
                    drop(close);
                    reporter.closed();
                    done.end.closed = Some(drain(report));
                    reporter.send_made(|| News::Ended(done.end)).await;
                } else {
                    reporter.send_made(|| News::Ended(done.end)).await;
                    let report = Box::pin(reporter.told(close)).await;
                    if let Some(output) = &output {
                        // What was written while it drained is in the log before the close is told.
                        Box::pin(output.flush()).await;
                    }
                    reporter.send_made(|| News::Closed(drain(report))).await;
                    reporter.closed();
                }
            }
            if holds {
                settled(link).await;
            }
            driven
        }
    }
}

/// How a main task ended; `None`: nobody wants to know.
fn done(ended: Result<Ended, RunError>, inside: bool, reporter: &Reporter) -> Option<Box<Done>> {
    let end = match ended {
        Ok(Ok(done)) => return Some(done),
        Ok(Err(Stopped::Aborted)) => return None,
        // Nothing was executed, or it was dropped.
        Ok(Err(Stopped::Cancelled(_))) | Err(RunError::Cancelled(_)) => End::default(),
        Err(RunError::Interrupted) if inside => End::default(),
        Err(RunError::Panicked(panic)) if inside => {
            let failure = Failure::new("panicked", format!("it panicked: {}", panic.message()));
            End { error: Some(failure), ..End::default() }
        }
        Err(error) => {
            tracing::error!(runner = %reporter.runner, %error, "a main task of runward's own failed");
            let failure = Failure::new("internal", format!("runward's own main task failed: {error}"));
            End { error: Some(failure), lost: true, ..End::default() }
        }
    };
    Some(Box::new(Done { end, hold: None }))
}

/// Closes a Runner. What its main task left behind has as long as its executor; after that, or by force, it is
/// abandoned.
async fn close(runner: &mut AsyncRunner, limit: Duration, forced: impl Future<Output = ()>) -> CloseReport {
    let handle = runner.handle();
    let mut close = pin!(runner.close());
    tokio::select! {
        biased;
        report = &mut close => return report,
        () = forced => {}
        () = sleep(limit) => {}
    }
    handle.interrupt();
    close.await
}

/// Waits until the end is durable, or nobody waits for that.
async fn settled(mut link: Link) {
    link.until(|orders| orders.settled).await.ok();
}

async fn forced(link: &mut Link) {
    if link.until(|orders| orders.force).await.is_err() {
        pending().await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::MainTask;

    fn size<A, B, C, T>(_: fn(A, B, C) -> T) -> usize {
        size_of::<T>()
    }

    #[test]
    fn what_waits_for_a_main_task_is_small() {
        let size = size(|drive: Drive, runner, main: Result<MainTask<Ended>, _>| drive.run(runner, main));
        assert!(size <= 240, "{size}");
    }

    #[test]
    fn what_waits_to_tell_its_end_is_small() {
        let size = size(|drive: Drive, runner, ended| drive.end(runner, ended));
        assert!(size <= 832, "{size}");
    }
}

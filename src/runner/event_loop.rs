//! The loop of one Runner: its tasks, generators and blocking work, on a tokio runtime that it may
//! share with other Runners.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::drive::{Drive, Verdict};
use super::executor::Executor;
use super::generator::Open;
use super::sync::{Arc, Mutex, lock};
use super::task::{Audience, Cell, End, Style};
use super::tree::{TaskInfo, TaskTree};
use super::{Blocking, Task, TaskHandle};

type Handler = Arc<dyn Fn(&ExceptionContext) + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) executor: Executor,
    /// Fires when a task or a piece of blocking work has ended.
    pub(crate) ended: Notify,
    debug: AtomicBool,
    slow_poll_ns: AtomicU64,
    tasks: Mutex<Tasks>,
    few: Mutex<Option<Box<Few>>>,
}

/// What few loops have.
#[derive(Default)]
struct Few {
    /// Those that are open, by their numbers.
    generators: BTreeMap<u64, Arc<dyn Open>>,
    handler: Option<Handler>,
}

#[derive(Default)]
struct Tasks {
    /// Most Runners have one task at a time, and a map takes 200 bytes for its first.
    first: Option<Arc<Cell>>,
    others: BTreeMap<u64, Arc<Cell>>,
    closed: bool,
}

impl Tasks {
    fn insert(&mut self, cell: Arc<Cell>) {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(cell);
        } else {
            self.others.insert(cell.id, cell);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Cell>> {
        match &self.first {
            Some(first) if first.id == id => self.first.take(),
            Some(_) | None => self.others.remove(&id),
        }
    }

    fn alive(&self) -> impl Iterator<Item = &Arc<Cell>> {
        self.first.iter().chain(self.others.values())
    }
}

impl Shared {
    pub(crate) fn new(runtime: tokio::runtime::Handle, debug: bool, max_blocking: u32) -> Arc<Self> {
        Arc::new(Shared {
            runtime,
            executor: Executor::new(max_blocking),
            ended: Notify::new(),
            debug: AtomicBool::new(debug),
            slow_poll_ns: AtomicU64::new(nanos(EventLoop::SLOW_POLL)),
            tasks: Mutex::default(),
            few: Mutex::default(),
        })
    }

    /// Makes the task known; false when the loop is closed.
    pub(crate) fn adopt(&self, cell: &Arc<Cell>) -> bool {
        let mut tasks = lock(&self.tasks);
        if !tasks.closed {
            tasks.insert(cell.clone());
        }
        !tasks.closed
    }

    pub(crate) fn spawn<F>(
        self: &Arc<Self>,
        cell: Arc<Cell>,
        future: F,
        verdict: fn(&F::Output) -> Verdict<'_>,
    ) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        if !self.adopt(&cell) {
            cell.cancel(Some("the event loop is closed"));
            cell.finish(End::Cancelled);
            tracing::warn!(task = cell.name(), source = %cell.source, "task was never awaited: its event loop is closed");
            return Task::new(cell, None);
        }
        let drive = Drive::new(cell.clone(), future, verdict);
        Task::new(cell, Some(self.runtime.spawn(drive)))
    }

    pub(crate) fn spawn_child<F>(
        self: &Arc<Self>,
        future: F,
        source: &'static Location<'static>,
    ) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let cell = Cell::new(self.clone(), super::copy_context(), Style::Plain, source);
        self.spawn(cell, future, super::drive::plain)
    }

    pub(crate) fn task_ended(&self, cell: &Arc<Cell>) {
        let removed = lock(&self.tasks).remove(cell.id);
        drop(removed);
        self.ended.notify_waiters();
        self.report_unseen_panic(cell);
    }

    /// The tasks that are alive, oldest first.
    pub(crate) fn alive(&self) -> Vec<Arc<Cell>> {
        // One that has just ended may not be off the list yet.
        let mut alive: Vec<_> = lock(&self.tasks).alive().filter(|cell| !cell.is_done()).cloned().collect();
        alive.sort_unstable_by_key(|cell| cell.id);
        alive
    }

    pub(crate) fn alive_count(&self) -> usize {
        lock(&self.tasks).alive().count()
    }

    pub(crate) fn open_generator(&self, id: u64, open: Arc<dyn Open>) {
        lock(&self.few).get_or_insert_default().generators.insert(id, open);
    }

    pub(crate) fn generator(&self, id: u64) -> Option<Arc<dyn Open>> {
        lock(&self.few).as_ref()?.generators.get(&id).cloned()
    }

    pub(crate) fn forget_generator(&self, id: u64) -> Option<Arc<dyn Open>> {
        lock(&self.few).as_mut()?.generators.remove(&id)
    }

    pub(crate) fn take_generators(&self) -> BTreeMap<u64, Arc<dyn Open>> {
        lock(&self.few).as_mut().map(|few| std::mem::take(&mut few.generators)).unwrap_or_default()
    }

    /// From here on nothing new is taken.
    pub(crate) fn shut(&self) {
        lock(&self.tasks).closed = true;
        self.executor.shut();
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.tasks).closed
    }

    pub(crate) fn is_debug(&self) -> bool {
        self.debug.load(Ordering::Relaxed)
    }

    pub(crate) fn is_slow(&self, busy: Duration) -> bool {
        nanos(busy) > self.slow_poll_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn report_slow_poll(&self, cell: &Cell, busy: Duration) {
        if self.is_debug() {
            tracing::warn!(task = cell.name(), source = %cell.source, ?busy, "slow poll: the task kept the event loop busy");
        }
    }

    pub(crate) fn report_dropped(&self, cell: &Cell) {
        if !self.is_debug() {
            return;
        }
        if cell.was_polled() {
            tracing::warn!(task = cell.name(), source = %cell.source, "task was dropped while it was pending");
        } else {
            tracing::warn!(task = cell.name(), source = %cell.source, "task was never polled");
        }
    }

    /// A panic that no handle can give to anyone goes to the exception handler.
    pub(crate) fn report_unseen_panic(&self, cell: &Arc<Cell>) {
        let Some(End::Panicked(message)) = cell.end() else { return };
        if cell.hand_over(Audience::Nobody, Audience::Told) {
            self.call_exception_handler(
                "task panicked and its result was never retrieved",
                cell.clone(),
                message.into(),
            );
        }
    }

    pub(crate) fn call_exception_handler(&self, message: &str, cell: Arc<Cell>, exception: String) {
        self.report(ExceptionContext {
            message: message.to_owned(),
            task: Some(TaskHandle { cell }),
            exception,
        });
    }

    pub(crate) fn report(&self, context: ExceptionContext) {
        let handler = lock(&self.few).as_ref().and_then(|few| few.handler.clone());
        match handler {
            Some(handler) => {
                let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler(&context)));
                if called.is_err() {
                    tracing::error!(%context, "the exception handler panicked");
                }
            }
            None => tracing::error!("{context}"),
        }
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What an exception handler is told: asyncio's context dictionary.
///
/// ```
/// # use std::sync::{Arc, Mutex};
/// # use runward::runner::{Cancelled, Runner};
/// # std::panic::set_hook(Box::new(|_| {}));
/// let seen = Arc::new(Mutex::new(Vec::new()));
/// let mut runner = Runner::new();
/// let log = seen.clone();
/// runner.get_loop().unwrap().set_exception_handler(move |context| {
///     log.lock().unwrap().push(context.exception.clone());
/// });
/// runner.run_scoped(|scope| async move {
///     drop(scope.spawn(async { panic!("spam") }));
///     Ok::<_, Cancelled>(())
/// }).unwrap().unwrap();
/// drop(runner);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExceptionContext {
    /// What happened.
    pub message: String,
    /// The task it happened in, if it was one.
    pub task: Option<TaskHandle>,
    /// The error or the panic, as text.
    pub exception: String,
}

impl fmt::Display for ExceptionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.exception)?;
        match &self.task {
            Some(task) => write!(f, " (task {}, started at {})", task.name(), task.cell.source),
            None => Ok(()),
        }
    }
}

/// The event loop of one Runner. A cheap handle: clones are the same loop.
///
/// ```
/// use runward::runner::Runner;
///
/// let mut runner = Runner::new();
/// let event_loop = runner.get_loop().unwrap();
/// assert!(!event_loop.is_closed());
/// runner.close();
/// assert!(event_loop.is_closed());
/// ```
#[derive(Clone)]
pub struct EventLoop {
    pub(crate) shared: Arc<Shared>,
}

impl EventLoop {
    /// A poll longer than this is slow: 100 ms, asyncio's `slow_callback_duration`.
    ///
    /// ```
    /// assert_eq!(runward::runner::EventLoop::SLOW_POLL.as_millis(), 100);
    /// ```
    pub const SLOW_POLL: Duration = Duration::from_millis(100);

    /// The tasks alive now, oldest first.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// let names = Runner::new().run_scoped(|scope| async move {
    ///     scope.task().set_name("main");
    ///     let names: Vec<_> = scope.event_loop().all_tasks().into_iter().map(|task| task.name).collect();
    ///     Ok::<_, Cancelled>(names)
    /// });
    /// assert_eq!(names.unwrap().unwrap(), ["main"]);
    /// ```
    pub fn all_tasks(&self) -> Vec<TaskInfo> {
        self.shared.alive().iter().map(|cell| cell.info()).collect()
    }

    /// The same as a tree to print.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// println!("{}", scope.event_loop().task_tree());
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn task_tree(&self) -> TaskTree {
        TaskTree::new(self.all_tasks())
    }

    /// How many tasks are alive.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// assert_eq!(Runner::new().get_loop().unwrap().live_tasks(), 0);
    /// ```
    pub fn live_tasks(&self) -> usize {
        self.shared.alive_count()
    }

    /// How many pieces of blocking work were given to the executor and have not ended.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// assert_eq!(Runner::new().get_loop().unwrap().blocking_tasks(), 0);
    /// ```
    pub fn blocking_tasks(&self) -> usize {
        self.shared.executor.len()
    }

    /// Whether debug findings are reported.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::builder().debug(true).build();
    /// assert!(runner.get_loop().unwrap().debug());
    /// ```
    pub fn debug(&self) -> bool {
        self.shared.is_debug()
    }

    /// Turns debug findings on or off.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let event_loop = Runner::builder().debug(true).build().get_loop().unwrap();
    /// event_loop.set_debug(false);
    /// assert!(!event_loop.debug());
    /// ```
    pub fn set_debug(&self, debug: bool) {
        self.shared.debug.store(debug, Ordering::Relaxed);
    }

    /// From which duration on a poll is slow, instead of [`SLOW_POLL`](Self::SLOW_POLL).
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// runner.get_loop().unwrap().set_slow_poll(std::time::Duration::from_millis(10));
    /// ```
    pub fn set_slow_poll(&self, threshold: Duration) {
        self.shared.slow_poll_ns.store(nanos(threshold), Ordering::Relaxed);
    }

    /// Who is told of errors that nobody can catch: those of left-over tasks and of generators
    /// during the close, and panics of tasks that nobody awaits. The default logs them.
    ///
    /// It is called on whichever thread meets the error; one that panics is logged.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner, Scope};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let errors = Arc::new(Mutex::new(Vec::new()));
    /// let log = errors.clone();
    /// let mut runner = Runner::new();
    /// runner.get_loop().unwrap().set_exception_handler(move |e| log.lock().unwrap().push(e.exception.clone()));
    /// runner.run_scoped(|scope| async move {
    ///     let child = scope.spawn_scoped(|scope: Scope| async move {
    ///         // The clean-up after the cancellation fails.
    ///         scope.cancellable(std::future::pending::<()>()).await.or(Err("division by zero".into()))
    ///             as Result<(), Box<dyn std::error::Error + Send + Sync>>
    ///     });
    ///     while child.info().polls == 0 { scope.checkpoint().await?; }
    ///     Ok::<_, Cancelled>(())
    /// }).unwrap().unwrap();
    /// runner.close();
    /// assert_eq!(*errors.lock().unwrap(), ["division by zero"]);
    /// ```
    pub fn set_exception_handler(&self, handler: impl Fn(&ExceptionContext) + Send + Sync + 'static) {
        lock(&self.shared.few).get_or_insert_default().handler = Some(Arc::new(handler));
    }

    /// Starts a task on this loop from anywhere, also from another thread; its context is a copy of
    /// the caller's. On a closed loop the future is dropped and the task is cancelled at once.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// let task = runner.get_loop().unwrap().spawn(async { 42 });
    /// assert_eq!(runner.run(task).unwrap().unwrap(), 42);
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.shared.spawn_child(future, Location::caller())
    }

    /// Gives blocking work to the Runner's executor; see
    /// [`Scope::spawn_blocking`](super::Scope::spawn_blocking).
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// let work = runner.get_loop().unwrap().spawn_blocking(|| 42);
    /// assert_eq!(runner.run(work).unwrap().unwrap(), 42);
    /// ```
    #[track_caller]
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Blocking<T> {
        Executor::submit(&self.shared, Location::caller(), work)
    }

    /// The tokio runtime underneath.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// let runtime = runner.get_loop().unwrap().runtime();
    /// assert_eq!(runtime.runtime_flavor(), tokio::runtime::RuntimeFlavor::CurrentThread);
    /// ```
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.shared.runtime.clone()
    }

    /// Whether its Runner was closed.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let event_loop = Runner::new().get_loop().unwrap();   // the Runner is dropped: closed
    /// assert!(event_loop.is_closed());
    /// ```
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Whether two handles are of the same loop.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// assert!(runner.get_loop().unwrap().is_same(&runner.get_loop().unwrap()));
    /// ```
    pub fn is_same(&self, other: &EventLoop) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("tasks", &self.live_tasks())
            .field("closed", &self.is_closed())
            .field("debug", &self.debug())
            .finish_non_exhaustive()
    }
}

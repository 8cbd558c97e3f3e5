//! A task: what is known of it while it runs, and the handles that cancel it and await it.

use std::fmt;
use std::num::NonZeroU64;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::cancel::Region;
use super::event_loop::Shared;
use super::sync::{Arc, Mutex, lock};
use super::tree::{TaskInfo, TaskState};
use super::{Cancelled, Context, EventLoop, Panic, TaskError};

/// What happens to a task's future when the task is cancelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// It is dropped at the await where it stands.
    Plain,
    /// Its next scope await fails; it unwinds by itself, within the grace if one is given.
    Scoped { grace: Option<Duration> },
}

/// What everybody shares of one task; its future and its result are elsewhere.
pub(crate) struct Cell {
    pub(crate) id: u64,
    pub(crate) event_loop: Arc<Shared>,
    pub(crate) context: Context,
    pub(crate) region: Arc<Region>,
    pub(crate) style: Style,
    pub(crate) source: &'static Location<'static>,
    pub(crate) parent: Option<NonZeroU64>,
    pub(crate) born: Instant,
    /// Wakes the scope awaits, wherever in the task they stand.
    pub(crate) cancelled: Notify,
    /// Who learns of a panic: see [`Audience`].
    audience: AtomicU8,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    name: Option<Name>,
    waker: Option<Waker>,
    drop_now: bool,
    polling: bool,
    end: Option<End>,
    polls: u64,
    busy_ns: u64,
    slow_polls: u32,
}

/// What tells the name of a Runner or a task.
#[derive(Clone)]
pub(crate) struct Name(pub(crate) Arc<dyn fmt::Display + Send + Sync>);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// How a task ended, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Value,
    Cancelled,
    /// It returned an error of its own; the text is kept for the exception handler.
    Error(Box<str>),
    Panicked(Box<str>),
}

/// Who learns of a task's panic.
#[derive(Clone, Copy)]
pub(crate) enum Audience {
    /// The holder of the [`Task`].
    Handle,
    /// Nobody holds it any more.
    Nobody,
    /// It has been reported, or will be by the close.
    Told,
}

/// What a poll of a task must do first.
pub(crate) enum Step {
    Poll,
    Drop,
}

impl Cell {
    pub(crate) fn new(
        event_loop: Arc<Shared>,
        context: Context,
        style: Style,
        source: &'static Location<'static>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Cell {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            parent: super::current::task().and_then(|task| NonZeroU64::new(task.id)),
            event_loop,
            context,
            region: Arc::new(Region::root()),
            style,
            source,
            born: Instant::now(),
            cancelled: Notify::new(),
            audience: AtomicU8::new(Audience::Handle as u8),
            progress: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> String {
        let name = lock(&self.progress).name.clone();
        name.map_or_else(|| format!("Task-{}", self.id), |name| name.to_string())
    }

    pub(crate) fn set_name(&self, name: Name) {
        lock(&self.progress).name = Some(name);
    }

    /// False when it was done already.
    pub(crate) fn cancel(&self, message: Option<&str>) -> bool {
        if self.is_done() {
            return false;
        }
        self.region.cancel(message);
        self.wake();
        true
    }

    /// Drops the future at its next return to the loop, whatever its style.
    pub(crate) fn drop_now(&self) {
        lock(&self.progress).drop_now = true;
        self.wake();
    }

    pub(crate) fn is_dropping(&self) -> bool {
        lock(&self.progress).drop_now
    }

    pub(crate) fn wake(&self) {
        self.cancelled.notify_waiters();
        let waker = lock(&self.progress).waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        lock(&self.progress).end.is_some()
    }

    pub(crate) fn end(&self) -> Option<End> {
        lock(&self.progress).end.clone()
    }

    pub(crate) fn was_polled(&self) -> bool {
        lock(&self.progress).polls > 0
    }

    pub(crate) fn begin_poll(&self, waker: &Waker) -> Step {
        let mut progress = lock(&self.progress);
        if !progress.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            progress.waker = Some(waker.clone());
        }
        // A task cancelled before its first poll never begins, whatever its style: as in asyncio.
        let cancelled = (self.style == Style::Plain || progress.polls == 0) && self.region.cancelling() > 0;
        if progress.drop_now || cancelled {
            return Step::Drop;
        }
        progress.polling = true;
        progress.polls += 1;
        Step::Poll
    }

    pub(crate) fn end_poll(&self, busy: Duration, slow: bool) {
        let mut progress = lock(&self.progress);
        progress.polling = false;
        progress.busy_ns += super::event_loop::nanos(busy);
        progress.slow_polls += u32::from(slow);
    }

    /// The first end counts.
    pub(crate) fn finish(&self, end: End) {
        let mut progress = lock(&self.progress);
        progress.polling = false;
        progress.end.get_or_insert(end);
        let waker = progress.waker.take();
        drop(progress);
        drop(waker);
    }

    /// Whether it was `from` and is now `to`.
    pub(crate) fn hand_over(&self, from: Audience, to: Audience) -> bool {
        self.audience.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn told(&self) {
        self.audience.store(Audience::Told as u8, Ordering::Release);
    }

    pub(crate) fn last_cancel(&self) -> Cancelled {
        self.region.last().unwrap_or_default()
    }

    pub(crate) fn info(&self) -> TaskInfo {
        let name = self.name();
        let cancelling = self.region.cancelling();
        let progress = lock(&self.progress);
        let state = match &progress.end {
            Some(End::Value) => TaskState::Finished,
            Some(End::Cancelled) => TaskState::Cancelled,
            Some(End::Error(_) | End::Panicked(_)) => TaskState::Failed,
            None if progress.polling => TaskState::Running,
            None if cancelling > 0 => TaskState::Cancelling,
            None if progress.polls == 0 => TaskState::Created,
            None => TaskState::Waiting,
        };
        TaskInfo {
            id: self.id,
            name,
            state,
            source: self.source,
            parent: self.parent.map(NonZeroU64::get),
            age: self.born.elapsed(),
            polls: progress.polls,
            busy: Duration::from_nanos(progress.busy_ns),
            slow_polls: progress.slow_polls,
        }
    }
}

/// A handle of a task that does not give its result: to cancel it, name it, look at it.
///
/// ```
/// use runward::runner::{Cancelled, Runner};
///
/// Runner::new().run_scoped(|scope| async move {
///     let me = scope.task();
///     me.set_name("main");
///     assert_eq!(me.name(), "main");
///     assert!(!me.is_done());
///     Ok::<_, Cancelled>(())
/// }).unwrap().unwrap();
/// ```
#[derive(Clone)]
pub struct TaskHandle {
    pub(crate) cell: Arc<Cell>,
}

impl TaskHandle {
    /// Asks the task to end: a scoped one gets `Err(Cancelled)` from its scope await, any other is
    /// dropped where it stands. False when it was done already. asyncio's `Task.cancel(msg)`.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, RunError, Runner};
    /// let ended = Runner::new().run_scoped(|scope| async move {
    ///     assert!(scope.task().cancel("enough"));
    ///     scope.checkpoint().await
    /// });
    /// assert!(matches!(ended, Err(RunError::Cancelled(_))));
    /// ```
    pub fn cancel<'a>(&self, message: impl Into<Option<&'a str>>) -> bool {
        self.cell.cancel(message.into())
    }

    /// How many cancellations were asked for and not taken back.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// Runner::new().run_scoped(|scope| async move {
    ///     scope.task().cancel(None);
    ///     assert_eq!(scope.task().cancelling(), 1);
    ///     assert!(scope.checkpoint().await.is_err());
    ///     assert_eq!(scope.task().uncancel(), 0);
    ///     Ok::<_, Cancelled>(())
    /// }).unwrap().unwrap();
    /// ```
    pub fn cancelling(&self) -> u32 {
        self.cell.region.cancelling()
    }

    /// Takes one cancellation back, for code that handles it for good; the number that is left.
    /// When none is left, one that no await has seen yet is forgotten.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// Runner::new().run_scoped(|scope| async move {
    ///     scope.task().cancel(None);
    ///     assert_eq!(scope.task().uncancel(), 0);
    ///     scope.checkpoint().await          // nothing to see any more
    /// }).unwrap().unwrap();
    /// ```
    pub fn uncancel(&self) -> u32 {
        self.cell.region.uncancel()
    }

    /// The name it was given, or `Task-N`.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// let name = Runner::new().run_scoped(|scope| async move { Ok::<_, Cancelled>(scope.task().name()) });
    /// assert!(name.unwrap().unwrap().starts_with("Task-"));
    /// ```
    pub fn name(&self) -> String {
        self.cell.name()
    }

    /// Gives it a name, for logs, reports and the task tree.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// scope.task().set_name("reader");
    /// assert_eq!(scope.task().name(), "reader");
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn set_name(&self, name: &str) {
        self.cell.set_name(Name(Arc::new(Box::<str>::from(name))));
    }

    /// Whether it has ended, in whatever way.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// assert!(!scope.task().is_done());
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn is_done(&self) -> bool {
        self.cell.is_done()
    }

    /// Whether it ended by a cancellation.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let mut task = scope.spawn(std::future::pending::<()>());
    /// task.cancel(None);
    /// assert!((&mut task).await.is_err());
    /// assert!(task.is_cancelled());
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.cell.end() == Some(End::Cancelled)
    }

    /// The loop it runs on: asyncio's `get_running_loop` is `current_task().unwrap().event_loop()`.
    ///
    /// ```
    /// # use runward::runner::{Runner, current_task};
    /// let alive = Runner::new().run(async { current_task().unwrap().event_loop().live_tasks() });
    /// assert_eq!(alive.unwrap(), 1);
    /// ```
    pub fn event_loop(&self) -> EventLoop {
        EventLoop { shared: self.cell.event_loop.clone() }
    }

    /// What is known of it now.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner, TaskState};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let info = scope.task().info();
    /// assert_eq!((info.state, info.polls), (TaskState::Running, 1));
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn info(&self) -> TaskInfo {
        self.cell.info()
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        f.debug_struct("Task").field("name", &info.name).field("state", &info.state).finish()
    }
}

/// The task of the running code, if it is a task of this library.
///
/// ```
/// use runward::runner::{Runner, current_task};
///
/// assert!(current_task().is_none());
/// assert!(Runner::new().run(async { current_task().is_some() }).unwrap());
/// ```
pub fn current_task() -> Option<TaskHandle> {
    super::current::task().map(|cell| TaskHandle { cell })
}

/// A started task. Awaiting it gives its result; dropping it lets the task go on, for its loop owns
/// it and ends it at the latest when the Runner closes.
///
/// Cancel safe: awaiting `&mut task` and giving up leaves the task as it is. See
/// [`Scope::join`](super::Scope::join) for an await that passes a cancellation on to the task.
///
/// ```
/// use runward::runner::{Runner, TaskError};
///
/// let sum = Runner::new().run_scoped(|scope| async move {
///     let task = scope.spawn(async { 40 }).with_name("forty");
///     assert_eq!(task.name(), "forty");
///     Ok::<_, TaskError>(task.await? + 2)
/// });
/// assert_eq!(sum.unwrap().unwrap(), 42);
/// ```
pub struct Task<T> {
    pub(crate) handle: TaskHandle,
    /// None where the loop was closed already: the future never ran.
    join: Option<tokio::task::JoinHandle<Result<T, TaskError>>>,
}

impl<T> Task<T> {
    pub(crate) fn new(cell: Arc<Cell>, join: Option<tokio::task::JoinHandle<Result<T, TaskError>>>) -> Self {
        Task { handle: TaskHandle { cell }, join }
    }

    /// The same task, named.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// assert_eq!(scope.spawn(async {}).with_name("idle").name(), "idle");
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    pub fn with_name(self, name: &str) -> Self {
        self.handle.set_name(name);
        self
    }

    /// A handle without the result.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let task = scope.spawn(std::future::pending::<()>());
    /// let handle = task.handle();
    /// handle.cancel(None);
    /// assert!(task.await.is_err() && handle.is_done());
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    pub fn handle(&self) -> TaskHandle {
        self.handle.clone()
    }
}

impl<T> std::ops::Deref for Task<T> {
    type Target = TaskHandle;

    fn deref(&self) -> &TaskHandle {
        &self.handle
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let Some(join) = &mut self.join else {
            return Poll::Ready(Err(self.handle.cell.last_cancel().into()));
        };
        let joined = std::task::ready!(Pin::new(join).poll(cx));
        self.join = None;
        Poll::Ready(match joined {
            Ok(result) => result,
            // The drive of a task catches panics; this one comes from a destructor outside of it.
            Err(error) => match error.try_into_panic() {
                Ok(payload) => Err(TaskError::Panicked(Panic::new(payload))),
                Err(_) => Err(TaskError::Cancelled(Cancelled::new("the event loop is closed"))),
            },
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        let cell = &self.handle.cell;
        if self.join.is_some() && cell.hand_over(Audience::Handle, Audience::Nobody) {
            cell.event_loop.report_unseen_panic(cell);
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

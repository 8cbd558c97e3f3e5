//! The async Runner: many of them on one shared loop.

use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as Waking, Poll, ready};

use super::control::Control;
use super::core::{Core, State, event_loop, never_ran, shared_loop};
use super::drive::{self, Verdict};
use super::sync::Arc;
use super::task::Cell;
use super::{
    Builder, CloseReport, Context, EventLoop, RunError, Runner, RunnerHandle, Scope, ScopeError, Task,
    TaskError, TaskHandle,
};

/// A Runner whose forms are async, on a loop that it shares with others: one per job of a server,
/// tens of thousands on one runtime. It has no thread of its own and installs no signal handlers.
///
/// Dropping it starts a close that nobody awaits; [`close`](Self::close) is better.
///
/// ```
/// use runward::runner::{AsyncRunner, Cancelled, Runner};
///
/// Runner::new().run(async {
///     let mut runner = AsyncRunner::new();
///     let main = runner.start_scoped(|scope| async move {
///         scope.checkpoint().await?;
///         Ok::<_, Cancelled>("done")
///     });
///     assert_eq!(main.unwrap().await.unwrap().unwrap(), "done");
///     assert!(runner.close().await.is_clean());
/// }).unwrap();
/// ```
pub struct AsyncRunner {
    core: Core,
}

impl AsyncRunner {
    /// A Runner with the default settings, on the loop of the code that first uses it.
    ///
    /// ```
    /// let runner = runward::runner::AsyncRunner::new();   // nothing is created yet
    /// ```
    #[expect(clippy::new_without_default, reason = "a Runner is made on purpose")]
    pub fn new() -> Self {
        Runner::builder().build_async()
    }

    pub(crate) fn from_builder(settings: Builder) -> Self {
        AsyncRunner { core: Core::new(settings) }
    }

    /// Starts `future` as the main task, in the Runner's context. Cancelling it drops it at its
    /// await. Several runs, one after another, see the same context.
    ///
    /// # Errors
    ///
    /// [`RunError::Closed`]; [`RunError::LoopRunning`] while the main task of an earlier run is
    /// alive; [`RunError::Loop`] when there is no loop to share.
    ///
    /// ```
    /// # use runward::runner::{AsyncRunner, ContextVar, Runner};
    /// # Runner::new().run(async {
    /// static COUNT: ContextVar<u32> = ContextVar::with_default("count", 0);
    /// let mut runner = AsyncRunner::new();
    /// for _ in 0..3 {
    ///     runner.start(async { COUNT.set(COUNT.get().unwrap() + 1); }).unwrap().await.unwrap();
    /// }
    /// assert_eq!(runner.start(async { COUNT.get() }).unwrap().await.unwrap(), Some(3));
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn start<F>(&mut self, future: F) -> Result<MainTask<F::Output>, RunError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.start_main(None, false, future, drive::plain, Location::caller())
    }

    /// The same in `context` instead of the Runner's own.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// ```
    /// # use runward::runner::{AsyncRunner, Context, ContextVar, Runner};
    /// # Runner::new().run(async {
    /// static USER: ContextVar<&str> = ContextVar::new("user");
    /// let context = Context::new();
    /// let mut runner = AsyncRunner::new();
    /// runner.start_in(context.clone(), async { USER.set("ada"); }).unwrap().await.unwrap();
    /// assert_eq!(context.get(&USER), Some("ada"));
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn start_in<F>(&mut self, context: Context, future: F) -> Result<MainTask<F::Output>, RunError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.start_main(Some(context), false, future, drive::plain, Location::caller())
    }

    /// Starts a main task that is told of its cancellation: its scope awaits give `Err(Cancelled)`
    /// once, and its clean-up may await again.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// ```
    /// # use runward::runner::{AsyncRunner, Cancelled, Runner};
    /// # Runner::new().run(async {
    /// let mut runner = AsyncRunner::new();
    /// let main = runner.start_scoped(|scope| async move {
    ///     match scope.cancellable(std::future::pending::<()>()).await {
    ///         Err(Cancelled { .. }) => {
    ///             scope.checkpoint().await?;                 // the clean-up
    ///             Ok::<_, Cancelled>("cleaned up")
    ///         }
    ///         Ok(()) => Ok("went on"),
    ///     }
    /// }).unwrap();
    /// while main.task().info().polls == 0 { tokio::task::yield_now().await; }
    /// assert!(runner.handle().cancel());
    /// assert_eq!(main.await.unwrap(), Ok("cleaned up"));
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn start_scoped<F, Fut, T, E>(&mut self, main: F) -> Result<MainTask<Result<T, E>>, RunError>
    where
        F: FnOnce(Scope) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: ScopeError + Send + 'static,
    {
        self.start_main(None, true, Scope::enter(main), drive::scoped, Location::caller())
    }

    fn start_main<F>(
        &mut self,
        context: Option<Context>,
        scoped: bool,
        future: F,
        verdict: fn(&F::Output) -> Verdict<'_>,
        source: &'static Location<'static>,
    ) -> Result<MainTask<F::Output>, RunError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let main = self.begin(context, scoped, source)?;
        let task = main.event_loop.clone().spawn(main, future, verdict);
        Ok(MainTask { waiting: Waiting { task, control: self.core.control.clone() } })
    }

    /// The main task of a new run, before it has anything to do.
    pub(super) fn begin(
        &mut self,
        context: Option<Context>,
        scoped: bool,
        source: &'static Location<'static>,
    ) -> Result<Arc<Cell>, RunError> {
        if let Err(error) = self.core.open(shared_loop) {
            never_ran(&error, source);
            return Err(error);
        }
        let State::Open(opened) = &self.core.state else { return Err(RunError::Closed) };
        let main = self.core.main(opened, context, scoped, source);
        if !self.core.control.begin_run(&main) {
            never_ran(&RunError::LoopRunning, source);
            return Err(RunError::LoopRunning);
        }
        Ok(main)
    }

    /// The loop, made now if this is the first use.
    ///
    /// # Errors
    ///
    /// [`RunError::Closed`], [`RunError::Loop`].
    ///
    /// ```
    /// # use runward::runner::{AsyncRunner, Runner};
    /// # Runner::new().run(async {
    /// assert_eq!(AsyncRunner::new().get_loop().unwrap().live_tasks(), 0);
    /// # }).unwrap();
    /// ```
    pub fn get_loop(&mut self) -> Result<EventLoop, RunError> {
        self.core.open(shared_loop).map(event_loop)
    }

    /// A handle to cancel and interrupt from anywhere.
    ///
    /// ```
    /// # use runward::runner::AsyncRunner;
    /// assert!(!AsyncRunner::new().handle().is_running());
    /// ```
    pub fn handle(&self) -> RunnerHandle {
        RunnerHandle { control: self.core.control.clone() }
    }

    /// Cancels all tasks, the main task among them, and awaits them; closes generators; drains the
    /// executor for at most the drain time; closes the loop. What blocking work outlives the limit
    /// is in the report, by name.
    ///
    /// On a Runner that was never used it does nothing; on a closed one it gives the same report
    /// again and waits for nothing.
    ///
    /// Not cancel safe: a close that is dropped half-way leaves the Runner closed, its tasks
    /// cancelled but not awaited.
    ///
    /// ```
    /// # use runward::runner::{AsyncRunner, RunError, Runner};
    /// # Runner::new().run(async {
    /// let mut runner = AsyncRunner::new();
    /// let main = runner.start(std::future::pending::<()>()).unwrap();
    /// assert_eq!(runner.close().await.tasks_cancelled, 1);
    /// assert!(matches!(main.await, Err(RunError::Cancelled(_))));
    /// assert!(matches!(runner.start(async {}), Err(RunError::Closed)));
    /// # }).unwrap();
    /// ```
    pub async fn close(&mut self) -> CloseReport {
        let Some(opened) = self.core.take_open() else { return self.core.report() };
        // Should this future be dropped half-way, the loop still takes nothing new.
        let shut = Shut(&opened.event_loop);
        let report =
            super::close::close(&opened.event_loop, &self.core.control, self.core.settings.drain_timeout)
                .await;
        drop(shut);
        self.core.state = State::Closed(Box::new(report.clone()));
        report
    }
}

struct Shut<'a>(&'a super::event_loop::Shared);

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.shut();
    }
}

impl Drop for AsyncRunner {
    fn drop(&mut self) {
        let Some(opened) = self.core.take_open() else { return };
        let (control, limit) = (self.core.control.clone(), self.core.settings.drain_timeout);
        // Owned by the shared loop; it ends by itself.
        drop(
            opened
                .event_loop
                .runtime
                .clone()
                .spawn(async move { super::close::close(&opened.event_loop, &control, limit).await }),
        );
    }
}

impl fmt::Debug for AsyncRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncRunner").field("name", &self.core.settings.name).finish_non_exhaustive()
    }
}

/// The wait for a main task; none when the run was abandoned before.
pub(crate) struct Waiting<W> {
    pub(crate) task: W,
    pub(crate) control: Arc<Control>,
}

impl<T, W: Future<Output = Result<T, TaskError>> + Unpin> Future for Waiting<W> {
    type Output = Option<Result<T, TaskError>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Waking<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(end) = Pin::new(&mut self.task).poll(cx) {
            return Poll::Ready(Some(end));
        }
        self.control.poll_abandoned(cx).map(|()| None)
    }
}

/// A started main task of an [`AsyncRunner`]; awaiting it gives the result of the run. Dropping it
/// lets the task go on.
///
/// Cancel safe: awaiting `&mut main` and giving up loses nothing.
///
/// # Errors
///
/// Those of [`Runner::run`](super::Runner::run) that can happen after the start.
///
/// ```
/// # use runward::runner::{AsyncRunner, Runner};
/// # Runner::new().run(async {
/// let main = AsyncRunner::new().start(async { 6 * 7 }).unwrap();
/// assert!(main.task().info().source.file().ends_with(".rs"));
/// # }).unwrap();
/// ```
#[must_use = "the result of the run is lost"]
pub struct MainTask<T> {
    waiting: Waiting<Task<T>>,
}

impl<T> MainTask<T> {
    /// The main task itself: its name, its state, what it has cost.
    ///
    /// ```
    /// # use runward::runner::{AsyncRunner, Runner};
    /// # Runner::new().run(async {
    /// let main = AsyncRunner::new().start(async {}).unwrap();
    /// main.task().set_name("first");
    /// # }).unwrap();
    /// ```
    pub fn task(&self) -> &TaskHandle {
        &self.waiting.task.handle
    }
}

impl<T> Future for MainTask<T> {
    type Output = Result<T, RunError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Waking<'_>) -> Poll<Self::Output> {
        let end = ready!(Pin::new(&mut self.waiting).poll(cx));
        Poll::Ready(self.waiting.control.conclude(&self.waiting.task.handle.cell, end))
    }
}

impl<T> fmt::Debug for MainTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MainTask").field(self.task()).finish()
    }
}

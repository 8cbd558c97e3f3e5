//! What a scoped task can await and start.

use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::futures::Notified;

use super::cancel::{Region, Standing};
use super::executor::Executor;
use super::sync::Arc;
use super::task::{Cell, Style};
use super::{Blocking, Cancelled, EventLoop, ScopeError, Task, TaskError, TaskHandle, drive};

/// The scope of one task. Its awaits are the places where a cancellation of the task arrives: each
/// gives `Err(Cancelled)` once per cancellation, to be passed on with `?`, and works again after.
///
/// It belongs to the task it was given to. Clones are the same scope.
///
/// ```
/// use runward::runner::{Cancelled, Runner};
/// use std::time::Duration;
///
/// let kept = Runner::new().run_scoped(|scope| async move {
///     scope.task().cancel(None);
///     if scope.sleep(Duration::from_secs(3600)).await.is_err() {
///         scope.sleep(Duration::ZERO).await?;            // cleaning up: awaits work again
///     }
///     Ok::<_, Cancelled>("swallowed")
/// });
/// assert_eq!(kept.unwrap(), Ok("swallowed"));
/// ```
#[derive(Clone)]
pub struct Scope {
    pub(crate) cell: Arc<Cell>,
    pub(crate) region: Arc<Region>,
}

impl Scope {
    /// Runs `main` with the scope of the task it finds itself in.
    pub(crate) fn enter<F, Fut>(main: F) -> Enter<F, Fut>
    where
        F: FnOnce(Scope) -> Fut,
        Fut: Future,
    {
        Enter::Start { main: Some(main) }
    }

    /// Awaits `future` unless the task is cancelled first; then `future` is dropped.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], once per cancellation.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// assert_eq!(scope.cancellable(async { 1 }).await?, 1);
    /// scope.task().cancel("why");
    /// assert_eq!(scope.cancellable(async { 2 }).await, Err(Cancelled::new("why")));
    /// assert_eq!(scope.cancellable(async { 3 }).await?, 3);
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn cancellable<F: Future>(
        &self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, Cancelled>> + use<'_, F> {
        Cancellable {
            scope: self,
            future,
            heard: self.cell.cancelled.notified(),
            standing: Standing::default(),
        }
    }

    /// Lets other tasks run, and gives a cancellation the chance to arrive: asyncio's `sleep(0)`.
    ///
    /// # Errors
    ///
    /// [`Cancelled`].
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// scope.checkpoint().await?;
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub async fn checkpoint(&self) -> Result<(), Cancelled> {
        self.cancellable(tokio::task::yield_now()).await
    }

    /// Sleeps.
    ///
    /// # Errors
    ///
    /// [`Cancelled`].
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// scope.sleep(std::time::Duration::from_millis(1)).await?;
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub async fn sleep(&self, duration: Duration) -> Result<(), Cancelled> {
        self.cancellable(tokio::time::sleep(duration)).await
    }

    /// Awaits `task` as asyncio's `await task` does: a cancellation that comes meanwhile is passed
    /// on to it, and what the task makes of it is the result.
    ///
    /// # Errors
    ///
    /// The task's end without a value; [`TaskError::Cancelled`] also when this await itself was
    /// cancelled.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let mut child = scope.spawn(std::future::pending::<()>());
    /// scope.task().cancel(None);
    /// assert!(scope.join(&mut child).await.is_err());
    /// assert!(child.is_cancelled());
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    pub async fn join<T>(&self, task: &mut Task<T>) -> Result<T, TaskError> {
        loop {
            match self.cancellable(&mut *task).await {
                Ok(end) => return end,
                // It ended before: there is nobody to pass the cancellation on to.
                Err(cancelled) if task.is_done() => return Err(cancelled.into()),
                Err(cancelled) => drop(task.cancel(cancelled.message())),
            }
        }
    }

    /// Awaits `task` without passing a cancellation on to it: asyncio's `shield`.
    ///
    /// # Errors
    ///
    /// [`Cancelled`] when this await was cancelled; the task goes on. The inner result is the task's.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let mut child = scope.spawn(async { 42 });
    /// scope.task().cancel(None);
    /// assert!(scope.shield(&mut child).await.is_err());
    /// assert_eq!(scope.join(&mut child).await?, 42);
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    pub async fn shield<T>(&self, task: &mut Task<T>) -> Result<Result<T, TaskError>, Cancelled> {
        self.cancellable(task).await
    }

    /// Starts a task. Its context is a copy of this one; cancelling it drops it at its await. When
    /// the Runner closes, what is left over is cancelled and awaited.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// assert_eq!(scope.spawn(async { 42 }).await?, 42);
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.cell.event_loop.spawn_child(future, Location::caller())
    }

    /// Starts a task that is told of its cancellation, with a scope of its own.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let child = scope.spawn_scoped(|scope| async move {
    ///     scope.checkpoint().await?;
    ///     Ok::<_, Cancelled>(42)
    /// });
    /// assert_eq!(child.await?, Ok(42));
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn_scoped<F, Fut, T, E>(&self, body: F) -> Task<Result<T, E>>
    where
        F: FnOnce(Scope) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: ScopeError + Send + 'static,
    {
        let event_loop = &self.cell.event_loop;
        let style = Style::Scoped { grace: None };
        let cell = Cell::new(event_loop.clone(), super::copy_context(), style, Location::caller());
        event_loop.spawn(cell, Scope::enter(body), drive::scoped)
    }

    /// Gives blocking work to the Runner's executor, in a copy of this context: asyncio's
    /// `to_thread`. The close waits for it, within the drain time.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// let text = scope.spawn_blocking(|| std::fs::read_to_string("/proc/self/comm")).await?;
    /// assert!(text.is_ok());
    /// # Ok::<_, TaskError>(()) }).unwrap().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Blocking<T> {
        Executor::submit(&self.cell.event_loop, Location::caller(), work)
    }

    /// The task this scope belongs to.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// assert_eq!(scope.task().cancelling(), 0);
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn task(&self) -> TaskHandle {
        TaskHandle { cell: self.cell.clone() }
    }

    /// The loop it runs on.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner};
    /// # Runner::new().run_scoped(|scope| async move {
    /// assert_eq!(scope.event_loop().live_tasks(), 1);
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub fn event_loop(&self) -> EventLoop {
        EventLoop { shared: self.cell.event_loop.clone() }
    }
}

// By hand, not as async functions: these would keep what they are given twice, before and after their first poll.
pin_project! {
    struct Cancellable<'a, F> {
        scope: &'a Scope,
        #[pin]
        future: F,
        #[pin]
        heard: Notified<'a>,
        standing: Standing,
    }
}

impl<F: Future> Future for Cancellable<'_, F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(cancelled) = this.scope.region.deliver(this.standing) {
                return Poll::Ready(Err(cancelled));
            }
            if this.heard.as_mut().poll(cx).is_pending() {
                break;
            }
            // It was another region's, or one that came between the two looks: listen again.
            this.heard.set(this.scope.cell.cancelled.notified());
        }
        this.future.poll(cx).map(Ok)
    }
}

pin_project! {
    /// The future of a scoped task.
    #[project = EnterNow]
    pub(crate) enum Enter<F, Fut> {
        Start { main: Option<F> },
        Body { #[pin] body: Fut },
    }
}

impl<F, Fut> Future for Enter<F, Fut>
where
    F: FnOnce(Scope) -> Fut,
    Fut: Future,
{
    type Output = Fut::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Fut::Output> {
        if let EnterNow::Start { main } = self.as_mut().project() {
            let (Some(cell), Some(main)) = (super::current::task(), main.take()) else {
                unreachable!("a scoped task is polled by its drive only, and its body does not panic twice")
            };
            let body = main(Scope { region: cell.region.clone(), cell });
            self.set(Enter::Body { body });
        }
        match self.project() {
            EnterNow::Body { body } => body.poll(cx),
            EnterNow::Start { .. } => unreachable!("its body has just been made"),
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("task", &self.task()).finish_non_exhaustive()
    }
}

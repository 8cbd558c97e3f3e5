//! The blocking Runner: asyncio's `Runner`.

use std::fmt;
use std::panic::Location;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::oneshot;

use super::async_runner::Waiting;
use super::core::{Core, Opened, State, Vehicle, event_loop, never_ran, own_loop};
use super::drive::{self, Drive, Verdict};
use super::sync::Arc;
use super::task::Cell;
use super::{
    Builder, CloseReport, Context, EventLoop, RunError, RunnerHandle, Scope, ScopeError, close, current,
    loop_thread, signals,
};

/// Runs main tasks, one after another, on one event loop and in one context, and cleans up after
/// them.
///
/// Nothing is created before the first use. Dropping a Runner closes it, also while a panic unwinds.
/// In a thread that runs an event loop a drop still closes it, and blocks that thread meanwhile;
/// there [`AsyncRunner`](super::AsyncRunner) is the better choice.
///
/// ```
/// use runward::runner::Runner;
///
/// let mut runner = Runner::new();
/// assert_eq!(runner.run(async { 40 + 2 }).unwrap(), 42);
/// assert_eq!(runner.run(async { "again" }).unwrap(), "again");
/// runner.close();
/// ```
pub struct Runner {
    core: Core,
}

impl Runner {
    /// A Runner with the default settings: a loop thread, SIGINT interrupts.
    ///
    /// ```
    /// let runner = runward::runner::Runner::new();
    /// ```
    #[expect(clippy::new_without_default, reason = "a Runner is made on purpose")]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// The settings of a Runner.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let runner = Runner::builder().debug(true).build();
    /// ```
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn from_builder(settings: Builder) -> Self {
        Runner { core: Core::new(settings) }
    }

    /// Runs `future` as the main task, in the Runner's context, and returns its value. Cancelling
    /// it drops it at the await where it stands.
    ///
    /// In the main thread Ctrl-C cancels it; a second one ends the run at once, even if the main
    /// task never returns to its loop: then its thread is abandoned and the Runner is closed.
    ///
    /// # Errors
    ///
    /// [`RunError::LoopRunning`] in a thread that runs a loop: nothing was created, the future was
    /// not polled. [`RunError::Closed`], [`RunError::Loop`]. [`RunError::Interrupted`] after an
    /// interrupt, [`RunError::Cancelled`] after any other cancellation, [`RunError::Panicked`].
    ///
    /// ```
    /// # use runward::runner::{RunError, Runner};
    /// let mut runner = Runner::new();
    /// let nested = runner.run(async { Runner::new().run(async {}) });
    /// assert!(matches!(nested.unwrap(), Err(RunError::LoopRunning)));
    /// ```
    ///
    /// Only a future can be run:
    ///
    /// ```compile_fail,E0277
    /// runward::runner::Runner::new().run(1);
    /// ```
    ///
    /// ```compile_fail,E0277
    /// runward::runner::Runner::new().run(|| ());
    /// ```
    #[track_caller]
    pub fn run<F>(&mut self, future: F) -> Result<F::Output, RunError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.run_main(None, false, future, drive::plain, Location::caller())
    }

    /// Runs `future` in `context` instead of the Runner's own.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// ```
    /// # use runward::runner::{Context, ContextVar, Runner};
    /// static USER: ContextVar<&str> = ContextVar::new("user");
    /// let context = Context::new();
    /// let mut runner = Runner::new();
    /// runner.run_in(context.clone(), async { USER.set("ada"); }).unwrap();
    /// assert_eq!(context.get(&USER), Some("ada"));
    /// assert_eq!(runner.run(async { USER.get() }).unwrap(), None);
    /// ```
    #[track_caller]
    pub fn run_in<F>(&mut self, context: Context, future: F) -> Result<F::Output, RunError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.run_main(Some(context), false, future, drive::plain, Location::caller())
    }

    /// Runs a main task that is told of its cancellation: its scope awaits give `Err(Cancelled)`
    /// once, to be passed on with `?`; the clean-up may await again. One that swallows the
    /// cancellation and returns normally has its value returned.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); the inner result is the main task's own.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, RunError, Runner};
    /// # use std::time::Duration;
    /// let ended = Runner::new().run_scoped(|scope| async move {
    ///     scope.task().cancel(None);
    ///     let slept = scope.sleep(Duration::from_secs(3600)).await;
    ///     scope.sleep(Duration::ZERO).await?;                // the clean-up awaits
    ///     slept
    /// });
    /// assert!(matches!(ended, Err(RunError::Cancelled(_))));
    /// ```
    #[track_caller]
    pub fn run_scoped<F, Fut, T, E>(&mut self, main: F) -> Result<Result<T, E>, RunError>
    where
        F: FnOnce(Scope) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: ScopeError + Send + 'static,
    {
        self.run_main(None, true, Scope::enter(main), drive::scoped, Location::caller())
    }

    /// Runs a future that need not be `Send` and may borrow, in the calling thread, whatever the
    /// loop. Its price: a main task that never awaits cannot be left, so there the third Ctrl-C
    /// ends the process.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut words = vec!["borrowed"];
    /// Runner::new().run_local(async { words.push("mutably") }).unwrap();
    /// assert_eq!(words.len(), 2);
    /// ```
    #[track_caller]
    pub fn run_local<F: Future>(&mut self, future: F) -> Result<F::Output, RunError> {
        let source = Location::caller();
        let main = self.begin(None, false, source)?;
        self.run_here(main, future, drive::plain)
    }

    fn run_main<F>(
        &mut self,
        context: Option<Context>,
        scoped: bool,
        future: F,
        verdict: fn(&F::Output) -> Verdict<'_>,
        source: &'static Location<'static>,
    ) -> Result<F::Output, RunError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let main = self.begin(context, scoped, source)?;
        let State::Open(opened) = &self.core.state else { return Err(RunError::Closed) };
        let control = self.core.control.clone();
        let end = match &opened.vehicle {
            Vehicle::Caller(_) => return self.run_here(main, future, verdict),
            Vehicle::LoopThread(runtime) => {
                let _held = signals::hold(self.core.settings.signals_taken(), &control);
                let (sender, task) = oneshot::channel();
                opened.event_loop.adopt(&main);
                let (runtime, drive) = (runtime.clone(), Drive::new(main.clone(), future, verdict));
                let job = move || {
                    let end = {
                        let _running = current::forbid_run();
                        runtime.block_on(drive)
                    };
                    // Before the end is known, for who knows it may close the Runner and wants the
                    // runtime back. The last one is this one only if the run was abandoned.
                    if let Some(abandoned) = Arc::into_inner(runtime) {
                        abandoned.shutdown_background();
                    }
                    Box::new(move || drop(sender.send(end))) as Box<dyn FnOnce()>
                };
                loop_thread::call(Box::new(job)).map_err(RunError::Loop)?;
                let task = pin!(async { task.await.unwrap_or_else(|_| Err(main.last_cancel().into())) });
                loop_thread::wait(Waiting { task, control: control.clone() }, None).flatten()
            }
            Vehicle::Workers(_) | Vehicle::Shared(_) => {
                let _held = signals::hold(self.core.settings.signals_taken(), &control);
                let task = opened.event_loop.spawn(main.clone(), future, verdict);
                opened.block_on(Waiting { task, control: control.clone() })
            }
        };
        if end.is_none() && !wait_done(&main, close::STUCK_AFTER) {
            self.abandon(&main);
        }
        control.conclude(&main, end)
    }

    fn run_here<F: Future>(
        &mut self,
        main: Arc<Cell>,
        future: F,
        verdict: fn(&F::Output) -> Verdict<'_>,
    ) -> Result<F::Output, RunError> {
        let State::Open(opened) = &self.core.state else { return Err(RunError::Closed) };
        let end = {
            let _held = signals::hold(self.core.settings.signals_taken(), &self.core.control);
            opened.event_loop.adopt(&main);
            opened.block_on(Drive::new(main.clone(), future, verdict))
        };
        self.core.control.conclude(&main, Some(end))
    }

    fn begin(
        &mut self,
        context: Option<Context>,
        scoped: bool,
        source: &'static Location<'static>,
    ) -> Result<Arc<Cell>, RunError> {
        let begun = self.try_begin(context, scoped, source);
        if let Err(error) = &begun {
            never_ran(error, source);
        }
        begun
    }

    fn try_begin(
        &mut self,
        context: Option<Context>,
        scoped: bool,
        source: &'static Location<'static>,
    ) -> Result<Arc<Cell>, RunError> {
        if current::loop_runs_here() {
            return Err(RunError::LoopRunning);
        }
        self.core.open(own_loop)?;
        let State::Open(opened) = &self.core.state else { return Err(RunError::Closed) };
        let main = self.core.main(opened, context, scoped, source);
        if !self.core.control.begin_run(&main) {
            return Err(RunError::LoopRunning);
        }
        Ok(main)
    }

    /// The main task holds a thread and does not give it back: the Runner closes without it.
    fn abandon(&mut self, main: &Cell) {
        let Some(opened) = self.core.take_open() else { return };
        tracing::warn!(task = main.name(), source = %main.source, "the main task is stuck: its thread is abandoned");
        opened.event_loop.shut();
        let tasks_abandoned = opened.event_loop.alive().iter().map(|cell| cell.name()).collect();
        let executor_abandoned = opened.event_loop.executor.names();
        opened.end(false);
        self.core.state = State::Closed(Box::new(CloseReport {
            tasks_abandoned,
            executor_abandoned,
            ..CloseReport::default()
        }));
    }

    /// The loop, made now if this is the first use.
    ///
    /// # Errors
    ///
    /// [`RunError::Closed`], [`RunError::Loop`].
    ///
    /// ```
    /// # use runward::runner::{RunError, Runner};
    /// let mut runner = Runner::new();
    /// let event_loop = runner.get_loop().unwrap();
    /// runner.close();
    /// assert!(event_loop.is_closed());
    /// assert!(matches!(runner.get_loop(), Err(RunError::Closed)));
    /// ```
    pub fn get_loop(&mut self) -> Result<EventLoop, RunError> {
        self.core.open(own_loop).map(event_loop)
    }

    /// A handle to cancel and interrupt from another thread.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let handle = Runner::new().handle();
    /// assert!(!handle.cancel());
    /// ```
    pub fn handle(&self) -> RunnerHandle {
        RunnerHandle { control: self.core.control.clone() }
    }

    /// Cancels the left-over tasks and awaits them; closes generators; drains the executor for at
    /// most the drain time; closes the loop. The Runner is closed even if a step failed.
    ///
    /// On a Runner that was never used it does nothing and leaves it usable; on a closed one it
    /// gives the same report again and waits for nothing. In a thread that runs an event loop it
    /// closes all the same, as the drop does; only a Runner on a shared loop is then closed behind
    /// the back of the caller, and the report is empty.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// runner.run(async {}).unwrap();
    /// assert!(runner.close().is_clean());
    /// assert!(runner.close().is_clean());
    /// ```
    pub fn close(&mut self) -> CloseReport {
        let Some(opened) = self.core.take_open() else { return self.core.report() };
        let control = self.core.control.clone();
        let limit = self.core.settings.drain_timeout;
        let report = if !current::loop_runs_here() {
            opened.close(&control, limit)
        } else if let Vehicle::Shared(runtime) = &opened.vehicle {
            let runtime = runtime.clone();
            drop(runtime.spawn(async move { close::close(&opened.event_loop, &control, limit).await }));
            CloseReport::default()
        } else {
            // A runtime may neither be driven nor dropped in a thread that runs another one.
            let closing = std::thread::Builder::new()
                .name("runward-close".into())
                .spawn(move || opened.close(&control, limit));
            closing.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        self.core.state = State::Closed(Box::new(report.clone()));
        report
    }
}

impl Opened {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _running = current::forbid_run();
        match &self.vehicle {
            Vehicle::Caller(runtime) | Vehicle::Workers(runtime) => runtime.block_on(future),
            Vehicle::LoopThread(runtime) => runtime.block_on(future),
            Vehicle::Shared(handle) => handle.block_on(future),
        }
    }

    fn close(self, control: &super::control::Control, limit: Duration) -> CloseReport {
        let report = self.block_on(close::close(&self.event_loop, control, limit));
        self.end(report.is_clean());
        report
    }

    /// Ends an own runtime; without waiting for its threads when some of them will not end.
    fn end(self, clean: bool) {
        let runtime = match self.vehicle {
            Vehicle::Caller(runtime) | Vehicle::Workers(runtime) => Some(*runtime),
            // None: the abandoned thread still has it.
            Vehicle::LoopThread(runtime) => Arc::into_inner(runtime),
            Vehicle::Shared(_) => None,
        };
        match runtime {
            Some(runtime) if clean => drop(runtime),
            Some(runtime) => runtime.shutdown_background(),
            None => {}
        }
    }
}

/// Waits without a loop, for it may be stuck. False when the time is up.
fn wait_done(main: &Arc<Cell>, limit: Duration) -> bool {
    let done = pin!(close::all_done(&main.event_loop, std::slice::from_ref(main)));
    loop_thread::wait(done, Some(limit)).is_some()
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.core.state {
            State::Created => "created",
            State::Open(_) => "open",
            State::Closed(_) => "closed",
        };
        f.debug_struct("Runner").field("name", &self.core.settings.name).field("state", &state).finish()
    }
}

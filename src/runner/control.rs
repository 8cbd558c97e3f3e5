//! What others may do to a Runner while it runs: cancel, interrupt, move its deadline.

use std::fmt;
use std::task::{Poll, Waker};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::interrupt::{Interrupts, Main, Response};
use super::sync::{Arc, Mutex, lock};
use super::task::Cell;
use super::{RunError, TaskError};

#[derive(Default)]
pub(crate) struct Control {
    state: Mutex<State>,
    /// Fires when a close that is under way must look again.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct State {
    main: Option<Arc<Cell>>,
    interrupts: Interrupts,
    /// Of the one who waits for the main task.
    waker: Option<Waker>,
    drain_deadline: Option<Instant>,
}

impl Control {
    /// False while the main task of an earlier run is still alive.
    pub(crate) fn begin_run(&self, main: &Arc<Cell>) -> bool {
        let mut state = lock(&self.state);
        if state.main.as_ref().is_some_and(|main| !main.is_done()) {
            return false;
        }
        state.interrupts.begin_run();
        state.main = Some(main.clone());
        true
    }

    /// Turns the end of the main task into the result of the run: asyncio's rule.
    /// `end` is none when the run was abandoned before its main task ended.
    pub(crate) fn conclude<T>(
        &self,
        main: &Arc<Cell>,
        end: Option<Result<T, TaskError>>,
    ) -> Result<T, RunError> {
        let mut state = lock(&self.state);
        // An abandoned main task may live on: until it ends there is no next run.
        if main.is_done() && state.main.as_ref().is_some_and(|known| Arc::ptr_eq(known, main)) {
            state.main = None;
        }
        let interrupted = state.interrupts.was_interrupted();
        let abandoned = state.interrupts.is_abandoned();
        drop(state);
        match end {
            Some(Err(TaskError::Panicked(panic))) => Err(RunError::Panicked(panic)),
            _ if abandoned => Err(RunError::Interrupted),
            Some(Ok(value)) => Ok(value),
            Some(Err(TaskError::Cancelled(cancelled))) => {
                if interrupted && main.region.uncancel() == 0 {
                    Err(RunError::Interrupted)
                } else {
                    Err(RunError::Cancelled(cancelled))
                }
            }
            None => Err(RunError::Interrupted),
        }
    }

    pub(crate) fn poll_abandoned(&self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.interrupts.is_abandoned() {
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) fn interrupt(&self) -> Response {
        let mut state = lock(&self.state);
        let main = state.main.clone();
        let response = state.interrupts.interrupt(match &main {
            None => Main::None,
            Some(main) if main.is_done() => Main::Done,
            Some(_) => Main::Alive,
        });
        let waker = if response == Response::Abandon { state.waker.take() } else { None };
        drop(state);
        match (response, main) {
            (Response::Cancel, Some(main)) => drop(main.cancel(None)),
            (Response::Abandon, Some(main)) => main.drop_now(),
            (Response::Force, _) => self.changed.notify_waiters(),
            (Response::Nothing | Response::Cancel | Response::Abandon, _) => {}
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        response
    }

    fn cancel(&self, message: Option<&str>) -> bool {
        let main = lock(&self.state).main.clone();
        main.is_some_and(|main| main.cancel(message))
    }

    pub(crate) fn begin_close(&self) {
        lock(&self.state).interrupts.begin_close();
    }

    pub(crate) fn is_forced(&self) -> bool {
        lock(&self.state).interrupts.is_forced()
    }

    pub(crate) fn drain_deadline(&self) -> Option<Instant> {
        lock(&self.state).drain_deadline
    }
}

/// Controls a Runner from any thread, while another one runs or closes it.
///
/// ```
/// use runward::runner::{RunError, Runner};
///
/// let mut runner = Runner::new();
/// let handle = runner.handle();
/// assert!(!handle.cancel());                                // nothing runs
/// let ended = runner.run(async move {
///     std::thread::spawn(move || handle.cancel()).join().unwrap();
///     std::future::pending::<()>().await
/// });
/// assert!(matches!(ended, Err(RunError::Cancelled(_))));
/// ```
#[derive(Clone)]
pub struct RunnerHandle {
    pub(crate) control: Arc<Control>,
}

impl RunnerHandle {
    /// Cancels the main task; the run then ends with [`RunError::Cancelled`]. False when no main
    /// task is alive.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// assert!(!Runner::new().handle().cancel());
    /// ```
    pub fn cancel(&self) -> bool {
        self.control.cancel(None)
    }

    /// The same with a message for the [`Cancelled`](super::Cancelled) error.
    ///
    /// ```
    /// # use runward::runner::{RunError, Runner};
    /// let mut runner = Runner::new();
    /// let handle = runner.handle();
    /// let ended = runner.run(async move {
    ///     handle.cancel_with("out of time");
    ///     std::future::pending::<()>().await
    /// });
    /// let Err(RunError::Cancelled(cancelled)) = ended else { panic!() };
    /// assert_eq!(cancelled.message(), Some("out of time"));
    /// ```
    pub fn cancel_with(&self, message: &str) -> bool {
        self.control.cancel(Some(message))
    }

    /// What Ctrl-C does. The first one in a run cancels the main task, and the run ends with
    /// [`RunError::Interrupted`]. The second one ends the run at once: its main task is dropped
    /// when it next returns to the loop. One that comes during the close ends that at once.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, RunError, Runner};
    /// let mut runner = Runner::new();
    /// let handle = runner.handle();
    /// let ended = runner.run_scoped(|scope| async move {
    ///     handle.interrupt();
    ///     scope.cancellable(std::future::pending::<()>()).await
    /// });
    /// assert!(matches!(ended, Err(RunError::Interrupted)));
    /// ```
    pub fn interrupt(&self) {
        self.control.interrupt();
    }

    /// Replaces the moment until which a close waits for the executor, also for a close that is
    /// already waiting.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// runner.handle().set_drain_deadline(tokio::time::Instant::now());
    /// runner.close();
    /// ```
    pub fn set_drain_deadline(&self, deadline: Instant) {
        lock(&self.control.state).drain_deadline = Some(deadline);
        self.control.changed.notify_waiters();
    }

    /// Whether a main task is alive.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// assert!(!Runner::new().handle().is_running());
    /// ```
    pub fn is_running(&self) -> bool {
        lock(&self.control.state).main.as_ref().is_some_and(|main| !main.is_done())
    }
}

impl fmt::Debug for RunnerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerHandle").field("running", &self.is_running()).finish()
    }
}

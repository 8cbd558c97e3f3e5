//! The ways a run, a task or a generator can end without a value.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Why [`Runner::run`](super::Runner::run) has no value to return.
///
/// ```
/// use runward::runner::{RunError, Runner};
///
/// let mut runner = Runner::new();
/// runner.close();                       // never used: nothing to close, still usable
/// assert_eq!(runner.run(async { 1 }).unwrap(), 1);
/// runner.close();
/// assert!(matches!(runner.run(async { 2 }), Err(RunError::Closed)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// This thread already runs a loop, or this Runner already runs a main task.
    /// Nothing was created; the future was dropped without being polled.
    #[error("a Runner cannot run from a running event loop")]
    LoopRunning,
    /// The Runner was closed before.
    #[error("Runner is closed")]
    Closed,
    /// The loop factory failed.
    #[error("the event loop could not be made: {0}")]
    Loop(#[source] std::io::Error),
    /// The main task ended because of an interrupt (Ctrl-C): asyncio's `KeyboardInterrupt`.
    #[error("interrupted")]
    Interrupted,
    /// The main task ended by a cancellation that was not an interrupt alone.
    #[error(transparent)]
    Cancelled(Cancelled),
    /// The main task panicked.
    #[error(transparent)]
    Panicked(Panic),
}

/// The error of an await that was cancelled: asyncio's `CancelledError`. Pass it on with `?`.
///
/// ```
/// use runward::runner::{Cancelled, RunError, Runner};
///
/// let ended = Runner::new().run_scoped(|scope| async move {
///     scope.task().cancel("no longer needed");
///     scope.checkpoint().await?;
///     Ok::<_, Cancelled>(())
/// });
/// let Err(RunError::Cancelled(cancelled)) = ended else { panic!() };
/// assert_eq!(cancelled.message(), Some("no longer needed"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cancelled {
    message: Option<Arc<str>>,
}

impl Cancelled {
    /// A cancellation with a message, for code that cancels itself by returning this error.
    ///
    /// ```
    /// use runward::runner::Cancelled;
    /// assert_eq!(Cancelled::new("too late").to_string(), "cancelled: too late");
    /// assert_eq!(Cancelled::new(None).to_string(), "cancelled");
    /// ```
    pub fn new<'a>(message: impl Into<Option<&'a str>>) -> Self {
        Cancelled { message: message.into().map(Arc::from) }
    }

    pub(crate) fn from_message(message: Option<Arc<str>>) -> Self {
        Cancelled { message }
    }

    /// What was said to [`Task::cancel`](super::TaskHandle::cancel).
    ///
    /// ```
    /// use runward::runner::Cancelled;
    /// assert_eq!(Cancelled::default().message(), None);
    /// ```
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "cancelled: {message}"),
            None => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for Cancelled {}

/// A caught panic, with its payload.
///
/// ```
/// use runward::runner::{RunError, Runner};
/// # std::panic::set_hook(Box::new(|_| {}));
///
/// let Err(RunError::Panicked(panic)) = Runner::new().run(async { panic!("spam") }) else { panic!() };
/// assert_eq!(panic.message(), "spam");
/// ```
pub struct Panic {
    /// A payload is `Send` only; the mutex makes the error `Sync`, as `dyn Error` users need.
    payload: Mutex<Box<dyn Any + Send>>,
    message: Box<str>,
}

impl Panic {
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        let message = payload
            .downcast_ref::<&'static str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("Box<dyn Any>")
            .into();
        Panic { payload: Mutex::new(payload), message }
    }

    /// The text of the panic, if its payload is text.
    ///
    /// ```
    /// # use runward::runner::{RunError, Runner};
    /// # std::panic::set_hook(Box::new(|_| {}));
    /// let Err(RunError::Panicked(panic)) = Runner::new().run(async { panic!("{}", 6 * 7) }) else { panic!() };
    /// assert_eq!(panic.message(), "42");
    /// ```
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The payload, as [`std::panic::catch_unwind`] gives it; hand it to
    /// [`std::panic::resume_unwind`] to let the panic go on.
    ///
    /// ```
    /// # use runward::runner::{RunError, Runner};
    /// # std::panic::set_hook(Box::new(|_| {}));
    /// let ended = Runner::new().run(async { std::panic::panic_any(42_u8) });
    /// let Err(RunError::Panicked(panic)) = ended else { panic!() };
    /// assert_eq!(*panic.into_payload().downcast::<u8>().unwrap(), 42);
    /// ```
    pub fn into_payload(self) -> Box<dyn Any + Send> {
        self.payload.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Panic").field(&self.message).finish()
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl std::error::Error for Panic {}

/// How an awaited [`Task`](super::Task) or a piece of blocking work ended without a value.
///
/// ```
/// use runward::runner::{Runner, TaskError};
///
/// Runner::new().run_scoped(|scope| async move {
///     let mut task = scope.spawn(std::future::pending::<()>());
///     task.cancel(None);
///     assert!(matches!((&mut task).await, Err(TaskError::Cancelled(_))));
///     Ok::<_, TaskError>(())
/// }).unwrap().unwrap();
/// ```
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It was cancelled, or its loop was closed before it could end.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// It panicked.
    #[error(transparent)]
    Panicked(Panic),
}

/// An error type that a scoped task may return: it must be able to tell a cancellation that was
/// passed on from an error of its own, because the first ends the task as *cancelled*.
///
/// ```
/// use runward::runner::{Cancelled, RunError, Runner, ScopeError};
///
/// #[derive(Debug)]
/// enum Failure { Stopped(Cancelled), Parse(std::num::ParseIntError) }
/// # impl std::fmt::Display for Failure {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
/// # }
/// # impl From<Cancelled> for Failure { fn from(c: Cancelled) -> Self { Failure::Stopped(c) } }
/// # impl From<std::num::ParseIntError> for Failure {
/// #     fn from(e: std::num::ParseIntError) -> Self { Failure::Parse(e) }
/// # }
/// impl ScopeError for Failure {
///     fn is_cancelled(&self) -> bool { matches!(self, Failure::Stopped(_)) }
/// }
///
/// let mut runner = Runner::new();
/// let main = |text: &'static str| move |scope: runward::runner::Scope| async move {
///     scope.checkpoint().await?;
///     Ok::<i32, Failure>(text.parse()?)
/// };
/// assert!(matches!(runner.run_scoped(main("42")), Ok(Ok(42))));
/// assert!(matches!(runner.run_scoped(main("x")), Ok(Err(Failure::Parse(_)))));
/// ```
pub trait ScopeError: fmt::Display {
    /// Whether this error only passes a cancellation on.
    fn is_cancelled(&self) -> bool;
}

impl ScopeError for Cancelled {
    fn is_cancelled(&self) -> bool {
        true
    }
}

impl ScopeError for TaskError {
    fn is_cancelled(&self) -> bool {
        matches!(self, TaskError::Cancelled(_))
    }
}

impl ScopeError for Box<dyn std::error::Error + Send + Sync> {
    fn is_cancelled(&self) -> bool {
        self.is::<Cancelled>() || matches!(self.downcast_ref(), Some(TaskError::Cancelled(_)))
    }
}

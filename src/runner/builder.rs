//! The settings of a Runner.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::sync::Arc;
use super::task::Name;
use super::{AsyncRunner, Context, Runner};

/// Makes the event loop of a Runner, when it first needs one.
///
/// Without one, the loop runs on a loop thread while `run` waits for it in the calling thread, and
/// only then, as asyncio's runs only inside of `run`. So a second Ctrl-C can leave a main task that
/// never awaits: its thread is abandoned. Loop threads are kept for the next Runner.
///
/// ```
/// use runward::runner::{LoopFactory, Runner};
///
/// let mut runner = Runner::builder().loop_factory(LoopFactory::current_thread()).build();
/// assert_eq!(runner.run(async { 42 }).unwrap(), 42);
/// ```
pub struct LoopFactory(pub(crate) Kind);

pub(crate) enum Kind {
    /// Not set: a loop thread for a [`Runner`], the surrounding loop for an [`AsyncRunner`].
    Default,
    CurrentThread,
    MultiThread(usize),
    Shared(tokio::runtime::Handle),
    Custom(Box<dyn FnMut() -> io::Result<Runtime> + Send>),
}

impl LoopFactory {
    /// The loop runs in the thread that calls `run`, and only then. The cheapest one, and the one
    /// for a program of a single thread. Its price: a main task that never awaits holds the very
    /// thread that a second Ctrl-C would have to free, so there the third one ends the process.
    ///
    /// ```
    /// # use runward::runner::{LoopFactory, Runner};
    /// let here = std::thread::current().id();
    /// let mut runner = Runner::builder().loop_factory(LoopFactory::current_thread()).build();
    /// assert_eq!(runner.run(async { std::thread::current().id() }).unwrap(), here);
    /// ```
    pub fn current_thread() -> Self {
        LoopFactory(Kind::CurrentThread)
    }

    /// The loop runs in `workers` threads of its own, at least one, also between the runs.
    ///
    /// Each worker is a thread that is started with the Runner and awaited at its close, as tokio
    /// does it; that is nearly all that such a Runner costs, and its floor: about 1.2 times the bare
    /// runtime, with the same system calls. Who makes many short-lived Runners does better with the
    /// default, whose loop threads are kept, or with [`shared`](Self::shared).
    ///
    /// ```
    /// # use runward::runner::{LoopFactory, Runner};
    /// let mut runner = Runner::builder().loop_factory(LoopFactory::multi_thread(2)).build();
    /// assert_eq!(runner.get_loop().unwrap().runtime().metrics().num_workers(), 2);
    /// ```
    pub fn multi_thread(workers: usize) -> Self {
        LoopFactory(Kind::MultiThread(workers.max(1)))
    }

    /// A runtime that exists already, shared with others. Closing the Runner leaves it running. It
    /// needs tokio's timer.
    ///
    /// ```
    /// # use runward::runner::{LoopFactory, Runner};
    /// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    /// let shared = || LoopFactory::shared(runtime.handle().clone());
    /// let mut one = Runner::builder().loop_factory(shared()).build();
    /// let mut two = Runner::builder().loop_factory(shared()).build();
    /// assert_eq!(one.run(async { 1 }).unwrap() + two.run(async { 2 }).unwrap(), 3);
    /// ```
    pub fn shared(runtime: tokio::runtime::Handle) -> Self {
        LoopFactory(Kind::Shared(runtime))
    }

    /// Any runtime. It is called once, at the first use of the Runner; a failure is
    /// [`RunError::Loop`](super::RunError::Loop), and the next use calls it again.
    ///
    /// ```
    /// # use runward::runner::{LoopFactory, RunError, Runner};
    /// let factory = LoopFactory::from_fn(|| Err(std::io::Error::other("no loops today")));
    /// let mut runner = Runner::builder().loop_factory(factory).build();
    /// assert!(matches!(runner.run(async {}), Err(RunError::Loop(_))));
    /// ```
    pub fn from_fn(make: impl FnMut() -> io::Result<Runtime> + Send + 'static) -> Self {
        LoopFactory(Kind::Custom(Box::new(make)))
    }
}

impl fmt::Debug for LoopFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Default => f.write_str("Default"),
            Kind::CurrentThread => f.write_str("CurrentThread"),
            Kind::MultiThread(workers) => f.debug_tuple("MultiThread").field(workers).finish(),
            Kind::Shared(_) => f.write_str("Shared"),
            Kind::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// The settings of a [`Runner`] or an [`AsyncRunner`].
///
/// ```
/// use std::time::Duration;
/// use runward::runner::Runner;
///
/// let mut runner = Runner::builder().name("nightly").drain_timeout(Duration::from_secs(10)).build();
/// let name = runner.run(async { runward::runner::current_task().unwrap().name() });
/// assert_eq!(name.unwrap(), "nightly");
/// ```
#[derive(Debug)]
#[must_use]
pub struct Builder {
    pub(crate) name: Option<Name>,
    pub(crate) debug: Option<bool>,
    pub(crate) factory: LoopFactory,
    /// None: SIGINT.
    pub(crate) signals: Option<Box<[i32]>>,
    pub(crate) drain_timeout: Duration,
    pub(crate) cancel_grace: Option<Duration>,
    pub(crate) context: Option<Context>,
    pub(crate) max_blocking: u32,
}

impl Builder {
    /// How long a close waits for the executor unless told otherwise: asyncio's
    /// `THREAD_JOIN_TIMEOUT`, 5 minutes.
    ///
    /// ```
    /// assert_eq!(runward::runner::Builder::DRAIN_TIMEOUT.as_secs(), 300);
    /// ```
    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

    pub(crate) fn new() -> Self {
        Builder {
            name: None,
            debug: None,
            factory: LoopFactory(Kind::Default),
            signals: None,
            drain_timeout: Self::DRAIN_TIMEOUT,
            cancel_grace: None,
            context: None,
            max_blocking: max_blocking(),
        }
    }

    /// Names the Runner; its main tasks carry the name.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let runner = Runner::builder().name("import").build();
    /// ```
    pub fn name(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = Some(Name(Arc::new(name.into())));
        self
    }

    /// Whether debug findings are reported, through `tracing` at level WARN: slow polls, tasks
    /// never polled, tasks dropped while pending. `None` follows the environment variable
    /// `RUNWARD_DEBUG`, where everything but empty and `0` means yes.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::builder().debug(false).build();
    /// assert!(!runner.get_loop().unwrap().debug());
    /// ```
    pub fn debug(mut self, debug: impl Into<Option<bool>>) -> Self {
        self.debug = debug.into();
        self
    }

    /// Where the event loop comes from.
    ///
    /// ```
    /// # use runward::runner::{LoopFactory, Runner};
    /// let runner = Runner::builder().loop_factory(LoopFactory::multi_thread(4)).build();
    /// ```
    pub fn loop_factory(mut self, factory: LoopFactory) -> Self {
        self.factory = factory;
        self
    }

    /// The signals that interrupt a run, by number: SIGINT unless told otherwise. Each is taken
    /// only while a `run` in the main thread lasts, and only if its disposition was the default.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let sigint_and_sigterm = Runner::builder().signals(&[2, 15]).build();
    /// let none = Runner::builder().signals(&[]).build();
    /// ```
    pub fn signals(mut self, signals: &[i32]) -> Self {
        self.signals = Some(signals.into());
        self
    }

    /// How long a close waits for blocking work, instead of [`DRAIN_TIMEOUT`](Self::DRAIN_TIMEOUT).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use runward::runner::Runner;
    /// let runner = Runner::builder().drain_timeout(Duration::from_secs(1)).build();
    /// ```
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = limit;
        self
    }

    /// How long a scoped main task may go on after it was cancelled, before it is dropped where it
    /// stands. Without a grace it may take for ever, as in asyncio.
    ///
    /// ```
    /// use std::time::Duration;
    /// use runward::runner::{Cancelled, RunError, Runner};
    ///
    /// let mut runner = Runner::builder().cancel_grace(Duration::from_millis(1)).build();
    /// let ended = runner.run_scoped(|scope| async move {
    ///     scope.task().cancel(None);
    ///     std::future::pending::<()>().await;             // not a scope await: never hears of it
    ///     Ok::<_, Cancelled>(())
    /// });
    /// assert!(matches!(ended, Err(RunError::Cancelled(_))));
    /// ```
    pub fn cancel_grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.cancel_grace = grace.into();
        self
    }

    /// The context of the runs, instead of a copy of the one at the first use.
    ///
    /// ```
    /// # use runward::runner::{Context, ContextVar, Runner};
    /// static USER: ContextVar<&str> = ContextVar::new("user");
    /// let context = Context::new();
    /// context.run(|| USER.set("ada"));
    /// let mut runner = Runner::builder().context(context).build();
    /// assert_eq!(runner.run(async { USER.get() }).unwrap(), Some("ada"));
    /// ```
    pub fn context(mut self, context: Context) -> Self {
        self.context = Some(context);
        self
    }

    /// How many pieces of blocking work run at a time; the others queue. At least 1; unless told
    /// otherwise the number of processors and 4, at most 32, as asyncio's default executor.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let runner = Runner::builder().max_blocking(2).build();
    /// ```
    pub fn max_blocking(mut self, threads: usize) -> Self {
        self.max_blocking = u32::try_from(threads).unwrap_or(u32::MAX);
        self
    }

    /// A Runner with blocking forms. Nothing is created yet.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let runner = Runner::builder().build();
    /// ```
    pub fn build(self) -> Runner {
        Runner::from_builder(self)
    }

    /// A Runner with async forms, on the loop of the code that first uses it or on a
    /// [shared](LoopFactory::shared) one.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// # Runner::new().run(async {
    /// let mut runner = Runner::builder().build_async();
    /// assert_eq!(runner.start(async { 42 }).unwrap().await.unwrap(), 42);
    /// runner.close().await;
    /// # }).unwrap();
    /// ```
    pub fn build_async(self) -> AsyncRunner {
        AsyncRunner::from_builder(self)
    }

    pub(crate) fn signals_taken(&self) -> &[i32] {
        self.signals.as_deref().unwrap_or(&[signal_hook::consts::SIGINT])
    }

    pub(crate) fn debug_mode(&self) -> bool {
        self.debug.unwrap_or_else(|| {
            std::env::var_os("RUNWARD_DEBUG").is_some_and(|value| !value.is_empty() && value != "0")
        })
    }
}

/// `min(32, cpus + 4)`, as Python's `ThreadPoolExecutor`. Asked once: it reads files.
fn max_blocking() -> u32 {
    static DEFAULT: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *DEFAULT.get_or_init(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(processors.saturating_add(4)).unwrap_or(u32::MAX).min(32)
    })
}

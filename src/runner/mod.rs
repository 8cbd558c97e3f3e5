//! What `asyncio.run`, `asyncio.Runner` and `contextvars` give a Python programmer, on tokio.
//!
//! | asyncio | here |
//! |---|---|
//! | `asyncio.run(main())` | [`run`] |
//! | `with asyncio.Runner() as runner:` | [`Runner::new`]; the drop closes it |
//! | `runner.run(main())`, `runner.run(main(), context=ctx)` | [`Runner::run`], [`Runner::run_in`] |
//! | `try: … except CancelledError:` in the main task | [`Runner::run_scoped`]: the awaits of its [`Scope`] give `Err(Cancelled)` |
//! | `runner.get_loop()`, `runner.close()` | [`Runner::get_loop`], [`Runner::close`] with a [`CloseReport`] |
//! | `Runner(debug=, loop_factory=)` | [`Builder::debug`], [`Builder::loop_factory`] |
//! | `KeyboardInterrupt`, `CancelledError` out of `run` | [`RunError::Interrupted`], [`RunError::Cancelled`] |
//! | `create_task(coro)`, `task.cancel(msg)`, `.cancelling()`, `.uncancel()` | [`Scope::spawn`], [`Task`] |
//! | `await task`, `await shield(task)` | [`Scope::join`], [`Scope::shield`] |
//! | `sleep(1)`, `sleep(0)` | [`Scope::sleep`], [`Scope::checkpoint`] |
//! | `async with timeout(1):`, `async with TaskGroup() as group:` | [`Scope::timeout`], [`Scope::group`] |
//! | `to_thread(f)` | [`Scope::spawn_blocking`] |
//! | `async def` with `yield`, `aclose()` | [`generator`], [`Generator::close`] |
//! | `ContextVar`, `Token`, `copy_context()`, `ctx.run(f)` | [`ContextVar`], [`Token`], [`copy_context`], [`Context::run`] |
//! | `loop.set_exception_handler(f)` | [`EventLoop::set_exception_handler`] |
//! | `all_tasks()`, `asyncio pstree` | [`EventLoop::all_tasks`], [`EventLoop::task_tree`] |
//! | `PYTHONASYNCIODEBUG=1` | `RUNWARD_DEBUG=1` |
//! | Ctrl-C, from another thread | [`RunnerHandle::interrupt`] |
//! | many Runners on one loop | [`AsyncRunner`] |
//!
//! ```
//! use std::time::Duration;
//! use runward::runner::{Cancelled, RunError, Runner};
//!
//! let mut runner = Runner::new();
//! let handle = runner.handle();
//! let ended = runner.run_scoped(|scope| async move {
//!     let mut work = scope.spawn(tokio::time::sleep(Duration::from_secs(3600)));
//!     handle.interrupt();                                    // as Ctrl-C does
//!     let stopped = scope.join(&mut work).await;             // the work is cancelled with it
//!     scope.sleep(Duration::from_millis(1)).await?;          // the clean-up may await
//!     assert!(stopped.is_err());
//!     Err::<(), _>(Cancelled::default())
//! });
//! assert!(matches!(ended, Err(RunError::Interrupted)));
//! assert!(runner.close().is_clean());
//! ```
//!
//! What differs from Python, and why: [`differences`].

#[doc = include_str!("differences.md")]
pub mod differences {}

mod async_runner;
mod builder;
mod cancel;
#[cfg(test)]
mod cancel_tests;
mod close;
mod context;
mod control;
mod core;
mod current;
mod drive;
mod error;
mod event_loop;
mod executor;
mod generator;
mod group;
mod interrupt;
#[cfg(feature = "daemon")]
mod lean;
mod loop_thread;
#[expect(clippy::module_inception, reason = "the module is named after what it holds")]
mod runner;
mod scope;
mod signals;
mod sync;
mod task;
mod timeout;
mod tree;

pub use async_runner::{AsyncRunner, MainTask};
pub use builder::{Builder, LoopFactory};
pub use close::CloseReport;
pub use context::{Context, ContextVar, ResetError, Token, copy_context};
pub use control::RunnerHandle;
pub use error::{Cancelled, Panic, RunError, ScopeError, TaskError};
pub use event_loop::{EventLoop, ExceptionContext};
pub use executor::Blocking;
pub use generator::{Exit, Generator, Yielder, generator};
pub use group::{Failed, GroupError, TaskGroup};
pub use runner::Runner;
pub use scope::Scope;
pub use task::{Task, TaskHandle, current_task};
pub use timeout::TimedOut;
pub use tree::{TaskInfo, TaskState, TaskTree};

/// Runs `future` on a Runner of its own and closes it, however the run ends: `asyncio.run`.
///
/// # Errors
///
/// Those of [`Runner::run`].
///
/// ```
/// assert_eq!(runward::runner::run(async { 42 }).unwrap(), 42);
/// ```
#[track_caller]
pub fn run<F>(future: F) -> Result<F::Output, RunError>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Runner::new().run(future)
}

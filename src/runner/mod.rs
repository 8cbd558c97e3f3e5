//! asyncio's `Runner` on tokio.

mod async_runner;
mod builder;
mod cancel;
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

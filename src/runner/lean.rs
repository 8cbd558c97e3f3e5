//! What keeps Runners small where there are tens of thousands of them: in the daemon.

use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::async_runner::Waiting;
use super::drive::{self, Drive};
use super::sync::Arc;
use super::task::Name;
use super::{AsyncRunner, Builder, RunError, Scope, ScopeError};

impl Builder {
    /// A name that somebody has who can tell it: nothing is kept but a reference.
    pub(crate) fn named_by(mut self, name: Arc<dyn fmt::Display + Send + Sync>) -> Self {
        self.name = Some(Name(name));
        self
    }
}

impl AsyncRunner {
    /// As [`start_scoped`](Self::start_scoped), without a task of the runtime: who awaits the main
    /// task polls it, and dropping it drops what it does.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    #[track_caller]
    pub(crate) fn start_scoped_here<F, Fut, T, E>(
        &mut self,
        main: F,
    ) -> Result<MainHere<impl Future<Output = Result<T, E>> + use<F, Fut, T, E>>, RunError>
    where
        F: FnOnce(Scope) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: ScopeError,
    {
        let cell = self.begin(None, true, Location::caller())?;
        cell.event_loop.adopt(&cell);
        let task = Box::pin(Drive::new(cell, Scope::enter(main), drive::scoped));
        Ok(MainHere { waiting: Waiting { task, control: self.handle().control } })
    }
}

/// A main task that is polled where it is awaited.
#[must_use = "the main task is dropped"]
pub(crate) struct MainHere<F: Future> {
    waiting: Waiting<Pin<Box<Drive<F>>>>,
}

impl<F: Future> Future for MainHere<F> {
    type Output = Result<F::Output, RunError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let end = ready!(Pin::new(&mut self.waiting).poll(cx));
        Poll::Ready(self.waiting.control.conclude(&self.waiting.task.cell, end))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cancelled, Runner};
    use super::*;

    #[test]
    fn a_main_task_that_is_polled_in_place_is_listed_and_cancelled_as_any() {
        let ran = Runner::new().run(async {
            let mut runner = AsyncRunner::new();
            let main = runner.start_scoped_here(|scope| async move {
                scope.cancellable(std::future::pending::<()>()).await?;
                Ok::<_, Cancelled>(())
            });
            let (handle, event_loop) = (runner.handle(), runner.get_loop().unwrap());
            let again = runner.start_scoped_here(|_| async { Ok::<_, Cancelled>(()) });
            assert!(matches!(again, Err(RunError::LoopRunning)));
            let cancel = async {
                while event_loop.all_tasks().iter().all(|task| task.polls == 0) {
                    tokio::task::yield_now().await;
                }
                handle.cancel()
            };
            let (ended, cancelled) = tokio::join!(main.unwrap(), cancel);
            assert!(cancelled && matches!(ended, Err(RunError::Cancelled(_))));
            assert_eq!(event_loop.live_tasks(), 0);
            assert!(runner.close().await.is_clean());
        });
        ran.unwrap();
    }

    #[test]
    fn a_main_task_that_is_polled_in_place_ends_where_it_is_dropped() {
        let ran = Runner::new().run(async {
            let mut runner = AsyncRunner::new();
            drop(runner.start_scoped_here(|_| std::future::pending::<Result<(), Cancelled>>()));
            assert_eq!(runner.get_loop().unwrap().live_tasks(), 0);
            let next = runner.start_scoped_here(|_| async { Ok::<_, Cancelled>(7) });
            assert_eq!(next.unwrap().await.unwrap(), Ok(7));
        });
        ran.unwrap();
    }
}

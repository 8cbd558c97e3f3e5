//! The future that the loop polls for a task: it keeps the task's books around each poll of the
//! user's future, and ends it when it is cancelled.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use super::sync::Arc;
use super::task::{Cell, End, Step, Style};
use super::{Cancelled, Panic, ScopeError, TaskError, current};

/// What a task's output says about how the task ended.
pub(crate) enum Verdict<'a> {
    Value,
    Cancelled,
    Error(&'a dyn Display),
}

/// An output is only a value …
pub(crate) fn plain<T>(_: &T) -> Verdict<'_> {
    Verdict::Value
}

/// … unless it is the result of a scoped task.
pub(crate) fn scoped<T, E: ScopeError>(result: &Result<T, E>) -> Verdict<'_> {
    match result {
        Ok(_) => Verdict::Value,
        Err(error) if error.is_cancelled() => Verdict::Cancelled,
        Err(error) => Verdict::Error(error),
    }
}

pub(crate) struct Drive<F: Future> {
    pub(crate) cell: Arc<Cell>,
    /// Boxed so that it can be dropped where it stands; none once it has ended.
    future: Option<Pin<Box<F>>>,
    verdict: fn(&F::Output) -> Verdict<'_>,
    grace: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<F: Future> Drive<F> {
    pub(crate) fn new(cell: Arc<Cell>, future: F, verdict: fn(&F::Output) -> Verdict<'_>) -> Self {
        Drive { cell, future: Some(Box::pin(future)), verdict, grace: None }
    }

    /// Drops the user's future in its own context. A destructor may panic.
    fn drop_future(&mut self) -> Result<(), TaskError> {
        let _entered = current::enter(Some(self.cell.clone()), self.cell.context.clone());
        let future = self.future.take();
        catch_unwind(AssertUnwindSafe(|| drop(future)))
            .map_err(|payload| TaskError::Panicked(Panic::new(payload)))
    }

    fn end(&mut self, result: Result<F::Output, TaskError>) -> Result<F::Output, TaskError> {
        let result = match self.drop_future() {
            Ok(()) => result,
            Err(panicked) => Err(panicked),
        };
        let (end, result) = match result {
            Ok(output) => match (self.verdict)(&output) {
                Verdict::Value => (End::Value, Ok(output)),
                Verdict::Cancelled => (End::Cancelled, Err(self.cell.last_cancel().into())),
                Verdict::Error(error) => (End::Error(error.to_string().into()), Ok(output)),
            },
            Err(TaskError::Cancelled(cancelled)) => (End::Cancelled, Err(cancelled.into())),
            Err(TaskError::Panicked(panic)) => {
                (End::Panicked(panic.message().into()), Err(TaskError::Panicked(panic)))
            }
        };
        self.cell.finish(end);
        self.cell.event_loop.task_ended(&self.cell);
        result
    }

    /// Whether a scoped task that was cancelled has had its grace.
    fn grace_is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Style::Scoped { grace: Some(grace) } = self.cell.style else { return false };
        if self.grace.is_none() {
            if self.cell.region.cancelling() == 0 {
                return false;
            }
            self.grace = Some(Box::pin(tokio::time::sleep(grace)));
        }
        self.grace.as_mut().is_some_and(|grace| grace.as_mut().poll(cx).is_ready())
    }
}

impl<F: Future> Future for Drive<F> {
    type Output = Result<F::Output, TaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let cell = this.cell.clone();
        let dropped = || Err(Cancelled::into(cell.last_cancel()));
        if matches!(cell.begin_poll(cx.waker()), Step::Drop) {
            return Poll::Ready(this.end(dropped()));
        }
        let Some(future) = &mut this.future else { return Poll::Pending };
        let began = Instant::now();
        let polled = {
            let _entered = current::enter(Some(cell.clone()), cell.context.clone());
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)))
        };
        let busy = began.elapsed();
        let slow = cell.event_loop.is_slow(busy);
        cell.end_poll(busy, slow);
        if slow {
            cell.event_loop.report_slow_poll(&cell, busy);
        }
        match polled {
            Ok(Poll::Ready(output)) => Poll::Ready(this.end(Ok(output))),
            Ok(Poll::Pending) if this.grace_is_over(cx) => Poll::Ready(this.end(dropped())),
            Ok(Poll::Pending) => Poll::Pending,
            Err(payload) => Poll::Ready(this.end(Err(TaskError::Panicked(Panic::new(payload))))),
        }
    }
}

impl<F: Future> Drop for Drive<F> {
    fn drop(&mut self) {
        if self.future.is_some() {
            // The runtime went away under the task, or the code that polled it in place unwinds.
            self.cell.event_loop.report_dropped(&self.cell);
            drop(self.end(Err(self.cell.last_cancel().into())));
        }
    }
}

//! The future that the loop polls for a task: it keeps the task's books around each poll of the
//! user's future, and ends it when it is cancelled.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use pin_project_lite::pin_project;

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

pin_project! {
    pub(crate) struct Drive<F: Future> {
        pub(crate) cell: Arc<Cell>,
        // None once it has ended: it is dropped where it stands.
        #[pin]
        future: Option<F>,
        verdict: fn(&F::Output) -> Verdict<'_>,
        grace: Option<Pin<Box<tokio::time::Sleep>>>,
    }

    impl<F: Future> PinnedDrop for Drive<F> {
        fn drop(this: Pin<&mut Self>) {
            if this.future.is_some() {
                // The runtime went away under the task, or the code that polled it in place unwinds.
                this.cell.event_loop.report_dropped(&this.cell);
                let cancelled = this.cell.last_cancel().into();
                drop(this.end(Err(cancelled)));
            }
        }
    }
}

impl<F: Future> Drive<F> {
    pub(crate) fn new(cell: Arc<Cell>, future: F, verdict: fn(&F::Output) -> Verdict<'_>) -> Self {
        Drive { cell, future: Some(future), verdict, grace: None }
    }

    /// Drops the user's future in its own context. A destructor may panic.
    fn drop_future(self: Pin<&mut Self>) -> Result<(), TaskError> {
        let mut this = self.project();
        let _entered = current::enter(Some(this.cell.clone()), this.cell.context.clone());
        catch_unwind(AssertUnwindSafe(|| this.future.set(None)))
            .map_err(|payload| TaskError::Panicked(Panic::new(payload)))
    }

    fn end(mut self: Pin<&mut Self>, result: Result<F::Output, TaskError>) -> Result<F::Output, TaskError> {
        let result = match self.as_mut().drop_future() {
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
    fn grace_is_over(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.project();
        let Style::Scoped { grace: Some(grace) } = this.cell.style else { return false };
        if this.grace.is_none() {
            if this.cell.region.cancelling() == 0 {
                return false;
            }
            *this.grace = Some(Box::pin(tokio::time::sleep(grace)));
        }
        this.grace.as_mut().is_some_and(|grace| grace.as_mut().poll(cx).is_ready())
    }
}

impl<F: Future> Future for Drive<F> {
    type Output = Result<F::Output, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let cell = self.cell.clone();
        let dropped = || Err(Cancelled::into(cell.last_cancel()));
        if matches!(cell.begin_poll(cx.waker()), Step::Drop) {
            return Poll::Ready(self.end(dropped()));
        }
        let Some(future) = self.as_mut().project().future.as_pin_mut() else { return Poll::Pending };
        let began = Instant::now();
        let polled = {
            let _entered = current::enter(Some(cell.clone()), cell.context.clone());
            catch_unwind(AssertUnwindSafe(|| future.poll(cx)))
        };
        let busy = began.elapsed();
        let slow = cell.event_loop.is_slow(busy);
        cell.end_poll(busy, slow);
        if slow {
            cell.event_loop.report_slow_poll(&cell, busy);
        }
        match polled {
            Ok(Poll::Ready(output)) => Poll::Ready(self.end(Ok(output))),
            Ok(Poll::Pending) if self.as_mut().grace_is_over(cx) => Poll::Ready(self.end(dropped())),
            Ok(Poll::Pending) => Poll::Pending,
            Err(payload) => Poll::Ready(self.end(Err(TaskError::Panicked(Panic::new(payload))))),
        }
    }
}

//! Time limits, and the code they share with task groups: a part of a task that is cancelled alone.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::cancel::Region;
use super::sync::Arc;
use super::{Scope, ScopeError};

/// A [`Scope::timeout`] ran out.
///
/// ```
/// assert_eq!(runward::runner::TimedOut.to_string(), "timed out");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

impl Scope {
    /// Runs `body` for at most `limit`, in this task and its context: asyncio's `timeout`. When the
    /// time is up, the scope await at which the body stands gives `Err(Cancelled)`; the body cleans
    /// up, for as long as it takes, and passes the error on. A body that stands at another await is
    /// dropped there.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] when the time was up and the body ended because of it. The inner result is the
    /// body's own; a cancellation of the whole task is in there, also when both came.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner, Scope, TimedOut};
    /// # use std::time::Duration;
    /// # Runner::new().run_scoped(|scope| async move {
    /// let slow = |scope: Scope| async move { scope.sleep(Duration::from_secs(3600)).await };
    /// assert_eq!(scope.timeout(Duration::from_millis(1), slow).await, Err(TimedOut));
    ///
    /// let quick = |scope: Scope| async move { scope.checkpoint().await.map(|()| 42) };
    /// assert_eq!(scope.timeout(Duration::from_secs(3600), quick).await, Ok(Ok(42)));
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub async fn timeout<B, F, T, E>(&self, limit: Duration, body: B) -> Result<Result<T, E>, TimedOut>
    where
        B: FnOnce(Scope) -> F,
        F: Future<Output = Result<T, E>>,
        E: ScopeError,
    {
        let cancelled_before = self.region.cancelling();
        let inner = self.inner();
        let region = inner.region.clone();
        let ended = inner.confine(body(inner.clone()), tokio::time::sleep(limit)).await;
        let timed_out = region.cancelling() > 0 && self.region.cancelling() <= cancelled_before;
        match ended {
            None => Err(TimedOut),
            Some(Err(error)) if timed_out && error.is_cancelled() => Err(TimedOut),
            Some(end) => Ok(end),
        }
    }

    /// A part of this scope that can be cancelled alone.
    pub(crate) fn inner(&self) -> Scope {
        Scope { cell: self.cell.clone(), region: Arc::new(Region::inside(self.region.clone())) }
    }

    /// Runs `body`, the code of this inner scope, and cancels it when `stop` is ready. None when it
    /// stood at an await that could not hear it, and was dropped.
    pub(crate) async fn confine<F: Future>(
        &self,
        body: F,
        stop: impl Future<Output = ()>,
    ) -> Option<F::Output> {
        let (mut body, mut stop) = (pin!(body), pin!(stop));
        let mut stopped = false;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(end) = body.as_mut().poll(cx) {
                return Poll::Ready(Some(end));
            }
            if stopped || stop.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            stopped = true;
            self.region.cancel(None);
            self.cell.cancelled.notify_waiters();
            match body.as_mut().poll(cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending if self.region.is_pending() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

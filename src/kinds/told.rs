//! What is told of an attempt, by whatever part, carries `runner`, `run` and `attempt`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tracing::Span;

use super::link::Attempt;

/// Who is polled more often keeps its span: making one takes a microsecond, keeping one takes 500 bytes, and tens of
/// thousands wait who are hardly ever polled.
const KEPT_AFTER: u8 = 16;

pin_project! {
    /// A part of an attempt, in its span as long as it is polled.
    pub(super) struct Told<F> {
        attempt: Arc<Attempt>,
        polls: u8,
        kept: Option<Box<Span>>,
        #[pin]
        future: F,
    }
}

impl Attempt {
    pub(super) fn told<F: Future>(self: &Arc<Self>, future: F) -> Told<F> {
        Told { attempt: Arc::clone(self), polls: 0, kept: None, future }
    }

    pub(super) fn span(&self) -> Span {
        let (run, attempt) = self.position;
        // Of the highest level, so that no filter leaves lines without it.
        tracing::error_span!("attempt", runner = %self.runner, run, attempt)
    }
}

impl<F: Future> Future for Told<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Some(span) = this.kept {
            return span.in_scope(|| this.future.poll(cx));
        }
        let span = this.attempt.span();
        let polled = span.in_scope(|| this.future.poll(cx));
        *this.polls += 1;
        if *this.polls == KEPT_AFTER {
            *this.kept = Some(Box::new(span));
        }
        polled
    }
}

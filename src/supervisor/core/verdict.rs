//! What became of an attempt.

use crate::{
    job::{CancelReason, Exit, Outcome, Record},
    supervisor::ports::End,
};

/// The outcome of an attempt. What stopped it first decides.
pub(in crate::supervisor) fn verdict(record: &Record, end: &End) -> Outcome {
    match &record.cancel {
        // Force had been asked for; that the daemon's death carried it out makes no difference.
        Some(receipt) if end.lost && receipt.forced => Outcome::Killed,
        Some(_) | None if end.lost => Outcome::Lost,
        // As with asyncio: who swallows the cancellation and returns a value has succeeded.
        Some(receipt) if !receipt.forced && returned(record, end) => Outcome::Succeeded,
        Some(receipt) if receipt.reason == CancelReason::Timeout => Outcome::TimedOut,
        Some(receipt) if receipt.forced => Outcome::Killed,
        // And who raises something else instead has failed.
        Some(_) if record.job().is_coroutine() && end.error.is_some() => Outcome::Failed,
        Some(_) => Outcome::Cancelled,
        None if returned(record, end) => Outcome::Succeeded,
        None => match (end.exit, &end.error) {
            (Some(Exit::Code(0)), None) => Outcome::Succeeded,
            (Some(Exit::Code(_) | Exit::Signal(_)) | None, _) => Outcome::Failed,
        },
    }
}

fn returned(record: &Record, end: &End) -> bool {
    record.job().is_coroutine() && end.result.is_some() && end.error.is_none()
}

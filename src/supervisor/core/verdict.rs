//! What became of an attempt.

use crate::{
    job::{CancelReason, Exit, Outcome, Record},
    supervisor::ports::End,
};

/// The outcome of an attempt. What stopped it first decides.
pub(in crate::supervisor) fn verdict(record: &Record, end: &End) -> Outcome {
    if end.lost {
        return Outcome::Lost;
    }
    match &record.cancel {
        Some(receipt) if receipt.reason == CancelReason::Timeout => Outcome::TimedOut,
        Some(receipt) if receipt.forced => Outcome::Killed,
        Some(_) => Outcome::Cancelled,
        None => match (end.exit, &end.error) {
            (Some(Exit::Code(0)), None) => Outcome::Succeeded,
            (Some(Exit::Code(_) | Exit::Signal(_)) | None, _) => Outcome::Failed,
        },
    }
}

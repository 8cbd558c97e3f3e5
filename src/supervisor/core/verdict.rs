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
        Some(receipt) if receipt.reason == CancelReason::Timeout => Outcome::TimedOut,
        Some(receipt) if receipt.forced => Outcome::Killed,
        Some(_) => Outcome::Cancelled,
        None => match (end.exit, &end.error) {
            (Some(Exit::Code(code)), None) if record.spec.job.process().succeeds_with(code) => Outcome::Succeeded,
            (Some(Exit::Code(_) | Exit::Signal(_)) | None, _) => Outcome::Failed,
        },
    }
}

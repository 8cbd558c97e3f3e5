//! Why it ended.

use super::{Facts, Reason, Time, asked, because_forced, lost_with_daemon, of_receipt, signal_name, span};
use crate::job::{Action, Attempt, CancelReason, Exit, Outcome, Receipt, Record};

pub(super) fn sentence(record: &Record, facts: &mut Facts) -> String {
    facts.since = *record.closed_at;
    let last = record.attempt();
    if let Some(receipt) = &record.cancel
        && last.is_none_or(|last| last.ended_at.is_some_and(|ended| receipt.requested_at > ended))
    {
        return in_queue(record, receipt, facts);
    }
    let Some(last) = last else {
        facts.reason = Reason::ClosedUnused;
        return "It was closed before it ran anything".into();
    };
    let (runs, closed) =
        (record.runs.iter().filter(|run| !run.attempts.is_empty()).count(), *record.closed_at);
    let what = attempt(record, last, facts);
    match closed {
        Some(closed) if record.spec.keep_open => {
            let count = |runs| if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") };
            let dropped = match record.runs.len() - runs {
                0 => String::new(),
                dropped => format!(", and {} that waited did not begin", count(dropped)),
            };
            format!("It was closed at {} after {}{dropped}; the last one {what}", Time(closed), count(runs))
        }
        Some(_) | None => format!("It {what}"),
    }
}

/// Cancelled, or too late, while it waited.
fn in_queue(record: &Record, receipt: &Receipt, facts: &mut Facts) -> String {
    of_receipt(receipt, facts);
    let (by, at) = (&receipt.by.0, Time(receipt.requested_at));
    let (run, attempt) = record.next_position();
    let waited = match (record.attempt(), attempt) {
        (None, _) => "before it was started".to_owned(),
        (Some(_), 1) => format!("while run {run} waited to be started"),
        (Some(_), _) => format!("while it waited for attempt {attempt}"),
    };
    match receipt.reason {
        CancelReason::Deadline => {
            facts.reason = Reason::DeadlinePassed;
            let limit = record.spec.deadline.map_or_else(String::new, |limit| format!(" of {}", span(limit)));
            format!("It timed out: its deadline{limit} was up at {at}, {waited}")
        }
        CancelReason::Shutdown => {
            facts.reason = Reason::Shutdown;
            format!("It was cancelled because the daemon was shut down ({by}) at {at}, {waited}")
        }
        CancelReason::Requested | CancelReason::Timeout => {
            facts.reason = Reason::CancelledInQueue;
            format!("It was cancelled by {by} at {at}, {waited}")
        }
    }
}

/// What became of the last attempt: goes on after "it".
fn attempt(record: &Record, last: &Attempt, facts: &mut Facts) -> String {
    let outcome = last.outcome.unwrap_or(Outcome::Lost);
    facts.outcome = record.outcome.or(last.outcome);
    let (after, who) = tries(record, last, outcome);
    let receipt = record.cancel.as_deref().or(last.cancel.as_deref());
    if let Some(receipt) = receipt {
        of_receipt(receipt, facts);
    }
    match (outcome, receipt) {
        (Outcome::Succeeded, _) => {
            let how = how(last, receipt, who, facts);
            facts.reason = Reason::Succeeded;
            format!("succeeded{after}: {how}")
        }
        (Outcome::Lost, _) => lost(last, facts),
        (Outcome::Failed, _) | (Outcome::Cancelled | Outcome::Killed | Outcome::TimedOut, None) => {
            let how = how(last, receipt, who, facts);
            match facts.reason {
                Reason::StartFailed => format!("could not be started{after}: {how}"),
                _ => format!("failed{after}: {how}"),
            }
        }
        (Outcome::Cancelled | Outcome::Killed | Outcome::TimedOut, Some(receipt)) => {
            let how = how(last, Some(receipt), "it", facts);
            facts.reason = match (receipt.reason, outcome) {
                (CancelReason::Timeout, _) => Reason::TimedOut,
                (CancelReason::Deadline, _) => Reason::DeadlinePassed,
                (CancelReason::Shutdown, _) => Reason::Shutdown,
                (CancelReason::Requested, Outcome::Killed) => Reason::Killed,
                (CancelReason::Requested, _) => Reason::Cancelled,
            };
            let asked = asked(record, receipt);
            let force = match receipt.forced {
                true => format!("; it was killed{}", because_forced(record, receipt)),
                false => String::new(),
            };
            match receipt.reason {
                CancelReason::Timeout | CancelReason::Deadline => {
                    format!("timed out{after}: {who} {asked}{force}; {how}")
                }
                CancelReason::Requested | CancelReason::Shutdown => format!("{asked}{force}; {how}"),
            }
        }
    }
}

/// How often it was tried, and what the last try is called then.
fn tries(record: &Record, last: &Attempt, outcome: Outcome) -> (String, &'static str) {
    let (number, max) = (last.attempt, record.spec.retry.max_attempts);
    if number == 1 && max == 1 {
        return (String::new(), "it");
    }
    let can_be_tried_again = matches!(outcome, Outcome::Failed | Outcome::TimedOut);
    let all = match (can_be_tried_again, number.cmp(&max)) {
        (true, std::cmp::Ordering::Equal) => ", as many as it may have",
        (true, std::cmp::Ordering::Less) if !record.spec.retry.covers(last.exit) => {
            ", and what happened is not tried again"
        }
        (_, _) => "",
    };
    match number {
        1 => (format!(" after 1 attempt{all}"), "it"),
        _ => (format!(" after {number} attempts{all}"), "the last one"),
    }
}

pub(super) fn lost(last: &Attempt, facts: &mut Facts) -> String {
    facts.error = last.error.as_deref().cloned();
    let noticed = last.ended_at.map_or_else(String::new, |at| format!(" at {}", Time(at)));
    if lost_with_daemon(last) {
        facts.reason = Reason::LostWithDaemon;
        let number = last.attempt;
        return format!(
            "was lost with the daemon: the daemon or the host died under attempt {number}, as the next start found{noticed}"
        );
    }
    facts.reason = Reason::Lost;
    match &last.error {
        Some(error) => format!("was lost{noticed}: {}", error.message),
        None => format!("was lost{noticed}: nobody knows how it ended"),
    }
}

/// How an attempt ended, with its subject. Sets the reason that this alone would be.
pub(super) fn how(attempt: &Attempt, receipt: Option<&Receipt>, who: &str, facts: &mut Facts) -> String {
    let at = attempt.ended_at.map_or_else(String::new, |at| format!(" at {}", Time(at)));
    facts.exit = attempt.exit;
    facts.error = attempt.error.as_deref().cloned();
    let kind = attempt.error.as_ref().map(|error| (error.kind.as_str(), error.message.as_str()));
    match (attempt.exit, kind) {
        (_, Some(("start_failed", message))) => {
            facts.reason = Reason::StartFailed;
            message.to_owned()
        }
        (_, Some(("oom" | "out_of_memory", message))) => {
            facts.reason = Reason::OutOfMemory;
            match attempt.exit {
                // Another process of it was killed, and it took note.
                Some(Exit::Code(code)) => format!("{who} exited with code {code}{at}, {message}"),
                Some(Exit::Signal(_)) | None => format!("{who} was killed{at}, {message}"),
            }
        }
        (Some(Exit::Signal(signal)), _) => {
            facts.reason = Reason::Signal;
            let name = signal_name(signal);
            let ours = receipt.is_some_and(|receipt| is_ours(receipt, signal, &name));
            facts.signal_is_ours = Some(ours);
            let sender = if ours { "which runward sent" } else { "which runward did not send" };
            format!("{who} was ended{at} by {name}, {sender}")
        }
        (Some(Exit::Code(code)), None) => {
            facts.reason = Reason::ExitCode;
            format!("{who} exited with code {code}{at}")
        }
        (Some(Exit::Code(code)), Some((_, message))) => {
            facts.reason = Reason::Error;
            format!("{message}; {who} exited with code {code}{at}")
        }
        (None, Some((_, message))) => {
            facts.reason = Reason::Error;
            format!("{message} ({who} ended{at})")
        }
        (None, None) => {
            facts.reason = Reason::Error;
            format!("{who} ended{at}")
        }
    }
}

/// Whether this signal is one of those that a cancellation sent. Steps that come after the end are not recorded: then
/// the cancellation is the likeliest sender.
fn is_ours(receipt: &Receipt, signal: i32, name: &str) -> bool {
    let mut sent = receipt.steps.iter().filter(|step| step.action == Action::Signal).peekable();
    let killed = receipt.forced && signal == nix::libc::SIGKILL;
    let names = |target: &str| target.split(' ').next() == Some(name);
    killed || sent.peek().is_none() || sent.any(|step| step.target.as_deref().is_some_and(names))
}

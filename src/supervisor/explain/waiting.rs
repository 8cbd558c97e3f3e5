//! Why it is not running.

use super::{Facts, Reason, Time, ended, lost_with_daemon, names, span};
use crate::{
    job::{CancelReason, OnLost, Record, RunnerId},
    supervisor::core::{Limit, Standing},
};

pub(super) fn sentence(record: &Record, standing: Option<&Standing>, facts: &mut Facts) -> String {
    facts.queue = Some(record.spec.queue.clone());
    match standing {
        // It was in the line a moment ago.
        None => {
            facts.reason = Reason::NextToStart;
            "It is queued, and its turn is just coming".into()
        }
        Some(Standing::Held) => held(record, facts),
        Some(Standing::Until { at }) => {
            facts.until = Some(*at);
            until(record, Time(*at), facts)
        }
        Some(Standing::Key { key, holder }) => {
            facts.reason = Reason::KeyTaken;
            facts.key = Some((key.clone(), *holder));
            format!("It waits because {holder} has its concurrency key {key:?}")
        }
        Some(Standing::Paused { queue }) => {
            facts.reason = Reason::QueuePaused;
            format!("It waits because the queue {queue:?} is paused")
        }
        Some(Standing::Stopping) => {
            facts.reason = Reason::DaemonStopping;
            "It stays queued because the daemon is stopping; it may run after the next start".into()
        }
        Some(Standing::StoreFailing) => {
            facts.reason = Reason::StoreFailing;
            "Its turn has come, but the store takes nothing, so no start can be recorded; it starts when there is room"
                .into()
        }
        Some(Standing::Line { position, of, ahead, limit, running }) => {
            facts.reason = Reason::InLine;
            facts.line = Some((*position, *of));
            facts.ahead.clone_from(ahead);
            facts.limit = Some(limit.clone());
            facts.running.clone_from(running);
            let queue = &record.spec.queue;
            let place = match position {
                1 => format!("It is the first of {of} that wait in the queue {queue:?}"),
                _ => {
                    let ahead = names(ahead, position - 1);
                    format!("It is at position {position} of {of} in the queue {queue:?}, after {ahead}")
                }
            };
            format!("{place}; {}", slots(limit, running, record.spec.weight))
        }
    }
}

fn slots(limit: &Limit, running: &[RunnerId], weight: u32) -> String {
    let (of, max) = match limit {
        Limit::Queue { name, max } => (format!("the queue {name:?}"), max),
        Limit::Daemon { max } => ("the daemon".to_owned(), max),
        Limit::InProcess { max } => ("the daemon, for jobs without a process,".to_owned(), max),
    };
    let slots = if *max == 1 { "1 slot".to_owned() } else { format!("{max} slots") };
    let need = match weight {
        1 => String::new(),
        _ if weight > *max => format!(", and this job needs {weight}: it runs when it has them alone"),
        _ => format!(", and this job needs {weight} of them"),
    };
    match running {
        [] => format!("{of} has {slots}{need}"),
        _ => format!("{of} has {slots}, taken by {}{need}", names(running, running.len())),
    }
}

fn until(record: &Record, at: Time, facts: &mut Facts) -> String {
    let spec = &record.spec;
    match record.attempt() {
        Some(last) => {
            let (number, max) = (last.attempt, spec.retry.max_attempts);
            let how = ended::how(last, last.cancel.as_deref(), "it", facts);
            facts.reason = Reason::Backoff;
            format!("It waits until {at} before it is tried again: attempt {number} of {max} failed, {how}")
        }
        None => match *spec.delay {
            Some(delay) if spec.start_at.is_none() => {
                facts.reason = Reason::Delayed;
                format!("It waits until {at}, because of its delay of {}", span(delay))
            }
            Some(_) | None => {
                facts.reason = Reason::Scheduled;
                format!("It waits until {at}, its `start_at`")
            }
        },
    }
}

fn held(record: &Record, facts: &mut Facts) -> String {
    let last = record.attempt();
    let (why, reason) = match last.and_then(|attempt| attempt.cancel.as_ref()) {
        Some(receipt) if receipt.reason == CancelReason::Shutdown => {
            facts.by = Some(receipt.by.0.clone());
            facts.since = last.and_then(|attempt| *attempt.ended_at);
            let at = Time(receipt.requested_at);
            let why =
                format!("a shutdown of the daemon stopped it at {at}, and its `on_shutdown` is \"hold\"");
            (why, Reason::HeldAfterShutdown)
        }
        Some(_) | None => {
            facts.since = last.and_then(|attempt| *attempt.ended_at);
            let lost: Vec<String> = (record.run().into_iter())
                .flat_map(|run| run.attempts.iter().filter(|attempt| lost_with_daemon(attempt)))
                .map(|attempt| attempt.attempt.to_string())
                .collect();
            if record.spec.on_lost == OnLost::Hold || lost.len() < 2 {
                let why = "the daemon or the host died under it, and its `on_lost` is \"hold\"";
                (why.to_owned(), Reason::HeldAfterLoss)
            } else {
                let all = lost.join(", ");
                let why = format!(
                    "the daemon or the host died under it {} times (attempts {all}), and it may have been the cause",
                    lost.len()
                );
                (why, Reason::HeldAsPoison)
            }
        }
    };
    facts.reason = reason;
    format!("It is held because {why}; release it to have it run again, or cancel it")
}

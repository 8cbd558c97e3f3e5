//! Forgets closed Runners: those that closed first first, their output before their records. The other order would,
//! after a crash, leave output of which the store knows nothing, and the next start refuses that.

use std::{io, path::PathBuf, time::Duration};

use jiff::Timestamp;
use tokio::{sync::watch, time::timeout};

use crate::{
    job::RunnerId,
    settings::Retention,
    store::{Closed, Readers, Tally, Totals},
    supervisor::{Refusal, Supervisor},
};

/// How often it is looked at the most whether something is too old, and tried again what failed.
const INTERVAL: Duration = Duration::from_secs(600);

/// How often it is looked at the least: the clock may have been set, or have stood still.
const LONGEST: Duration = Duration::from_secs(86_400);

/// So many that have closed since are looked at without waiting for that; or a tenth of what is kept, if that is less.
const MANY: u64 = 1000;

/// Forgotten in one commit: nobody else waits for long.
const AT_ONCE: usize = 200;

/// What forgets.
pub struct Keeping {
    /// Whose Runners they are.
    pub supervisor: Supervisor,
    /// Where they are found.
    pub readers: Readers,
    /// Where their output is.
    pub logs: PathBuf,
    /// What is kept, as it is now.
    pub retention: watch::Receiver<Retention>,
}

/// What was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forgotten {
    runners: u64,
    log_bytes: u64,
}

impl Keeping {
    /// Forgets until the store is closed, or this is dropped.
    pub async fn run(self, mut tally: watch::Receiver<Tally>) {
        let mut decided = self.retention.clone();
        loop {
            let retention = *decided.borrow_and_update();
            let Retention { max_age, max_records, max_log_bytes } = retention;
            if max_age.is_none() && max_records.is_none() && max_log_bytes.is_none() {
                // Nobody to decide otherwise any more: the daemon ends.
                if decided.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let many = max_records.map_or(MANY, |max| (max / 10 + 1).min(MANY));
            let much = max_log_bytes.map_or(u64::MAX, |max| max / 10 + 1);
            let seen = *tally.borrow_and_update();
            let mut forgotten = Forgotten::default();
            let pass = self.pass(retention, &mut forgotten).await;
            let Forgotten { runners, log_bytes } = forgotten;
            if runners > 0 {
                tracing::info!(
                    runners,
                    log_bytes,
                    "forgot what had closed first, as `retention` in the settings says"
                );
            }
            match &pass {
                Ok(_) => {}
                Err(Refused::Ended) => return,
                Err(Refused::Other(error)) => {
                    tracing::warn!(
                        error,
                        "what is too old or too much can't be forgotten; it is tried again"
                    );
                }
            }
            let wait = wait(&pass, max_age, Timestamp::now());
            // With nothing to wait for, the first that closes is.
            let many = if wait.is_none() && max_age.is_some() { 1 } else { many };
            let is_due = |tally: &Tally| {
                tally.closed - seen.closed >= many || tally.log_bytes - seen.log_bytes >= much
            };
            let due = async {
                match wait {
                    Some(wait) => timeout(wait, tally.wait_for(is_due)).await.is_ok_and(|due| due.is_err()),
                    None => tally.wait_for(is_due).await.is_err(),
                }
            };
            tokio::select! {
                ended = due => if ended { return },
                changed = decided.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Gives the time when the oldest that is left closed.
    async fn pass(
        &self,
        retention: Retention,
        forgotten: &mut Forgotten,
    ) -> Result<Option<Timestamp>, Refused> {
        let mut left = self.readers.totals().await.map_err(|error| Refused::Other(error.to_string()))?;
        loop {
            let oldest = self.readers.oldest_closed(AT_ONCE).await;
            let oldest = oldest.map_err(|error| Refused::Other(error.to_string()))?;
            let expired = expired(retention, &oldest, &mut left, Timestamp::now());
            if expired.is_empty() {
                return Ok(oldest.first().map(|closed| closed.at));
            }
            let logs = self.logs.clone();
            let count = expired.len();
            let removed = tokio::task::spawn_blocking(move || remove_logs(&logs, expired)).await;
            let removed = removed.map_err(|error| Refused::Other(error.to_string()))?;
            if removed.is_empty() {
                return Ok(oldest.first().map(|closed| closed.at));
            }
            let ids: Vec<RunnerId> = removed.iter().map(|closed| closed.id).collect();
            self.supervisor.purge(ids).await.map_err(|refusal| match refusal {
                Refusal::Ended | Refusal::Draining => Refused::Ended,
                other => Refused::Other(other.to_string()),
            })?;
            forgotten.runners += removed.len() as u64;
            forgotten.log_bytes += removed.iter().map(|closed| closed.log_bytes).sum::<u64>();
            if count < AT_ONCE {
                return Ok(oldest.get(count).map(|closed| closed.at));
            }
        }
    }
}

/// Why a pass did not get to its end.
enum Refused {
    /// The daemon ends.
    Ended,
    /// Something that may pass.
    Other(String),
}

/// How long until something may be too old; `None`: there is nothing that grows old.
fn wait(
    pass: &Result<Option<Timestamp>, Refused>,
    max_age: Option<Duration>,
    now: Timestamp,
) -> Option<Duration> {
    match (pass, max_age) {
        (Err(_), _) => Some(INTERVAL),
        (Ok(_), None) | (Ok(None), Some(_)) => None,
        (Ok(Some(oldest)), Some(max_age)) => {
            let age = Duration::try_from(now.duration_since(*oldest)).unwrap_or_default();
            Some(max_age.saturating_sub(age).clamp(INTERVAL, LONGEST))
        }
    }
}

/// Of the oldest the first ones that are too old or too much. `left` is what there is without them.
fn expired(retention: Retention, oldest: &[Closed], left: &mut Totals, now: Timestamp) -> Vec<Closed> {
    let Retention { max_age, max_records, max_log_bytes } = retention;
    let born_after = max_age.and_then(|age| now.checked_sub(age).ok());
    let is_expired = |closed: &Closed, left: &Totals| {
        born_after.is_some_and(|limit| closed.at < limit)
            || max_records.is_some_and(|max| left.records > max)
            || max_log_bytes.is_some_and(|max| left.log_bytes > max)
    };
    let mut expired = Vec::new();
    for closed in oldest {
        if !is_expired(closed, left) {
            break;
        }
        left.records = left.records.saturating_sub(1);
        left.log_bytes = left.log_bytes.saturating_sub(closed.log_bytes);
        expired.push(*closed);
    }
    expired
}

/// Those whose output is gone.
fn remove_logs(logs: &std::path::Path, expired: Vec<Closed>) -> Vec<Closed> {
    let gone = |closed: &Closed| {
        let path = logs.join(closed.id.to_string());
        match std::fs::remove_dir_all(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "output that is too old can't be removed");
                false
            }
        }
    };
    expired.into_iter().filter(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn count(retention: Retention, ages_and_bytes: &[(u64, u64)]) -> (usize, Totals) {
        let now = Timestamp::from_second(1_000_000_000).expect("a time");
        let closed: Vec<Closed> = ages_and_bytes
            .iter()
            .map(|(days, log_bytes)| Closed {
                id: RunnerId::new(),
                at: now - DAY * u32::try_from(*days).expect("small"),
                log_bytes: *log_bytes,
            })
            .collect();
        let log_bytes = closed.iter().map(|closed| closed.log_bytes).sum();
        let mut left = Totals { records: closed.len() as u64, log_bytes };
        let expired = expired(retention, &closed, &mut left, now);
        (expired.len(), left)
    }

    #[test]
    fn nobody_looks_before_something_can_be_too_old() {
        let now = Timestamp::from_second(1_000_000_000).expect("a time");
        let month = Some(DAY * 30);
        assert_eq!(wait(&Ok(None), month, now), None);
        assert_eq!(wait(&Ok(Some(now)), None, now), None);
        assert_eq!(wait(&Ok(Some(now - DAY)), month, now), Some(LONGEST));
        let soon = DAY * 30 - Duration::from_secs(3600);
        assert_eq!(wait(&Ok(Some(now - soon)), month, now), Some(Duration::from_secs(3600)));
        // Also where its output could not be removed, and after a clock that was set back.
        assert_eq!(wait(&Ok(Some(now - DAY * 40)), month, now), Some(INTERVAL));
        assert_eq!(wait(&Ok(Some(now + DAY)), month, now), Some(LONGEST));
        assert_eq!(wait(&Err(Refused::Other("no room".into())), month, now), Some(INTERVAL));
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_nothing_else() {
        let none = Retention { max_age: None, max_records: None, max_log_bytes: None };
        let four = [(40, 10), (30, 20), (20, 0), (1, 30)];
        assert_eq!(count(none, &four).0, 0);
        assert_eq!(count(Retention { max_age: Some(DAY * 25), ..none }, &four).0, 2);
        assert_eq!(count(Retention { max_records: Some(3), ..none }, &four).0, 1);
        assert_eq!(count(Retention { max_records: Some(4), ..none }, &four).0, 0);
        assert_eq!(
            count(Retention { max_log_bytes: Some(30), ..none }, &four),
            (2, Totals { records: 2, log_bytes: 30 })
        );
        assert_eq!(count(Retention { max_log_bytes: Some(29), ..none }, &four).0, 4);
        let all = Retention { max_age: Some(DAY * 35), max_records: Some(3), max_log_bytes: Some(50) };
        assert_eq!(count(all, &four).0, 1, "the strictest counts, and each once");
    }
}

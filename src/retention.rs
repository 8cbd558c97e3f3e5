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

/// Where as much is kept as may be, so many that have closed since are looked at without waiting for that; or a tenth
/// of what may be kept, if that is less.
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
            let mut enough = enough(retention, pass.ok().map(|left| left.totals));
            // With nothing to wait for, the first that closes is.
            if wait.is_none() && max_age.is_some() {
                enough.records = 1;
            }
            let is_due = |tally: &Tally| {
                tally.closed - seen.closed >= enough.records
                    || tally.log_bytes - seen.log_bytes >= enough.log_bytes
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

    async fn pass(&self, retention: Retention, forgotten: &mut Forgotten) -> Result<Left, Refused> {
        let mut totals = self.readers.totals().await.map_err(|error| Refused::Other(error.to_string()))?;
        loop {
            let oldest = self.readers.oldest_closed(AT_ONCE).await;
            let oldest = oldest.map_err(|error| Refused::Other(error.to_string()))?;
            let expired = expired(retention, &oldest, totals, Timestamp::now());
            let count = expired.len();
            let logs = self.logs.clone();
            let removed = tokio::task::spawn_blocking(move || remove_logs(&logs, expired)).await;
            let removed = removed.map_err(|error| Refused::Other(error.to_string()))?;
            if removed.is_empty() {
                return Ok(Left { oldest: oldest.first().map(|closed| closed.at), totals });
            }
            let ids: Vec<RunnerId> = removed.iter().map(|closed| closed.id).collect();
            self.supervisor.purge(ids).await.map_err(|refusal| match refusal {
                Refusal::Ended | Refusal::Draining => Refused::Ended,
                other => Refused::Other(other.to_string()),
            })?;
            forgotten.runners += removed.len() as u64;
            forgotten.log_bytes += removed.iter().map(|closed| closed.log_bytes).sum::<u64>();
            totals = removed.iter().fold(totals, Totals::without);
            if count < AT_ONCE {
                return Ok(Left { oldest: oldest.get(count).map(|closed| closed.at), totals });
            }
        }
    }
}

/// What a pass left.
struct Left {
    /// When the oldest closed.
    oldest: Option<Timestamp>,
    totals: Totals,
}

/// Why a pass did not get to its end.
enum Refused {
    /// The daemon ends.
    Ended,
    /// Something that may pass.
    Other(String),
}

/// What may be added before it is looked again: what there is room for, or, where there is next to none, as much as
/// makes the look worth it.
fn enough(retention: Retention, left: Option<Totals>) -> Totals {
    let Retention { max_records, max_log_bytes, .. } = retention;
    let room = |max: u64, used: fn(Totals) -> u64| left.map_or(0, |left| max.saturating_sub(used(left)));
    Totals {
        records: max_records
            .map_or(u64::MAX, |max| (max / 10 + 1).min(MANY).max(room(max, |left| left.records))),
        log_bytes: max_log_bytes.map_or(u64::MAX, |max| (max / 10 + 1).max(room(max, |left| left.log_bytes))),
    }
}

/// How long until something may be too old; `None`: there is nothing that grows old.
fn wait(pass: &Result<Left, Refused>, max_age: Option<Duration>, now: Timestamp) -> Option<Duration> {
    let Ok(left) = pass else { return Some(INTERVAL) };
    let age = Duration::try_from(now.duration_since(left.oldest?)).unwrap_or_default();
    Some(max_age?.saturating_sub(age).clamp(INTERVAL, LONGEST))
}

/// Of the oldest the first ones that are too old or too much, where there is so much with them.
fn expired(retention: Retention, oldest: &[Closed], mut totals: Totals, now: Timestamp) -> Vec<Closed> {
    let Retention { max_age, max_records, max_log_bytes } = retention;
    let born_after = max_age.and_then(|age| now.checked_sub(age).ok());
    let is_expired = |closed: &&Closed| {
        let expired = born_after.is_some_and(|limit| closed.at < limit)
            || max_records.is_some_and(|max| totals.records > max)
            || max_log_bytes.is_some_and(|max| totals.log_bytes > max);
        totals = totals.without(closed);
        expired
    };
    oldest.iter().take_while(is_expired).copied().collect()
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

    fn count(retention: Retention, ages_and_bytes: &[(u64, u64)]) -> usize {
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
        let totals = Totals { records: closed.len() as u64, log_bytes };
        expired(retention, &closed, totals, now).len()
    }

    #[test]
    fn nobody_looks_before_something_can_be_too_old() {
        let now = Timestamp::from_second(1_000_000_000).expect("a time");
        let month = Some(DAY * 30);
        let left = |oldest| Ok(Left { oldest, totals: Totals { records: 1, log_bytes: 0 } });
        assert_eq!(wait(&left(None), month, now), None);
        assert_eq!(wait(&left(Some(now)), None, now), None);
        assert_eq!(wait(&left(Some(now - DAY)), month, now), Some(LONGEST));
        let soon = DAY * 30 - Duration::from_secs(3600);
        assert_eq!(wait(&left(Some(now - soon)), month, now), Some(Duration::from_secs(3600)));
        // Also where its output could not be removed, and after a clock that was set back.
        assert_eq!(wait(&left(Some(now - DAY * 40)), month, now), Some(INTERVAL));
        assert_eq!(wait(&left(Some(now + DAY)), month, now), Some(LONGEST));
        assert_eq!(wait(&Err(Refused::Other("no room".into())), month, now), Some(INTERVAL));
    }

    #[test]
    fn nobody_looks_before_there_can_be_too_much() {
        let of = |max_records, max_log_bytes| Retention { max_age: None, max_records, max_log_bytes };
        let left = |records, log_bytes| Some(Totals { records, log_bytes });
        let all = Totals { records: u64::MAX, log_bytes: u64::MAX };
        assert_eq!(enough(of(None, None), left(7, 7)), all);
        // Room, next to none, none, too much, unknown.
        assert_eq!(enough(of(Some(100_000), None), left(10_000, 0)).records, 90_000);
        assert_eq!(enough(of(Some(100_000), None), left(99_990, 0)).records, MANY);
        assert_eq!(enough(of(Some(100), None), left(100, 0)).records, 11);
        assert_eq!(enough(of(Some(0), None), left(5, 0)).records, 1);
        assert_eq!(enough(of(Some(100), None), None).records, 11);
        assert_eq!(enough(of(None, Some(1_000)), left(0, 100)).log_bytes, 900);
        assert_eq!(enough(of(None, Some(1_000)), left(0, 1_000)).log_bytes, 101);
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_nothing_else() {
        let none = Retention { max_age: None, max_records: None, max_log_bytes: None };
        let four = [(40, 10), (30, 20), (20, 0), (1, 30)];
        assert_eq!(count(none, &four), 0);
        assert_eq!(count(Retention { max_age: Some(DAY * 25), ..none }, &four), 2);
        assert_eq!(count(Retention { max_records: Some(3), ..none }, &four), 1);
        assert_eq!(count(Retention { max_records: Some(4), ..none }, &four), 0);
        assert_eq!(count(Retention { max_log_bytes: Some(30), ..none }, &four), 2);
        assert_eq!(count(Retention { max_log_bytes: Some(29), ..none }, &four), 4);
        let all = Retention { max_age: Some(DAY * 35), max_records: Some(3), max_log_bytes: Some(50) };
        assert_eq!(count(all, &four), 1, "the strictest counts, and each once");
    }
}

//! What is kept besides events and records: queues, the shared context, messages to be sent; and the forgetting.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::collections::BTreeMap;

use super::rows::{id_from_row, id_to_row, json_from_row, replay, time_from_row};
use crate::{
    job::{EventKind, QueueSettings, Record, RunnerId, SharedContext},
    supervisor::ports::{ContextChange, Delivery},
};

/// A message that a Runner has closed, not taken yet.
#[derive(Clone, Debug)]
pub struct Message {
    /// What is told.
    pub record: Record,
    /// How often it was tried.
    pub attempts: u32,
}

/// A closed Runner, as retention sees it.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Which.
    pub id: RunnerId,
    /// When.
    pub at: jiff::Timestamp,
    /// What is kept of its output.
    pub log_bytes: u64,
}

/// How many closed Runners there are, and what is kept of their output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Runners.
    pub records: u64,
    /// Bytes.
    pub log_bytes: u64,
}

impl Totals {
    /// When that one is forgotten.
    pub fn without(self, closed: &Closed) -> Self {
        Self {
            records: self.records.saturating_sub(1),
            log_bytes: self.log_bytes.saturating_sub(closed.log_bytes),
        }
    }
}

pub(super) fn set_queue(
    transaction: &Transaction<'_>,
    name: &str,
    settings: Option<QueueSettings>,
) -> rusqlite::Result<()> {
    match settings {
        Some(settings) => transaction
            .prepare_cached("INSERT OR REPLACE INTO queues (name, settings) VALUES (?1, ?2)")?
            .execute(params![name, super::log::to_json(&settings)])?,
        None => transaction.prepare_cached("DELETE FROM queues WHERE name = ?1")?.execute([name])?,
    };
    Ok(())
}

pub(super) fn queues(connection: &Connection) -> rusqlite::Result<BTreeMap<String, QueueSettings>> {
    connection
        .prepare("SELECT name, settings FROM queues")?
        .query_map([], |row| Ok((row.get(0)?, json_from_row(row, 1)?)))?
        .collect()
}

/// Each change is a version, also one that unsets: it must not come again for another content.
pub(super) fn set_variable(transaction: &Transaction<'_>, change: &ContextChange) -> rusqlite::Result<()> {
    let ContextChange { version, name, variable } = change;
    match variable {
        Some(variable) => transaction
            .prepare_cached("INSERT OR REPLACE INTO context (name, variable) VALUES (?1, ?2)")?
            .execute(params![name, super::log::to_json(variable)])?,
        None => transaction.prepare_cached("DELETE FROM context WHERE name = ?1")?.execute([name])?,
    };
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'context_version'")?
        .execute([version])?;
    Ok(())
}

pub(super) fn context(connection: &Connection) -> rusqlite::Result<SharedContext> {
    let version =
        connection.query_row("SELECT value FROM meta WHERE key = 'context_version'", [], |row| row.get(0))?;
    let variables = connection
        .prepare("SELECT name, variable FROM context")?
        .query_map([], |row| Ok((row.get(0)?, json_from_row(row, 1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(SharedContext { version, variables })
}

/// A message to be sent at once.
pub(super) fn queue_message(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let due = record.closed_at.map_or(0, |at| at.as_microsecond());
    transaction
        .prepare_cached("INSERT OR IGNORE INTO webhooks (runner, attempts, due_at) VALUES (?1, 0, ?2)")?
        .execute(params![id_to_row(record.id), due])?;
    Ok(())
}

pub(super) fn delivered(
    transaction: &Transaction<'_>,
    id: RunnerId,
    delivery: &Delivery,
) -> rusqlite::Result<()> {
    match delivery {
        Delivery::Done => {
            transaction.prepare_cached("DELETE FROM webhooks WHERE runner = ?1")?.execute([id_to_row(id)])?
        }
        Delivery::Retry { attempts, at } => transaction
            .prepare_cached("UPDATE webhooks SET attempts = ?2, due_at = ?3 WHERE runner = ?1")?
            .execute(params![id_to_row(id), attempts, at.as_microsecond()])?,
    };
    Ok(())
}

/// The messages that are due, and when the next one is.
pub(super) fn messages(
    connection: &Connection,
    now: jiff::Timestamp,
    limit: usize,
) -> rusqlite::Result<(Vec<Message>, Option<jiff::Timestamp>)> {
    let due = connection
        .prepare_cached(
            "SELECT r.n, r.id, w.attempts FROM webhooks AS w JOIN runners AS r ON r.id = w.runner
             WHERE w.due_at <= ?1 ORDER BY w.due_at LIMIT ?2",
        )?
        .query_map((now.as_microsecond(), limit), |row| {
            let record = replay(connection, row.get(0)?, id_from_row(row, 1)?)?;
            Ok(Message { record, attempts: row.get(2)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let next = connection
        .prepare_cached("SELECT min(due_at) FROM webhooks WHERE due_at > ?1")?
        .query_row([now.as_microsecond()], |row| time_from_row(row, 0))?;
    Ok((due, next))
}

/// Forgets closed Runners with their events, labels, keys and messages.
pub(super) fn purge(transaction: &Transaction<'_>, ids: &[RunnerId]) -> rusqlite::Result<()> {
    let mut last_seq: u64 = 0;
    for id in ids {
        let row = id_to_row(*id);
        let known = transaction
            .prepare_cached("SELECT n FROM runners WHERE id = ?1 AND state = 'closed'")?
            .query_row([row], |row| row.get::<_, u64>(0))
            .optional()?;
        let Some(n) = known else { continue };
        let submitted: Vec<EventKind> = transaction
            .prepare_cached("SELECT data FROM events WHERE seq = ?1")?
            .query_row([n], |row| json_from_row(row, 0))?;
        if let Some(EventKind::Submitted { spec }) = submitted.first() {
            let mut label =
                transaction.prepare_cached("DELETE FROM labels WHERE key = ?1 AND value = ?2 AND n = ?3")?;
            for (key, value) in &*spec.labels {
                label.execute(params![key, value, n])?;
            }
        }
        for delete in [
            "DELETE FROM events WHERE seq = ?1 RETURNING seq + count - 1",
            "DELETE FROM events WHERE n = ?1 AND seq > n RETURNING seq + count - 1",
        ] {
            let mut delete = transaction.prepare_cached(delete)?;
            let mut rows = delete.query([n])?;
            while let Some(row) = rows.next()? {
                last_seq = last_seq.max(row.get(0)?);
            }
        }
        transaction.prepare_cached("DELETE FROM keys WHERE runner = ?1")?.execute([row])?;
        transaction.prepare_cached("DELETE FROM webhooks WHERE runner = ?1")?.execute([row])?;
        transaction.prepare_cached("DELETE FROM runners WHERE n = ?1")?.execute([n])?;
    }
    if last_seq > 0 {
        // Places of events must not come again: clients resume by them.
        transaction
            .prepare_cached("UPDATE meta SET value = max(value, ?1) WHERE key = 'purged_seq'")?
            .execute([last_seq])?;
    }
    Ok(())
}

/// The closed Runners that may be forgotten, those that closed first first: all but those whose message was not
/// taken yet.
pub(super) fn oldest_closed(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Closed>> {
    connection
        .prepare_cached(
            "SELECT id, closed_at, log_bytes FROM runners WHERE closed_at IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM webhooks WHERE runner = id)
             ORDER BY closed_at LIMIT ?1",
        )?
        .query_map([limit], |row| {
            let at = time_from_row(row, 1)?.unwrap_or_default();
            Ok(Closed { id: id_from_row(row, 0)?, at, log_bytes: row.get(2)? })
        })?
        .collect()
}

pub(super) fn totals(connection: &Connection) -> rusqlite::Result<Totals> {
    let totals = |row: &Row<'_>| Ok(Totals { records: row.get(0)?, log_bytes: row.get(1)? });
    connection
        .prepare_cached(
            "SELECT count(*), coalesce(sum(log_bytes), 0) FROM runners WHERE closed_at IS NOT NULL",
        )?
        .query_row([], totals)
}

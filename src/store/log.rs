//! The one writer.

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, ffi, params};

use std::collections::HashSet;
use tokio::sync::watch;

use super::{
    kept,
    rows::{id_from_row, id_to_row, in_process, log_bytes},
};
use crate::{
    job::{Event, EventKind, Record, RunnerId},
    supervisor::ports::{AppendError, Batch, Duplicate, EventLog, KeyedSubmission},
};

/// The event log, open for writing. Dropping it leaves a store without a write-ahead log.
#[derive(Debug)]
pub struct Log {
    connection: Connection,
    tally: watch::Sender<Tally>,
}

/// How much of what others wait for was committed since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Runners that closed.
    pub closed: u64,
    /// Bytes that are kept of their output.
    pub log_bytes: u64,
    /// Messages to be sent.
    pub messages: u64,
}

impl Log {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, tally: watch::Sender::default() }
    }

    /// Tells when there is work for those who send messages and those who forget.
    pub fn tally(&self) -> watch::Receiver<Tally> {
        self.tally.subscribe()
    }

    /// The place of the last event; 0 where there is none.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_seq(&self) -> rusqlite::Result<u64> {
        self.connection.query_row(
            "SELECT max(value, (SELECT coalesce(max(seq), 0) FROM events)) FROM meta WHERE key = 'purged_seq'",
            [],
            |row| row.get(0),
        )
    }

    fn commit(&mut self, batch: &Batch) -> rusqlite::Result<Vec<Duplicate>> {
        let transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut duplicates = Vec::new();
        for keyed in &batch.keys {
            let at = jiff::Timestamp::now().as_microsecond();
            duplicates.extend(insert_key(&transaction, keyed, at)?);
        }
        let refused = |id| duplicates.iter().any(|duplicate: &Duplicate| duplicate.runner == id);
        for event in batch.events.iter().filter(|event| !refused(event.runner)) {
            insert_event(&transaction, event)?;
        }
        for record in batch.records.iter().filter(|record| !refused(record.id)) {
            put_record(&transaction, record)?;
        }
        let told = queue_messages(&transaction, batch)?;
        for (name, settings) in &batch.queues {
            kept::set_queue(&transaction, name, *settings)?;
        }
        for change in &batch.context {
            kept::set_variable(&transaction, change)?;
        }
        for (id, delivery) in &batch.webhooks {
            kept::delivered(&transaction, *id, delivery)?;
        }
        for id in &batch.purged {
            kept::purge(&transaction, *id)?;
        }
        if batch.is_empty() {
            // Writes a page, as any commit does.
            transaction.execute("UPDATE meta SET value = value WHERE key = 'purged_seq'", [])?;
        }
        transaction.commit()?;
        if told != Tally::default() {
            self.tally.send_modify(|tally| {
                tally.closed += told.closed;
                tally.log_bytes += told.log_bytes;
                tally.messages += told.messages;
            });
        }
        Ok(duplicates)
    }
}

impl EventLog for Log {
    fn append(&mut self, batch: &Batch) -> Result<Vec<Duplicate>, AppendError> {
        self.commit(batch).map_err(|error| classify(&error))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the store could not be checkpointed; the next start does it");
        }
    }
}

/// A full disk may have room again; after anything else (a failed sync, damage) nobody knows what is stored.
fn classify(error: &rusqlite::Error) -> AppendError {
    let refused = match error.sqlite_error() {
        Some(ffi::Error {
            code: ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::DatabaseBusy,
            ..
        }) => true,
        Some(_) | None => false,
    };
    if refused { AppendError::Refused(error.to_string()) } else { AppendError::Broken(error.to_string()) }
}

fn insert_key(
    transaction: &Transaction<'_>,
    keyed: &KeyedSubmission,
    at: i64,
) -> rusqlite::Result<Option<Duplicate>> {
    let known = transaction
        .prepare_cached("SELECT runner, body FROM keys WHERE key = ?1")?
        .query_row([&keyed.key.key], |row| Ok((id_from_row(row, 0)?, row.get::<_, [u8; 32]>(1)?)))
        .optional()?;
    if let Some((original, body)) = known {
        return Ok(Some(Duplicate { runner: keyed.runner, original, same_body: body == keyed.key.body }));
    }
    transaction
        .prepare_cached("INSERT INTO keys (key, body, runner, at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![keyed.key.key, keyed.key.body, id_to_row(keyed.runner), at])?;
    Ok(None)
}

fn insert_event(transaction: &Transaction<'_>, event: &Event) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO events (seq, runner, at, type, data) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            event.seq,
            id_to_row(event.runner),
            event.at.as_microsecond(),
            event.kind.name(),
            to_json(&event.kind),
        ])?;
    if let EventKind::Submitted { spec } = &event.kind {
        let mut insert =
            transaction.prepare_cached("INSERT INTO labels (key, value, n) VALUES (?1, ?2, ?3)")?;
        for (key, value) in &spec.labels {
            insert.execute(params![key, value, event.seq])?;
        }
    }
    Ok(())
}

/// A message for each Runner that closes and is to tell somebody.
fn queue_messages(transaction: &Transaction<'_>, batch: &Batch) -> rusqlite::Result<Tally> {
    let is_close = |event: &&Event| matches!(event.kind, EventKind::Closed(_));
    let closed: HashSet<RunnerId> = batch.events.iter().filter(is_close).map(|event| event.runner).collect();
    let mut told = Tally { closed: closed.len() as u64, ..Tally::default() };
    for record in batch.records.iter().filter(|record| closed.contains(&record.id)) {
        told.log_bytes += log_bytes(record);
        if record.spec.on_close.is_some() {
            kept::queue_message(transaction, record)?;
            told.messages += 1;
        }
    }
    Ok(told)
}

fn put_record(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let micros = |at: Option<jiff::Timestamp>| at.map(|at| at.as_microsecond());
    let deadline = record.spec.deadline.and_then(|limit| record.created_at.checked_add(limit).ok());
    transaction
        .prepare_cached(
            "INSERT INTO runners (n, id, state, outcome, queue, name, priority, held, weight, concurrency_key, ready_at,
                start_at, deadline_at, in_process, closed_at, log_bytes, last_seq, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
             ON CONFLICT (n) DO UPDATE SET state = excluded.state, outcome = excluded.outcome, held = excluded.held,
                ready_at = excluded.ready_at, in_process = excluded.in_process, closed_at = excluded.closed_at,
                log_bytes = excluded.log_bytes, last_seq = excluded.last_seq, record = excluded.record",
        )?
        .execute(params![
            record.submitted_seq,
            id_to_row(record.id),
            record.state.as_str(),
            record.outcome.map(|outcome| outcome.as_str()),
            record.spec.queue,
            record.spec.name,
            record.spec.priority,
            record.held,
            record.spec.weight,
            record.spec.concurrency_key,
            micros(record.ready_at()),
            micros(record.spec.start_at),
            micros(deadline),
            in_process(record),
            micros(record.closed_at),
            log_bytes(record),
            record.last_seq,
            to_json(record),
        ])?;
    Ok(())
}

pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("the vocabulary of jobs has a JSON form")
}

//! The one writer.

use foldhash::{HashMap, HashSet};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, ffi, params,
    types::{ToSqlOutput, ValueRef},
};
use serde::{Serialize, Serializer};
use tokio::sync::watch;

use super::{
    kept,
    rows::{EVENTS_OF_ROW, id_from_row, id_to_row, in_process, log_bytes},
};
use crate::{
    job::{Event, EventKind, RunnerId, State},
    json,
    supervisor::ports::{AppendError, Batch, Duplicate, EventLog, KeyedSubmission},
};

/// What is kept of the buffer for the JSON of events: a large one is needed seldom.
const TEXT_KEPT: usize = 64 << 10;

/// The event log, open for writing. Dropping it leaves a store without a write-ahead log.
#[derive(Debug)]
pub struct Log {
    connection: Connection,
    tally: watch::Sender<Tally>,
    text: Vec<u8>,
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
        Self { connection, tally: watch::Sender::default(), text: Vec::new() }
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
            "SELECT max(value, coalesce((SELECT seq + count - 1 FROM events ORDER BY seq DESC LIMIT 1), 0))
             FROM meta WHERE key = 'purged_seq'",
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
        let refused: HashSet<RunnerId> = duplicates.iter().map(|duplicate| duplicate.runner).collect();
        let taken = |id| refused.is_empty() || !refused.contains(&id);
        insert_events(&transaction, batch, &mut self.text, taken)?;
        let told = put_records(&transaction, batch, taken)?;
        for (name, settings) in &batch.queues {
            kept::set_queue(&transaction, name, *settings)?;
        }
        for change in &batch.context {
            kept::set_variable(&transaction, change)?;
        }
        for (id, delivery) in &batch.webhooks {
            kept::delivered(&transaction, *id, delivery)?;
        }
        kept::purge(&transaction, &batch.purged)?;
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

    fn rest(&mut self) {
        if let Err(error) = self.connection.execute_batch("PRAGMA shrink_memory") {
            tracing::debug!(%error, "the store keeps the memory of its cache");
        }
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

fn insert_events(
    transaction: &Transaction<'_>,
    batch: &Batch,
    text: &mut Vec<u8>,
    taken: impl Fn(RunnerId) -> bool,
) -> rusqlite::Result<()> {
    let known: HashMap<RunnerId, u64> =
        batch.records.iter().map(|record| (record.id, record.submitted_seq)).collect();
    let mut insert = transaction
        .prepare_cached("INSERT INTO events (seq, n, at, count, data) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for events in moments(&batch.events).filter(|events| taken(events[0].runner)) {
        let event = &events[0];
        let n = match (&event.kind, known.get(&event.runner)) {
            (EventKind::Submitted { .. }, _) => event.seq,
            (_, Some(n)) => *n,
            (_, None) => transaction
                .prepare_cached("SELECT n FROM runners WHERE id = ?1")?
                .query_row([id_to_row(event.runner)], |row| row.get(0))?,
        };
        let at = event.at.as_microsecond();
        insert.execute(params![event.seq, n, at, events.len(), json_into(text, &Kinds(events))])?;
        if let EventKind::Submitted { spec } = &event.kind
            && !spec.labels.is_empty()
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO labels (key, value, n) VALUES (?1, ?2, ?3)")?;
            for (key, value) in &*spec.labels {
                insert.execute(params![key, value, event.seq])?;
            }
        }
    }
    text.shrink_to(TEXT_KEPT);
    Ok(())
}

/// What happened to one Runner at one moment and at a stretch is one row: half as many for a short job.
fn moments(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let together = |a: &Event, b: &Event| a.runner == b.runner && a.at == b.at && a.seq + 1 == b.seq;
    events.chunk_by(together).flat_map(|events| events.chunks(EVENTS_OF_ROW))
}

struct Kinds<'a>(&'a [Event]);

impl Serialize for Kinds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|event| &event.kind))
    }
}

/// What is looked for of each Runner that changed, and a message for each that has closed and is to tell somebody.
fn put_records(
    transaction: &Transaction<'_>,
    batch: &Batch,
    taken: impl Fn(RunnerId) -> bool,
) -> rusqlite::Result<Tally> {
    let micros = |at: Option<jiff::Timestamp>| at.map(|at| at.as_microsecond());
    let first = batch.events.first().map_or(u64::MAX, |event| event.seq);
    let mut told = Tally::default();
    let mut insert = transaction.prepare_cached(
        "INSERT INTO runners (n, id, state, outcome, queue, name, priority, held, weight, concurrency_key, ready_at,
            deadline_at, in_process, closed_at, log_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?;
    let mut update = transaction.prepare_cached(
        "UPDATE runners SET state = ?2, held = ?3, ready_at = ?4, in_process = ?5 WHERE n = ?1",
    )?;
    let mut close = transaction.prepare_cached(
        "UPDATE runners SET state = ?2, held = 0, ready_at = NULL, outcome = ?3, closed_at = ?4, log_bytes = ?5
         WHERE n = ?1",
    )?;
    for record in batch.records.iter().filter(|record| taken(record.id)) {
        let (n, state) = (record.submitted_seq, record.state.as_str());
        let outcome = record.outcome.map(|outcome| outcome.as_str());
        let closed = record.state == State::Closed;
        let log_bytes = if closed { log_bytes(record) } else { 0 };
        if closed {
            told.closed += 1;
            told.log_bytes += log_bytes;
            if record.spec.on_close.is_some() {
                kept::queue_message(transaction, record)?;
                told.messages += 1;
            }
        }
        // Its submission is among the events: they are in order.
        if n >= first {
            insert.execute(params![
                n,
                id_to_row(record.id),
                state,
                outcome,
                record.spec.queue,
                *record.spec.name,
                record.spec.priority,
                record.held,
                record.spec.weight,
                *record.spec.concurrency_key,
                micros(record.ready_at()),
                micros(record.deadline_at()),
                in_process(record),
                micros(*record.closed_at),
                log_bytes,
            ])?;
        } else if closed {
            close.execute(params![n, state, outcome, micros(*record.closed_at), log_bytes])?;
        } else {
            update.execute(params![n, state, record.held, micros(record.ready_at()), in_process(record)])?;
        }
    }
    Ok(told)
}

/// As JSON, in a buffer that is used again.
fn json_into<'a>(text: &'a mut Vec<u8>, value: &impl Serialize) -> ToSqlOutput<'a> {
    text.clear();
    json::write(text, value).expect("the vocabulary of jobs has a JSON form");
    ToSqlOutput::Borrowed(ValueRef::Text(text))
}

pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the vocabulary of jobs has a JSON form")
}

//! Between stored rows and the vocabulary of jobs.

use std::io;

use jiff::Timestamp;
use rusqlite::{
    Connection, Row, Rows,
    types::{FromSqlError, Type},
};

use crate::job::{self, Event, Job, Record, RunnerId, State};

pub(super) fn id_to_row(id: RunnerId) -> [u8; 16] {
    id.as_u128().to_be_bytes()
}

pub(super) fn id_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<RunnerId> {
    Ok(RunnerId::from_u128(u128::from_be_bytes(row.get(column)?)))
}

/// From the columns `seq, id, at, data`.
pub(super) fn event_from_row(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        seq: row.get(0)?,
        runner: id_from_row(row, 1)?,
        at: time_from_row(row, 2)?.unwrap_or_default(),
        kind: json_from_row(row, 3)?,
    })
}

/// What the events of a Runner add up to. Events are the truth: no record is stored, and damage shows.
pub(super) fn replay(connection: &Connection, n: u64, id: RunnerId) -> rusqlite::Result<Record> {
    let mut statement =
        connection.prepare_cached("SELECT seq, at, data FROM events WHERE n = ?1 ORDER BY seq")?;
    sum(statement.query([n])?, |_| Ok(id))?.ok_or_else(|| unreadable(2, io::Error::other("it has no events")))
}

/// The same of the Runner in this place, in one query; `None` where there is none.
pub(super) fn replay_at(connection: &Connection, n: u64) -> rusqlite::Result<Option<Record>> {
    let mut statement = connection.prepare_cached(
        "SELECT e.seq, e.at, e.data, r.id FROM runners AS r CROSS JOIN events AS e ON e.n = r.n
         WHERE r.n = ?1 ORDER BY e.seq",
    )?;
    sum(statement.query([n])?, |row| id_from_row(row, 3))
}

/// From the columns `seq, at, data`.
fn sum(
    mut rows: Rows<'_>,
    id: impl Fn(&Row<'_>) -> rusqlite::Result<RunnerId>,
) -> rusqlite::Result<Option<Record>> {
    let mut record = None;
    while let Some(row) = rows.next()? {
        let at = time_from_row(row, 1)?.unwrap_or_default();
        let event = Event { seq: row.get(0)?, runner: id(row)?, at, kind: json_from_row(row, 2)? };
        match &mut record {
            None => record = Some(job::create(&event).map_err(|illegal| unreadable(2, illegal))?),
            Some(record) => job::apply(record, &event).map_err(|illegal| unreadable(2, illegal))?,
        }
    }
    Ok(record)
}

/// From a column of JSON.
pub(super) fn json_from_row<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| unreadable(column, error))
}

/// From a column of microseconds.
pub(super) fn time_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    let at: Option<i64> = row.get(column)?;
    at.map(|at| Timestamp::from_microsecond(at).map_err(|error| unreadable(column, error))).transpose()
}

/// From a column with the word for it.
pub(super) fn state_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<State> {
    let word = row.get_ref(column)?.as_str()?;
    State::from_word(word).ok_or_else(|| unreadable(column, io::Error::other("there is no such state")))
}

/// Whether what a Runner does next, or does now, is done by the daemon itself.
pub(super) fn in_process(record: &Record) -> bool {
    let next = || record.next_run().and_then(|run| run.job.as_deref()).unwrap_or(&record.spec.job);
    let job: &Job = if record.again || record.state != State::Queued { record.job() } else { next() };
    matches!(job.kind(), "http" | "handler")
}

/// What is kept of all that its attempts wrote.
pub(super) fn log_bytes(record: &Record) -> u64 {
    let outputs = record.runs.iter().flat_map(|run| &run.attempts).filter_map(|attempt| attempt.output);
    outputs.map(|output| output.bytes.saturating_sub(output.dropped)).sum()
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(FromSqlError::other(error)))
}

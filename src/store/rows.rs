//! Between stored rows and the vocabulary of jobs.

use std::io;

use jiff::Timestamp;
use rusqlite::{
    Connection, Row,
    types::{FromSqlError, Type},
};

use crate::job::{self, Event, EventKind, Job, Record, RunnerId, State};

pub(super) fn id_to_row(id: RunnerId) -> [u8; 16] {
    id.as_u128().to_be_bytes()
}

pub(super) fn id_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<RunnerId> {
    Ok(RunnerId::from_u128(u128::from_be_bytes(row.get(column)?)))
}

/// The most events of a row: who wants those after the middle of one looks so far back.
pub(super) const EVENTS_OF_ROW: usize = 16;

/// From the columns `seq, at, data`.
pub(super) fn events_from_row(
    row: &Row<'_>,
    runner: RunnerId,
) -> rusqlite::Result<impl Iterator<Item = Event> + use<>> {
    let (seq, at) = (row.get(0)?, time_from_row(row, 1)?.unwrap_or_default());
    let kinds: Vec<EventKind> = json_from_row(row, 2)?;
    Ok((seq..).zip(kinds).map(move |(seq, kind)| Event { seq, runner, at, kind }))
}

/// What the events of a Runner add up to. Events are the truth: no record is stored, and damage shows. One statement reads
/// them: between two the Runner may be forgotten, and with its first event alone it would be queued again.
pub(super) fn replay(connection: &Connection, n: u64, id: RunnerId) -> rusqlite::Result<Record> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at, data FROM events WHERE seq = ?1
         UNION ALL
         SELECT seq, at, data FROM events WHERE n = ?1 AND seq > n
         ORDER BY seq",
    )?;
    let mut rows = statement.query([n])?;
    let mut record = None;
    while let Some(row) = rows.next()? {
        for event in events_from_row(row, id)? {
            match &mut record {
                None => record = Some(job::create(&event).map_err(|illegal| unreadable(2, illegal))?),
                Some(record) => job::apply(record, &event).map_err(|illegal| unreadable(2, illegal))?,
            }
        }
    }
    record.ok_or_else(|| unreadable(2, io::Error::other("it has no events")))
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
    let outputs = record.runs.iter().flat_map(|run| &run.attempts).filter_map(|attempt| *attempt.output);
    outputs.map(|output| output.bytes.saturating_sub(output.dropped)).sum()
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(FromSqlError::other(error)))
}

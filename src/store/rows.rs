//! Between stored rows and the vocabulary of jobs.

use jiff::Timestamp;
use rusqlite::{
    Row,
    types::{FromSqlError, Type},
};

use crate::job::{Event, EventKind, Job, Record, RunnerId, State};

pub(super) fn id_to_row(id: RunnerId) -> [u8; 16] {
    id.as_u128().to_be_bytes()
}

pub(super) fn id_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<RunnerId> {
    Ok(RunnerId::from_u128(u128::from_be_bytes(row.get(column)?)))
}

pub(super) fn record_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Record> {
    json_from_row(row, column)
}

/// From the columns `seq, runner, at, data`.
pub(super) fn event_from_row(row: &Row<'_>) -> rusqlite::Result<Event> {
    let kind: EventKind =
        serde_json::from_str(row.get_ref(3)?.as_str()?).map_err(|error| unreadable(3, error))?;
    let at = Timestamp::from_microsecond(row.get(2)?).map_err(|error| unreadable(2, error))?;
    Ok(Event { seq: row.get(0)?, runner: id_from_row(row, 1)?, at, kind })
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

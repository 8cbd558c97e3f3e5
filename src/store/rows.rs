//! Between stored rows and the vocabulary of jobs.

use jiff::Timestamp;
use rusqlite::{
    Row,
    types::{FromSqlError, Type},
};

use crate::job::{Event, EventKind, Record, RunnerId};

pub(super) fn id_to_row(id: RunnerId) -> [u8; 16] {
    id.as_u128().to_be_bytes()
}

pub(super) fn id_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<RunnerId> {
    Ok(RunnerId::from_u128(u128::from_be_bytes(row.get(column)?)))
}

pub(super) fn record_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Record> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

/// From the columns `seq, runner, at, data`.
pub(super) fn event_from_row(row: &Row<'_>) -> rusqlite::Result<Event> {
    let kind: EventKind =
        serde_json::from_str(row.get_ref(3)?.as_str()?).map_err(|error| unreadable(3, error))?;
    let at = Timestamp::from_microsecond(row.get(2)?).map_err(|error| unreadable(2, error))?;
    Ok(Event { seq: row.get(0)?, runner: id_from_row(row, 1)?, at, kind })
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(FromSqlError::other(error)))
}

//! The tables, and how an older file becomes a newer one.

use rusqlite::{Connection, Transaction};

use super::OpenError;

/// Marks the file as runward's (`PRAGMA application_id`): "rwrd".
const APPLICATION_ID: i32 = 0x7277_7264;

/// Each step brings the file from the version that is its index to the next one.
const MIGRATIONS: &[&str] = &[
    // 1. Times are microseconds since the epoch; `n` is the place of the submission among all events.
    "CREATE TABLE events (
        seq INTEGER PRIMARY KEY, runner BLOB NOT NULL, at INTEGER NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL
     ) STRICT;
     CREATE INDEX events_of_runner ON events (runner, seq);
     CREATE TABLE runners (
        n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, outcome TEXT, queue TEXT NOT NULL,
        name TEXT, priority INTEGER NOT NULL, held INTEGER NOT NULL, last_seq INTEGER NOT NULL, record TEXT NOT NULL
     ) STRICT;
     CREATE INDEX runners_open ON runners (state, n) WHERE state <> 'closed';
     CREATE INDEX runners_by_outcome ON runners (outcome, n) WHERE outcome IS NOT NULL;
     CREATE INDEX runners_by_name ON runners (name, n) WHERE name IS NOT NULL;
     CREATE TABLE labels (
        key TEXT NOT NULL, value TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (key, value, n)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE keys (
        key TEXT PRIMARY KEY, body BLOB NOT NULL, runner BLOB NOT NULL, at INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;",
];

/// Brings the file to this program's version, in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    let version: usize = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: usize = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(OpenError::NotOurs);
    }
    if version > MIGRATIONS.len() {
        return Err(OpenError::Newer { found: version, known: MIGRATIONS.len() });
    }
    if version == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for step in &MIGRATIONS[version..] {
        transaction.execute_batch(step)?;
    }
    mark(&transaction)?;
    Ok(transaction.commit()?)
}

/// Whether the file holds no tables at all.
pub(super) fn is_empty(connection: &Connection) -> Result<bool, OpenError> {
    let tables: usize = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0)
}

fn mark(transaction: &Transaction<'_>) -> Result<(), OpenError> {
    transaction.pragma_update(None, "user_version", MIGRATIONS.len())?;
    Ok(transaction.pragma_update(None, "application_id", APPLICATION_ID)?)
}

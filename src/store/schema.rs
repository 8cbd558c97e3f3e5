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
    // 2. What a waiting Runner is restored from, and what retention looks at, stands before the record: a large one
    // is not read to get there. `meta` holds numbers that must never fall, whatever is deleted.
    "CREATE TABLE runners_2 (
        n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, outcome TEXT, queue TEXT NOT NULL,
        name TEXT, priority INTEGER NOT NULL, held INTEGER NOT NULL, weight INTEGER NOT NULL, concurrency_key TEXT,
        ready_at INTEGER, start_at INTEGER, deadline_at INTEGER, in_process INTEGER NOT NULL, closed_at INTEGER,
        log_bytes INTEGER NOT NULL, last_seq INTEGER NOT NULL, record TEXT NOT NULL
     ) STRICT;
     INSERT INTO runners_2
        SELECT n, id, state, outcome, queue, name, priority, held, 1, NULL, NULL, NULL, NULL, 0,
            CASE state WHEN 'closed' THEN (SELECT at FROM events WHERE seq = runners.last_seq) END,
            (SELECT coalesce(sum(value ->> '$.output.bytes' - value ->> '$.output.dropped'), 0)
                FROM json_each(record, '$.runs[0].attempts')),
            last_seq, record
        FROM runners;
     DROP TABLE runners;
     ALTER TABLE runners_2 RENAME TO runners;
     CREATE INDEX runners_open ON runners (state, n) WHERE state <> 'closed';
     CREATE INDEX runners_by_outcome ON runners (outcome, n) WHERE outcome IS NOT NULL;
     CREATE INDEX runners_by_name ON runners (name, n) WHERE name IS NOT NULL;
     CREATE INDEX runners_closed ON runners (closed_at, log_bytes) WHERE closed_at IS NOT NULL;
     CREATE INDEX keys_of_runner ON keys (runner);
     CREATE TABLE queues (name TEXT PRIMARY KEY, settings TEXT NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE context (name TEXT PRIMARY KEY, variable TEXT NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE webhooks (
        runner BLOB PRIMARY KEY, attempts INTEGER NOT NULL, due_at INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX webhooks_due ON webhooks (due_at);
     CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
     INSERT INTO meta VALUES ('context_version', 0), ('purged_seq', 0);",
    // 3. A record is not stored: it is what the events add up to. What is left in `runners` is what lists, restoring and
    // retention look for. Events name their Runner by its `n`, which is a tenth of its id in the row and its index.
    "CREATE TABLE runners_3 (
        n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, outcome TEXT, queue TEXT NOT NULL,
        name TEXT, priority INTEGER NOT NULL, held INTEGER NOT NULL, weight INTEGER NOT NULL, concurrency_key TEXT,
        ready_at INTEGER, deadline_at INTEGER, in_process INTEGER NOT NULL, closed_at INTEGER, log_bytes INTEGER NOT NULL
     ) STRICT;
     INSERT INTO runners_3
        SELECT n, id, state, outcome, queue, name, priority, held, weight, concurrency_key, ready_at, deadline_at,
            in_process, closed_at, log_bytes
        FROM runners ORDER BY n;
     CREATE TABLE events_3 (
        seq INTEGER PRIMARY KEY, n INTEGER NOT NULL, at INTEGER NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL
     ) STRICT;
     INSERT INTO events_3
        SELECT seq, (SELECT n FROM runners WHERE id = runner), at, type, data FROM events ORDER BY seq;
     DROP TABLE events;
     DROP TABLE runners;
     ALTER TABLE events_3 RENAME TO events;
     ALTER TABLE runners_3 RENAME TO runners;
     CREATE INDEX events_of_runner ON events (n);
     CREATE INDEX runners_open ON runners (state, n) WHERE state <> 'closed';
     CREATE INDEX runners_by_outcome ON runners (outcome, n) WHERE outcome IS NOT NULL;
     CREATE INDEX runners_by_name ON runners (name, n) WHERE name IS NOT NULL;
     CREATE INDEX runners_by_queue ON runners (queue, n) WHERE queue <> 'default';
     CREATE INDEX runners_closed ON runners (closed_at, log_bytes) WHERE closed_at IS NOT NULL;",
    // 4. The event of a submission is found without an index: its place is the `n` of its Runner.
    "DROP INDEX events_of_runner;
     CREATE INDEX events_of_runner ON events (n) WHERE seq > n;",
    // 5. A row is what happened to a Runner at one moment: `count` events in an array, the first of them at `seq`.
    "CREATE TABLE events_5 (
        seq INTEGER PRIMARY KEY, n INTEGER NOT NULL, at INTEGER NOT NULL, count INTEGER NOT NULL, data TEXT NOT NULL
     ) STRICT;
     INSERT INTO events_5 SELECT seq, n, at, 1, '[' || data || ']' FROM events ORDER BY seq;
     DROP TABLE events;
     ALTER TABLE events_5 RENAME TO events;
     CREATE INDEX events_of_runner ON events (n) WHERE seq > n;",
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

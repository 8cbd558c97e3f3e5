//! The store: an event log in SQLite. A record is not stored, it is what its events add up to; what lists, retention and
//! the next start look for is written in the same transaction as the events.
//!
//! One thread writes ([`Log`]), a few read ([`Readers`]), and the supervisor reads single records by
//! themselves ([`Lookup`]). Nothing else in the program opens the database file: closing another descriptor
//! of it would drop SQLite's locks.

mod archive;
mod create;
mod kept;
mod list;
mod log;
mod rows;
mod schema;

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use crate::job::RunnerId;

pub use archive::{Lookup, Readers};
pub use kept::{Closed, Message, Totals};
pub use log::{Log, Tally};

/// Versions before this one can corrupt a WAL database when it is reset (fixed in SQLite 3.51.3).
const OLDEST_SQLITE: i32 = 3_051_003;

/// Up to this size the whole file is checked at start, in a few milliseconds; beyond it starting would take
/// noticeably longer, and damage is found when it is read.
const CHECKED_BYTES: i64 = 32 << 20;

/// The mode of its files: commands, output and context variables are nobody else's.
const MODE: u32 = 0o600;

/// What a usual commit changes fits. Of a larger one some pages are written before their time, and some of these again:
/// with ten times as much neither batches nor anything else was faster, and what a rush took stays with the allocator.
const WRITER_CACHE_KIB: i64 = 400;

/// Only a reader that is just being closed by another process can hold a lock: the state directory is ours.
const BUSY: Duration = Duration::from_secs(5);

/// Why the store can't be used. The daemon then refuses to start: it never begins empty over somebody's data.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite says no.
    #[error("{0}; restore the file from a backup, or move the whole state directory away to begin anew")]
    Sqlite(#[from] rusqlite::Error),
    /// Others can read a file of it, and it can't be changed.
    #[error("{file} can't be given the mode 0600: {error}; run `chmod 600` on it as its owner")]
    Mode {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file belongs to another program.
    #[error("it is a database of another program; point --state-dir at a directory of runward's own")]
    NotOurs,
    /// The file was written by a later version.
    #[error(
        "it has schema version {found}, and this runward knows versions up to {known}; use the newer runward again"
    )]
    Newer {
        /// The file's version.
        found: usize,
        /// The latest version known.
        known: usize,
    },
    /// The file is damaged.
    #[error(
        "it is damaged ({0}); restore the file from a backup, or move the whole state directory away to begin anew"
    )]
    Damaged(String),
    /// There are traces of a store but no records.
    #[error(
        "it is empty or missing, but a daemon has used this state directory (its `token` or `logs` are there); \
         restore the file from a backup, or move the whole state directory away to begin anew"
    )]
    Vanished,
    /// A job was executed that the store knows nothing of.
    #[error(
        "it has lost its latest records: the job {0} was executed, its output is in `logs`, but there is no record of \
         it; restore the file from a backup, or move `logs/{0}` away to go on without what was lost"
    )]
    Forgotten(RunnerId),
    /// A start was executed that the store knows nothing of.
    #[error(
        "it has lost its latest records: a job was executed, as a file in `slots` tells, whose start is not in it; \
         restore the file from a backup, or remove the files in `slots` to go on without what was lost"
    )]
    ForgottenStart,
    /// The program was built with a SQLite that corrupts.
    #[error(
        "this runward was built with SQLite {0}, which can corrupt the store; use SQLite 3.51.3 or later"
    )]
    OldSqlite(&'static str),
}

/// Opens the store for writing, creating or migrating it. `was_used`: whether there must be one.
///
/// # Errors
/// [`OpenError`]; the file is then as it was.
pub fn open(path: &Path, was_used: bool) -> Result<Log, OpenError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(OpenError::OldSqlite(rusqlite::version()));
    }
    if !was_used {
        create::if_missing(path);
    }
    make_private(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    if was_used && schema::is_empty(&connection)? {
        return Err(OpenError::Vanished);
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    check(&connection)?;
    schema::migrate(&mut connection)?;
    Ok(Log::new(connection))
}

/// Lets nobody else read the files, whatever the umask. SQLite makes the others with the mode of the first.
fn make_private(path: &Path) -> Result<(), OpenError> {
    // Closed before SQLite opens it; and where it can't be made, SQLite says why.
    drop(OpenOptions::new().write(true).create_new(true).mode(MODE).open(path));
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let file = PathBuf::from(file);
        let too_open = match fs::symlink_metadata(&file) {
            Ok(facts) => facts.is_file() && facts.mode() & 0o7777 & !MODE != 0,
            Err(_) => false,
        };
        if too_open {
            // By its name: a descriptor, when closed, would take SQLite's locks along.
            fs::set_permissions(&file, Permissions::from_mode(MODE))
                .map_err(|error| OpenError::Mode { file, error })?;
        }
    }
    Ok(())
}

impl OpenError {
    /// Whether it may be well again without anybody touching the file: no room, no permission, no descriptors.
    pub fn may_pass(&self) -> bool {
        use rusqlite::ErrorCode::{
            CannotOpen, DiskFull, OutOfMemory, PermissionDenied, ReadOnly, SystemIoFailure,
        };
        if matches!(self, Self::Mode { .. }) {
            return true;
        }
        let Self::Sqlite(error) = self else { return false };
        let code = error.sqlite_error_code();
        code.is_some_and(|code| {
            [CannotOpen, DiskFull, OutOfMemory, PermissionDenied, ReadOnly, SystemIoFailure].contains(&code)
        })
    }
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn connect_readonly(path: &Path) -> rusqlite::Result<Connection> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn check(connection: &Connection) -> Result<(), OpenError> {
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    if pages.saturating_mul(page_bytes) > CHECKED_BYTES {
        return Ok(());
    }
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(OpenError::Damaged(found)) }
}

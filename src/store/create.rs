//! A new store: made whole under another name, then given its own. A crash leaves either none or all of it, and it costs
//! two syncs, where making it in place costs seven.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::OpenFlags;

use super::{MODE, OpenError, connect, schema};

/// Makes the store if there is none. Where that fails there still is none: whoever opens it says why.
pub(super) fn if_missing(path: &Path) {
    if path.symlink_metadata().is_ok() {
        return;
    }
    let draft = PathBuf::from(format!("{}.new", path.display()));
    if let Err(error) = create(&draft, path) {
        tracing::debug!(%error, "the store is made in place");
        remove(&draft);
    }
}

fn create(draft: &Path, path: &Path) -> Result<(), OpenError> {
    // What a crash has left.
    remove(draft);
    let file = |error| OpenError::Mode { file: draft.to_owned(), error };
    drop(OpenOptions::new().write(true).create_new(true).mode(MODE).open(draft).map_err(file)?);
    let mut connection = connect(draft, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // It is synced whole.
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    schema::migrate(&mut connection)?;
    // The last to close moves everything to the main file.
    connection.close().map_err(|(_, error)| error)?;
    File::open(draft).and_then(|made| made.sync_all()).map_err(file)?;
    fs::rename(draft, path).map_err(file)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(file)
}

fn remove(draft: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        // Most are not there.
        fs::remove_file(format!("{}{suffix}", draft.display())).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_store_is_whole_or_not_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("runward.db");
        fs::write(dir.path().join("runward.db.new"), "half of one").expect("written");
        if_missing(&path);
        let names: Vec<_> = fs::read_dir(dir.path())
            .expect("readable")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["runward.db"], "in one file, and nothing is left of the draft");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o7777, MODE);
        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opened");
        assert!(!schema::is_empty(&connection).expect("readable"));
        let mode: String =
            connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("readable");
        assert_eq!(mode, "wal");
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("runward.db");
        fs::write(&path, "").expect("written");
        if_missing(&path);
        assert_eq!(fs::read(&path).expect("readable"), b"");
    }
}

//! Files that a job of another user reads or writes. The state directory is closed to it, so they have a place of
//! their own, for as long as the job runs.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use crate::job::AttemptKey;

/// Others pass through, and see no names.
const PASSABLE: u32 = 0o711;

/// The place of all of them: a directory that others may pass through but not list.
#[derive(Debug)]
pub struct Handover {
    root: PathBuf,
}

impl Handover {
    /// Takes the place over and removes what an earlier daemon has left in it. `root` is this daemon's alone; what is
    /// above it must exist and not be open for others to write.
    ///
    /// # Errors
    /// Those of removing.
    pub fn take_over(root: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(Self { root }),
        }
    }

    /// Where the directory of one attempt is to be made: its shim makes it, for the job's user alone. Blocking.
    pub(super) fn dir(&self, key: AttemptKey) -> io::Result<PathBuf> {
        if !self.root.is_dir() {
            DirBuilder::new().recursive(true).create(&self.root)?;
            // Whatever the daemon's own mask is.
            fs::set_permissions(&self.root, Permissions::from_mode(PASSABLE))?;
        }
        Ok(self.path(key))
    }

    fn path(&self, key: AttemptKey) -> PathBuf {
        self.root.join(format!("{:032x}", key.as_u128()))
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        // Not there, or not empty when a job could not be killed: the next start takes it over.
        fs::remove_dir(&self.root).ok();
    }
}

//! Files that a job of another user reads or writes. The state directory is closed to it, so they have a place of
//! their own, for as long as the job runs.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown},
    path::{Path, PathBuf},
};

use crate::{job::AttemptKey, process::User};

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

    /// A directory for one attempt, with these files. It is its user's, as are the files, which nobody else reads.
    /// Blocking.
    pub(super) fn make(&self, key: AttemptKey, user: &User, files: &[(&str, &[u8])]) -> io::Result<Place> {
        DirBuilder::new().recursive(true).mode(0o711).create(&self.root)?;
        let place = Place { dir: self.root.join(format!("{:032x}", key.as_u128())) };
        DirBuilder::new().mode(0o700).create(&place.dir)?;
        for (name, content) in files {
            let path = place.dir.join(name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
            file.write_all(content)?;
            fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        // Last: until then nobody but this process has been in it.
        chown(&place.dir, Some(user.uid), Some(user.gid))?;
        Ok(place)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        // Not there, or not empty when a job could not be killed: the next start takes it over.
        fs::remove_dir(&self.root).ok();
    }
}

/// The directory of one attempt. Dropping it removes it with all that is in it, which may block.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
}

impl Place {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a job's files are left until the next start");
        }
    }
}

//! The state directory: ours alone, one daemon at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc;
use serde::{Deserialize, Serialize};

/// An open, locked state directory. Dropping it lets another daemon have it.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    has_slots: bool,
    _lock: File,
}

const SLOTS: &str = "slots";

/// What `daemon.json` tells clients of a running daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonFile {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The addresses it really bound: `unix:/path`, `127.0.0.1:7711`.
    pub listen: Vec<String>,
}

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It can't be made or read.
    #[error("the state directory {path} can't be used: {error}; choose another with --state-dir")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not private.
    #[error(
        "{path} {problem}; make it a directory of user {uid} with mode 0700, or choose another with --state-dir"
    )]
    NotPrivate {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Who it should belong to.
        uid: u32,
    },
    /// Another daemon has it.
    #[error(
        "the state directory {path} is in use by the runward daemon with pid {pid}; stop that one, or choose another with --state-dir"
    )]
    InUse {
        /// Which.
        path: PathBuf,
        /// By whom.
        pid: String,
    },
}

impl StateDir {
    /// Makes the directory if need be, checks that nobody else can reach into it, and locks it.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |error| StateDirError::Io { path: path.to_owned(), error };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io)?;
        }
        make_dir(path).map_err(io)?;
        check_private(path)?;
        let path = path.canonicalize().map_err(io)?;
        let lock = lock(&path)?;
        let has_slots = path.join(SLOTS).is_dir();
        let state = Self { path, has_slots, _lock: lock };
        for dir in [state.logs(), state.slots(), state.files()] {
            make_dir(&dir).map_err(io)?;
            check_private(&dir)?;
        }
        Ok(state)
    }

    /// The directory, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the store is.
    pub fn database(&self) -> PathBuf {
        self.path.join("runward.db")
    }

    /// Where output goes.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Where shims note what they execute: see `process::spool`.
    pub fn slots(&self) -> PathBuf {
        self.path.join(SLOTS)
    }

    /// Whether they were there before this start: not in a copy of the store, nor where an older version ran.
    pub fn had_slots(&self) -> bool {
        self.has_slots
    }

    /// Where the files of jobs that run are.
    pub fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// Removes the files that an earlier daemon's jobs have left. Call it when they are dead.
    ///
    /// # Errors
    /// Those of removing.
    pub fn clear_files(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.files())? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Whether a daemon got as far as to make a store here: it makes its token only then.
    pub fn was_used(&self) -> bool {
        let has_logs = fs::read_dir(self.logs()).is_ok_and(|mut entries| entries.next().is_some());
        has_logs || self.path.join("token").exists()
    }

    /// The name of the latest Runner that has output: a damaged store loses its latest records first, and nothing is
    /// executed before its record is durable.
    ///
    /// # Errors
    /// The directory's.
    pub fn last_executed(&self) -> io::Result<Option<String>> {
        // Ids are in the order of time. Only one that is later than all before is looked into: few are.
        let mut latest = None;
        for entry in fs::read_dir(self.logs())? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if latest.as_ref().is_none_or(|latest| name > *latest)
                && self.logs().join(&name).join("1-1").is_dir()
            {
                latest = Some(name);
            }
        }
        Ok(latest)
    }

    /// The file that a daemon locks for its keeper and shims: see `process::children_lock`.
    ///
    /// # Errors
    /// The file's.
    pub fn children_lock(&self) -> io::Result<File> {
        open_private(&self.path.join("children.lock"))
    }

    /// Tells clients of this daemon.
    ///
    /// # Errors
    /// The file's.
    pub fn publish(&self, daemon: &DaemonFile) -> io::Result<()> {
        let (path, new) = (self.path.join("daemon.json"), self.path.join("daemon.json.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(daemon)?)?;
        fs::rename(new, path)
    }

    /// Takes that back.
    pub fn withdraw(&self) {
        if let Err(error) = fs::remove_file(self.path.join("daemon.json")) {
            tracing::debug!(%error, "daemon.json could not be removed");
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn check_private(path: &Path) -> Result<(), StateDirError> {
    let metadata =
        fs::symlink_metadata(path).map_err(|error| StateDirError::Io { path: path.to_owned(), error })?;
    let uid = nix::unistd::geteuid().as_raw();
    let problem = if metadata.is_symlink() {
        "is a symbolic link".into()
    } else if !metadata.is_dir() {
        "is not a directory".into()
    } else if metadata.uid() != uid {
        format!("belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("has mode {:04o}", metadata.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(StateDirError::NotPrivate { path: path.to_owned(), problem, uid })
}

fn lock(path: &Path) -> Result<File, StateDirError> {
    let io = |error| StateDirError::Io { path: path.to_owned(), error };
    let mut file = open_private(&path.join("daemon.lock")).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(io)?;
            file.write_all(std::process::id().to_string().as_bytes()).map_err(io)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io)?;
            Err(StateDirError::InUse { path: path.to_owned(), pid })
        }
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

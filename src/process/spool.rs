//! What a shim leaves when its lifeline closes after *go*: how the attempt ended, for the next start to adopt.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ExitReport, StartFailure};

const NAME: &str = "exit";
const UNFINISHED: &str = "exit.tmp";

/// The content of a spool file, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum Spooled {
    /// It ran.
    Exited {
        /// How it ended.
        #[serde(flatten)]
        report: ExitReport,
        /// The shim killed it because the daemon or the keeper was gone. Otherwise it had ended by itself, and the
        /// daemon was gone before it had said that this is committed.
        lifeline: bool,
    },
    /// It did not start, and the daemon was gone before it had said that this is committed.
    StartFailed(StartFailure),
}

/// What is known of an attempt from its directory. Certain only while the children lock is held: before, its
/// shim may still be at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is no directory: *go* was never given, nothing was executed.
    NeverStarted,
    /// *Go* was given, and the shim left this.
    Ended(Spooled),
    /// *Go* was given, and nothing was left: the shim was killed, or the host went down, or this ending was
    /// acknowledged.
    Unknown,
}

/// Why a spool file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It can't be read.
    #[error("can't read the spool file: {0}")]
    Read(#[from] io::Error),
    /// It is not what a shim writes.
    #[error("the spool file is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// Looks at an attempt directory.
pub fn find(dir: &Path) -> Result<Found, SpoolError> {
    match fs::read(dir.join(NAME)) {
        Ok(bytes) => Ok(Found::Ended(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(if fs::exists(dir)? { Found::Unknown } else { Found::NeverStarted })
        }
        Err(e) => Err(e.into()),
    }
}

/// Writes the spool file whole or not at all. Not synced: a daemon's death keeps the page cache, and after a
/// power loss the attempt is lost in any case.
pub(super) fn leave(dir: &Path, ended: &Spooled) -> io::Result<()> {
    fs::write(dir.join(UNFINISHED), serde_json::to_vec(ended)?)?;
    fs::rename(dir.join(UNFINISHED), dir.join(NAME))
}

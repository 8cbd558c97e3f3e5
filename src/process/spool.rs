//! What shims leave for the next start: which attempts were executed, and how those ended whose ending was not on
//! record yet when the lifeline closed.
//!
//! Each shim has a slot: a number, and the file of that name in the daemon's directory of slots. On *go*, before
//! anything executes, it writes the attempt there; an attempt that is in no slot was not executed. A slot is given to
//! the next attempt when the ending of the last one is on record. The ending is left beside it, in `<slot>.exit`.
//!
//! Nothing is synced: a daemon's death keeps the page cache, and after a power loss an attempt is lost in any case.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ExitReport, StartFailure};

const EXIT: &str = "exit";
const UNFINISHED: &str = "tmp";

/// An attempt's id in hexadecimal digits, a space, the place of its start in decimal ones, the end of a line.
const SLOT_BYTES: usize = 32 + 1 + 20 + 1;

/// How an attempt ended, as JSON.
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

/// The content of a spool file.
#[derive(Serialize, Deserialize)]
struct Content<T> {
    /// 32 hexadecimal digits.
    attempt: String,
    #[serde(flatten)]
    ended: T,
}

/// What is known of an attempt. Certain only while the children lock is held: before, its shim may still be at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is in no slot: *go* was never given, nothing was executed.
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
    #[error("can't read {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not what a shim writes.
    #[error("{path} is damaged: {error}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where.
        error: serde_json::Error,
    },
}

/// All that the shims of an earlier daemon have left.
#[derive(Debug, Default)]
pub struct Slots {
    found: HashMap<u128, Found>,
    /// The latest place of a start that was executed.
    pub latest: Option<u64>,
    /// Endings that can't be used. Their attempts are known as executed.
    pub damaged: Vec<SpoolError>,
    spooled: Vec<PathBuf>,
}

impl Slots {
    /// Reads a directory of slots.
    ///
    /// # Errors
    /// The directory's.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let mut slots = Self::default();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match path.extension().map(|extension| extension.as_encoded_bytes()) {
                Some(b"exit") => slots.take_exit(path),
                Some(_) => slots.spooled.push(path),
                None => slots.take_slot(&path),
            }
        }
        Ok(slots)
    }

    fn take_slot(&mut self, path: &Path) {
        // One that was never used is empty; one that a power loss has torn says nothing, as if it were not there.
        let Some((attempt, place)) = fs::read(path).ok().and_then(|bytes| parse(&bytes)) else { return };
        self.found.entry(attempt).or_insert(Found::Unknown);
        self.latest = self.latest.max(Some(place));
    }

    fn take_exit(&mut self, path: PathBuf) {
        let read = fs::read(&path).map_err(|error| SpoolError::Read { path: path.clone(), error });
        let content = read.and_then(|bytes| {
            serde_json::from_slice::<Content<Spooled>>(&bytes)
                .map_err(|error| SpoolError::Damaged { path: path.clone(), error })
        });
        match content {
            Ok(Content { attempt, ended }) => {
                if let Ok(attempt) = u128::from_str_radix(&attempt, 16) {
                    self.found.insert(attempt, Found::Ended(ended));
                }
            }
            Err(error) => self.damaged.push(error),
        }
        self.spooled.push(path);
    }

    /// What is known of an attempt.
    pub fn find(&self, attempt: u128) -> Found {
        self.found.get(&attempt).cloned().unwrap_or(Found::NeverStarted)
    }

    /// Removes the endings, once what became of them is on record. The slots stay: they are few, and tell of a store that
    /// has lost what it had.
    pub fn forget(self) {
        for path in self.spooled {
            // It is found again by the next start, which has no use for it.
            fs::remove_file(path).ok();
        }
    }
}

/// What the output of an attempt tells of it when no slot does: it has some, so it was executed. Before there were slots
/// this directory was made on *go*, and the ending left in it.
pub fn find_in_attempt(dir: &Path) -> Found {
    match fs::read(dir.join(EXIT)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_or(Found::Unknown, Found::Ended),
        Err(_) if dir.is_dir() => Found::Unknown,
        Err(_) => Found::NeverStarted,
    }
}

fn parse(bytes: &[u8]) -> Option<(u128, u64)> {
    let text = str::from_utf8(bytes).ok().filter(|text| text.len() == SLOT_BYTES)?;
    let (attempt, place) = text.trim_end().split_once(' ')?;
    Some((u128::from_str_radix(attempt, 16).ok()?, place.parse().ok()?))
}

/// The file of a slot.
pub(super) fn slot(dir: &Path, slot: u32) -> PathBuf {
    dir.join(slot.to_string())
}

/// The attempt that was noted last in a slot.
pub(super) fn noted(dir: &Path, number: u32) -> Option<u128> {
    parse(&fs::read(slot(dir, number)).ok()?).map(|(attempt, _)| attempt)
}

/// Notes in its slot that an attempt is executed from now on.
pub(super) fn note(slot: &File, attempt: u128, place: u64) -> io::Result<()> {
    slot.write_all_at(format!("{attempt:032x} {place:020}\n").as_bytes(), 0)
}

/// Leaves an ending beside its slot, whole or not at all.
pub(super) fn leave(slot: &Path, attempt: u128, ended: &Spooled) -> io::Result<()> {
    let content = Content { attempt: format!("{attempt:032x}"), ended };
    let unfinished = slot.with_extension(UNFINISHED);
    fs::write(&unfinished, serde_json::to_vec(&content)?)?;
    fs::rename(unfinished, slot.with_extension(EXIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_output_was_executed_and_an_older_version_left_its_ending_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let attempt = dir.path().join("1-1");
        assert_eq!(find_in_attempt(&attempt), Found::NeverStarted);
        fs::create_dir(&attempt).expect("made");
        assert_eq!(find_in_attempt(&attempt), Found::Unknown);
        let failed = Spooled::StartFailed(StartFailure::new(crate::process::Stage::Exec, 2));
        fs::write(attempt.join("exit"), serde_json::to_vec(&failed).expect("JSON")).expect("written");
        assert_eq!(find_in_attempt(&attempt), Found::Ended(failed));
        fs::write(attempt.join("exit"), "{").expect("written");
        assert_eq!(find_in_attempt(&attempt), Found::Unknown);
    }

    #[test]
    fn a_slot_tells_its_latest_attempt_and_an_ending_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = |number| File::create(slot(dir.path(), number)).expect("made");
        let (first, second) = (open(0), open(1));
        open(2);
        note(&first, 1, 10).expect("noted");
        note(&first, u128::MAX, 30).expect("noted");
        note(&second, 3, 20).expect("noted");
        let failed = Spooled::StartFailed(StartFailure::new(crate::process::Stage::Exec, 2));
        leave(&slot(dir.path(), 1), 3, &failed).expect("left");
        fs::write(slot(dir.path(), 3), "torn").expect("written");
        fs::write(dir.path().join("4.exit"), "{").expect("written");
        fs::write(dir.path().join("5.tmp"), "{").expect("written");

        let slots = Slots::read(dir.path()).expect("read");
        assert_eq!(slots.find(1), Found::NeverStarted, "its slot has gone to another");
        assert_eq!(slots.find(u128::MAX), Found::Unknown);
        assert_eq!(slots.find(3), Found::Ended(failed));
        assert_eq!((slots.latest, slots.damaged.len()), (Some(30), 1));
        slots.forget();
        let slots = Slots::read(dir.path()).expect("read");
        assert_eq!((slots.find(3), slots.latest, slots.damaged.len()), (Found::Unknown, Some(30), 0));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 4, "the slots are left");
    }
}

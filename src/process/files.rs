//! Files between a job and whoever launched it: what it is given besides arguments, environment and standard
//! input, and what it leaves besides its exit and its output.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A job's files. The shim makes them on *go* for the job's user, reads them when nothing of the tree lives, and removes
/// them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Where they are.
    pub dir: PathBuf,
    /// That directory is their own, made with them and removed with all that is in it, for a user who can't reach into
    /// another; its parent exists. Otherwise it exists, and other jobs' files, of other names, are in it as well.
    pub own_dir: bool,
    /// Name and content of those that are there when the program starts.
    pub given: Vec<(String, Vec<u8>)>,
    /// Names of those that the job may leave, told in the same order in
    /// [`ExitReport::files`](super::ExitReport::files).
    pub taken: Vec<String>,
}

impl Files {
    /// The size up to which a file that the job leaves is read, in bytes.
    pub const LIMIT: usize = 64 << 10;

    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty() && self.taken.is_empty()
    }
}

/// Without contents: they may be secrets, and this may go to a log.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("dir", &self.dir)
            .field("own_dir", &self.own_dir)
            .field("given", &self.given.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("taken", &self.taken)
            .finish()
    }
}

/// What a job has left under one name; `None`: nothing.
pub type Taken = Result<Option<String>, Untaken>;

/// Why a file that a job has left is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Untaken {
    /// It is a symbolic link, which may lead to what the job itself can't read.
    #[error("is a symbolic link; write a regular file")]
    Link,
    /// It is a directory, a pipe, a socket or a device.
    #[error("is no regular file; write one")]
    NotRegular,
    /// It belongs to somebody else: a hard link, perhaps to what the job itself can't read.
    #[error("belongs to the user {0}, not to the job's")]
    Owner(u32),
    /// It is larger than [`Files::LIMIT`].
    #[error("is larger than 64 KiB; keep large data in a file of your own, and write its path")]
    TooLarge,
    /// It is not UTF-8.
    #[error("is not UTF-8")]
    NotText,
    /// It can't be read, with this error number.
    #[error("can't be read: {}", std::io::Error::from_raw_os_error(*.0))]
    Unreadable(i32),
}

//! How a job's tree is held together, so that all of it can be killed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The means in force, probed once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tier {
    /// Each attempt has a cgroup (v2) of its own, below `base`: one write kills all of it.
    Cgroup {
        /// `<own cgroup>/runward-<8 hex digits>`.
        base: PathBuf,
    },
    /// The shim adopts every orphan of the tree, and kills its children until there are none.
    Subreaper,
}

impl Tier {
    /// The name in `/v1/info`: `cgroup2` or `subreaper`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cgroup { .. } => "cgroup2",
            Self::Subreaper => "subreaper",
        }
    }

    /// The cgroup of one attempt, whether it exists or not.
    pub(super) fn attempt(&self, attempt: u128) -> Option<AttemptCgroup> {
        match self {
            Self::Cgroup { base } => Some(AttemptCgroup { dir: base.join(format!("{attempt:032x}")) }),
            Self::Subreaper => None,
        }
    }
}

/// The cgroup of one attempt.
#[derive(Debug, Clone)]
pub(super) struct AttemptCgroup {
    dir: PathBuf,
}

impl AttemptCgroup {
    /// Makes it and opens it, to be forked into.
    pub(super) fn create(&self) -> io::Result<File> {
        fs::create_dir(&self.dir)?;
        File::open(&self.dir).inspect_err(|_| drop(fs::remove_dir(&self.dir)))
    }

    /// Moves the calling process into it.
    pub(super) fn join(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), "0")
    }

    /// Kills all of it, what it forks meanwhile included. Returns before they are dead.
    pub(super) fn kill(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1")
    }

    /// Removes it. `EBUSY` while something of it lives.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.dir)
    }
}

/// Finds the best tier. `instance` tells this daemon's cgroups from those of another; it should stay the same
/// over restarts, so that [`sweep_leftovers`] finds what an earlier incarnation left.
/// The second part says why it is not a better one.
pub fn probe(_instance: u32) -> (Tier, Option<String>) {
    (Tier::Subreaper, Some("not written yet".into()))
}

/// Kills and removes what an earlier incarnation left below `base`. Returns how many cgroups there were.
/// Call it with the children lock held and before the keeper is used. Blocks until their processes are dead.
pub fn sweep_leftovers(_base: &Path) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

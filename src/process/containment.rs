//! How a job's tree is held together, so that all of it can be killed.

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

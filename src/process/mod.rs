//! Child processes: how they are started, contained, carried and reported.
//!
//! ```text
//! daemon          Launcher, Shim: ask and listen, over sockets
//! └── keeper      forked before any thread exists; forks shims, reaps them, sweeps behind them
//!     └── shim    one per attempt at a time; holds the whole tree of the job, its pipes and its log
//!         └── job
//! ```
//!
//! A job starts only after *go*, which the daemon sends once the attempt is on record. Each shim holds a
//! lifeline, its socket to the daemon: when that closes, the tree dies and the ending is [left](spool) for the next
//! start. An ending is reported only when nothing of the tree lives, and the shim holds it until the daemon says that it
//! is on record: then the shim is [idle](Shim::release), and takes another attempt, or [leaves](Shim::ack).
//!
//! Names: *attempt* is one try of a run, a 128-bit id that the caller chooses; the *attempt directory* holds its output;
//! the *slot* of a shim is its number, under which it notes what it executes.

mod cgroup;
pub mod children_lock;
pub mod containment;
mod controllers;
mod files;
mod handle;
mod inherited;
mod keeper;
mod launch;
mod launcher;
pub mod log;
mod permits;
mod protocol;
pub mod reap;
pub mod recovery;
mod shim;
pub mod spool;

use std::time::Duration;

pub use controllers::{LimitSupport, hand_on};
pub use files::{Files, Taken, Untaken};
pub use handle::{SendError, Shim, ShimEvent};
pub use inherited::{HandedOver, handed_over, reset_inherited_signals};
pub use launch::{Ending, ExitReport, Launch, Oom, RLimit, Resource, Stage, StartFailure, TreeLimits, User};
pub use launcher::{
    KeeperEnd, KeeperError, KeeperLink, KeeperSetup, KeeperWatch, LaunchError, Launcher, fork_keeper,
};
pub use permits::Permits;
pub use protocol::FRAME_LIMIT;

/// How long the pipes are still read once the tree is dead. Nobody of the tree can write any more; only a process
/// elsewhere that was handed the descriptor keeps one open.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long a kill may take before it is reported as pending: the slowest clean-up seen of a tree that could
/// die took 55 ms.
pub const KILL_PENDING_AFTER: Duration = Duration::from_secs(1);

/// How long a start waits for what an earlier incarnation left to die of its kill. A process that has not by then is
/// stuck in the kernel, and a start that waits longer tells its user less than an error does.
pub const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);

//! The supervisor: owns all Runners, decides what may start, records every change.
//!
//! [`core`] decides, the actor performs, [`ports`] says what it needs of the world, and everybody else
//! holds a [`Supervisor`].

mod actor;
pub mod core;
pub mod explain;
mod handle;
mod hub;
pub mod ports;
pub mod recovery;
mod wall_clock;
mod writer;

use std::path::{Path, PathBuf};

pub(crate) use actor::jitter;
pub use actor::{Actor, Ended, Fatal, Parts, REPORTS, Urgent};
pub use handle::{
    Archive, Filter, LOOKS, Listed, ReadError, Reading, Refusal, Stage, Status, Submission, Submitted,
    Supervisor, Taken,
};
pub use hub::{Hub, Subscription};
pub use writer::count_durable;

use crate::job::RunnerId;

/// Where an attempt's output and its spooled exit are.
pub fn attempt_dir(log_root: &Path, id: RunnerId, run: u32, attempt: u32) -> PathBuf {
    log_root.join(id.to_string()).join(format!("{run}-{attempt}"))
}

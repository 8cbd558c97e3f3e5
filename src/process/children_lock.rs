//! The lock that keeper and shims share as long as one of them lives, and what a start does about those of an earlier
//! daemon that do not end.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::LEFTOVER_LIMIT;

/// How long none of an earlier daemon's shims may end before those left are killed. One that works needs a moment to
/// kill its tree, to read what is left of the output ([`DRAIN_LIMIT`](super::DRAIN_LIMIT)) and to leave the exit.
const PATIENCE: Duration = Duration::from_secs(3);

/// A keeper or shim that holds the lock.
struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

/// Takes the lock when every keeper and shim of an earlier daemon is dead and every spooled exit complete. Those that
/// somebody has stopped are continued; those that do not end are killed, and what they held is left to be swept.
///
/// # Errors
/// The lock's; `TimedOut` when one has not died [`LEFTOVER_LIMIT`] after its kill.
pub fn take(file: &File) -> io::Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let holders = holders(file)?;
        let waiting = "waiting for the jobs of an earlier daemon to be dead";
        if holders.is_empty() {
            // They ended meanwhile, or can't be seen from here: in another container, it may be.
            tracing::info!("{waiting}");
            return file.lock();
        }
        tracing::info!(pids = pids(&holders), "{waiting}");
        // While it stands still it neither kills its tree nor leaves the exit.
        signal(&holders, Signal::CONT);
        let left = ended(holders, PATIENCE)?;
        if left.is_empty() {
            continue;
        }
        tracing::warn!(
            pids = pids(&left),
            "what holds the jobs of an earlier daemon does not end: it is killed"
        );
        signal(&left, Signal::KILL);
        let left = ended(left, LEFTOVER_LIMIT)?;
        if !left.is_empty() {
            let message = format!("the killed processes {} have not died", pids(&left));
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
    }
}

fn pids(holders: &[Holder]) -> String {
    holders.iter().map(|holder| holder.pid.to_string()).collect::<Vec<_>>().join(", ")
}

fn signal(holders: &[Holder], signal: Signal) {
    for Holder { pidfd, .. } in holders {
        // It fails only for one that has ended.
        pidfd_send_signal(pidfd, signal).ok();
    }
}

/// Waits until they have ended, or none of them does for so long. Returns those that are left.
fn ended(mut holders: Vec<Holder>, patience: Duration) -> io::Result<Vec<Holder>> {
    let mut deadline = Instant::now() + patience;
    while !holders.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds: Vec<_> =
            holders.iter().map(|holder| PollFd::new(holder.pidfd.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let alive: Vec<bool> = fds.iter().map(|fd| fd.any() != Some(true)).collect();
        drop(fds);
        let mut alive = alive.into_iter();
        holders.retain(|_| alive.next().unwrap_or(true));
        deadline = Instant::now() + patience;
    }
    Ok(holders)
}

fn holders(file: &File) -> io::Result<Vec<Holder>> {
    let (ours, path) = (file.metadata()?, fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
    let name = path.file_name().unwrap_or_default();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !holds(pid, &ours, name) {
            continue;
        }
        // Held first and looked at again: what is signalled is what was looked at, or has ended since.
        let Some(Ok(pidfd)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            continue;
        };
        if holds(pid, &ours, name) {
            found.push(Holder { pid, pidfd });
        }
    }
    Ok(found)
}

/// Whether it has the file open with the lock on it. Who merely reads the file has not.
fn holds(pid: i32, ours: &Metadata, name: &OsStr) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|entry| {
        // By name first: to look at any file somebody has open might wait for a server that is gone.
        let named = fs::read_link(entry.path()).is_ok_and(|path| path.file_name() == Some(name));
        let same =
            || fs::metadata(entry.path()).is_ok_and(|its| (its.dev(), its.ino()) == (ours.dev(), ours.ino()));
        let locked = || {
            let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().display());
            fs::read_to_string(info).is_ok_and(|info| {
                info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
            })
        };
        named && same() && locked()
    })
}

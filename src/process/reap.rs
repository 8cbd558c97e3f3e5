//! What the daemon's signal thread does about child processes: it reaps what the kernel hands to a PID 1, and keeps
//! the keeper going.

use std::fs;
use std::io;

use super::keeper::sys;

/// Reaps every child that has ended, except `known` ones, whose status somebody waits for. Returns how many.
///
/// Call it from the signal thread on SIGCHLD. Never blocks. A child that another thread starts and waits for must be
/// among `known` before it can end.
///
/// # Errors
/// When `/proc` can't be read.
pub fn strays(known: &[i32]) -> io::Result<usize> {
    let mut reaped = 0;
    // Waiting for any child would take the status of known ones, and looking without taking shows only the first.
    for task in fs::read_dir("/proc/self/task")? {
        let Ok(list) = fs::read_to_string(task?.path().join("children")) else { continue };
        for pid in list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            if !known.contains(&pid) && matches!(sys::reap(pid), Ok(Some(_))) {
                reaped += 1;
            }
        }
    }
    Ok(reaped)
}

/// Lets the keeper go on if somebody has stopped it: while it stands still nothing is started or swept.
/// Call it from the signal thread on SIGCHLD. Never blocks.
pub fn resume(keeper: i32) {
    if let Ok(Some(pid)) = sys::stopped_child(Some(keeper)) {
        // It is a child of ours and unreaped; it fails only when it has ended meanwhile.
        sys::kill(pid, nix::libc::SIGCONT).ok();
    }
}

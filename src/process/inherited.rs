//! What the daemon itself inherits from whoever started it.
#![expect(
    unsafe_code,
    reason = "neither a signal's disposition nor a descriptor that was handed over can be had otherwise"
)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// The first descriptor that is handed over: the standard streams come before.
const FIRST: RawFd = 3;

/// More than anybody listens on; a greater number is a mistake.
const MOST: usize = 64;

/// Undoes what would make the daemon deaf. With SIGCHLD ignored, `wait` gives ECHILD and exit codes are lost;
/// a blocked SIGTERM would never be heard. Call it first thing in `main`.
pub fn reset_inherited_signals() {
    // SAFETY: the default disposition runs no code of ours.
    let reset = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    // Neither can fail: both the signal and the set are valid.
    debug_assert!(reset.is_ok());
    let unblocked = SigSet::empty().thread_set_mask();
    debug_assert!(unblocked.is_ok());
}

/// A descriptor that was handed over by socket activation.
#[derive(Debug)]
pub struct HandedOver {
    /// Its name among them, for people: `runward.socket`.
    pub name: String,
    /// The descriptor; exec closes it.
    pub descriptor: OwnedFd,
}

/// Takes the descriptors that a service manager has handed to this very process (`LISTEN_FDS`). There are none the
/// second time. Call it in `main`, before anything else is opened.
///
/// # Errors
/// `InvalidInput` where the variables make no sense; otherwise the system's.
pub fn handed_over() -> io::Result<Vec<HandedOver>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name: &str| std::env::var_os(name);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let count = count(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())?;
    let names = variable("LISTEN_FDNAMES").and_then(|names| names.into_string().ok()).unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    (FIRST..).take(count).map(|fd| take(fd, names.next().unwrap_or_default())).collect()
}

fn take(fd: RawFd, name: String) -> io::Result<HandedOver> {
    // SAFETY: the variables say that it is this process that the descriptors were opened for, nobody else takes them
    // (see `TAKEN`), and nothing else was opened yet that could have such a number. `fcntl` tells if it is not open.
    let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Err(errno) = fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        // Not open, so it must not be closed either.
        let fd = std::os::fd::IntoRawFd::into_raw_fd(descriptor);
        return Err(bad(&format!("descriptor {fd} of LISTEN_FDS is not open: {errno}")));
    }
    Ok(HandedOver { name, descriptor })
}

/// How many descriptors were handed over to this process.
fn count(pid: Option<OsString>, fds: Option<OsString>, own: u32) -> io::Result<usize> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(0) };
    // Meant for another process, of which this one is a child.
    if pid.to_str() != Some(&own.to_string()) {
        return Ok(0);
    }
    let count = fds.to_str().and_then(|fds| fds.parse().ok()).filter(|count| *count <= MOST);
    count.ok_or_else(|| bad(&format!("LISTEN_FDS is {fds:?}, but must be a number up to {MOST}")))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_for_another_process_are_left_alone() {
        let some = |text: &str| Some(OsString::from(text));
        assert_eq!(count(some("7"), some("2"), 7).expect("ours"), 2);
        assert_eq!(count(some("8"), some("2"), 7).expect("not ours"), 0);
        assert_eq!(count(None, some("2"), 7).expect("not activated"), 0);
        for wrong in ["", "-1", "two", "65", "99999999999999999999"] {
            assert!(count(some("7"), some(wrong), 7).is_err(), "{wrong:?}");
        }
    }
}

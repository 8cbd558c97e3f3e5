//! What the daemon itself inherits from whoever started it.
#![expect(unsafe_code, reason = "a signal's disposition can't be set otherwise")]

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

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

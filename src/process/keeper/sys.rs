//! The system calls of keeper and shim that have no safe form elsewhere. Both are single-threaded for life, which
//! is what makes forking without exec sound.
#![expect(unsafe_code, reason = "fork, raw wait statuses and descriptors by number have no safe wrapper")]

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::ForkResult;

/// The exit code of a process of ours that panicked: `EX_SOFTWARE` of `sysexits.h`.
const PANICKED: i32 = 70;

/// Signals are numbered from 1 to this, `_NSIG` of the kernel.
const SIGNALS: c_int = 64;

/// The second version of `struct sched_attr`, which has all that there is.
pub(crate) const SCHED_ATTR_BYTES: usize = 56;

/// Room for as many processors as a kernel may be built for.
pub(crate) const CPU_SET_BYTES: usize = 8192 / 8;

/// From `linux/sched.h`; the constant of the libc crate is an integer too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks a process that runs `child` and exits with its code. Never returns in the child, whose copies of this
/// process's values are never dropped.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: this process has one thread (fork_keeper refuses otherwise, keeper and shim never start one), so no
    // lock is held by a thread that the child would lack.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => run_and_exit(child),
    }
}

/// As [`fork`], into a cgroup from the first instant: joining it later waits for an RCU grace period, some 10 ms.
/// See [`clone3_is_unknown`] for where it fails.
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>, child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: all fields are integers, for which zero is valid and means unused.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is a fork, see there; the structure is the kernel's, with its true size. The
    // hooks that the C library's fork would run guard the locks of other threads, and there are none.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => run_and_exit(child),
        pid => Ok(pid as i32),
    }
}

/// Whether [`fork_into`] failed because the kernel, or a filter of system calls, does not know the call.
pub(crate) fn clone3_is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

fn run_and_exit(child: impl FnOnce() -> i32) -> ! {
    // A panic must not unwind into the frames of the parent, which are all still there.
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
    // SAFETY: ends the process at once; exit handlers and buffers belong to the parent.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from 3 on, except those in `keep`.
pub(crate) fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().filter(|fd| *fd >= 3) {
        if fd > first {
            close_range(first, fd as u32 - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor from 3 on to be closed by exec.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: RawFd, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: takes integers. Whoever calls it owns the process, and the owners of what is closed are values of the
    // parent, which this process never drops or uses.
    match unsafe { libc::syscall(libc::SYS_close_range, first as u32, last, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes over descriptors that a message has brought. Each number is a descriptor that this process owns now.
pub(crate) fn received(fds: Vec<RawFd>) -> Vec<OwnedFd> {
    // SAFETY: the kernel has made them for this process as the message was received, and nobody else knows them.
    fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// Sets every signal to its default action and blocks them all. What is forked from here inherits the defaults,
/// so a job's child has only its mask to open. Blocked, they can't end keeper or shim, and are read from a
/// descriptor.
pub(crate) fn reset_signals() -> io::Result<()> {
    // The kernel's own call: the C library's refuses the two that it keeps for threads, and a parent may have had
    // them ignored. The structure is handler, flags, restorer and mask; zero is the default action.
    let default = [0u64; 4];
    for signal in (1..=SIGNALS).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP)) {
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: the structure is as large as the kernel's, and the default action runs no code of ours.
        if unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, SIGNALS / 8) } == -1
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// A child that has ended, if any, left unreaped: until [`reap`] its number, and so its group's, can't be reused.
pub(crate) fn ended_child() -> io::Result<Option<i32>> {
    changed_child(None, libc::WEXITED | libc::WNOWAIT)
}

/// A child that was stopped since the last call, if any; `only` asks for one.
pub(crate) fn stopped_child(only: Option<i32>) -> io::Result<Option<i32>> {
    changed_child(only, libc::WSTOPPED)
}

fn changed_child(only: Option<i32>, flags: c_int) -> io::Result<Option<i32>> {
    // SAFETY: a structure of integers, valid when zero.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let (which, pid) = only.map_or((libc::P_ALL, 0), |pid| (libc::P_PID, pid.unsigned_abs()));
    // SAFETY: `info` is valid for writing.
    if unsafe { libc::waitid(which, pid, &raw mut info, flags | libc::WNOHANG | libc::__WALL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid fills these fields, or leaves them zero when there is no such child.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// Reaps this child and returns its wait status; `None` while it lives.
pub(crate) fn reap(pid: i32) -> io::Result<Option<i32>> {
    let mut status: c_int = 0;
    // SAFETY: `status` is valid for writing.
    match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(status)),
    }
}

/// Waits for this child's end and reaps it.
pub(crate) fn reap_at_its_end(pid: i32) -> io::Result<()> {
    // SAFETY: no status is asked for.
    match unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// As [`reap`], with what the child and all that it had reaped itself have used.
pub(crate) fn reap_with_usage(pid: i32) -> io::Result<Option<(i32, libc::rusage)>> {
    let mut status: c_int = 0;
    // SAFETY: a structure of integers, valid when zero.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for writing.
    match unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG | libc::__WALL, &raw mut usage) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some((status, usage))),
    }
}

/// Sends a signal, given by number because the real-time ones have no name. `target` is an unreaped child, or the
/// negative number of the group of one: nothing else has a number that is sure to be still its own.
pub(crate) fn kill(target: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    match unsafe { libc::kill(target, signal) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sets the nice value of this process.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// How this process is scheduled: class, flags, nice value, priority and the like, as the kernel's `struct sched_attr`.
pub(crate) fn scheduling() -> io::Result<[u8; SCHED_ATTR_BYTES]> {
    let mut attributes = [0; SCHED_ATTR_BYTES];
    let (pid, flags): (libc::pid_t, libc::c_uint) = (0, 0);
    // SAFETY: the kernel writes so many bytes at most.
    let done = unsafe {
        libc::syscall(libc::SYS_sched_getattr, pid, attributes.as_mut_ptr(), SCHED_ATTR_BYTES, flags)
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

/// The processors that this process may run on, a bit for each.
pub(crate) fn affinity() -> io::Result<[u8; CPU_SET_BYTES]> {
    let mut set = [0; CPU_SET_BYTES];
    let pid: libc::pid_t = 0;
    // SAFETY: the kernel writes so many bytes at most.
    let done = unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, CPU_SET_BYTES, set.as_mut_ptr()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(set) }
}

/// The class and level of this process's disk accesses, -1 where there are none.
pub(crate) fn io_priority() -> libc::c_long {
    /// From `linux/ioprio.h`.
    const IOPRIO_WHO_PROCESS: c_int = 1;
    let who: c_int = 0;
    // SAFETY: takes integers.
    unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, who) }
}

/// How late timers of this process may ring, in nanoseconds; -1 where that can't be told.
pub(crate) fn timer_slack() -> c_int {
    // SAFETY: takes integers.
    unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) }
}

/// The soft and hard limit of one resource, by its number; `None` for a number that the kernel does not know.
pub(crate) fn limits_of(resource: u32) -> Option<(u64, u64)> {
    let mut limits = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let pid: libc::pid_t = 0;
    let new: *const libc::rlimit64 = std::ptr::null();
    // SAFETY: sets nothing, and the other is valid for writing.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new, &raw mut limits) };
    (done == 0).then_some((limits.rlim_cur, limits.rlim_max))
}

/// Strings as exec wants them, built before anything can go wrong.
#[derive(Debug)]
pub(crate) struct ExecStrings {
    pointers: Vec<*const c_char>,
    /// What the pointers point to; the heap blocks do not move with it.
    _strings: Vec<std::ffi::CString>,
}

impl ExecStrings {
    pub(crate) fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// Replaces this process; returns only the error.
pub(crate) fn execve(program: &CStr, argv: &ExecStrings, env: &ExecStrings) -> io::Error {
    // SAFETY: both arrays end with a null pointer and the strings they point to live in the same values.
    unsafe { libc::execve(program.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

//! A child that runs in this process's memory until its exec, while this process waits: no page table is copied, and
//! no page afterwards. What `posix_spawn` does, but into a cgroup and with steps of our own before the exec.
#![expect(unsafe_code, reason = "no library has a safe form of a child that shares our memory")]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::libc;

/// Where there is code for it.
pub(super) const SUPPORTED: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// From `linux/sched.h`; the constant of the libc crate is an integer too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child's stack, in bytes: several times what the steps before exec take without optimisation. Only pages that are
/// touched are ever there.
const STACK_BYTES: usize = 128 << 10;

/// Room for the child's stack, kept by a shim for one child after another.
#[derive(Debug)]
pub(super) struct Stack {
    base: NonNull<c_void>,
}

impl Stack {
    pub(super) fn new() -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), STACK_BYTES, access, flags, -1, 0) };
        match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => Ok(Self { base }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Runs `child` in a child process, on this stack and in this process's memory, and returns the child's id when it
    /// has become another program or has ended, which it does with the code that `child` returns.
    ///
    /// `child` must not allocate: a SIGKILL in the middle of that would leave our heap broken. It must not panic. What it
    /// writes to memory stays; its copies of descriptors, of the directory and of all else that belongs to a process are
    /// its own.
    pub(super) fn run_child<F: Fn() -> c_int>(
        &mut self,
        cgroup: Option<BorrowedFd<'_>>,
        child: &F,
    ) -> io::Result<i32> {
        extern "C" fn call<F: Fn() -> c_int>(child: *const c_void) -> ! {
            // SAFETY: it is the reference that `run_child` holds, for it waits.
            let child = unsafe { &*child.cast::<F>() };
            // What unwinds out of here aborts, which ends the child alone.
            let code = child();
            // SAFETY: ends the child at once: exit handlers and buffers are the parent's.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: all fields are integers, for which zero is valid and means unused.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.stack = self.base.as_ptr() as u64;
        args.stack_size = STACK_BYTES as u64;
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: see `clone3`. This process has one thread and all its signals are blocked, so nobody else uses the
        // memory until the child is done with it; the stack is the child's alone, since `self` is borrowed.
        match unsafe { clone3(&args, call::<F>, std::ptr::from_ref(child).cast()) } {
            pid if pid >= 0 => Ok(pid as i32),
            errno => Err(io::Error::from_raw_os_error(-errno as i32)),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no child runs on it any more.
        unsafe { libc::munmap(self.base.as_ptr(), STACK_BYTES) };
    }
}

type Entry = extern "C" fn(*const c_void) -> !;

/// The system call; the child goes from it to `entry(argument)` on the stack in `args`, and never comes back: nothing of
/// the parent's frames is used twice. The parent gets the child's id or a negative error number.
///
/// # Safety
/// `args` asks for a stack of its own for the child and suspends the parent meanwhile, and `entry` is sound in a process
/// that shares the parent's memory.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: &libc::clone_args, entry: Entry, argument: *const c_void) -> isize {
    let result: isize;
    // SAFETY: the kernel changes rax, rcx and r11 only. The child starts with the parent's registers and an empty,
    // aligned stack; a call pushes the return address, as the calling convention wants it.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: &libc::clone_args, entry: Entry, argument: *const c_void) -> isize {
    let result: isize;
    // SAFETY: the kernel changes x0 only. The child starts with the parent's registers and an empty, aligned stack.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            inlateout("x0") std::ptr::from_ref(args) as isize => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x20") entry,
            in("x21") argument,
            lateout("x30") _,
        );
    }
    result
}

/// Never called: see [`SUPPORTED`].
///
/// # Safety
/// None needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(_: &libc::clone_args, _: Entry, _: *const c_void) -> isize {
    -(libc::ENOSYS as isize)
}

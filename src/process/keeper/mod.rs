//! The keeper: a small process between daemon and shims, forked before any thread exists. It forks shims, reaps
//! them, and when one dies without having cleaned up, kills what it left.
//!
//! It lives as long as its lifeline, the socket to the daemon, and then until its shims are gone: they see their
//! own lifelines close. When it is killed itself, its shims notice and kill their trees.

pub(super) mod children;
pub(super) mod sys;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};

use self::children::Children;
use super::containment::Tier;
use super::protocol::{KeeperReport, ShimEnd, ToKeeper};
use super::{KeeperSetup, shim};

/// How often strays that would not die are looked at again. They die by themselves (SIGKILL is pending on them), but
/// one that is handed over by a process that is itself stuck gives no sign.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Forks the keeper; never returns in it. `socket` is its end of the lifeline.
pub(super) fn fork(socket: OwnedFd, setup: &KeeperSetup) -> io::Result<i32> {
    let keep = [socket.as_raw_fd(), setup.children_lock.as_raw_fd()];
    let run = || match start(&keep).and_then(|signals| Keeper::new(socket, setup, signals)?.run()) {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("keeper: {error}"));
            1
        }
    };
    sys::fork(run)
}

/// Tells what went wrong where nobody listens any more. Standard error may be closed; that is no reason to die.
pub(super) fn complain(message: fmt::Arguments<'_>) {
    writeln!(io::stderr(), "runward {message}").ok();
}

fn start(keep: &[RawFd]) -> io::Result<SignalFd> {
    sys::reset_signals()?;
    sys::close_all_but(keep)?;
    nix::unistd::setsid()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::sys::prctl::set_name(c"runward-keeper")?;
    let mask = SigSet::from_iter([Signal::SIGCHLD]);
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

struct Keeper<'a> {
    /// `None` when the daemon is gone.
    socket: Option<OwnedFd>,
    /// Whether more requests can come.
    asked: bool,
    reports: VecDeque<KeeperReport>,
    lock: BorrowedFd<'a>,
    tier: &'a Tier,
    slots: &'a Path,
    signals: SignalFd,
    children: Children,
    /// The shims by their process ids, with their slots.
    shims: HashMap<i32, u32>,
    /// Shims that ended without having cleaned up, to be reported when no stray is left.
    unswept: Vec<(u32, i32)>,
}

impl<'a> Keeper<'a> {
    fn new(socket: OwnedFd, setup: &'a KeeperSetup, signals: SignalFd) -> io::Result<Self> {
        Ok(Self {
            socket: Some(socket),
            asked: true,
            reports: VecDeque::new(),
            lock: setup.children_lock.as_fd(),
            tier: &setup.tier,
            slots: &setup.slots,
            signals,
            children: Children::open()?,
            shims: HashMap::new(),
            unswept: Vec::new(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        while self.asked || !self.shims.is_empty() || !self.unswept.is_empty() {
            let (requests, signalled) = self.wait()?;
            if requests.intersects(PollFlags::POLLIN) {
                self.take_requests()?;
            }
            if requests.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                self.daemon_gone();
            }
            if signalled {
                while self.signals.read_signal()?.is_some() {}
                self.resume_shims()?;
                self.reap()?;
            }
            self.sweep()?;
            self.send_reports();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<(PollFlags, bool)> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, self.asked);
        wanted.set(PollFlags::POLLOUT, !self.reports.is_empty());
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.socket.iter().map(|socket| PollFd::new(socket.as_fd(), wanted)));
        let timeout = if self.unswept.is_empty() {
            PollTimeout::NONE
        } else {
            PollTimeout::try_from(LOOK_AGAIN).unwrap_or(PollTimeout::MAX)
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        Ok((ready(fds.get(1)), !ready(fds.first()).is_empty()))
    }

    fn take_requests(&mut self) -> io::Result<()> {
        loop {
            let Some(socket) = &self.socket else { return Ok(()) };
            let mut order = [0; ToKeeper::LEN];
            let mut space = nix::cmsg_space!([RawFd; 1]);
            let mut bytes = [IoSliceMut::new(&mut order)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let (length, brought) =
                match recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), flags) {
                    Ok(message) => {
                        // Fails when the table of descriptors is full: then the kernel has brought none.
                        let fds = message.cmsgs().into_iter().flatten().filter_map(|part| match part {
                            ControlMessageOwned::ScmRights(fds) => Some(sys::received(fds)),
                            _ => None,
                        });
                        (message.bytes, fds.flatten().next())
                    }
                    Err(Errno::EAGAIN) => return Ok(()),
                    Err(Errno::ECONNRESET) => (0, None),
                    Err(error) => return Err(error.into()),
                };
            if length == 0 {
                self.asked = false;
                return Ok(());
            }
            match ToKeeper::decode(order) {
                Some(ToKeeper::Fork(slot)) => self.fork_shim(slot, brought),
                Some(ToKeeper::Kill(slot)) => self.kill_shim(slot),
                None => complain(format_args!("keeper: an order that is none")),
            }
        }
    }

    fn fork_shim(&mut self, slot: u32, socket: Option<OwnedFd>) {
        let keeper = nix::unistd::getpid();
        let forked = socket.ok_or_else(|| Errno::EMFILE.into()).and_then(|socket| {
            sys::fork(|| shim::run(socket, self.lock, keeper, self.tier, self.slots, slot))
        });
        match forked {
            Ok(pid) => drop(self.shims.insert(pid, slot)),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
                self.reports.push_back(KeeperReport { slot, end: ShimEnd::NotForked { errno } });
            }
        }
    }

    /// It may wait for its child, which may be stuck on the way to its program, and so answers nothing.
    fn kill_shim(&self, slot: u32) {
        let shim = self.shims.iter().find(|(_, its)| **its == slot);
        if let Some((pid, _)) = shim {
            // It is a child of ours and unreaped, or it would not be there.
            sys::kill(*pid, nix::libc::SIGKILL).ok();
        }
    }

    /// A job may stop its own shim, but not keep it from its work.
    fn resume_shims(&self) -> io::Result<()> {
        while let Ok(Some(pid)) = sys::stopped_child(None) {
            if self.shims.contains_key(&pid) {
                sys::kill(pid, nix::libc::SIGCONT)?;
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> io::Result<()> {
        loop {
            let pid = match sys::ended_child() {
                Ok(Some(pid)) => pid,
                Ok(None) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(nix::libc::ECHILD) => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(status) = sys::reap(pid)? else { continue };
            match self.shims.remove(&pid) {
                // A stray.
                None => {}
                Some(slot) if status == 0 => {
                    self.remove_cgroup(slot);
                    self.reports.push_back(KeeperReport { slot, end: ShimEnd::Waited { status } });
                }
                Some(slot) => {
                    if let Some(cgroup) = self.tier.slot(slot) {
                        // Not there when the shim died before making it.
                        cgroup.kill().ok();
                    }
                    self.unswept.push((slot, status));
                }
            }
        }
    }

    /// Removes the cgroup of a shim that has left. Here, one after another: a thousand shims that do it at once at the
    /// daemon's end spin for the lock of the directory above.
    fn remove_cgroup(&self, slot: u32) {
        if let Some(cgroup) = self.tier.slot(slot)
            && cgroup.remove().is_err()
        {
            // It is not there, or somebody from elsewhere has entered it. Then the next start of the daemon removes it.
            cgroup.kill().ok();
        }
    }

    /// Kills every child that is not a shim: the kernel has handed over what a dead shim left. Which shim that
    /// was can't be told, so all that died this way are reported when no stray is left.
    fn sweep(&mut self) -> io::Result<()> {
        if self.unswept.is_empty() {
            return Ok(());
        }
        let mut left = false;
        for pid in self.children.list()?.into_iter().filter(|pid| !self.shims.contains_key(pid)) {
            left = true;
            // EPERM, for one that has changed its user: it is looked at again, and the shim stays unreported.
            sys::kill(pid, nix::libc::SIGKILL).ok();
        }
        if left {
            return Ok(());
        }
        for (slot, status) in self.unswept.drain(..) {
            if let Some(cgroup) = self.tier.slot(slot) {
                cgroup.remove().ok();
            }
            self.reports.push_back(KeeperReport { slot, end: ShimEnd::Waited { status } });
        }
        Ok(())
    }

    fn send_reports(&mut self) {
        while let (Some(socket), Some(report)) = (&self.socket, self.reports.front()) {
            match send(socket.as_raw_fd(), &report.encode(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            {
                Ok(_) => drop(self.reports.pop_front()),
                Err(Errno::EAGAIN) => return,
                Err(_) => self.daemon_gone(),
            }
        }
    }

    fn daemon_gone(&mut self) {
        self.asked = false;
        self.socket = None;
        self.reports.clear();
    }
}

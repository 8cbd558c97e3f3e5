//! The shim: one small process that runs attempts, one after another. It holds the whole tree of each, carries its output
//! to disk, and holds its ending until the daemon has it on record.
//!
//! ```text
//!          ┌────────────────Start─────────────────┐
//! idle ──Start──► running ──all dead, drained──► over ──Ack──► gone
//!  └──EOF─► gone     └─EOF: kill, then ──────────► over ──EOF─► spool file, gone
//! ```
//!
//! It waits in one `poll` for its socket, its signals and the job's pipes. It blocks nowhere else but in writing the log,
//! and until its child runs the job's program.
//!
//! Nothing of an attempt is there for the next: its processes are dead, its pipes closed, its files removed, its cgroup is
//! as it was made or is made anew; and what belongs to a process (directory, mask, limits, user) was the child's own.

mod attributes;
mod child;
mod files;
mod group;
mod job;
mod output;
mod tree;
mod vfork;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno as NixErrno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use self::attributes::Attributes;
use self::child::{Child, Plan, Program, failed, failed_errno};
use self::files::{JobFiles, with_dir};
use self::group::Group;
use self::job::{Job, Over, Source};
use self::output::{Input, Output, now_us};
use self::tree::Tree;
use self::vfork::Stack;
use super::containment::Tier;
use super::keeper::{complain, sys};
use super::log::LogWriter;
use super::protocol::{self, FromShim, Inbox, ToShim};
use super::spool::{self, Spooled};
use super::{ExitReport, Launch, Stage, StartFailure, TreeLimits};

/// What the kernel sends when the keeper dies. Only a hint to look at the parent: anybody may send it.
const KEEPER_DIED: Signal = Signal::SIGUSR1;

/// How much of a frame is read at once: commands are a few bytes, and most jobs fit.
const READ_BYTES: usize = 4 << 10;

/// How long it is not told that a job runs or got a signal: what ends by then is told with it, which wakes the daemon
/// once. It is far below what anybody sees.
const UNHURRIED: Duration = Duration::from_millis(5);

/// Runs a shim in the calling process, just forked from the keeper. Returns its exit code, 0 when the tree is dead and
/// everything is told or spooled; after any other the keeper sweeps.
pub(super) fn run(
    socket: OwnedFd,
    lock: BorrowedFd<'_>,
    keeper: Pid,
    tier: &Tier,
    slots: &Path,
    slot: u32,
) -> i32 {
    let keep = [socket.as_raw_fd(), lock.as_raw_fd()];
    let shim = || {
        sys::close_all_but(&keep)?;
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        nix::sys::prctl::set_name(c"runward-shim")?;
        nix::sys::prctl::set_pdeathsig(KEEPER_DIED)?;
        let mask = SigSet::from_iter([Signal::SIGCHLD, KEEPER_DIED]);
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut link = Link::new(socket.into());
        link.say(&FromShim::Ready);
        let shim = Shim {
            link,
            signals,
            keeper,
            keeper_died: getppid() != keeper,
            group: tier.slot(slot).map(Group::new),
            slot: Slot { path: spool::slot(slots, slot), file: None },
            stack: None,
            attributes: Attributes::note(),
            spared: child::is_spared(),
            phase: Phase::Idle,
        };
        shim.run()
    };
    match shim() {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("shim {slot}: {error}"));
            1
        }
    }
}

/// The socket to the daemon, and with it the lifeline.
struct Link {
    socket: UnixStream,
    inbox: Inbox,
    /// What the daemon has not taken yet.
    outbox: Vec<u8>,
    /// Until when that may wait for more.
    unhurried: Option<Instant>,
    /// `false` when the daemon is gone.
    open: bool,
}

impl Link {
    fn new(socket: UnixStream) -> Self {
        Self { socket, inbox: Inbox::default(), outbox: Vec::new(), unhurried: None, open: true }
    }

    fn say(&mut self, message: &FromShim) {
        self.unhurried = None;
        match protocol::frame(message) {
            Ok(frame) => self.outbox.extend_from_slice(&frame),
            Err(error) => complain(format_args!("shim: {error}")),
        }
    }

    /// Says it with what comes next, or when it has waited for so long.
    fn say_with_next(&mut self, message: &FromShim) {
        let until = match self.unhurried {
            None if !self.outbox.is_empty() => None,
            None => Instant::now().checked_add(UNHURRIED),
            until => until,
        };
        self.say(message);
        self.unhurried = until;
    }

    /// Reads what is there. Frames that came before the end are kept.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.inbox.bytes();
            bytes.reserve(READ_BYTES);
            let room = bytes.capacity() - bytes.len();
            match rustix::io::read(&self.socket, spare_capacity(bytes)) {
                Ok(0) => self.open = false,
                Ok(length) if length < room => {}
                Ok(_) => continue,
                Err(Errno::AGAIN) => {}
                Err(Errno::CONNRESET) => self.open = false,
                Err(error) => return Err(error.into()),
            }
            return Ok(());
        }
    }

    fn flush(&mut self) {
        if self.unhurried.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.unhurried = None;
        while !self.outbox.is_empty() {
            match self.socket.write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The daemon is gone; reading tells the same, after what it had still said.
                Err(_) => self.outbox.clear(),
            }
        }
    }
}

/// Where the next start finds which attempt this shim has executed.
struct Slot {
    path: PathBuf,
    /// Opened for the first attempt.
    file: Option<File>,
}

impl Slot {
    fn note(&mut self, launch: &Launch) -> io::Result<()> {
        // Nobody would find what is noted in a file that somebody has removed.
        self.file.take_if(|file| file.metadata().is_ok_and(|facts| facts.nlink() == 0));
        let file = match &self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(false).mode(0o600);
                self.file.insert(with_dir(self.path.parent(), 1, || options.open(&self.path))?)
            }
        };
        spool::note(file, launch.attempt, launch.place)
    }
}

enum Phase {
    Idle,
    Running(Box<Running>),
    /// Held for the daemon.
    Over(Box<Last>),
    Gone,
}

struct Running {
    job: Job,
    attempt: u128,
    /// The tree's limit of memory.
    memory: Option<u64>,
    files: Option<JobFiles>,
    /// The shim killed the job because daemon or keeper was gone.
    lifeline_cut: bool,
}

/// What to spool if the daemon goes before it has committed the ending.
struct Last {
    attempt: u128,
    ended: Spooled,
}

struct Shim {
    link: Link,
    signals: SignalFd,
    keeper: Pid,
    keeper_died: bool,
    group: Option<Group>,
    slot: Slot,
    /// Made for the first child.
    stack: Option<Stack>,
    attributes: Attributes,
    /// The kernel is to spare this process when memory runs out.
    spared: bool,
    phase: Phase,
}

/// What a poll has found.
struct Ready {
    socket: bool,
    signals: bool,
    sources: Vec<(Source, PollFlags)>,
}

impl Shim {
    fn run(mut self) -> io::Result<()> {
        self.watch_lifelines()?;
        self.link.flush();
        while !matches!(self.phase, Phase::Gone) {
            let ready = self.wait()?;
            if ready.socket {
                self.link.receive()?;
                while let Some(order) = self.link.inbox.next::<ToShim>()? {
                    self.obey(order)?;
                }
            }
            if ready.signals {
                self.take_signals()?;
            }
            if let Phase::Running(running) = &mut self.phase {
                for (source, found) in ready.sources {
                    running.job.ready(source, found);
                }
                if ready.signals {
                    running.job.reap()?;
                }
                running.job.tick(|message| self.link.say(&message))?;
            }
            self.conclude();
            self.watch_lifelines()?;
            self.link.flush();
        }
        // Otherwise the keeper does it.
        if getppid() != self.keeper
            && let Some(group) = &mut self.group
        {
            group.remove();
        }
        // All that it has goes with the process, which ends now: closing it one by one would only take longer.
        std::mem::forget(self);
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut deadline = None;
        if self.link.open {
            let mut wanted = PollFlags::POLLIN;
            deadline = self.link.unhurried;
            wanted.set(PollFlags::POLLOUT, !self.link.outbox.is_empty() && deadline.is_none());
            fds.push(PollFd::new(self.link.socket.as_fd(), wanted));
        }
        let mut sources = Vec::new();
        if let Phase::Running(running) = &self.phase {
            for (source, fd) in running.job.sources() {
                sources.push(source);
                let wanted = if source == Source::Input { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                fds.push(PollFd::new(fd, wanted));
            }
            deadline = deadline.into_iter().chain(running.job.deadline()).min();
        }
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, or the last millisecond would be spent spinning.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(NixErrno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut found = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let mut any = || found.next().is_some_and(|found| !found.is_empty());
        let signals = any();
        let socket = self.link.open && any();
        let sources = sources.into_iter().zip(found).filter(|(_, found)| !found.is_empty()).collect();
        Ok(Ready { socket, signals, sources })
    }

    fn take_signals(&mut self) -> io::Result<()> {
        // Each of the two is pending at most once, so all that is there is read.
        let mut bytes = [0u8; 2 * 128];
        match rustix::io::read(&self.signals, &mut bytes) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        self.keeper_died = getppid() != self.keeper;
        Ok(())
    }

    fn obey(&mut self, order: ToShim) -> io::Result<()> {
        match (order, std::mem::replace(&mut self.phase, Phase::Gone)) {
            (ToShim::Start(launch), Phase::Idle | Phase::Over(_)) => self.begin(*launch),
            (ToShim::Ack, Phase::Idle | Phase::Over(_)) => {}
            (ToShim::Kill, Phase::Running(mut running)) => {
                self.link.say(&FromShim::Killing { at: now_us() });
                running.job.kill()?;
                self.phase = Phase::Running(running);
            }
            (ToShim::Signal { signal }, Phase::Running(mut running)) => {
                if running.job.signal(signal) {
                    self.link.say_with_next(&FromShim::Signalled { signal, at: now_us() });
                }
                self.phase = Phase::Running(running);
            }
            // Crossed with the ending on its way to the daemon, or without a meaning here.
            (ToShim::Start(_) | ToShim::Ack | ToShim::Kill | ToShim::Signal { .. }, phase) => {
                self.phase = phase
            }
        }
        Ok(())
    }

    /// *Go*.
    fn begin(&mut self, launch: Launch) {
        let attempt = launch.attempt;
        self.phase = match self.start(launch) {
            Ok(running) => Phase::Running(Box::new(running)),
            Err(failure) => {
                // Whatever its own part in that is, the next attempt has a new one.
                self.link.say(&FromShim::Worn);
                self.link.say(&FromShim::StartFailed(failure.clone()));
                Phase::Over(Box::new(Last { attempt, ended: Spooled::StartFailed(failure) }))
            }
        };
    }

    fn start(&mut self, mut launch: Launch) -> Result<Running, StartFailure> {
        // Before anything else: from then on recovery knows that the job may have run.
        self.slot.note(&launch).map_err(failed(Stage::Directory))?;
        let (attempt, memory) = (launch.attempt, launch.limits.memory);
        let argv = std::mem::take(&mut launch.argv);
        let program = Program::new(argv, std::mem::take(&mut launch.env))?;
        let no_path = |_| StartFailure::new(Stage::Cwd, NixErrno::EINVAL as i32);
        let cwd = CString::new(launch.cwd.as_os_str().as_bytes()).map_err(no_path)?;
        let (stdin, input) = match launch.stdin.take() {
            None => (File::open("/dev/null").map_err(failed(Stage::Stdio))?.into(), None),
            Some(bytes) => {
                let (theirs, ours) = io::pipe().map_err(failed(Stage::Stdio))?;
                let input = Input::new(ours.into(), bytes).map_err(failed_errno(Stage::Stdio))?;
                (theirs.into(), Some(input))
            }
        };
        let (out, stdout) = io::pipe().map_err(failed(Stage::Stdio))?;
        let (err, stderr) = io::pipe().map_err(failed(Stage::Stdio))?;
        match &mut self.group {
            Some(group) => {
                if !child::shares_memory(&launch) {
                    group.spoil();
                }
                group.renew().map_err(failed(Stage::Cgroup))?;
                group.limit(&launch.limits).map_err(failed(Stage::Limits))?;
            }
            None if launch.limits == TreeLimits::default() => {}
            // Never without what was asked for.
            None => return Err(StartFailure::new(Stage::Limits, NixErrno::EOPNOTSUPP as i32)),
        }
        let files = JobFiles::make(&launch.files, launch.user.as_ref()).map_err(failed(Stage::Directory))?;
        let (launch, spared) = (&launch, self.spared);
        let plan = Plan { launch, program, cwd, stdin, stdout: &stdout, stderr: &stderr, spared };
        let child = self.spawn(&plan).inspect_err(|_| {
            if let Some(files) = &files {
                files.take();
            }
        })?;
        drop(plan);
        if child.failure.is_none() {
            let started = FromShim::Started { pid: child.pid, start_time: child.start_time };
            self.link.say_with_next(&started);
        }
        let log = LogWriter::new(launch.dir.clone(), launch.segment_bytes, launch.max_log_bytes);
        let tree = Tree::new(child.pid, self.group.as_ref().map(|group| group.cgroup().clone()));
        let output = Output::new(out, err, log);
        let job = Job::new(tree, child.failure, launch.dir.clone(), input, output, [stdout, stderr]);
        Ok(Running { job, attempt, memory, files, lifeline_cut: false })
    }

    fn spawn(&mut self, plan: &Plan<'_>) -> Result<Child, StartFailure> {
        let cgroup = self.group.as_ref().and_then(Group::opened);
        if let Some(child) = child::spawn(plan, cgroup, &mut self.stack)? {
            return Ok(child);
        }
        // The kernel (6.18) kills what is cloned from elsewhere into a cgroup of which all was killed before.
        if let Some(group) = &mut self.group {
            group.spoil();
            group.renew().map_err(failed(Stage::Cgroup))?;
        }
        let cgroup = self.group.as_ref().and_then(Group::opened);
        let again = child::spawn(plan, cgroup, &mut self.stack)?;
        again.ok_or_else(|| StartFailure::new(Stage::Fork, NixErrno::EINTR as i32))
    }

    /// Reports the ending once it is one.
    fn conclude(&mut self) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(over) = running.job.over() else { return };
        if running.job.is_killed()
            && let Some(group) = &mut self.group
        {
            group.spoil();
        }
        let (attempt, files, lifeline) = (running.attempt, running.files.take(), running.lifeline_cut);
        let taken = files.map_or_else(Vec::new, |files| files.take());
        // Nothing of the attempt lives that could still change them.
        if !self.attributes.are_as_made() {
            self.link.say_with_next(&FromShim::Worn);
        }
        let ended = match over {
            Over::Exited(report) => {
                let oom = self.group.as_ref().and_then(|group| group.oom(running.memory));
                let report = ExitReport { oom, files: taken, ..report };
                // Cut off from its keeper it is not for this daemon to judge, which ends for the same reason.
                if !lifeline {
                    self.link.say(&FromShim::Exited(report.clone()));
                }
                Spooled::Exited { report, lifeline }
            }
            Over::Failed(failure) => {
                self.link.say(&FromShim::StartFailed(failure.clone()));
                Spooled::StartFailed(failure)
            }
        };
        self.phase = Phase::Over(Box::new(Last { attempt, ended }));
    }

    /// Without daemon or keeper the job is not supervised, so it may not go on.
    fn watch_lifelines(&mut self) -> io::Result<()> {
        if self.link.open && !self.keeper_died {
            return Ok(());
        }
        match &mut self.phase {
            Phase::Idle => self.phase = Phase::Gone,
            Phase::Running(running) if !running.job.is_killed() => {
                running.lifeline_cut = !running.job.has_ended();
                running.job.kill()?;
            }
            // A daemon that is there still may take the ending.
            Phase::Over(last) if !self.link.open => {
                let (slot, Last { attempt, ended, .. }) = (&self.slot.path, &**last);
                if let Err(error) = spool::leave(slot, *attempt, ended) {
                    complain(format_args!("shim: the ending is lost, {}: {error}", slot.display()));
                }
                self.phase = Phase::Gone;
            }
            Phase::Running(_) | Phase::Over(_) | Phase::Gone => {}
        }
        Ok(())
    }
}

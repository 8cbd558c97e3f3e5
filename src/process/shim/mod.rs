//! The shim: one small process per attempt, which holds the job's whole tree, carries its output to disk, and
//! holds its ending until the daemon has it on record.
//!
//! ```text
//! launching ──Launch──► prepared ──Go──► running ──all dead, drained──► over ──Ack──► gone
//!     └────────EOF──────────┴─► gone       └─EOF: kill, then ─► over ──EOF─► spool file, gone
//! ```
//!
//! It waits in one `poll` for its socket, its signals and the job's pipes, and blocks nowhere else but in writing the
//! log.

mod child;
mod files;
mod job;
mod output;
mod tree;

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use self::child::{Plan, Program, failed, failed_errno};
use self::files::JobFiles;
use self::job::{Job, Over, Source};
use self::output::{Input, Output, now_us};
use self::tree::Tree;
use super::cgroup::Cgroup;
use super::containment::Tier;
use super::keeper::{children::Children, complain, sys};
use super::log::LogWriter;
use super::protocol::{self, FromShim, Inbox, ToShim};
use super::spool::{self, Spooled};
use super::{ExitReport, Launch, Stage, StartFailure, TreeLimits};

/// What the kernel sends when the keeper dies. Only a hint to look at the parent: anybody may send it.
const KEEPER_DIED: Signal = Signal::SIGUSR1;

/// How much of a frame is read at once: commands are a few bytes, only `Launch` takes more than one.
const READ_BYTES: usize = 4 << 10;

/// Runs a shim in the calling process, just forked from the keeper. Returns its exit code, 0 when the tree is dead and
/// everything is told or spooled; after any other the keeper sweeps.
pub(super) fn run(socket: OwnedFd, lock: BorrowedFd<'_>, keeper: Pid, tier: &Tier, attempt: u128) -> i32 {
    let keep = [socket.as_raw_fd(), lock.as_raw_fd()];
    let shim = || {
        sys::close_all_but(&keep)?;
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        nix::sys::prctl::set_name(c"runward-shim")?;
        nix::sys::prctl::set_pdeathsig(KEEPER_DIED)?;
        let mask = SigSet::from_iter([Signal::SIGCHLD, KEEPER_DIED]);
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let link = Link { socket: socket.into(), inbox: Inbox::default(), outbox: Vec::new(), open: true };
        Shim { link, signals, keeper, cgroup: tier.attempt(attempt), phase: Phase::Launching }.run()
    };
    match shim() {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("shim: attempt {attempt:032x}: {error}"));
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
    /// `false` when the daemon is gone.
    open: bool,
}

impl Link {
    fn say(&mut self, message: &FromShim) {
        match protocol::frame(message) {
            Ok(frame) => self.outbox.extend_from_slice(&frame),
            Err(error) => complain(format_args!("shim: {error}")),
        }
    }

    /// Reads what is there. Frames that came before the end are kept.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.inbox.bytes();
            bytes.reserve(READ_BYTES);
            match rustix::io::read(&self.socket, spare_capacity(bytes)) {
                Ok(0) => self.open = false,
                Ok(length) if length < READ_BYTES => {}
                Ok(_) => continue,
                Err(Errno::AGAIN) => {}
                Err(Errno::CONNRESET) => self.open = false,
                Err(error) => return Err(error.into()),
            }
            return Ok(());
        }
    }

    fn flush(&mut self) {
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

/// Everything that *go* needs.
struct Prepared {
    plan: Plan,
    input: Option<Input>,
    output: Output,
    children: Children,
    early_signals: Vec<i32>,
}

enum Phase {
    Launching,
    Prepared(Box<Prepared>),
    Running(Box<Running>),
    /// Held for the daemon.
    Over(Option<Box<Last>>),
    Gone,
}

struct Running {
    job: Job,
    dir: PathBuf,
    files: Option<JobFiles>,
    /// The shim killed the job because daemon or keeper was gone.
    lifeline_cut: bool,
}

/// What to spool if the daemon goes before it has committed the ending.
struct Last {
    dir: PathBuf,
    ended: Spooled,
    /// Removed when all is told.
    _files: Option<JobFiles>,
}

struct Shim {
    link: Link,
    signals: SignalFd,
    keeper: Pid,
    cgroup: Option<Cgroup>,
    phase: Phase,
}

/// What a poll has found.
struct Ready {
    socket: bool,
    signals: bool,
    sources: Vec<Source>,
}

impl Shim {
    fn run(mut self) -> io::Result<()> {
        self.watch_lifelines()?;
        while !matches!(self.phase, Phase::Gone) {
            let ready = self.wait()?;
            if ready.socket {
                self.link.receive()?;
            }
            self.obey()?;
            if ready.signals {
                while self.signals.read_signal()?.is_some() {}
            }
            if let Phase::Running(running) = &mut self.phase {
                let say = &mut |message| self.link.say(&message);
                for source in ready.sources {
                    running.job.ready(source, say);
                }
                if ready.signals {
                    running.job.reap(say)?;
                }
                running.job.tick(say)?;
            }
            self.conclude();
            self.watch_lifelines()?;
            self.link.flush();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.link.open {
            let mut wanted = PollFlags::POLLIN;
            wanted.set(PollFlags::POLLOUT, !self.link.outbox.is_empty());
            fds.push(PollFd::new(self.link.socket.as_fd(), wanted));
        }
        let mut sources = Vec::new();
        let mut timeout = PollTimeout::NONE;
        if let Phase::Running(running) = &self.phase {
            for (source, fd) in running.job.sources() {
                sources.push(source);
                let wanted = if source == Source::Input { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                fds.push(PollFd::new(fd, wanted));
            }
            if let Some(deadline) = running.job.deadline() {
                // Rounded up, or the last millisecond would be spent spinning.
                let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            }
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let signals = ready.next().unwrap_or(false);
        let socket = self.link.open && ready.next().unwrap_or(false);
        let sources =
            sources.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect();
        Ok(Ready { socket, signals, sources })
    }

    fn obey(&mut self) -> io::Result<()> {
        if matches!(self.phase, Phase::Launching) {
            let Some(launch) = self.link.inbox.next::<Launch>()? else { return Ok(()) };
            match self.prepare(launch) {
                Ok(prepared) => {
                    self.phase = Phase::Prepared(Box::new(prepared));
                    self.link.say(&FromShim::Ready);
                }
                Err(failure) => {
                    self.link.say(&FromShim::StartFailed(failure));
                    self.phase = Phase::Gone;
                    return Ok(());
                }
            }
        }
        while let Some(order) = self.link.inbox.next::<ToShim>()? {
            self.obey_order(order)?;
        }
        Ok(())
    }

    fn obey_order(&mut self, order: ToShim) -> io::Result<()> {
        match (order, std::mem::replace(&mut self.phase, Phase::Gone)) {
            (ToShim::Go, Phase::Prepared(prepared)) => self.phase = self.start(*prepared),
            (ToShim::Ack, Phase::Over(_)) => {}
            (ToShim::Kill, Phase::Prepared(_)) => self.remove_cgroup(),
            (ToShim::Kill, Phase::Running(mut running)) => {
                self.link.say(&FromShim::Killing { at: now_us() });
                running.job.kill()?;
                self.phase = Phase::Running(running);
            }
            (ToShim::Signal { signal }, Phase::Running(mut running)) => {
                running.job.signal(signal, &mut |message| self.link.say(&message));
                self.phase = Phase::Running(running);
            }
            (ToShim::Signal { signal }, Phase::Prepared(mut prepared)) => {
                prepared.early_signals.push(signal);
                self.phase = Phase::Prepared(prepared);
            }
            // Crossed with the ending on its way to the daemon, or without a meaning here.
            (ToShim::Go | ToShim::Ack | ToShim::Kill | ToShim::Signal { .. }, phase) => self.phase = phase,
        }
        Ok(())
    }

    /// All that can be done before anything of it shows. The cgroup comes last, so that a failure leaves none.
    fn prepare(&self, mut launch: Launch) -> Result<Prepared, StartFailure> {
        let argv = std::mem::take(&mut launch.argv);
        let program = Program::new(argv, std::mem::take(&mut launch.env))?;
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
        let log = LogWriter::new(launch.dir.clone(), launch.segment_bytes, launch.max_log_bytes);
        let children = Children::open().map_err(failed(Stage::Fork))?;
        let cgroup = match &self.cgroup {
            Some(cgroup) => {
                let dir = cgroup.create().map_err(failed(Stage::Cgroup))?;
                cgroup
                    .limit(&launch.limits)
                    .inspect_err(|_| self.remove_cgroup())
                    .map_err(failed(Stage::Limits))?;
                Some((cgroup.clone(), dir))
            }
            None if launch.limits == TreeLimits::default() => None,
            // Never without what was asked for.
            None => return Err(StartFailure::new(Stage::Limits, nix::errno::Errno::EOPNOTSUPP as i32)),
        };
        let plan = Plan { launch, program, stdin, stdout, stderr, cgroup };
        Ok(Prepared { plan, input, output: Output::new(out, err, log), children, early_signals: Vec::new() })
    }

    /// *Go*. The directory is made before anything else: from then on recovery knows that the job may have run.
    fn start(&mut self, prepared: Prepared) -> Phase {
        let Prepared { plan, input, output, children, early_signals } = prepared;
        let (dir, memory) = (plan.launch.dir.clone(), plan.launch.limits.memory);
        if let Err(error) = DirBuilder::new().mode(0o700).create(&dir) {
            // Nothing is spooled: where it exists already, it is another's.
            return self.not_started(failed(Stage::Directory)(error), None);
        }
        let files = match JobFiles::make(&plan.launch.files, &dir, plan.launch.user.as_ref()) {
            Ok(files) => files,
            Err(error) => return self.not_started(failed(Stage::Directory)(error), Some(dir)),
        };
        match child::fork(plan) {
            Ok(forked) => {
                let tree = Tree::new(forked.pid, self.cgroup.clone(), children);
                let job = Job::new(forked.verdict, tree, early_signals, input, output, memory);
                Phase::Running(Box::new(Running { job, dir, files, lifeline_cut: false }))
            }
            Err(failure) => self.not_started(failure, Some(dir)),
        }
    }

    fn not_started(&mut self, failure: StartFailure, dir: Option<PathBuf>) -> Phase {
        self.remove_cgroup();
        self.link.say(&FromShim::StartFailed(failure.clone()));
        let ended = Spooled::StartFailed(failure);
        Phase::Over(dir.map(|dir| Box::new(Last { dir, ended, _files: None })))
    }

    fn remove_cgroup(&self) {
        if let Some(cgroup) = &self.cgroup {
            // Nothing was started in it. If it stays all the same, the next start of the daemon removes it.
            cgroup.remove().ok();
        }
    }

    /// Reports the ending once it is one.
    fn conclude(&mut self) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(over) = running.job.over() else { return };
        let (dir, files, lifeline) = (running.dir.clone(), running.files.take(), running.lifeline_cut);
        let taken = files.as_ref().map_or_else(Vec::new, JobFiles::take);
        let ended = match over {
            Over::Exited(report) => {
                let report = ExitReport { files: taken, ..report };
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
        self.phase = Phase::Over(Some(Box::new(Last { dir, ended, _files: files })));
    }

    /// Without daemon or keeper the job is not supervised, so it may not go on.
    fn watch_lifelines(&mut self) -> io::Result<()> {
        let keeper_died = getppid() != self.keeper;
        if self.link.open && !keeper_died {
            return Ok(());
        }
        match &mut self.phase {
            Phase::Launching => self.phase = Phase::Gone,
            Phase::Prepared(_) => {
                self.remove_cgroup();
                self.phase = Phase::Gone;
            }
            Phase::Running(running) if !running.job.is_killed() => {
                running.lifeline_cut = !running.job.has_ended();
                running.job.kill()?;
            }
            // A daemon that is there still may take the ending.
            Phase::Over(last) if !self.link.open => {
                if let Some(last) = last
                    && let Err(error) = spool::leave(&last.dir, &last.ended)
                {
                    complain(format_args!("shim: the ending is lost, {}: {error}", last.dir.display()));
                }
                self.phase = Phase::Gone;
            }
            Phase::Running(_) | Phase::Over(_) | Phase::Gone => {}
        }
        Ok(())
    }
}

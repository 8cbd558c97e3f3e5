//! The daemon's end of the keeper: starting it, asking it for shims, and noticing its death.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, IoSlice};
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

use super::containment::Tier;
use super::handle::{Worker, ending};
use super::keeper;
use super::protocol::{FromShim, KeeperReport, ShimEnd, ToKeeper};
use super::{Ending, Launch, Shim};

/// What the keeper is given besides its standard streams.
#[derive(Debug)]
pub struct KeeperSetup {
    /// An open file with `flock(LOCK_EX)` on it. Daemon, keeper and shims share it and jobs never do, so a blocking
    /// `flock` on the same file returns when the last tree is dead and the last spool file written.
    pub children_lock: OwnedFd,
    /// How trees are held.
    pub tier: Tier,
    /// Where shims note what they execute, see [`spool`](super::spool).
    pub slots: PathBuf,
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A fork copies one thread; the others' locks would stay locked in the child for ever.
    #[error("the keeper is forked first: {0} threads exist already")]
    Threads(usize),
    /// No socket, no fork or no pidfd.
    #[error("the keeper can't be started: {0}")]
    System(#[from] io::Error),
}

/// Forks the keeper. Call it in `main` before any thread exists, with SIGCHLD at its default.
///
/// In the child it never returns. The parent goes on alone; dropping the link ends the keeper.
pub fn fork_keeper(setup: KeeperSetup) -> Result<KeeperLink, KeeperError> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(KeeperError::Threads(threads));
    }
    let (socket, theirs) = socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .map_err(io::Error::from)?;
    let pid = keeper::fork(theirs, &setup)?;
    Ok(KeeperLink { pid, socket, children_lock: setup.children_lock, slots: setup.slots })
}

/// A keeper that runs, before the runtime does.
#[derive(Debug)]
pub struct KeeperLink {
    pid: i32,
    socket: OwnedFd,
    children_lock: OwnedFd,
    slots: PathBuf,
}

impl KeeperLink {
    /// The keeper's process id, for [`reap::strays`](super::reap::strays) and for showing; never for signalling.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Registers the keeper with the runtime that this is called in.
    pub fn attach(self) -> io::Result<(Launcher, KeeperWatch)> {
        let link = Arc::new(Link {
            // A datagram socket to the runtime: this one keeps the bounds of messages as well.
            socket: UnixDatagram::from_std(self.socket.into())?,
            slots: self.slots,
            numbers: Mutex::default(),
            forks: Semaphore::new(FORKS),
            idle: Mutex::new(Idle { workers: Vec::new(), limit: IDLE_PER_CORE * cores() }),
            _children_lock: self.children_lock,
        });
        let mut reader = JoinSet::new();
        reader.spawn(read_reports(link.clone()));
        Ok((Launcher { lifeline: Arc::new(Lifeline(link)) }, KeeperWatch { pid: self.pid, reader }))
    }
}

/// What launchers and shims share.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixDatagram,
    /// Their directory.
    pub(super) slots: PathBuf,
    numbers: Mutex<Slots>,
    idle: Mutex<Idle>,
    /// Turns at the keeper.
    forks: Semaphore,
    _children_lock: OwnedFd,
}

/// Shims without a job.
#[derive(Debug)]
struct Idle {
    /// The one that worked last is the next: what it needs is still in the processor's caches.
    workers: Vec<Worker>,
    limit: usize,
}

/// The numbers of shims, each a small one that nobody has: so that what they leave is bounded.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By their numbers.
    all: Vec<Slot>,
    free: BinaryHeap<Reverse<u32>>,
    keeper_gone: bool,
}

/// A number, which goes to another shim when all is over with the one before.
#[derive(Debug, Default)]
struct Slot {
    /// How its shim has ended.
    end: Option<ShimEnd>,
    /// Who waits for that.
    waiting: Option<Waker>,
    /// Nobody will ask for that.
    let_go: bool,
    /// It holds an attempt whose ending is not on record: the next start may have to know of it.
    occupied: bool,
}

impl Slots {
    fn take(&mut self) -> u32 {
        match self.free.pop() {
            Some(Reverse(slot)) => {
                self.all[slot as usize] = Slot::default();
                slot
            }
            None => {
                self.all.push(Slot::default());
                (self.all.len() - 1) as u32
            }
        }
    }

    fn change(&mut self, number: u32, change: impl FnOnce(&mut Slot)) {
        let Some(slot) = self.all.get_mut(number as usize) else { return };
        change(slot);
        if slot.end.is_some() && slot.let_go && !slot.occupied {
            self.free.push(Reverse(number));
        }
    }

    pub(super) fn occupy(&mut self, slot: u32) {
        self.change(slot, |slot| slot.occupied = true);
    }

    pub(super) fn settle(&mut self, slot: u32) {
        self.change(slot, |slot| slot.occupied = false);
    }

    /// Once for each shim, by whoever has it.
    pub(super) fn let_go(&mut self, slot: u32) {
        self.change(slot, |slot| slot.let_go = true);
    }

    fn ended(&mut self, slot: u32, end: ShimEnd) {
        self.change(slot, |slot| {
            slot.end = Some(end);
            slot.waiting.take().into_iter().for_each(Waker::wake);
        });
    }

    pub(super) fn lives(&self, slot: u32) -> bool {
        !self.keeper_gone && self.all[slot as usize].end.is_none()
    }

    /// How a shim has ended; `None` when the keeper went first.
    pub(super) fn poll_end(&mut self, slot: u32, cx: &Context<'_>) -> Poll<Option<ShimEnd>> {
        let slot = &mut self.all[slot as usize];
        if slot.end.is_some() || self.keeper_gone {
            return Poll::Ready(slot.end);
        }
        slot.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn keeper_gone(&mut self) {
        self.keeper_gone = true;
        self.all.iter_mut().filter_map(|slot| slot.waiting.take()).for_each(Waker::wake);
    }
}

impl Link {
    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that lives, as far as the keeper has told.
    fn idle_worker(&self) -> Option<Worker> {
        // One that does not is dropped when the lock is free.
        std::iter::from_fn(|| self.idle().workers.pop()).find(Worker::lives)
    }

    /// Keeps a shim for the next attempt, if there is room; else it leaves.
    pub(super) fn keep_idle(&self, worker: Worker) {
        let mut idle = self.idle();
        if idle.workers.len() < idle.limit {
            idle.workers.push(worker);
        }
    }

    fn limit_idle(&self, limit: usize) {
        let mut idle = self.idle();
        idle.limit = limit;
        idle.workers.truncate(limit);
    }

    /// One that is idle, or a new one. Cancel-safe.
    pub(super) async fn worker(self: &Arc<Self>) -> Result<Worker, LaunchError> {
        if let Some(worker) = self.idle_worker() {
            return Ok(worker);
        }
        // Never closed.
        let turn = self.forks.acquire().await.ok();
        match self.idle_worker() {
            Some(worker) => Ok(worker),
            None => Box::pin(self.fork(turn)).await,
        }
    }

    /// Has the keeper fork a shim, and waits until it is there. Cancel-safe: dropping the future ends it.
    async fn fork(self: &Arc<Self>, turn: Option<SemaphorePermit<'_>>) -> Result<Worker, LaunchError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let slot = self.slots().take();
        let mut worker = Worker::new(Arc::clone(self), slot, ours);
        let unasked = Unasked { link: self, slot };
        self.ask(ToKeeper::Fork(slot), Some(theirs.into())).await?;
        std::mem::forget(unasked);
        match worker.receive().await {
            Some(FromShim::Ready) => return Ok(worker),
            Some(other) => tracing::error!(?other, "a shim said something before ready"),
            None => {}
        }
        // Its end is told when nothing is left of what it was to hold, which may take long.
        drop(turn);
        match worker.end().await {
            Some(ShimEnd::NotForked { errno }) => {
                Err(match LaunchError::from(io::Error::from_raw_os_error(errno)) {
                    LaunchError::System(error) => LaunchError::NotForked(error),
                    other => other,
                })
            }
            Some(ShimEnd::Waited { status }) => Err(LaunchError::ShimEnded(ending(status))),
            None => Err(LaunchError::KeeperGone),
        }
    }

    /// Sends an order to the keeper. Cancel-safe: it is sent whole or not at all.
    pub(super) async fn ask(&self, order: ToKeeper, with: Option<OwnedFd>) -> io::Result<()> {
        let fds: Vec<_> = with.iter().map(AsRawFd::as_raw_fd).collect();
        let (bytes, with) = (order.encode(), [ControlMessage::ScmRights(&fds)]);
        let ask = || {
            let (bytes, with) = ([IoSlice::new(&bytes)], if fds.is_empty() { &[][..] } else { &with[..] });
            let keeper = self.socket.as_raw_fd();
            socket::sendmsg::<()>(keeper, &bytes, with, MsgFlags::MSG_NOSIGNAL, None).map_err(io::Error::from)
        };
        self.socket.async_io(Interest::WRITABLE, ask).await.map(drop)
    }
}

/// The number of a shim that the keeper was not asked for, and tells no end of.
struct Unasked<'a> {
    link: &'a Link,
    slot: u32,
}

impl Drop for Unasked<'_> {
    fn drop(&mut self) {
        self.link.slots().ended(self.slot, ShimEnd::NotForked { errno: 0 });
    }
}

/// Closes the keeper's lifeline with the last [`Launcher`].
#[derive(Debug)]
struct Lifeline(Arc<Link>);

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.0.limit_idle(0);
        // Only the way there: reports still come until the keeper has left. Fails only when it has.
        socket::shutdown(self.0.socket.as_raw_fd(), socket::Shutdown::Write).ok();
    }
}

/// Carries the keeper's reports to the shims they are about. Ends with the keeper.
async fn read_reports(link: Arc<Link>) {
    let mut bytes = [0; KeeperReport::LEN];
    loop {
        match link.socket.recv(&mut bytes).await {
            Ok(0) => break,
            Ok(n) => match KeeperReport::decode(&bytes[..n]) {
                Some(KeeperReport { slot, end }) => link.slots().ended(slot, end),
                None => tracing::error!(bytes = n, "the keeper's message is unreadable"),
            },
            Err(error) => {
                tracing::debug!(%error, "the keeper's socket ended");
                break;
            }
        }
    }
    // Whoever still waits learns that the keeper is gone.
    link.slots().keeper_gone();
}

/// Why a shim was not launched. Nothing stays behind: no process, no directory, no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Refused before anything was executed.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Which field.
        what: &'static str,
    },
    /// No program.
    #[error("argv is empty")]
    NoProgram,
    /// Descriptors have run out: `EMFILE`, `ENFILE` or `ETOOMANYREFS`. Worth trying again later.
    #[error("out of descriptors: {0}")]
    Descriptors(#[source] io::Error),
    /// The keeper could not fork: `EAGAIN` or `ENOMEM`. Worth trying again later.
    #[error("no process for the shim: {0}")]
    NotForked(#[source] io::Error),
    /// The shim ended before it was ready; `None` when the keeper went first.
    #[error("the shim ended before it was ready: {0:?}")]
    ShimEnded(Option<Ending>),
    /// The keeper is gone.
    #[error("the keeper is gone")]
    KeeperGone,
    /// A frame over [`FRAME_LIMIT`](super::protocol::FRAME_LIMIT), or a socket that fails in another way.
    #[error("can't reach keeper or shim: {0}")]
    System(#[source] io::Error),
}

impl From<io::Error> for LaunchError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ETOOMANYREFS) => Self::Descriptors(error),
            Some(Errno::EPIPE | Errno::ECONNRESET) => Self::KeeperGone,
            _ => Self::System(error),
        }
    }
}

/// Asks the keeper for shims. The keeper lives as long as one of these, or a shim, does.
#[derive(Debug, Clone)]
pub struct Launcher {
    lifeline: Arc<Lifeline>,
}

impl Launcher {
    /// Has a shim ready for an attempt: one that is idle, or a new one. Cancel-safe: dropping the future ends a new one.
    pub async fn shim(&self) -> Result<Shim, LaunchError> {
        Ok(Shim::new(self.lifeline.0.worker().await?))
    }

    /// The same, and [tells](Shim::prepare) it what to do on *go*: nothing is executed, and nothing of the attempt is on
    /// disk.
    pub async fn launch(&self, spec: &Launch) -> Result<Shim, LaunchError> {
        let mut shim = self.shim().await?;
        shim.prepare(spec)?;
        Ok(shim)
    }

    /// Keeps no more than so many shims idle from now on; without it, as many as process jobs run at once by default.
    pub fn limit_idle(&self, limit: usize) {
        self.lifeline.0.limit_idle(limit);
    }
}

/// As many as process jobs run at once by default: more are idle only when more were allowed to run.
const IDLE_PER_CORE: usize = 4;

/// Shims that are asked for at once. The keeper makes one after another, so it only must not wait for the next request; and
/// who waits for a turn has nothing yet, of a thousand at once neither sockets nor memory.
const FORKS: usize = 8;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

pub(super) fn check(spec: &Launch) -> Result<(), LaunchError> {
    use std::os::unix::ffi::OsStrExt;
    let clean = |what, bytes: &[u8]| if bytes.contains(&0) { Err(LaunchError::Nul { what }) } else { Ok(()) };
    if spec.argv.is_empty() {
        return Err(LaunchError::NoProgram);
    }
    spec.argv.iter().try_for_each(|arg| clean("argv", arg.as_bytes()))?;
    spec.env.iter().try_for_each(|(k, v)| clean("env", k.as_bytes()).and(clean("env", v.as_bytes())))?;
    clean("cwd", spec.cwd.as_os_str().as_bytes())?;
    clean("dir", spec.dir.as_os_str().as_bytes())
}

/// How the keeper ended; `None` when somebody else has taken its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperEnd {
    /// Code 0 after its lifeline closed; anything else was not planned.
    pub ending: Option<Ending>,
}

/// Notices the keeper's death. Keep it for as long as there are shims: with it ends what carries their reports.
#[derive(Debug)]
pub struct KeeperWatch {
    pid: i32,
    reader: JoinSet<()>,
}

impl KeeperWatch {
    /// Resolves when the keeper is dead. Its shims kill their trees by themselves then, and keep the endings for the
    /// spool: what is left to do is to end.
    /// Dropping the future drops the watch.
    pub async fn ended(mut self) -> KeeperEnd {
        // The reader ends when the keeper's socket closes, which only its death does.
        while self.reader.join_next().await.is_some() {}
        let pid = Pid::from_raw(self.pid);
        // Off the workers, though it is a matter of microseconds: the socket closes a moment before it can be reaped.
        let waited = tokio::task::spawn_blocking(move || waitpid(pid, None)).await;
        KeeperEnd {
            ending: match waited {
                Ok(Ok(WaitStatus::Exited(_, code))) => Some(Ending::Code(code)),
                Ok(Ok(WaitStatus::Signaled(_, signal, _))) => Some(Ending::Signal(signal as i32)),
                Ok(Ok(_) | Err(_)) | Err(_) => None,
            },
        }
    }
}

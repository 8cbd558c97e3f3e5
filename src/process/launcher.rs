//! The daemon's end of the keeper: starting it, asking it for shims, and noticing its death.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::containment::Tier;
use super::handle::ending;
use super::keeper;
use super::protocol::{self, FromShim, KeeperReport, ShimEnd};
use super::{Ending, Launch, Shim, Stage, StartFailure};

/// What the keeper is given besides its standard streams.
#[derive(Debug)]
pub struct KeeperSetup {
    /// An open file with `flock(LOCK_EX)` on it. Daemon, keeper and shims share it and jobs never do, so a blocking
    /// `flock` on the same file returns when the last tree is dead and the last spool file written.
    pub children_lock: OwnedFd,
    /// How trees are held.
    pub tier: Tier,
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
    Ok(KeeperLink { pid, socket, children_lock: setup.children_lock })
}

/// A keeper that runs, before the runtime does.
#[derive(Debug)]
pub struct KeeperLink {
    pid: i32,
    socket: OwnedFd,
    children_lock: OwnedFd,
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
            ends: Mutex::new(HashMap::new()),
            _children_lock: self.children_lock,
        });
        let mut reader = JoinSet::new();
        reader.spawn(read_reports(link.clone()));
        Ok((Launcher { lifeline: Arc::new(Lifeline(link)) }, KeeperWatch { pid: self.pid, reader }))
    }
}

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    /// Who waits for which shim's end.
    ends: Mutex<HashMap<u128, oneshot::Sender<ShimEnd>>>,
    _children_lock: OwnedFd,
}

impl Link {
    fn ends(&self) -> std::sync::MutexGuard<'_, HashMap<u128, oneshot::Sender<ShimEnd>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the keeper's lifeline with the last [`Launcher`].
#[derive(Debug)]
struct Lifeline(Arc<Link>);

impl Drop for Lifeline {
    fn drop(&mut self) {
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
                Some(report) => {
                    if let Some(waiting) = link.ends().remove(&report.attempt) {
                        // Nobody listens when the Shim was dropped; the keeper has done its part all the same.
                        waiting.send(report.end).ok();
                    }
                }
                None => tracing::error!(bytes = n, "the keeper's message is unreadable"),
            },
            Err(error) => {
                tracing::debug!(%error, "the keeper's socket ended");
                break;
            }
        }
    }
    // Whoever still waits learns from the closed channel that the keeper is gone.
    link.ends().clear();
}

/// Why a shim was not launched. Nothing stays behind: no process, no directory, no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Refused before anything was done.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Which field.
        what: &'static str,
    },
    /// No program.
    #[error("argv is empty")]
    NoProgram,
    /// This attempt has a shim already.
    #[error("the attempt has a shim already")]
    Duplicate,
    /// Descriptors have run out: `EMFILE`, `ENFILE` or `ETOOMANYREFS`. Worth trying again later.
    #[error("out of descriptors: {0}")]
    Descriptors(#[source] io::Error),
    /// The keeper could not fork: `EAGAIN` or `ENOMEM`. Worth trying again later.
    #[error("no process for the shim: {0}")]
    NotForked(#[source] io::Error),
    /// The shim could not prepare the job.
    #[error("can't prepare the job: {}: {}", stage.name(), io::Error::from_raw_os_error(*errno))]
    Prepare {
        /// What was being done.
        stage: Stage,
        /// Why it failed.
        errno: i32,
    },
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
    /// Forks a shim for `attempt` and gives it the job. Returns when it is ready for [`Shim::go`]: pipes and cgroup
    /// exist, nothing is executed, and the attempt directory is not made.
    ///
    /// Cancel-safe: dropping the future ends the shim.
    pub async fn launch(&self, attempt: u128, spec: &Launch) -> Result<Shim, LaunchError> {
        check(spec)?;
        let job = protocol::frame(spec)?;
        let link = &self.lifeline.0;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let registered = Registered::new(link, attempt)?;
        let fds = [theirs.as_raw_fd()];
        let id = attempt.to_le_bytes();
        let ask = || {
            let (bytes, with) = ([IoSlice::new(&id)], [ControlMessage::ScmRights(&fds)]);
            let keeper = link.socket.as_raw_fd();
            socket::sendmsg::<()>(keeper, &bytes, &with, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(io::Error::from)
        };
        link.socket.async_io(Interest::WRITABLE, ask).await?;
        drop(theirs);
        let mut shim = Shim::new(attempt, UnixStream::from_std(ours)?, registered.keep());
        if let Err(error) = shim.send_frame(&job).await {
            // It could not be forked, or was killed: the keeper's report says which.
            tracing::debug!(%error, "the launch was not sent");
        }
        match shim.receive().await {
            Some(FromShim::Ready) => return Ok(shim),
            Some(FromShim::StartFailed(StartFailure { stage, errno, detail: _ })) => {
                return Err(LaunchError::Prepare { stage, errno });
            }
            Some(other) => tracing::error!(?other, "a shim said something before ready"),
            None => {}
        }
        match shim.end().await {
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
}

fn check(spec: &Launch) -> Result<(), LaunchError> {
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

/// A place in the table of ends, given back unless kept.
struct Registered<'a> {
    link: &'a Link,
    attempt: u128,
    end: Option<oneshot::Receiver<ShimEnd>>,
}

impl<'a> Registered<'a> {
    fn new(link: &'a Link, attempt: u128) -> Result<Self, LaunchError> {
        let (sender, receiver) = oneshot::channel();
        match link.ends().entry(attempt) {
            std::collections::hash_map::Entry::Occupied(_) => return Err(LaunchError::Duplicate),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(sender),
        };
        Ok(Self { link, attempt, end: Some(receiver) })
    }

    /// From here the keeper's report removes it.
    fn keep(mut self) -> oneshot::Receiver<ShimEnd> {
        self.end.take().unwrap_or_else(|| oneshot::channel().1)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.end.is_some() {
            self.link.ends().remove(&self.attempt);
        }
    }
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

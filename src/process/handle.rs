//! The daemon's end of one shim.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use super::launcher::{Link, check};
use super::protocol::{self, FromShim, Inbox, ShimEnd, Start, ToKeeper, ToShim};
use super::{Ending, ExitReport, Launch, LaunchError, StartFailure, spool};

/// What a shim tells. Times are microseconds since the epoch, by the wall clock.
///
/// After *go* there is exactly one of `StartFailed` and `Exited`, unless the shim itself dies: then `Gone`
/// comes without either. One that dies before it read what to do is replaced, and nothing is told of it. When the keeper
/// dies nothing comes until this process ends as well. A job that is killed on its way to its program has no `Started`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimEvent {
    /// The job's program is running.
    Started {
        /// Process id of the main process; its process group has the same number.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`: with the boot id it tells this process from a later one of the same number.
        start_time: u64,
    },
    /// The job did not start; nothing of it lives. Held until [`Shim::ack`].
    StartFailed(StartFailure),
    /// A signal was sent to the job's process group.
    Signalled {
        /// Which.
        signal: i32,
        /// When.
        at: u64,
    },
    /// The tree is being killed.
    Killing {
        /// When that began.
        at: u64,
    },
    /// [`KILL_PENDING_AFTER`](super::KILL_PENDING_AFTER) has passed since the kill and these still live: they
    /// are in an uninterruptible wait, or not ours to signal. Told once; `Exited` comes when they are dead.
    KillPending {
        /// Direct children of the shim that are left.
        pids: Vec<i32>,
    },
    /// The job has ended and nothing of its tree lives. Held until [`Shim::ack`].
    Exited(ExitReport),
    /// The shim is gone, and what it left was swept. The last event: from then on `next` repeats it.
    Gone {
        /// How the shim ended; `None` when the keeper went first, and so nobody knows or swept.
        status: Option<Ending>,
    },
}

/// The shim's socket is closed; [`Shim::next`] tells how it ended.
#[derive(Debug, thiserror::Error)]
#[error("the shim can't be reached: {0}")]
pub struct SendError(#[from] io::Error);

/// A shim at work for one attempt: its events, its commands and its lifeline.
///
/// Dropping it closes the lifeline: before *go* nothing was or will be executed; after it the tree is killed and the
/// ending is left for [the next start](super::spool).
#[derive(Debug)]
pub struct Shim {
    worker: Worker,
    /// What *go* sends. Kept until the shim is heard of: if it has ended before it read that, another one takes it.
    unheard: Option<Box<Unheard>>,
    /// *Go* was given.
    went: bool,
    /// The last event was an ending, and no order was given since: the shim can do another job.
    over: bool,
    /// It is not what it was, or failed at its own part: it leaves.
    worn: bool,
    /// [`ShimEvent::Gone`] was told.
    gone: Option<Option<Ending>>,
}

/// A job that its shim may not have read.
#[derive(Debug)]
struct Unheard {
    attempt: u128,
    /// The job, and the orders that came with it.
    bytes: Vec<u8>,
    /// How much of that is the job.
    job: usize,
    /// How much of all is to be sent still.
    unsent: usize,
    /// How many other shims it may still be given to.
    others: u8,
}

impl Unheard {
    /// Whether the shim has not been sent the whole job.
    fn lacks_job(&self) -> bool {
        self.bytes.len() - self.unsent < self.job
    }
}

/// The process behind a [`Shim`], which does one job after another.
#[derive(Debug)]
pub(super) struct Worker {
    link: Arc<Link>,
    slot: u32,
    stream: UnixStream,
    inbox: Inbox,
    /// It holds nothing that is not on record.
    settled: bool,
}

/// Shims that may be killed one after another before they read what to do: somebody may kill all that are idle. More are
/// killed for what they read.
const OTHERS: u8 = 16;

/// How much is read at once, to the stack: most reports fit, and while a job runs there is nothing to keep.
const READ_BYTES: usize = 1 << 10;

impl Worker {
    pub(super) fn new(link: Arc<Link>, slot: u32, stream: UnixStream) -> Self {
        Self { link, slot, stream, inbox: Inbox::default(), settled: true }
    }

    /// Whether the keeper has not seen it end.
    pub(super) fn lives(&self) -> bool {
        self.link.slots().lives(self.slot)
    }

    /// The next message; `None` at the end of the stream. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Option<FromShim> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<FromShim>> {
        loop {
            match self.inbox.next() {
                Ok(Some(message)) => return Poll::Ready(Some(message)),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(slot = self.slot, %error, "a shim's message is unreadable");
                    return Poll::Ready(None);
                }
            }
            let mut bytes = [MaybeUninit::uninit(); READ_BYTES];
            let mut read = ReadBuf::uninit(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
                Ok(()) if !read.filled().is_empty() => self.inbox.bytes().extend_from_slice(read.filled()),
                Ok(()) | Err(_) => return Poll::Ready(None),
            }
        }
    }

    /// How the keeper saw it end; `None` when the keeper is gone. Cancel-safe.
    pub(super) async fn end(&self) -> Option<ShimEnd> {
        poll_fn(|cx| self.link.slots().poll_end(self.slot, cx)).await
    }

    /// Sends what is left of this, and counts it down. Cancel-safe.
    async fn send(&self, bytes: &[u8], unsent: &mut usize) -> io::Result<()> {
        while *unsent > 0 {
            match self.stream.try_write(&bytes[bytes.len() - *unsent..]) {
                Ok(n) => *unsent -= n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Shim {
    pub(super) fn new(worker: Worker) -> Self {
        Self { worker, unheard: None, went: false, over: false, worn: false, gone: None }
    }

    /// What it is to do on *go*.
    ///
    /// # Errors
    /// What no process can be given, and more than [`FRAME_LIMIT`](super::FRAME_LIMIT).
    pub fn prepare(&mut self, launch: &Launch) -> Result<(), LaunchError> {
        check(launch)?;
        let bytes = protocol::frame(&Start::Start(launch))?;
        let job = bytes.len();
        self.unheard =
            Some(Box::new(Unheard { attempt: launch.attempt, bytes, job, unsent: 0, others: OTHERS }));
        Ok(())
    }

    /// Starts the job: call it once the attempt is committed. Its first effect is the attempt in the shim's slot.
    /// Cancel-safe: what was not sent [`next`](Self::next) sends. If the shim ends before it executes anything, another one
    /// takes its place.
    pub async fn go(&mut self) {
        if std::mem::replace(&mut self.went, true) || self.unheard.is_none() {
            return;
        }
        self.occupy();
        self.send_start().await;
    }

    fn occupy(&mut self) {
        if let Some(unheard) = &mut self.unheard {
            unheard.unsent = unheard.bytes.len();
        }
        self.worker.settled = false;
        self.worker.link.slots().occupy(self.worker.slot);
    }

    async fn send_start(&mut self) {
        let Some(unheard) = &mut self.unheard else { return };
        if let Err(error) = self.worker.send(&unheard.bytes, &mut unheard.unsent).await {
            tracing::debug!(%error, "a shim can't be sent its job, or went before");
            if unheard.lacks_job() {
                // It may live and wait for the rest: this ends it, and the end of the stream is told.
                shutdown(self.worker.stream.as_raw_fd(), Shutdown::Both).ok();
            }
        }
    }

    /// Sends `signal` to the job's process group, then CONT so that a stopped one takes it (not after KILL, STOP
    /// and CONT). Answered by `Signalled`; not answered when the job has ended by then. Before *go* it is kept until the
    /// job runs.
    pub async fn signal(&mut self, signal: i32) -> Result<(), SendError> {
        self.order(&ToShim::Signal { signal }).await
    }

    /// Kills the whole tree. Answered by `Killing` at once and `Exited` when nothing of it lives. Before *go* it ends the
    /// shim with nothing executed.
    pub async fn kill(&mut self) -> Result<(), SendError> {
        if self.went { self.order(&ToShim::Kill).await } else { self.ack().await }
    }

    /// Goes with the start, as long as that may have to go to another shim.
    async fn order(&mut self, order: &ToShim) -> Result<(), SendError> {
        let Some(unheard) = &mut self.unheard else { return self.tell(order).await };
        let frame = protocol::frame(order)?;
        unheard.bytes.extend(&frame);
        if self.went {
            unheard.unsent += frame.len();
            self.send_start().await;
        }
        Ok(())
    }

    /// A few bytes: the socket takes all of them or none. Cancel-safe.
    async fn tell(&self, order: &ToShim) -> Result<(), SendError> {
        let frame = protocol::frame(order)?;
        Ok(self.worker.send(&frame, &mut { frame.len() }).await?)
    }

    /// Has the keeper kill the shim, and what it holds, when it answers no [`kill`](Self::kill): it waits for its child
    /// then, which is stuck on its way to the program. Answered by `Gone` when nothing lives any more.
    pub async fn kill_shim(&mut self) -> Result<(), SendError> {
        self.heard();
        // It may end its job just now, and is killed all the same.
        self.worn = true;
        Ok(self.worker.link.ask(ToKeeper::Kill(self.worker.slot), None).await?)
    }

    /// The ending is committed: the shim forgets it and leaves. Without it the shim stays, and when the lifeline
    /// closes it leaves the ending for the next start. Cancel-safe: the message is sent whole or not at all.
    pub async fn ack(&mut self) -> Result<(), SendError> {
        self.heard();
        self.settle();
        self.tell(&ToShim::Ack).await
    }

    fn settle(&mut self) {
        self.worker.settled = true;
        self.worker.link.slots().settle(self.worker.slot);
    }

    /// The ending is committed, as for [`ack`](Self::ack), and the shim may stay for another attempt.
    pub fn release(mut self) {
        self.settle();
        let Self { worker, over, worn, .. } = self;
        if over && !worn {
            Arc::clone(&worker.link).keep_idle(worker);
        }
    }

    /// The next event. Cancel-safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> ShimEvent {
        loop {
            if let Some(status) = self.gone {
                return ShimEvent::Gone { status };
            }
            if self.unheard.as_ref().is_some_and(|unheard| unheard.unsent > 0) {
                Box::pin(self.send_start()).await;
            }
            while let Some(message) = self.worker.receive().await {
                self.heard();
                self.over = matches!(message, FromShim::StartFailed(_) | FromShim::Exited(_));
                match message {
                    FromShim::Ready => {
                        tracing::error!(slot = self.worker.slot, "a second ready");
                        break;
                    }
                    FromShim::Started { pid, start_time } => return ShimEvent::Started { pid, start_time },
                    FromShim::StartFailed(failure) => return ShimEvent::StartFailed(failure),
                    FromShim::Signalled { signal, at } => return ShimEvent::Signalled { signal, at },
                    FromShim::Killing { at } => return ShimEvent::Killing { at },
                    FromShim::KillPending { pids } => return ShimEvent::KillPending { pids },
                    FromShim::Exited(report) => return ShimEvent::Exited(report),
                    FromShim::Worn => self.worn = true,
                }
            }
            let status = match self.worker.end().await {
                Some(ShimEnd::Waited { status }) => ending(status),
                Some(ShimEnd::NotForked { .. }) | None => None,
            };
            if status.is_some() && self.may_be_replaced() {
                match Box::pin(self.take_another()).await {
                    Ok(()) => continue,
                    Err(LaunchError::KeeperGone) => self.gone = Some(None),
                    Err(error) => {
                        tracing::error!(%error, "no other shim takes a job whose shim was killed before its start");
                        self.gone = Some(status);
                    }
                }
            } else {
                self.gone = Some(status);
            }
        }
    }

    /// It was heard of, or is not to be replaced.
    fn heard(&mut self) {
        self.unheard = None;
    }

    /// Whether a shim that has ended has not executed what it was sent, and another one may: it never had all of the job, or it has noted another
    /// attempt last. Where nothing is noted nothing is proven.
    fn may_be_replaced(&self) -> bool {
        let Some(unheard) = self.unheard.as_ref().filter(|unheard| self.went && unheard.others > 0) else {
            return false;
        };
        let noted = || spool::noted(&self.worker.link.slots, self.worker.slot);
        unheard.lacks_job() || noted().is_some_and(|noted| noted != unheard.attempt)
    }

    /// Gives the job to another shim. Cancel-safe.
    async fn take_another(&mut self) -> Result<(), LaunchError> {
        let worker = self.worker.link.worker().await?;
        self.settle();
        self.worker = worker;
        if let Some(unheard) = &mut self.unheard {
            unheard.others -= 1;
        }
        self.occupy();
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.settled
            && let Ok(frame) = protocol::frame(&ToShim::Ack)
        {
            // A few bytes, which an idle socket takes. Without them it leaves an ending that nobody asks for.
            self.stream.try_write(&frame).ok();
        }
        self.link.slots().let_go(self.slot);
    }
}

/// A raw wait status in our words; `None` for one that is not an end.
pub(super) fn ending(status: i32) -> Option<Ending> {
    if nix::libc::WIFEXITED(status) {
        Some(Ending::Code(nix::libc::WEXITSTATUS(status)))
    } else if nix::libc::WIFSIGNALED(status) {
        Some(Ending::Signal(nix::libc::WTERMSIG(status)))
    } else {
        None
    }
}

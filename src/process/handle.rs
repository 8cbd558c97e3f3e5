//! The daemon's end of one shim.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::launcher::Link;
use super::protocol::{self, FromShim, Inbox, ShimEnd, ToKeeper, ToShim};
use super::{Ending, ExitReport, StartFailure};

/// What a shim tells. Times are microseconds since the epoch, by the wall clock.
///
/// After *go* there is exactly one of `StartFailed` and `Exited`, unless the shim itself dies: then `Gone`
/// comes without either. When the keeper dies nothing comes until this process ends as well. A job that is killed on its way to its program has no `Started`.
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
/// Dropping it closes the lifeline, whoever holds a [`ShimControl`]: before *go* nothing was or will be
/// executed; after it the tree is killed and the ending is left for [the next start](super::spool).
#[derive(Debug)]
pub struct Shim {
    attempt: u128,
    link: Arc<Link>,
    worker: Worker,
    /// What *go* sends; `None` once it was given.
    start: Option<Vec<u8>>,
    /// The last event was an ending, and no order was given since: the shim can do another job.
    over: bool,
    /// It is not what it was, or failed at its own part: it leaves.
    worn: bool,
    /// [`ShimEvent::Gone`] was told.
    gone: Option<Option<Ending>>,
}

/// The process behind a [`Shim`], which does one job after another.
#[derive(Debug)]
pub(super) struct Worker {
    slot: u32,
    control: ShimControl,
    inbox: Inbox,
    end: oneshot::Receiver<ShimEnd>,
    /// It holds nothing that is not on record.
    settled: bool,
}

impl Worker {
    pub(super) fn new(slot: u32, stream: UnixStream, end: oneshot::Receiver<ShimEnd>) -> Self {
        let control = ShimControl { stream: Arc::new(stream) };
        Self { slot, control, inbox: Inbox::default(), end, settled: true }
    }

    /// Whether the keeper has not seen it end.
    pub(super) fn lives(&mut self) -> bool {
        matches!(self.end.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// The next message; `None` at the end of the stream. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Option<FromShim> {
        loop {
            match self.inbox.next() {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(slot = self.slot, %error, "a shim's message is unreadable");
                    return None;
                }
            }
            let stream = &self.control.stream;
            stream.readable().await.ok()?;
            match stream.try_read_buf(self.inbox.bytes()) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    /// How the keeper saw it end; `None` when the keeper is gone. Cancel-safe, yields once.
    pub(super) async fn end(&mut self) -> Option<ShimEnd> {
        (&mut self.end).await.ok()
    }
}

impl Shim {
    pub(super) fn new(attempt: u128, link: Arc<Link>, worker: Worker, start: Vec<u8>) -> Self {
        Self { attempt, link, worker, start: Some(start), over: false, worn: false, gone: None }
    }

    /// The attempt it was launched for.
    pub fn attempt(&self) -> u128 {
        self.attempt
    }

    /// A second pair of hands after *go*, for whoever sends signals while another awaits events.
    pub fn control(&self) -> ShimControl {
        self.worker.control.clone()
    }

    /// Starts the job: call it once the attempt is committed. Its first effect is the attempt in the shim's slot.
    /// Not cancel-safe: of a large job a part may have been sent, and dropping the shim then ends it.
    pub async fn go(&mut self) -> Result<(), SendError> {
        let Some(start) = self.start.take() else { return Ok(()) };
        loop {
            self.link.slots().occupy(self.worker.slot);
            self.worker.settled = false;
            let Err(error) = self.worker.control.send_frame(&start).await else { return Ok(()) };
            // It died while it was idle, and has not read all of this: nothing was executed.
            self.settle();
            self.worker = match self.link.idle_worker() {
                Some(other) => other,
                None => Box::pin(self.link.fork()).await.map_err(|_| error)?,
            };
        }
    }

    /// As [`ShimControl::signal`]; before *go* it is kept until the job runs.
    pub async fn signal(&mut self, signal: i32) -> Result<(), SendError> {
        match &mut self.start {
            Some(start) => {
                start.extend(protocol::frame(&ToShim::Signal { signal })?);
                Ok(())
            }
            None => self.worker.control.signal(signal).await,
        }
    }

    /// As [`ShimControl::kill`]; before *go* it ends the shim with nothing executed.
    pub async fn kill(&mut self) -> Result<(), SendError> {
        match self.start.take() {
            Some(_) => self.ack().await,
            None => self.worker.control.kill().await,
        }
    }

    /// Has the keeper kill the shim, and what it holds, when it answers no [`kill`](Self::kill): it waits for its child
    /// then, which is stuck on its way to the program. Answered by `Gone` when nothing lives any more.
    pub async fn kill_shim(&mut self) -> Result<(), SendError> {
        Ok(self.link.ask(ToKeeper::Kill(self.worker.slot), None).await?)
    }

    /// The ending is committed: the shim forgets it and leaves. Without it the shim stays, and when the lifeline
    /// closes it leaves the ending for the next start. Cancel-safe: the message is sent whole or not at all.
    pub async fn ack(&mut self) -> Result<(), SendError> {
        self.settle();
        self.worker.control.send(&ToShim::Ack).await
    }

    fn settle(&mut self) {
        self.worker.settled = true;
        self.link.slots().settle(self.worker.slot);
    }

    /// The ending is committed, as for [`ack`](Self::ack), and the shim may stay for another attempt.
    pub fn release(mut self) {
        self.settle();
        let Self { link, worker, over, worn, .. } = self;
        if over && !worn && !worker.control.is_shared() {
            link.keep_idle(worker);
        }
    }

    /// The next event. Cancel-safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> ShimEvent {
        if let Some(status) = self.gone {
            return ShimEvent::Gone { status };
        }
        while let Some(message) = self.worker.receive().await {
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
        self.gone = Some(status);
        ShimEvent::Gone { status }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.settled
            && let Ok(frame) = protocol::frame(&ToShim::Ack)
        {
            // A few bytes, which an idle socket takes. Without them it leaves an ending that nobody asks for.
            self.control.stream.try_write(&frame).ok();
        }
        let fd = self.control.stream.as_raw_fd();
        // Fails only when the other end is gone already, which is what is wanted.
        nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both).ok();
    }
}

/// Sends signals to the job of one shim. Does not hold its lifeline.
#[derive(Debug, Clone)]
pub struct ShimControl {
    stream: Arc<UnixStream>,
}

impl ShimControl {
    /// Sends `signal` to the job's process group, then CONT so that a stopped one takes it (not after KILL, STOP
    /// and CONT). Answered by `Signalled`; not answered when the job has ended by then. Cancel-safe: sent whole or
    /// not at all.
    pub async fn signal(&self, signal: i32) -> Result<(), SendError> {
        self.send(&ToShim::Signal { signal }).await
    }

    /// Kills the whole tree. Answered by `Killing` at once and `Exited` when nothing of it lives. Cancel-safe: sent
    /// whole or not at all.
    pub async fn kill(&self) -> Result<(), SendError> {
        self.send(&ToShim::Kill).await
    }

    /// Whether somebody else has a pair of hands: a shim that goes to another attempt must not be in them.
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.stream) > 1
    }

    async fn send(&self, message: &ToShim) -> Result<(), SendError> {
        self.send_frame(&protocol::frame(message)?).await
    }

    /// Commands are a few bytes, which the socket takes whole; only a job is ever split, and then nobody else
    /// has this stream yet.
    async fn send_frame(&self, frame: &[u8]) -> Result<(), SendError> {
        let mut rest = frame;
        while !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
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

//! The job's three standard streams, on the shim's side.

use std::io::PipeReader;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::buffer::spare_capacity;

use crate::process::log::{FRAME_DATA_LIMIT, LogWriter, Stream};

/// Both outputs and the log they go to.
#[derive(Debug)]
pub(super) struct Output {
    pipes: [Option<PipeReader>; 2],
    log: LogWriter,
    /// One read's worth. Its pages are touched by output only, never cleared: most jobs write little.
    buffer: Vec<u8>,
    /// How much each pipe holds.
    sizes: [usize; 2],
    bytes: u64,
    incomplete: bool,
}

/// What a new pipe holds, and so what is read at once.
const PIPE: usize = 64 << 10;
const _: () = assert!(PIPE <= FRAME_DATA_LIMIT);

/// What the pipe of a job that fills it is made to hold: job and shim take turns four times less often. More would gain
/// little, and all pipes of a user who is not root share a limit (`/proc/sys/fs/pipe-user-pages-soft`, 64 MiB).
const LARGE_PIPE: usize = 4 * PIPE;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Output {
    pub(super) fn new(stdout: PipeReader, stderr: PipeReader, log: LogWriter) -> Self {
        let pipes = [Some(stdout), Some(stderr)];
        Self { pipes, log, buffer: Vec::new(), sizes: [PIPE; 2], bytes: 0, incomplete: false }
    }

    /// The pipes that are open still, each with its number for [`carry`](Self::carry).
    pub(super) fn open(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.pipes.iter().enumerate().filter_map(|(number, pipe)| Some((number, pipe.as_ref()?.as_fd())))
    }

    pub(super) fn ended(&self) -> bool {
        self.pipes.iter().all(Option::is_none)
    }

    /// Moves what one pipe has, a buffer at most, to the log. Call it when that is readable: then it does not block.
    pub(super) fn carry(&mut self, number: usize) {
        let Some(pipe) = &mut self.pipes[number] else { return };
        self.buffer.clear();
        self.buffer.reserve(self.sizes[number]);
        match rustix::io::read(&*pipe, spare_capacity(&mut self.buffer)) {
            Ok(0) => self.pipes[number] = None,
            Ok(length) => {
                self.bytes += length as u64;
                // It was full: its job is faster than it.
                if length == PIPE && self.sizes[number] == PIPE {
                    // Where the limit does not allow it, it stays as it is, and the reads are larger at the most.
                    fcntl(&*pipe, FcntlArg::F_SETPIPE_SZ(LARGE_PIPE as i32)).ok();
                    self.sizes[number] = LARGE_PIPE;
                }
                let at = now_us();
                for frame in self.buffer.chunks(FRAME_DATA_LIMIT) {
                    self.log.append(STREAMS[number], at, frame);
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                self.incomplete = true;
                self.pipes[number] = None;
            }
        }
    }

    /// Nobody can write to it any more, and all was read.
    pub(super) fn end(&mut self, number: usize) {
        self.pipes[number] = None;
    }

    /// Stops reading pipes that somebody outside the tree still holds.
    pub(super) fn give_up(&mut self) {
        if !self.ended() {
            self.incomplete = true;
            self.pipes = [None, None];
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn dropped(&self) -> u64 {
        self.log.dropped()
    }

    pub(super) fn incomplete(&self) -> bool {
        self.incomplete
    }
}

/// What is still to be written to the job's standard input.
#[derive(Debug)]
pub(super) struct Input {
    pipe: OwnedFd,
    bytes: Vec<u8>,
    written: usize,
}

impl Input {
    pub(super) fn new(pipe: OwnedFd, bytes: Vec<u8>) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, bytes, written: 0 })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Writes what the pipe takes. `false` when there is no more to do: all is written, or the job has closed it,
    /// which is no failure.
    pub(super) fn feed(&mut self) -> bool {
        match nix::unistd::write(&self.pipe, &self.bytes[self.written..]) {
            Ok(written) => {
                self.written += written;
                self.written < self.bytes.len()
            }
            Err(errno) => matches!(errno, Errno::EAGAIN | Errno::EINTR),
        }
    }
}

/// Microseconds since the epoch, by the wall clock.
pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

//! What in-process jobs write: the same logs as those of processes, written by one thread so that no disk ever
//! blocks the loop.

use std::{
    collections::VecDeque,
    io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::{
    job::{OutputFacts, Record, RunnerId},
    process::log::{FRAME_DATA_LIMIT, LogWriter, Stream},
    supervisor::attempt_dir,
};

/// Pieces on their way to the disk, each 64 KiB at most. A job that is faster than the disk waits, as a process
/// waits for its pipe: only it is slower for that, and nothing is lost that the quota would have kept.
const QUEUE: usize = 128;

/// Files that are open at once, of all in-process jobs together: tens of thousands of jobs must not take a
/// descriptor each. The one that was opened first is closed for the next.
const OPEN_FILES: usize = 8;

/// Where logs go and how large they may be; the writer's thread ends with the last of it.
#[derive(Debug)]
pub struct Outputs {
    root: PathBuf,
    segment_bytes: u64,
    max_bytes: u64,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Write { log: Arc<Log>, stream: Stream, at: u64, bytes: Box<[u8]> },
    /// All orders before it are carried out.
    Flush(Arc<Log>, oneshot::Sender<u64>),
}

/// The log of one attempt. Nothing is on disk before its first line.
#[derive(Clone, Debug)]
pub(super) struct Output(Arc<Log>);

#[derive(Debug)]
struct Log {
    outputs: Arc<Outputs>,
    runner: RunnerId,
    position: (u32, u32),
    written: AtomicU64,
    /// The writer's thread is the only one that takes it.
    writer: Mutex<Option<Box<LogWriter>>>,
}

impl Outputs {
    /// Starts the writer's thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(root: PathBuf, segment_bytes: u64, max_bytes: u64) -> io::Result<Arc<Self>> {
        let (orders, receiver) = mpsc::channel(QUEUE);
        thread::Builder::new().name("runward-output".into()).spawn(move || write_all(receiver))?;
        Ok(Arc::new(Self { root, segment_bytes, max_bytes, orders }))
    }

    /// The output of the record's current attempt.
    pub(super) fn of(self: &Arc<Self>, record: &Record) -> Output {
        Output(Arc::new(Log {
            outputs: Arc::clone(self),
            runner: record.id,
            position: record.position().unwrap_or((1, 1)),
            written: AtomicU64::new(0),
            writer: Mutex::default(),
        }))
    }
}

impl Output {
    /// Writes bytes as they are. Waits while the disk is behind.
    pub(super) async fn write(&self, stream: Stream, bytes: &[u8]) {
        for piece in bytes.chunks(FRAME_DATA_LIMIT) {
            let at = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0);
            let write = Order::Write { log: Arc::clone(&self.0), stream, at, bytes: piece.into() };
            self.0.written.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if self.0.outputs.orders.send(write).await.is_err() {
                tracing::error!(runner = %self.0.runner, "the writer of output is gone: a line is lost");
            }
        }
    }

    /// Waits until all that was written before is in the log, and tells how much that is.
    pub(super) async fn flush(&self) -> OutputFacts {
        let bytes = self.0.written.load(Ordering::Relaxed);
        if bytes == 0 {
            return OutputFacts::default();
        }
        let (reply, flushed) = oneshot::channel();
        let sent = self.0.outputs.orders.send(Order::Flush(Arc::clone(&self.0), reply)).await;
        match (sent, flushed.await) {
            (Ok(()), Ok(dropped)) => OutputFacts { bytes, dropped, incomplete: false },
            (Ok(()) | Err(_), _) => OutputFacts { bytes, dropped: 0, incomplete: true },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_all(mut orders: mpsc::Receiver<Order>) {
    let mut open = VecDeque::with_capacity(OPEN_FILES + 1);
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Write { log, stream, at, bytes } => write(&log, stream, at, &bytes, &mut open),
            Order::Flush(log, reply) => {
                let dropped = lock(&log.writer).as_ref().map_or(0, |writer| writer.dropped());
                // Who asked may have been dropped.
                reply.send(dropped).ok();
            }
        }
    }
}

fn write(log: &Arc<Log>, stream: Stream, at: u64, bytes: &[u8], open: &mut VecDeque<Weak<Log>>) {
    let mut writer = lock(&log.writer);
    let writer = writer.get_or_insert_with(|| Box::new(log.create()));
    let was_open = writer.is_open();
    writer.append(stream, at, bytes);
    if was_open || !writer.is_open() {
        return;
    }
    open.push_back(Arc::downgrade(log));
    if open.len() > OPEN_FILES
        && let Some(first) = open.pop_front().and_then(|first| first.upgrade())
        && !Arc::ptr_eq(&first, log)
        && let Some(first) = lock(&first.writer).as_mut()
    {
        first.rest();
    }
}

impl Log {
    fn create(&self) -> LogWriter {
        let Outputs { root, segment_bytes, max_bytes, orders: _ } = &*self.outputs;
        let (run, attempt) = self.position;
        let dir = attempt_dir(root, self.runner, run, attempt);
        if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            tracing::warn!(runner = %self.runner, %error, "no directory for a job's output: it is lost, and counted");
        }
        LogWriter::new(dir, *segment_bytes, *max_bytes)
    }
}

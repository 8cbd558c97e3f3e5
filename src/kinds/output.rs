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
use tokio::sync::{mpsc, oneshot, watch};

use super::LogQuota;
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
    quota: watch::Receiver<LogQuota>,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Write {
        log: Arc<Log>,
        stream: Stream,
        at: u64,
        bytes: Box<[u8]>,
    },
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
    pub fn start(root: PathBuf, quota: watch::Receiver<LogQuota>) -> io::Result<Arc<Self>> {
        let (orders, receiver) = mpsc::channel(QUEUE);
        thread::Builder::new().name("runward-output".into()).spawn(move || write_all(receiver))?;
        Ok(Arc::new(Self { root, quota, orders }))
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
        let Outputs { root, quota, orders: _ } = &*self.outputs;
        let LogQuota { segment_bytes, max_bytes } = *quota.borrow();
        let (run, attempt) = self.position;
        let dir = attempt_dir(root, self.runner, run, attempt);
        if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            tracing::warn!(runner = %self.runner, %error, "no directory for a job's output: it is lost, and counted");
        }
        LogWriter::new(dir, segment_bytes, max_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{AttemptKey, Event, EventKind, Handler, Job, Spec, replay},
        process::log::{Item, LogReader},
    };

    fn quota(segment_bytes: u64, max_bytes: u64) -> watch::Receiver<LogQuota> {
        watch::channel(LogQuota { segment_bytes, max_bytes }).1
    }

    fn record() -> Record {
        let id = RunnerId::new();
        let job = Job::Handler(Handler { name: "x".into(), args: serde_json::Value::Null.into() });
        let spec = Arc::new(Spec::new(job, std::time::Duration::ZERO));
        let key = AttemptKey::new();
        let starting =
            EventKind::Starting { run: 1, attempt: 1, key, boot_id: "b".into(), context_version: 0 };
        let kinds = [EventKind::Submitted { spec }, starting];
        let events: Vec<Event> = (1..)
            .zip(kinds)
            .map(|(seq, kind)| Event { seq, runner: id, at: Timestamp::UNIX_EPOCH, kind })
            .collect();
        replay(&events).expect("legal").expect("a record")
    }

    fn read(outputs: &Outputs, record: &Record) -> Vec<u8> {
        let mut reader = LogReader::new(&attempt_dir(&outputs.root, record.id, 1, 1), 0);
        let mut bytes = Vec::new();
        while let Some(item) = reader.next_item().expect("readable") {
            match item {
                Item::Frame(frame) => bytes.extend(frame.bytes),
                Item::Gap { .. } => panic!("nothing is deleted"),
            }
        }
        bytes
    }

    #[tokio::test]
    async fn more_logs_than_files_are_written_in_turns() {
        let dir = tempfile::tempdir().expect("a directory");
        let outputs = Outputs::start(dir.path().into(), quota(1 << 20, 1 << 20)).expect("started");
        let records: Vec<_> = (0..OPEN_FILES * 3).map(|_| record()).collect();
        let logs: Vec<_> = records.iter().map(|record| outputs.of(record)).collect();
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("readable").count(),
            0,
            "nothing before the first line"
        );
        for turn in 0..3_u8 {
            for log in &logs {
                log.write(Stream::Stdout, &[b'0' + turn]).await;
            }
        }
        let big = vec![b'x'; 3 * FRAME_DATA_LIMIT + 1];
        logs[0].write(Stream::Stderr, &big).await;
        for (log, record) in logs.iter().zip(&records) {
            let facts = log.flush().await;
            let read = read(&outputs, record);
            assert_eq!((facts.bytes, facts.dropped), (read.len() as u64, 0));
            assert!(read.starts_with(b"012"), "{read:?}");
            let files =
                std::fs::read_dir(attempt_dir(dir.path(), record.id, 1, 1)).expect("readable").count();
            assert_eq!(files, 1, "a file that was closed is gone on with");
        }
        let open =
            logs.iter().filter(|log| lock(&log.0.writer).as_ref().is_some_and(|writer| writer.is_open()));
        assert!(open.count() <= OPEN_FILES);
    }

    #[tokio::test]
    async fn what_is_over_the_quota_is_counted_and_what_can_not_be_written_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let outputs = Outputs::start(dir.path().into(), quota(100, 300)).expect("started");
        let (kept, lost) = (record(), record());
        let log = outputs.of(&kept);
        for _ in 0..100 {
            log.write(Stream::Stdout, &[b'x'; 50]).await;
        }
        let facts = log.flush().await;
        assert!(facts.bytes == 5000 && facts.dropped > 4000, "{facts:?}");
        std::fs::write(dir.path().join(lost.id.to_string()), "no directory").expect("written");
        let log = outputs.of(&lost);
        log.write(Stream::Stdout, b"12345").await;
        assert_eq!(log.flush().await, OutputFacts { bytes: 5, dropped: 5, incomplete: false });
    }
}

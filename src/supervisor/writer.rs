//! The one thread that writes to the store. One batch at a time: while it is being committed the next one
//! grows, which is what commits in groups.

use std::{
    io,
    sync::{Arc, mpsc as blocking},
    thread,
    time::{Duration, Instant},
};

use foldhash::HashSet;
use tokio::sync::mpsc;

use super::ports::{AppendError, Batch, Delivery, Duplicate, EventLog};
use crate::{job::RunnerId, metrics::Metrics};

/// How long nothing is written before the log rests: longer than a busy daemon ever waits.
const REST: Duration = Duration::from_secs(5);

/// A batch, after the attempt to commit it.
pub(super) struct Written {
    pub(super) batch: Batch,
    pub(super) result: Result<Vec<Duplicate>, AppendError>,
    pub(super) at: Instant,
}

/// The writer thread. It ends, and closes the store, when this is dropped.
pub(super) struct Writer {
    batches: Option<blocking::SyncSender<Batch>>,
    written: mpsc::Receiver<Written>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(mut log: Box<dyn EventLog>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (batches, receiver) = blocking::sync_channel::<Batch>(1);
        let (sender, written) = mpsc::channel(1);
        let thread = thread::Builder::new().name("runward-store".into()).spawn(move || {
            while let Some(batch) = next(&receiver, &mut *log) {
                let started = Instant::now();
                let result = log.append(&batch);
                count(&metrics, started, &batch, &result);
                if sender.blocking_send(Written { batch, result, at: Instant::now() }).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { batches: Some(batches), written, thread: Some(thread) })
    }

    /// Hands over a batch. Only when the one before was written.
    pub(super) fn write(&mut self, batch: Batch) {
        if let Some(batches) = &self.batches {
            batches.send(batch).expect("the writer thread lives as long as its writer");
        }
    }

    /// The batch that was handed over, written. Cancel-safe.
    pub(super) async fn written(&mut self) -> Written {
        self.written.recv().await.expect("the writer thread lives as long as its writer")
    }
}

/// The next batch. `None`: nobody is there to give one.
fn next(batches: &blocking::Receiver<Batch>, log: &mut dyn EventLog) -> Option<Batch> {
    match batches.recv_timeout(REST) {
        Err(blocking::RecvTimeoutError::Timeout) => {
            log.rest();
            batches.recv().ok()
        }
        given => given.ok(),
    }
}

/// Here and not on the supervisor's loop, and before anybody is answered.
fn count(metrics: &Metrics, started: Instant, batch: &Batch, result: &Result<Vec<Duplicate>, AppendError>) {
    match result {
        Ok(duplicates) => {
            metrics.store.commits.observe(started.elapsed());
            metrics.store.events.observe_count(batch.events.len());
            count_durable(metrics, batch, duplicates);
        }
        Err(_) => metrics.store.failures.inc(),
    }
}

/// Counts what was made durable.
pub fn count_durable(metrics: &Metrics, batch: &Batch, duplicates: &[Duplicate]) {
    let duplicates: HashSet<RunnerId> = duplicates.iter().map(|duplicate| duplicate.runner).collect();
    let refused = |id| !duplicates.is_empty() && duplicates.contains(&id);
    let messages = metrics.jobs.committed(&batch.events, &batch.records, refused);
    let done = batch.webhooks.iter().filter(|(_, delivery)| *delivery == Delivery::Done).count();
    metrics.webhooks.pending.add(messages - i64::try_from(done).unwrap_or(i64::MAX));
    metrics.jobs.purged.add(batch.purged.len() as u64);
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.batches = None;
        self.written.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer thread panicked");
        }
    }
}

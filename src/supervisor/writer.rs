//! The one thread that writes to the store. One batch at a time: while it is being committed the next one
//! grows, which is what commits in groups.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, mpsc as blocking},
    thread,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    handle::Reply,
    ports::{AppendError, Batch, Delivery, Duplicate, EventLog},
};
use crate::{
    job::{Record, RunnerId},
    metrics::Metrics,
};

/// A batch, after the attempt to commit it.
pub(super) struct Written {
    pub(super) batch: Batch,
    pub(super) result: Result<Vec<Duplicate>, AppendError>,
    /// Those of the submitters that were not told that their job is durable, because it is not.
    pub(super) refused: Vec<Submitter>,
}

/// Who waits for a submission to be durable, and what it is told then.
pub(super) type Submitter = (Arc<Record>, oneshot::Sender<Reply>);

/// The writer thread. It ends, and closes the store, when this is dropped.
pub(super) struct Writer {
    batches: Option<blocking::SyncSender<(Batch, Vec<Submitter>)>>,
    written: mpsc::Receiver<Written>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(mut log: Box<dyn EventLog>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (batches, receiver) = blocking::sync_channel::<(Batch, Vec<Submitter>)>(1);
        let (sender, written) = mpsc::channel(1);
        let thread = thread::Builder::new().name("runward-store".into()).spawn(move || {
            while let Ok((batch, submitters)) = receiver.recv() {
                let started = Instant::now();
                let result = log.append(&batch);
                count(&metrics, started, &batch, &result);
                let (durable, refused) = sort(submitters, &result);
                let gone = sender.blocking_send(Written { batch, result, refused }).is_err();
                // Here, and not after another thread was woken: it is all that they wait for.
                for (record, reply) in durable {
                    // The client may have gone.
                    drop(reply.send(Reply::Submitted(record)));
                }
                if gone {
                    break;
                }
            }
        })?;
        Ok(Self { batches: Some(batches), written, thread: Some(thread) })
    }

    /// Hands over a batch, and who is told when it is durable. Only when the one before was written.
    pub(super) fn write(&mut self, batch: Batch, submitters: Vec<Submitter>) {
        if let Some(batches) = &self.batches {
            batches.send((batch, submitters)).expect("the writer thread lives as long as its writer");
        }
    }

    /// The batch that was handed over, written. Cancel-safe.
    pub(super) async fn written(&mut self) -> Written {
        self.written.recv().await.expect("the writer thread lives as long as its writer")
    }
}

/// Those whose jobs are durable, and the others.
fn sort(
    submitters: Vec<Submitter>,
    result: &Result<Vec<Duplicate>, AppendError>,
) -> (Vec<Submitter>, Vec<Submitter>) {
    match result {
        Ok(duplicates) if duplicates.is_empty() => (submitters, Vec::new()),
        Ok(duplicates) => {
            let refused: HashSet<RunnerId> = duplicates.iter().map(|duplicate| duplicate.runner).collect();
            submitters.into_iter().partition(|(record, _)| !refused.contains(&record.id))
        }
        Err(_) => (Vec::new(), submitters),
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

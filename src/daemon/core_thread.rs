//! The supervisor's thread: its loop, what lives on it, and how it ends.

use std::{io, sync::Arc, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{Code, KindsShared, recover::Recovered};
use crate::{
    kinds::{Fleet, Inside},
    metrics::Metrics,
    process::KeeperLink,
    store::Readers,
    supervisor::{Actor, Ended, Fatal, Parts, REPORTS, Supervisor, Urgent},
};

/// How long the keeper may take to follow the last shim. It has nothing left to do, so it is only a busy machine that
/// makes it late.
const KEEPER_LEAVES: Duration = Duration::from_secs(10);

/// The same where something of a job may not die: whoever gave up on that waits no longer for the keeper.
const KEEPER_IS_LEFT: Duration = Duration::from_secs(1);

/// The supervisor's thread.
pub(super) struct CoreThread {
    pub(super) ready: oneshot::Receiver<Supervisor>,
    pub(super) ended: oneshot::Receiver<Ended>,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<Code>,
}

/// The supervisor's end of it.
pub(super) struct CoreEnds {
    ready: oneshot::Sender<Supervisor>,
    ended: oneshot::Sender<Ended>,
    stopped: oneshot::Receiver<()>,
}

impl CoreThread {
    pub(super) fn start(
        body: impl FnOnce(CoreEnds) -> io::Result<Code> + Send + 'static,
    ) -> io::Result<Self> {
        let (ready_sender, ready) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let ends = CoreEnds { ready: ready_sender, ended: ended_sender, stopped };
        let thread = thread::Builder::new().name("runward-core".into()).spawn(move || {
            body(ends).unwrap_or_else(|error| {
                tracing::error!(%error, "the supervisor could not start");
                Code::System
            })
        })?;
        Ok(Self { ready, ended, stop, thread })
    }

    /// Lets it close the store and end.
    pub(super) fn join(self) -> Code {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| {
            tracing::error!("the supervisor failed; the next start recovers from its log");
            Code::Internal
        })
    }
}

/// What the supervisor is made of.
pub(super) struct Supervised {
    pub(super) recovered: Recovered,
    pub(super) keeper: KeeperLink,
    pub(super) shared: KindsShared,
    pub(super) inside: Inside,
    pub(super) readers: Readers,
    pub(super) urgent: mpsc::Receiver<Urgent>,
    pub(super) urgent_sender: mpsc::Sender<Urgent>,
    pub(super) metrics: Arc<Metrics>,
}

/// The body of the supervisor's thread.
pub(super) fn supervise(parts: Supervised, ends: CoreEnds) -> io::Result<Code> {
    let Supervised { recovered, keeper, shared, inside, readers, urgent, urgent_sender, metrics } = parts;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (launcher, keeper) = keeper.attach()?;
        let log_root = shared.log_root.clone();
        let (reports_sender, reports) = mpsc::channel(REPORTS);
        let fleet = Fleet::new(shared.with(launcher), inside, Handle::current(), reports_sender);
        let Recovered { core, log, lookup, last_seq, tally: _ } = recovered;
        let parts = Parts { core, runners: fleet, reports, urgent, log, records: lookup, last_seq, metrics };
        let (mut actor, supervisor) = Actor::new(parts, Arc::new(readers), log_root)?;
        // Nobody waits for it only when the control plane failed; then it is told to stop at once.
        drop(ends.ready.send(supervisor));
        let mut keeper_end = JoinSet::new();
        keeper_end.spawn(async move {
            let end = keeper.ended().await;
            drop(urgent_sender.send(Urgent::Fatal(Fatal::KeeperDied)).await);
            end
        });
        let ended = actor.run().await;
        let code = tell(&ended);
        let patience = match &ended {
            Ended::Drained { forced: false } => KEEPER_LEAVES,
            Ended::Drained { forced: true } | Ended::Abandoned(_) | Ended::Fatal(_) => KEEPER_IS_LEFT,
        };
        drop(ends.ended.send(ended));
        drop(ends.stopped.await);
        // Closes the store, then the last lifeline: the keeper leaves.
        drop(actor);
        if timeout(patience, keeper_end.join_next()).await.is_err() {
            tracing::warn!(
                "the keeper has not ended within {} seconds: it is left to end when nothing of a job lives any more",
                patience.as_secs()
            );
        }
        Ok(code)
    })
}

fn tell(ended: &Ended) -> Code {
    match ended {
        Ended::Drained { forced: false } => {
            tracing::info!("stopped: every job is closed and recorded");
            Code::Stopped
        }
        Ended::Drained { forced: true } => {
            tracing::warn!("stopped by force: every job is closed and recorded");
            Code::Forced
        }
        Ended::Abandoned(runners) => {
            let names: Vec<_> = runners.iter().map(ToString::to_string).collect();
            tracing::error!(runners = names.join(", "), "gave up: something of these jobs does not die");
            Code::Abandoned
        }
        Ended::Fatal(fatal) => {
            tracing::error!(%fatal, "can't go on: every job is being killed; the next start recovers");
            match fatal {
                Fatal::KeeperDied => Code::System,
                Fatal::StoreBroken(_) => Code::StoreFailed,
            }
        }
    }
}

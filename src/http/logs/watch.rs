//! Tells followers that something was written: one inotify instance, one watch for each directory that somebody
//! waits for.
//!
//! A watch fires once and is gone: whoever has read all there was arms it again. So a job that floods its log costs
//! one event for each time that somebody has caught up, and nothing while nobody waits.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::{sync::watch, task::JoinSet};

/// Room for events; a watch of ours fires once, so there are never many.
const EVENTS: usize = 4096;

/// Arms watches.
#[derive(Clone)]
pub(in crate::http) struct Watcher(Arc<Shared>);

struct Shared {
    watches: Mutex<Watches>,
    /// Who waits for what. Dropping a sender wakes all who wait.
    waiting: Mutex<HashMap<WatchDescriptor, watch::Sender<()>>>,
}

/// A watch that has not fired, or has.
pub(super) struct Armed {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    fired: watch::Receiver<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    /// Starts it; its task lives among `tasks`.
    ///
    /// # Errors
    /// The system has no inotify instance left.
    pub(in crate::http) fn start(tasks: &mut JoinSet<()>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let shared = Arc::new(Shared { watches: Mutex::new(inotify.watches()), waiting: Mutex::default() });
        let events = inotify.into_event_stream([0; EVENTS])?;
        tasks.spawn(run(events, Arc::clone(&shared)));
        Ok(Self(shared))
    }

    /// Arms a watch on a directory: it fires at the next write in it. `None` if there is no directory yet.
    ///
    /// # Errors
    /// The system's, such as no watch left.
    pub(super) fn arm(&self, dir: &Path) -> io::Result<Option<Armed>> {
        // Held until the sender is in its place: an event in between finds it.
        let mut waiting = lock(&self.0.waiting);
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::ONESHOT | WatchMask::ONLYDIR;
        let descriptor = match lock(&self.0.watches).add(dir, mask) {
            Ok(descriptor) => descriptor,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let sender = waiting.entry(descriptor.clone()).or_insert_with(|| watch::Sender::new(()));
        Ok(Some(Armed { shared: Arc::clone(&self.0), fired: sender.subscribe(), descriptor }))
    }
}

impl Armed {
    /// Resolves when it has fired. Cancel-safe.
    pub(super) async fn fired(&mut self) {
        // Nothing is ever sent: the sender goes.
        while self.fired.changed().await.is_ok() {}
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let mut waiting = lock(&self.shared.waiting);
        // This one is still counted.
        if waiting.get(&self.descriptor).is_some_and(|sender| sender.receiver_count() <= 1) {
            waiting.remove(&self.descriptor);
            // It may have fired just now; then it is gone already.
            drop(lock(&self.shared.watches).remove(self.descriptor.clone()));
        }
    }
}

async fn run(mut events: EventStream<[u8; EVENTS]>, shared: Arc<Shared>) {
    while let Some(event) = events.next().await {
        match event {
            // Nobody knows which: all look.
            Ok(event) if event.mask.contains(EventMask::Q_OVERFLOW) => lock(&shared.waiting).clear(),
            Ok(event) => drop(lock(&shared.waiting).remove(&event.wd)),
            Err(error) => return give_up(&shared, &error),
        }
    }
}

/// Wakes everybody; those who wait again hear no more of writes, but still of the end of their attempt.
fn give_up(shared: &Shared, error: &io::Error) {
    tracing::error!(%error, "inotify failed: output that is followed comes late until the daemon starts again");
    lock(&shared.waiting).clear();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn start() -> (Watcher, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        (Watcher::start(&mut tasks).expect("inotify"), tasks)
    }

    #[tokio::test]
    async fn everybody_who_waits_for_a_directory_hears_of_a_write() {
        let (watcher, _tasks) = start();
        let dir = tempfile::tempdir().expect("a directory");
        let arm = || watcher.arm(dir.path()).expect("armed").expect("there");
        let (mut first, mut second) = (arm(), arm());
        fs::write(dir.path().join("output.0"), "a").expect("written");
        first.fired().await;
        second.fired().await;
        let mut again = arm();
        fs::write(dir.path().join("output.0"), "b").expect("written");
        again.fired().await;
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_armed_and_nothing_is_left_over() {
        let (watcher, _tasks) = start();
        let dir = tempfile::tempdir().expect("a directory");
        assert!(watcher.arm(&dir.path().join("later")).expect("no error").is_none());
        let first = watcher.arm(dir.path()).expect("armed");
        let second = watcher.arm(dir.path()).expect("armed");
        drop(first);
        assert_eq!(lock(&watcher.0.waiting).len(), 1);
        drop(second);
        assert_eq!(lock(&watcher.0.waiting).len(), 0);
    }
}

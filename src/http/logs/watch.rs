//! Tells followers that something was written: one inotify instance, one watch for each directory that is followed.
//!
//! A watch stays as long as somebody follows. One that fires once and is armed again would spare events while nobody
//! waits, but Linux (6.18) loses a write now and then that comes while such a watch is being replaced.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::{sync::watch, task::JoinSet};

/// Room for events, in bytes. Equal ones in a row are one: a flood makes few.
const EVENTS: usize = 4096;

/// Watches directories.
#[derive(Clone)]
pub(super) struct Watcher(Arc<Shared>);

struct Shared {
    watches: Mutex<Watches>,
    followed: Mutex<HashMap<WatchDescriptor, watch::Sender<()>>>,
}

/// A follower's share in the watch on a directory.
pub(super) struct Followed {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    writes: watch::Receiver<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    /// Starts it; its task lives among `tasks`.
    ///
    /// # Errors
    /// The system has no inotify instance left.
    pub(super) fn start(tasks: &mut JoinSet<()>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let shared = Arc::new(Shared { watches: Mutex::new(inotify.watches()), followed: Mutex::default() });
        let events = inotify.into_event_stream([0; EVENTS])?;
        tasks.spawn(run(events, Arc::clone(&shared)));
        Ok(Self(shared))
    }

    /// Follows a directory, from now on: what was written before is to be read after this. `None` if there is no
    /// directory yet.
    ///
    /// # Errors
    /// The system's, such as no watch left.
    pub(super) fn follow(&self, dir: &Path) -> io::Result<Option<Followed>> {
        // Held until the sender is in its place: an event in between finds it.
        let mut followed = lock(&self.0.followed);
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::ONLYDIR;
        // A directory that is watched already has the same watch again.
        let descriptor = match lock(&self.0.watches).add(dir, mask) {
            Ok(descriptor) => descriptor,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let sender = followed.entry(descriptor.clone()).or_insert_with(|| watch::Sender::new(()));
        Ok(Some(Followed { shared: Arc::clone(&self.0), writes: sender.subscribe(), descriptor }))
    }
}

impl Followed {
    /// Resolves when something was written since it last did; to `false` when the directory is gone. Cancel-safe.
    pub(super) async fn written(&mut self) -> bool {
        self.writes.changed().await.is_ok()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut followed = lock(&self.shared.followed);
        // This one is still counted.
        if followed.get(&self.descriptor).is_some_and(|sender| sender.receiver_count() <= 1) {
            followed.remove(&self.descriptor);
            // The directory may have gone, and its watch with it.
            drop(lock(&self.shared.watches).remove(self.descriptor.clone()));
        }
    }
}

async fn run(mut events: EventStream<[u8; EVENTS]>, shared: Arc<Shared>) {
    while let Some(event) = events.next().await {
        let mut followed = lock(&shared.followed);
        match event {
            // Nobody knows which: all look.
            Ok(event) if event.mask.contains(EventMask::Q_OVERFLOW) => {
                followed.values().for_each(|sender| sender.send_replace(()));
            }
            Ok(event) if event.mask.contains(EventMask::IGNORED) => drop(followed.remove(&event.wd)),
            Ok(event) => {
                if let Some(sender) = followed.get(&event.wd) {
                    sender.send_replace(());
                }
            }
            Err(error) => {
                tracing::error!(%error, "inotify failed: output that is followed comes late until the next start");
                followed.clear();
                return;
            }
        }
    }
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
    async fn everybody_who_follows_a_directory_hears_of_a_write() {
        let (watcher, _tasks) = start();
        let dir = tempfile::tempdir().expect("a directory");
        let follow = || watcher.follow(dir.path()).expect("followed").expect("there");
        let (mut first, mut second) = (follow(), follow());
        fs::write(dir.path().join("output.0"), "a").expect("written");
        assert!(first.written().await && second.written().await);
        drop(second);
        fs::write(dir.path().join("output.0"), "b").expect("written");
        assert!(first.written().await);
    }

    #[tokio::test]
    async fn who_follows_a_directory_that_goes_hears_of_it() {
        let (watcher, _tasks) = start();
        let dir = tempfile::tempdir().expect("a directory");
        let mut followed = watcher.follow(dir.path()).expect("followed").expect("there");
        dir.close().expect("removed");
        while followed.written().await {}
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_followed_and_nothing_is_left_over() {
        let (watcher, _tasks) = start();
        let dir = tempfile::tempdir().expect("a directory");
        assert!(watcher.follow(&dir.path().join("later")).expect("no error").is_none());
        let first = watcher.follow(dir.path()).expect("followed");
        let second = watcher.follow(dir.path()).expect("followed");
        drop(first);
        assert_eq!(lock(&watcher.0.followed).len(), 1);
        drop(second);
        assert_eq!(lock(&watcher.0.followed).len(), 0);
    }
}

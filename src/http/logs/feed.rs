//! What the followers of one log share: it is read once, and what was read is handed out to all of them.
//!
//! A feed reads on when somebody has taken all there is, so it is as fast as the fastest of its followers and no
//! faster. Who can't keep up, or comes late, reads the files by himself until he is where the feed is: nothing is kept
//! for him. With many followers the feed pauses between two pieces, and what comes meanwhile is one piece: what they
//! cost is bounded, however many lines a job writes.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use axum::body::Bytes;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    blocking,
    follow::Position,
    format::Format,
    watch::{Followed, Watcher},
};
use crate::process::log::{Item, LogReader, Stream};

/// What a feed reads at once, and at least one frame: a few writes of a pipe.
const CHUNK: usize = 128 << 10;

/// What a follower reads at once by itself, and at least one frame: all the memory that a dead one holds.
pub(super) const OWN_CHUNK: usize = CHUNK / 2;

/// What a feed keeps of the pieces that it has handed out, in bytes: for those who are not the fastest. At least one
/// piece is kept.
const KEPT: usize = 4 * CHUNK;

/// Pieces that are kept: each lasts a pause, so who is later than that is no longer near.
const KEPT_PIECES: usize = 64;

/// So many are served without any pause: people at terminals, and programs that wait for each line.
const FEW: usize = 16;

/// The pause for each follower more, and once more for a whole [`CHUNK`]. To wake one and to write to its socket costs
/// about a tenth of it, so all of them together take about a tenth of one core.
const EACH: Duration = Duration::from_micros(100);

/// The longest pause: what comes later is not "as it comes" for anybody.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A log, and how it is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub(super) dir: PathBuf,
    pub(super) position: Position,
    /// Both if none is given.
    pub(super) stream: Option<Stream>,
    pub(super) format: Format,
}

/// All feeds.
#[derive(Clone)]
pub(in crate::http) struct Feeds(Arc<Shared>);

struct Shared {
    watcher: Watcher,
    feeds: Mutex<HashMap<Source, Weak<Feed>>>,
}

/// One log that somebody follows.
struct Feed {
    source: Source,
    shared: Arc<Shared>,
    kept: Mutex<Kept>,
    /// Somebody has taken all there is.
    demand: Arc<Notify>,
    changes: watch::Receiver<()>,
    /// What reads; it ends with this.
    _reading: JoinSet<()>,
}

/// What was read last.
struct Kept {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Where the feed is.
    end: u64,
    /// The files could not be read: each follower meets that by itself.
    failed: bool,
}

/// A part of the log, as it is written.
#[derive(Clone)]
pub(super) struct Piece {
    from: u64,
    /// Where the next begins.
    pub(super) to: u64,
    pub(super) bytes: Bytes,
}

/// What a feed has for a follower.
pub(super) enum Taken {
    /// What comes next for it.
    Piece(Piece),
    /// Nothing yet.
    Nothing,
    /// It has to read by itself up to this place.
    Missed(u64),
}

/// A follower's share in a feed.
pub(super) struct Follower {
    feed: Arc<Feed>,
    changes: watch::Receiver<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    /// A piece of what is there up to `end`, empty if nothing of it was asked for; `None` at the end. It ends with the
    /// frame that has its `most` bytes full. Of the first that was asked for `skip` bytes are left out. Blocking.
    pub(super) fn piece(
        &self,
        reader: &mut LogReader,
        end: u64,
        most: usize,
        skip: &mut usize,
    ) -> io::Result<Option<Bytes>> {
        let mut piece = Vec::new();
        let mut read = 0;
        let mut any = false;
        while read < most && reader.offset() < end {
            let Some(item) = reader.next_item()? else { break };
            any = true;
            if let Item::Frame(frame) = &item {
                read += frame.bytes.len();
                if self.stream.is_some_and(|stream| stream != frame.stream) {
                    continue;
                }
            }
            self.format.write(&mut piece, self.position, &item, std::mem::take(skip));
        }
        // It may be held for long by a client that takes nothing.
        piece.shrink_to_fit();
        Ok(any.then(|| piece.into()))
    }
}

impl Feeds {
    /// Starts what watches; its task lives among `tasks`.
    ///
    /// # Errors
    /// The system has no inotify instance left.
    pub(in crate::http) fn start(tasks: &mut JoinSet<()>) -> io::Result<Self> {
        let watcher = Watcher::start(tasks)?;
        Ok(Self(Arc::new(Shared { watcher, feeds: Mutex::default() })))
    }

    /// Watches what is no log yet; `None` if there is no such directory.
    ///
    /// # Errors
    /// The system's, such as no watch left.
    pub(super) fn watch(&self, dir: &Path) -> io::Result<Option<Followed>> {
        self.0.watcher.follow(dir)
    }

    /// Follows a log that was read up to `at`, where a piece of output begins; `None` if there is no directory yet.
    ///
    /// # Errors
    /// The system's, such as no watch left.
    pub(super) fn follow(&self, source: &Source, at: u64) -> io::Result<Option<Follower>> {
        let mut feeds = lock(&self.0.feeds);
        let feed = match feeds.get(source).and_then(Weak::upgrade) {
            Some(feed) => feed,
            None => {
                let Some(followed) = self.0.watcher.follow(&source.dir)? else { return Ok(None) };
                let feed = Feed::start(Arc::clone(&self.0), source.clone(), followed, at);
                feeds.insert(source.clone(), Arc::downgrade(&feed));
                feed
            }
        };
        let changes = feed.changes.clone();
        Ok(Some(Follower { feed, changes }))
    }
}

impl Feed {
    fn start(shared: Arc<Shared>, source: Source, followed: Followed, at: u64) -> Arc<Self> {
        let (sender, changes) = watch::channel(());
        let demand = Arc::new(Notify::new());
        let reader = LogReader::new(&source.dir, at);
        Arc::new_cyclic(|feed| {
            let reading =
                read_on(Weak::clone(feed), source.clone(), reader, followed, Arc::clone(&demand), sender);
            let mut tasks = JoinSet::new();
            tasks.spawn(reading);
            let kept = Kept { pieces: VecDeque::new(), bytes: 0, end: at, failed: false };
            Self { source, shared, kept: Mutex::new(kept), demand, changes, _reading: tasks }
        })
    }

    fn push(&self, to: u64, bytes: Bytes) {
        let mut kept = lock(&self.kept);
        let from = std::mem::replace(&mut kept.end, to);
        kept.bytes += bytes.len();
        kept.pieces.push_back(Piece { from, to, bytes });
        while kept.pieces.len() > 1
            && (kept.bytes > KEPT || kept.pieces.len() > KEPT_PIECES)
            && let Some(oldest) = kept.pieces.pop_front()
        {
            kept.bytes -= oldest.bytes.len();
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut feeds = lock(&self.shared.feeds);
        // Somebody may have begun another one since.
        if feeds.get(&self.source).is_some_and(|feed| feed.strong_count() == 0) {
            feeds.remove(&self.source);
        }
    }
}

/// Reads a piece for each time that somebody has taken all there is, until the directory is gone.
async fn read_on(
    feed: Weak<Feed>,
    source: Source,
    mut reader: LogReader,
    mut followed: Followed,
    demand: Arc<Notify>,
    changes: watch::Sender<()>,
) {
    let source = Arc::new(source);
    loop {
        demand.notified().await;
        let piece = loop {
            let form = Arc::clone(&source);
            let read = blocking(move || {
                let piece = form.piece(&mut reader, u64::MAX, CHUNK, &mut 0);
                Ok((reader, piece))
            });
            let piece;
            (reader, piece) = match read.await {
                Ok(read) => read,
                Err(_) => return,
            };
            match piece {
                Ok(Some(piece)) => break Ok(piece),
                Ok(None) if followed.written().await => {}
                Ok(None) => return,
                Err(error) => break Err(error),
            }
        };
        let Some(feed) = feed.upgrade() else { return };
        let (length, failed) = (piece.as_ref().map_or(0, Bytes::len), piece.is_err());
        match piece {
            Ok(piece) => feed.push(reader.offset(), piece),
            Err(_) => lock(&feed.kept).failed = true,
        }
        let followers = Arc::strong_count(&feed) - 1;
        drop(feed);
        changes.send_replace(());
        if failed {
            return;
        }
        let pause = pause(followers, length);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

/// How long nothing is read after a piece, for what it costs to hand it out.
fn pause(followers: usize, bytes: usize) -> Duration {
    let more = u32::try_from(followers.saturating_sub(FEW)).unwrap_or(u32::MAX);
    let parts = u32::try_from(1 + bytes / CHUNK).unwrap_or(u32::MAX);
    EACH.saturating_mul(more).saturating_mul(parts).min(LONGEST_PAUSE)
}

impl Follower {
    /// What there is from this place on.
    pub(super) fn take(&self, at: u64) -> Taken {
        let kept = lock(&self.feed.kept);
        if kept.failed {
            return Taken::Missed(u64::MAX);
        }
        if at >= kept.end {
            return Taken::Nothing;
        }
        match kept.pieces.get(kept.pieces.partition_point(|piece| piece.to <= at)) {
            Some(piece) if piece.from == at => Taken::Piece(piece.clone()),
            // He read on by himself, and stands in the middle.
            Some(piece) if piece.from < at => Taken::Missed(piece.to),
            Some(piece) => Taken::Missed(piece.from),
            None => Taken::Missed(kept.end),
        }
    }

    /// Resolves when there may be more than was taken; to `false` when there never will be. Call it when all is taken.
    /// Cancel-safe.
    pub(super) async fn more(&mut self) -> bool {
        self.feed.demand.notify_one();
        self.changes.changed().await.is_ok()
    }

    /// Waits as long as the feed does, after a piece that it has read by itself.
    pub(super) async fn pause(&self, bytes: usize) {
        let pause = pause(Arc::strong_count(&self.feed), bytes);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::process::log::LogWriter;

    fn start(dir: &Path) -> (Feeds, Source, LogWriter, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let feeds = Feeds::start(&mut tasks).expect("inotify");
        let position = Position { run: 1, attempt: 1 };
        let source = Source { dir: dir.to_owned(), position, stream: None, format: Format::Raw };
        (feeds, source, LogWriter::new(dir.to_owned(), 1 << 20, 1 << 30), tasks)
    }

    async fn next(follower: &mut Follower, at: &mut u64) -> Bytes {
        loop {
            match follower.take(*at) {
                Taken::Piece(piece) => {
                    *at = piece.to;
                    return piece.bytes;
                }
                Taken::Nothing => assert!(follower.more().await),
                Taken::Missed(_) => panic!("missed at {at}"),
            }
        }
    }

    #[tokio::test]
    async fn all_followers_get_what_was_read_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (feeds, source, mut log, _tasks) = start(dir.path());
        let follow = || feeds.follow(&source, 0).expect("followed").expect("there");
        let (mut first, mut second) = (follow(), follow());
        let (mut one, mut two) = (0, 0);
        log.append(Stream::Stdout, 1, b"first");
        let (a, b) = (next(&mut first, &mut one).await, next(&mut second, &mut two).await);
        assert_eq!((&a[..], a.as_ptr()), (&b"first"[..], b.as_ptr()), "one buffer for both");
        log.append(Stream::Stderr, 2, b"second");
        assert_eq!(next(&mut first, &mut one).await, "second");
        drop(first);
        assert_eq!(next(&mut second, &mut two).await, "second");
        drop(second);
        assert!(lock(&feeds.0.feeds).is_empty(), "nothing is left of it");
    }

    #[tokio::test]
    async fn nothing_is_read_before_somebody_has_taken_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let (feeds, source, mut log, _tasks) = start(dir.path());
        let mut fast = feeds.follow(&source, 0).expect("followed").expect("there");
        let slow = feeds.follow(&source, 0).expect("followed").expect("there");
        let data = vec![b'x'; CHUNK / 2];
        let mut at = 0;
        for number in 0..40 {
            log.append(Stream::Stdout, number, &data);
        }
        let mut got = 0;
        while got < 40 * data.len() {
            got += next(&mut fast, &mut at).await.len();
            let kept = lock(&fast.feed.kept);
            assert!(kept.end <= at + CHUNK as u64 + 64, "one piece ahead at the most");
            assert!(kept.bytes <= KEPT);
        }
        // What is not kept any more he reads by himself, up to what is.
        let first = lock(&slow.feed.kept).pieces[0].from;
        assert!(first > 0);
        assert!(matches!(slow.take(0), Taken::Missed(to) if to == first));
        assert!(matches!(slow.take(first), Taken::Piece(piece) if piece.from == first));
        assert!(matches!(slow.take(first + 1), Taken::Missed(to) if to > first), "in the middle of a piece");
    }

    #[tokio::test]
    async fn a_feed_goes_with_its_directory_and_a_damaged_log_is_left_to_each_follower() {
        let dir = tempfile::tempdir().expect("a directory");
        let (feeds, source, mut log, _tasks) = start(dir.path());
        let mut follower = feeds.follow(&source, 0).expect("followed").expect("there");
        log.append(Stream::Stdout, 1, b"x");
        let mut at = 0;
        next(&mut follower, &mut at).await;
        let other = Source { format: Format::Ndjson, ..source.clone() };
        let mut ndjson = feeds.follow(&other, at).expect("followed").expect("there");
        let file = fs::read_dir(dir.path()).expect("readable").next().expect("a file").expect("a file");
        let garbage = [fs::read(file.path()).expect("readable"), vec![9; 64]].concat();
        fs::write(file.path(), garbage).expect("written");
        while !matches!(ndjson.take(at), Taken::Missed(u64::MAX)) {
            assert!(ndjson.more().await);
        }
        dir.close().expect("removed");
        let gone = feeds.follow(&Source { stream: Some(Stream::Stdout), ..source }, 0).expect("no error");
        assert!(gone.is_none());
    }

    #[test]
    fn only_many_followers_are_made_to_wait_and_never_for_long() {
        assert_eq!(pause(FEW, CHUNK), Duration::ZERO);
        assert_eq!(pause(FEW + 10, 100), EACH * 10);
        assert_eq!(pause(FEW + 10, CHUNK), EACH * 20);
        assert_eq!(pause(usize::MAX, usize::MAX), LONGEST_PAUSE);
    }
}

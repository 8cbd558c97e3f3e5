//! One answer with output: reads a bounded piece when its client has taken the one before.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::body::Bytes;
use tokio::sync::watch;

use super::{
    Wanted, blocking,
    format::Format,
    watch::{Followed, Watcher},
};
use crate::{
    http::serve::Held,
    job::{AttemptState, Record, RunnerId, State},
    process::log::{Item, LogReader, Stream, TailStart},
    supervisor::{Subscription, Supervisor},
};

/// What is read at once: a few writes of a pipe, and all the memory that a dead follower holds.
const CHUNK: usize = 128 << 10;

/// Which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) run: u32,
    pub(super) attempt: u32,
}

/// What is needed to go on at the end of a log.
pub(super) struct Follow {
    pub(super) watcher: Watcher,
    pub(super) changes: Subscription,
    pub(super) closing: watch::Receiver<bool>,
    /// The latest that is known.
    pub(super) record: Arc<Record>,
    /// One run was asked for: the others are of no interest.
    pub(super) run: Option<u32>,
    /// One attempt was asked for: the next ones are of no interest.
    pub(super) pinned: bool,
    pub(super) watching: Watching,
}

/// What tells that something was written.
pub(super) enum Watching {
    /// Nothing yet. The log is read to its end once more when there is a watch, so nothing is missed.
    No,
    /// A watch.
    Directory(Followed),
    /// Something above it: an in-process job makes the directory with its first line.
    Above(Followed),
    /// There is nothing to watch.
    NoDirectory,
}

/// Output, piece by piece.
pub(super) struct Output {
    supervisor: Supervisor,
    id: RunnerId,
    stream: Option<Stream>,
    format: Format,
    reading: Option<Reading>,
    /// Where it ends for one who does not follow.
    end: u64,
    follow: Option<Follow>,
    failed: bool,
    _held: Option<Held>,
}

/// The log that is being read.
struct Reading {
    position: Position,
    dir: PathBuf,
    reader: LogReader,
    /// Bytes of the first piece to leave out.
    skip: usize,
}

/// What to do at the end of a log.
enum Next {
    Wait,
    ReadAgain,
    Attempt(Position),
    End,
}

impl Output {
    pub(super) fn new(
        supervisor: Supervisor,
        wanted: Wanted,
        position: Option<Position>,
        begin: TailStart,
        end: u64,
        follow: Option<Follow>,
        held: Option<Held>,
    ) -> Self {
        let Wanted { id, stream, format, .. } = wanted;
        let mut output =
            Self { supervisor, id, stream, format, reading: None, end, follow, failed: false, _held: held };
        if let Some(position) = position {
            output.open(position, begin);
        }
        output
    }

    fn open(&mut self, position: Position, begin: TailStart) {
        let dir = self.supervisor.log_dir(self.id, position.run, position.attempt);
        let reader = LogReader::new(&dir, begin.offset);
        self.reading = Some(Reading { position, dir, reader, skip: begin.skip });
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.failed {
            match self.step().await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => return Some(Ok(bytes)),
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(runner = %self.id, %error, "a job's output could not be read");
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    async fn step(&mut self) -> io::Result<Option<Bytes>> {
        // What is known before the log is read to its end: what ended before has written all it had.
        let next = self.follow.as_ref().map_or(Next::End, |follow| follow.next(self.reading.as_ref()));
        if let Some(piece) = self.read().await? {
            return Ok(Some(piece));
        }
        match next {
            Next::End => return Ok(None),
            Next::Attempt(position) => self.open(position, TailStart { offset: 0, skip: 0 }),
            Next::ReadAgain => {}
            Next::Wait => {
                let Some(follow) = &mut self.follow else { return Ok(None) };
                if !follow.wait().await {
                    return Ok(None);
                }
                return Ok(Some(Bytes::new()));
            }
        }
        if let (Some(follow), Some(reading)) = (&mut self.follow, &self.reading) {
            follow.watching = watching(&follow.watcher, &reading.dir)?;
        }
        Ok(Some(Bytes::new()))
    }

    /// What is there; `None` at the end.
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let Some(mut reading) = self.reading.take() else { return Ok(None) };
        let end = if self.follow.is_some() { u64::MAX } else { self.end };
        let (stream, format) = (self.stream, self.format);
        let (reading, piece) = blocking(move || {
            let piece = reading.piece(end, stream, format)?;
            Ok((reading, piece))
        })
        .await?;
        self.reading = Some(reading);
        Ok(piece)
    }
}

/// Watches a directory, or what of the path to it is there.
fn watching(watcher: &Watcher, dir: &Path) -> io::Result<Watching> {
    let Some((runner, root)) = dir.parent().and_then(|runner| Some((runner, runner.parent()?))) else {
        return Ok(Watching::NoDirectory);
    };
    let mut above = None;
    // What is made meanwhile is found by the next look, with the one above watched already.
    for place in [dir, root, runner, dir] {
        match watcher.follow(place)? {
            Some(followed) if place == dir => return Ok(Watching::Directory(followed)),
            Some(followed) => above = Some(followed),
            None => {}
        }
    }
    Ok(above.map_or(Watching::NoDirectory, Watching::Above))
}

impl Reading {
    /// A piece of what is there up to `end`, empty if nothing of it was asked for; `None` at the end. Blocking.
    fn piece(&mut self, end: u64, stream: Option<Stream>, format: Format) -> io::Result<Option<Bytes>> {
        let mut piece = Vec::new();
        let mut read = 0;
        let mut any = false;
        while read < CHUNK && self.reader.offset() < end {
            let Some(item) = self.reader.next_item()? else { break };
            any = true;
            if let Item::Frame(frame) = &item {
                read += frame.bytes.len();
                if stream.is_some_and(|stream| stream != frame.stream) {
                    continue;
                }
            }
            format.write(&mut piece, self.position, &item, std::mem::take(&mut self.skip));
        }
        // It may be held for long by a client that takes nothing.
        piece.shrink_to_fit();
        Ok(any.then(|| piece.into()))
    }
}

impl Follow {
    /// What to do when the log has nothing more.
    fn next(&self, reading: Option<&Reading>) -> Next {
        let wanted = |number: u32| self.run.is_none_or(|run| run == number);
        let positions = self.record.runs.iter().filter(|run| wanted(run.run)).flat_map(|run| {
            let run_number = run.run;
            run.attempts
                .iter()
                .map(move |attempt| (Position { run: run_number, attempt: attempt.attempt }, attempt.state))
        });
        let closed = match self.run {
            None => self.record.state == State::Closed,
            Some(run) => self.record.is_over(run),
        };
        let Some(reading) = reading else {
            return match positions.map(|(position, _)| position).next() {
                Some(first) => Next::Attempt(first),
                None if closed => Next::End,
                None => Next::Wait,
            };
        };
        let current = reading.position;
        let mut ended = closed;
        let mut later = None;
        for (position, state) in positions {
            if position == current {
                ended |= state == AttemptState::Ended;
            } else if position > current && later.is_none() {
                later = Some(position);
            }
        }
        match later {
            Some(_) | None if ended && (self.pinned || closed && later.is_none()) => Next::End,
            Some(later) => Next::Attempt(later),
            // Between two attempts nothing is written, so nothing is armed.
            None if ended => Next::Wait,
            None => match self.watching {
                Watching::No => Next::ReadAgain,
                Watching::Directory(_) | Watching::Above(_) | Watching::NoDirectory => Next::Wait,
            },
        }
    }

    /// Until something may have been written or has happened; `false` when the answer is to end.
    async fn wait(&mut self) -> bool {
        let written = async {
            match &mut self.watching {
                Watching::Directory(followed) | Watching::Above(followed) => followed.written().await,
                Watching::No | Watching::NoDirectory => std::future::pending().await,
            }
        };
        tokio::select! {
            true = written => {}
            record = self.changes.changed() => self.record = record,
            _ = self.closing.wait_for(|closing| *closing) => return false,
        }
        match self.watching {
            // It may be there by now.
            Watching::Above(_) | Watching::NoDirectory => self.watching = Watching::No,
            Watching::No | Watching::Directory(_) => {}
        }
        true
    }
}

//! One answer with output: reads a bounded piece when its client has taken the one before.

use std::{io, sync::Arc};

use axum::body::Bytes;
use tokio::sync::watch;

use super::{
    Wanted, blocking,
    feed::{Feeds, Follower, OWN_CHUNK, Source, Taken},
    format::Format,
    watch::Followed,
};
use crate::{
    http::serve::Held,
    job::{AttemptState, Record, RunnerId, State},
    process::log::{LogReader, Stream, TailStart},
    supervisor::{Subscription, Supervisor},
};

/// Which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position {
    pub(super) run: u32,
    pub(super) attempt: u32,
}

/// What is needed to go on at the end of a log.
pub(super) struct Follow {
    pub(super) feeds: Feeds,
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
    /// Nothing yet.
    No,
    /// What all who follow this log share. It reads to the end once more when it watches, so nothing is missed.
    Feed(Follower),
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
    source: Source,
    /// Up to where.
    at: u64,
    /// As long as it is read by this follower itself.
    reader: Option<LogReader>,
    /// Bytes of the first piece to leave out.
    skip: usize,
}

/// What to do at the end of a log.
enum Next {
    Wait,
    Watch,
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
        let source = Source { dir, position, stream: self.stream, format: self.format };
        self.reading = Some(Reading { source, at: begin.offset, reader: None, skip: begin.skip });
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
        match self.shared(&next) {
            Some(Taken::Piece(piece)) => return Ok(Some(piece.bytes)),
            Some(Taken::Nothing) => {}
            Some(Taken::Missed(to)) => {
                if let Some(piece) = self.read(to).await? {
                    if let Some(Follow { watching: Watching::Feed(follower), .. }) = &self.follow {
                        follower.pause(piece.len()).await;
                    }
                    return Ok(Some(piece));
                }
            }
            None => {
                let end = if self.follow.is_some() { u64::MAX } else { self.end };
                if let Some(piece) = self.read(end).await? {
                    return Ok(Some(piece));
                }
            }
        }
        match next {
            Next::End => return Ok(None),
            Next::Attempt(position) => self.open(position, TailStart { offset: 0, skip: 0 }),
            Next::Watch => {}
            Next::Wait => {
                let Some(follow) = &mut self.follow else { return Ok(None) };
                return Ok(follow.wait().await.then(Bytes::new));
            }
        }
        if let (Some(follow), Some(reading)) = (&mut self.follow, &mut self.reading) {
            follow.watching = watching(&follow.feeds, reading)?;
        }
        Ok(Some(Bytes::new()))
    }

    /// What others have read already, where there is nothing to do but to wait for more.
    fn shared(&mut self, next: &Next) -> Option<Taken> {
        let (Next::Wait, Some(follow), Some(reading)) = (next, &self.follow, &mut self.reading) else {
            return None;
        };
        let Watching::Feed(follower) = &follow.watching else { return None };
        let taken = follower.take(reading.at);
        if let Taken::Piece(piece) = &taken {
            reading.at = piece.to;
            // It would go on from where it stands.
            reading.reader = None;
        }
        Some(taken)
    }

    /// What is there up to `end`; `None` where that is nothing.
    async fn read(&mut self, end: u64) -> io::Result<Option<Bytes>> {
        let Some(mut reading) = self.reading.take() else { return Ok(None) };
        let (reading, piece) = blocking(move || {
            let piece = reading.piece(end)?;
            Ok((reading, piece))
        })
        .await?;
        self.reading = Some(reading);
        Ok(piece)
    }
}

/// Watches a log, or what of the path to it is there.
fn watching(feeds: &Feeds, reading: &mut Reading) -> io::Result<Watching> {
    let Reading { source, at, reader, skip: _ } = reading;
    // Whatever was asked for: a feed is for all.
    let end = reader.as_ref().map_or(0, LogReader::end);
    let dir = &source.dir;
    let Some((runner, root)) = dir.parent().and_then(|runner| Some((runner, runner.parent()?))) else {
        return Ok(Watching::NoDirectory);
    };
    let mut above = None;
    // What is made meanwhile is found by the next look, with the one above watched already.
    for place in [None, Some(root), Some(runner), None] {
        let Some(place) = place else {
            if let Some(follower) = feeds.follow(source, end)? {
                *at = end.max(*at);
                return Ok(Watching::Feed(follower));
            }
            continue;
        };
        above = feeds.watch(place)?.or(above);
    }
    Ok(above.map_or(Watching::NoDirectory, Watching::Above))
}

impl Reading {
    /// A piece of what is there up to `end`; `None` where that is nothing. Blocking.
    fn piece(&mut self, end: u64) -> io::Result<Option<Bytes>> {
        let Self { source, at, reader, skip } = self;
        let reader = reader.get_or_insert_with(|| LogReader::new(&source.dir, *at));
        let piece = source.piece(reader, end, OWN_CHUNK, skip)?;
        *at = reader.offset();
        Ok(piece)
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
        let current = reading.source.position;
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
                Watching::No => Next::Watch,
                Watching::Feed(_) | Watching::Above(_) | Watching::NoDirectory => Next::Wait,
            },
        }
    }

    /// Until something may have been written or has happened; `false` when the answer is to end.
    async fn wait(&mut self) -> bool {
        let written = async {
            match &mut self.watching {
                Watching::Feed(follower) => follower.more().await,
                Watching::Above(followed) => followed.written().await,
                Watching::No | Watching::NoDirectory => std::future::pending().await,
            }
        };
        // What there was before the daemon stops is given before it ends.
        tokio::select! {
            biased;
            true = written => {}
            record = self.changes.changed() => self.record = record,
            _ = self.closing.wait_for(|closing| *closing) => return false,
        }
        match self.watching {
            // It may be there by now.
            Watching::Above(_) | Watching::NoDirectory => self.watching = Watching::No,
            Watching::No | Watching::Feed(_) => {}
        }
        true
    }
}

//! The output of jobs, read from their logs and followed as it comes.
//!
//! `follow` reads as fast as its client takes it; at the end it takes what `feed` reads for all who follow that log, or
//! waits for the Runner's next change. `watch` tells when there is more; `format` writes what was read. Nothing here is on
//! the way of a job's output: a client that is slow or gone costs a descriptor and what it has not taken of one read.

mod feed;
mod follow;
mod format;
mod watch;

use std::{io, path::Path};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::sync::Semaphore;

pub(super) use feed::Feeds;
pub(super) use format::Format;

use super::{
    Shared,
    problem::{Kind, Problem},
    serve::Held,
};
use crate::{
    job::{Record, RunnerId},
    process::log::{self, Stream, TailStart},
};
use follow::{Follow, Output, Position, Watching};

/// Where a follower that reconnects goes on.
const OFFSET_NEXT: &str = "runward-offset-next";
/// Where what is answered begins.
const OFFSET_START: &str = "runward-offset-start";

/// What output is asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Of which Runner.
    pub id: RunnerId,
    /// Of which run; the last.
    pub run: Option<u32>,
    /// Of which attempt; the last.
    pub attempt: Option<u32>,
    /// Which stream; both.
    pub stream: Option<Stream>,
    /// From where.
    pub start: Start,
    /// Whether to go on as output comes.
    pub follow: bool,
    /// How it is written.
    pub format: Format,
}

/// Where to begin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// At a place in the log.
    Offset(u64),
    /// So many lines before its end.
    Tail(usize),
}

impl Wanted {
    /// All output of a Runner that was just submitted, or of one run of it, as it comes.
    pub(super) fn everything(id: RunnerId, run: Option<u32>) -> Self {
        let (attempt, stream) = (None, None);
        Self { id, run, attempt, stream, start: Start::Offset(0), follow: true, format: Format::Raw }
    }
}

/// Answers with output.
///
/// # Errors
/// A [`Problem`]: there is no such Runner or attempt, or its log can't be read.
pub(super) async fn answer(shared: &Shared, wanted: Wanted, held: Option<Held>) -> Result<Response, Problem> {
    // Subscribed before it is read: nothing is missed.
    let changes = shared.api.supervisor.subscribe(wanted.id);
    let record = shared.api.supervisor.archive().record(wanted.id).await?;
    let record = record.ok_or_else(|| Problem::runner_not_found(wanted.id))?;
    let position = position(&record, &wanted)?;
    let dir =
        position.map(|position| shared.api.supervisor.log_dir(wanted.id, position.run, position.attempt));
    let (begin, end) = match dir.clone() {
        None => (TailStart { offset: 0, skip: 0 }, 0),
        Some(dir) => {
            let (start, stream) = (wanted.start, wanted.stream);
            blocking(move || bounds(&dir, start, stream)).await.map_err(unreadable)?
        }
    };
    let follow = match (wanted.follow, &shared.feeds) {
        (false, _) => None,
        (true, Some(feeds)) => Some(Follow {
            feeds: feeds.clone(),
            changes,
            closing: shared.closing.clone(),
            record: record.into(),
            run: wanted.run,
            pinned: wanted.attempt.is_some(),
            watching: Watching::No,
        }),
        (true, None) => {
            let detail = "output can't be followed: the system gave no inotify instance when the daemon started; raise \
                          fs.inotify.max_user_instances and start it again, or ask without `follow`";
            return Err(Problem::new(Kind::LogUnreadable, detail));
        }
    };
    let following = follow.is_some();
    let media = wanted.format.media_type();
    let output = Output::new(shared.api.supervisor.clone(), wanted, position, begin, end, follow, held);
    let chunks = stream::unfold(output, |mut output| async move {
        let chunk = output.next().await?;
        Some((chunk, output))
    });
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    // A job's output is no page, whatever a browser takes it for.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(OFFSET_START, HeaderValue::from(begin.offset));
    if !following {
        headers.insert(OFFSET_NEXT, HeaderValue::from(end));
    }
    Ok(response)
}

/// Where the wanted part begins, and where the log ends now: a job that writes all the time does not make an answer
/// endless that does not follow it.
fn bounds(dir: &Path, start: Start, stream: Option<Stream>) -> io::Result<(TailStart, u64)> {
    let end = log::tail(dir, 0, None)?.offset;
    let begin = match start {
        Start::Offset(offset) => TailStart { offset, skip: 0 },
        Start::Tail(lines) => log::tail(dir, lines, stream)?,
    };
    Ok((begin, end))
}

fn position(record: &Record, wanted: &Wanted) -> Result<Option<Position>, Problem> {
    let run = match wanted.run {
        // What was added behind it has no output yet.
        None => record.run(),
        Some(number) => record.runs.iter().find(|run| run.run == number),
    };
    let attempt = run.and_then(|run| match wanted.attempt {
        None => run.attempts.last(),
        Some(number) => run.attempts.iter().find(|attempt| attempt.attempt == number),
    });
    match (run, attempt) {
        (Some(run), Some(attempt)) => Ok(Some(Position { run: run.run, attempt: attempt.attempt })),
        // Nothing was executed yet: there is no output, but there may be.
        (None, None | Some(_)) if wanted.run.is_none_or(|run| run == 1) && wanted.attempt.is_none() => {
            Ok(None)
        }
        (Some(run), None) if run.attempts.is_empty() && wanted.attempt.is_none() => Ok(None),
        (None | Some(_), None | Some(_)) => Err(Problem::new(
            Kind::AttemptNotFound,
            format!(
                "the runner {} has no such run or attempt; GET /v1/runners/{0} shows those it has",
                record.id
            ),
        )
        .field(if run.is_none() && wanted.run.is_some() { "run" } else { "attempt" })
        .runner(record.id)),
    }
}

fn unreadable(error: io::Error) -> Problem {
    let detail = format!("the log can't be read: {error}; ask again, and see the daemon's own log");
    Problem::new(Kind::LogUnreadable, detail)
}

/// Logs that are read at the same time: all who follow one may come at once, and each would take a thread.
static READERS: Semaphore = Semaphore::const_new(8);

/// Reads files where waiting for a disk holds nobody up.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let _turn = READERS.acquire().await.map_err(io::Error::other)?;
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

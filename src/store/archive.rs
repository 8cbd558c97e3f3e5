//! Reading: by anybody at any time, off the async workers.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, types::Type};
use tokio::sync::oneshot;

use super::{
    OpenError, connect_readonly,
    kept::{self, Closed, Message, Totals},
    list::list,
    rows::{EVENTS_OF_ROW, events_from_row, id_from_row, id_to_row, replay, time_from_row},
};
use crate::{
    job::{Event, QueueSettings, Record, RunnerId, SharedContext, State},
    supervisor::{
        Archive, Filter, Listed, ReadError, Reading,
        core::Restored,
        ports::{Records, Unreadable},
    },
};

/// Two readers, so that a long page does not hold up a short look-up.
const READERS: usize = 2;

/// Reads that may wait for a reader. Each belongs to a request, and requests are bounded by the connections.
const READS: usize = 1024;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Threads that read.
#[derive(Clone, Debug)]
pub struct Readers {
    reads: mpsc::SyncSender<Read>,
}

impl Readers {
    /// Starts them. They end when the last clone is dropped.
    ///
    /// # Errors
    /// SQLite's, or that of a thread that can't be started.
    pub fn start(path: &Path) -> Result<Self, OpenError> {
        let (reads, receiver) = mpsc::sync_channel::<Read>(READS);
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..READERS {
            let connection = connect_readonly(path)?;
            let receiver = Arc::clone(&receiver);
            thread::Builder::new()
                .name(format!("runward-read-{number}"))
                .spawn(move || {
                    loop {
                        let read = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        match read {
                            Ok(read) => read(&connection),
                            Err(mpsc::RecvError) => break,
                        }
                    }
                })
                .map_err(|error| OpenError::Damaged(format!("no thread to read it: {error}")))?;
        }
        Ok(Self { reads })
    }

    /// The messages that are due, so many at the most, and when the next one after `now` is.
    pub fn messages(&self, now: Timestamp, limit: usize) -> Reading<(Vec<Message>, Option<Timestamp>)> {
        self.read(move |connection| kept::messages(connection, now, limit))
    }

    /// The closed Runners that may be forgotten, those that closed first first.
    pub fn oldest_closed(&self, limit: usize) -> Reading<Vec<Closed>> {
        self.read(move |connection| kept::oldest_closed(connection, limit))
    }

    /// How many closed Runners there are, and what is kept of their output.
    pub fn totals(&self) -> Reading<Totals> {
        self.read(kept::totals)
    }

    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Reading<T> {
        let (answer, result) = oneshot::channel();
        let read: Read = Box::new(move |connection| {
            // Whoever asked may have gone.
            drop(answer.send(query(connection)));
        });
        let sent = self.reads.try_send(read);
        Box::pin(async move {
            sent.map_err(|_| ReadError("too many reads are waiting".into()))?;
            let result = result.await.map_err(|_| ReadError("a reader thread has ended".into()))?;
            result.map_err(|error| ReadError(error.to_string()))
        })
    }
}

impl Archive for Readers {
    fn record(&self, id: RunnerId) -> Reading<Option<Record>> {
        self.read(move |connection| record(connection, id))
    }

    fn list(&self, filter: Filter) -> Reading<Listed> {
        self.read(move |connection| list(connection, &filter, |n, id, _| replay(connection, n, id)))
    }

    fn list_states(&self, filter: Filter) -> Reading<Listed<(RunnerId, State)>> {
        self.read(move |connection| list(connection, &filter, |_, id, state| Ok((id, state))))
    }

    fn events(&self, after: u64, runner: Option<RunnerId>, limit: usize) -> Reading<Vec<Event>> {
        self.read(move |connection| self::events(connection, after, runner, limit))
    }

    fn keyed(&self, key: String) -> Reading<Option<(RunnerId, [u8; 32])>> {
        self.read(move |connection| {
            connection
                .prepare_cached("SELECT runner, body FROM keys WHERE key = ?1")?
                .query_row([key], |row| Ok((id_from_row(row, 0)?, row.get(1)?)))
                .optional()
        })
    }
}

/// Single records, for the supervisor's own thread.
#[derive(Debug)]
pub struct Lookup(Connection);

impl Lookup {
    /// Opens the store for look-ups.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self(connect_readonly(path)?))
    }

    /// Tells of the Runners that wait, in the order of their submission.
    ///
    /// # Errors
    /// SQLite's.
    pub fn waiting(&self, mut tell: impl FnMut(Restored<'_>)) -> Result<(), OpenError> {
        let mut query = self.0.prepare(
            "SELECT id, queue, priority, n, held, weight, concurrency_key, ready_at, deadline_at, in_process
             FROM runners WHERE state <> 'closed' AND state = ?1 ORDER BY n",
        )?;
        let mut rows = query.query([State::Queued.as_str()])?;
        while let Some(row) = rows.next()? {
            tell(Restored {
                id: id_from_row(row, 0)?,
                queue: text(row, 1)?.unwrap_or_default(),
                priority: row.get(2)?,
                submitted_seq: row.get(3)?,
                held: row.get(4)?,
                weight: row.get(5)?,
                concurrency_key: text(row, 6)?,
                ready_at: time_from_row(row, 7)?,
                deadline_at: time_from_row(row, 8)?,
                in_process: row.get(9)?,
            });
        }
        Ok(())
    }

    /// The Runners that something was being done with. Events are the truth: their records are replayed, and
    /// damage shows.
    ///
    /// # Errors
    /// SQLite's, and events that do not fit each other.
    pub fn under_way(&self) -> Result<Vec<Record>, OpenError> {
        let waits = [State::Queued, State::Idle, State::Closed];
        let states: Vec<State> = State::ALL.iter().copied().filter(|state| !waits.contains(state)).collect();
        self.replayed(&states)
    }

    /// The Runners that are kept open and had nothing to do.
    ///
    /// # Errors
    /// As for [`Lookup::under_way`].
    pub fn idle(&self) -> Result<Vec<Record>, OpenError> {
        self.replayed(&[State::Idle])
    }

    /// When an event happened; `None` where there is none in this place, or it can't be read.
    pub fn at(&self, seq: u64) -> Option<Timestamp> {
        self.0
            .query_row(
                "SELECT at FROM events WHERE seq BETWEEN ?1 - ?2 + 1 AND ?1 AND seq + count > ?1",
                (seq, EVENTS_OF_ROW),
                |row| time_from_row(row, 0),
            )
            .inspect_err(|error| tracing::debug!(%error, seq, "the time of an event can't be read"))
            .ok()
            .flatten()
    }

    /// How many messages are still to be sent.
    ///
    /// # Errors
    /// SQLite's.
    pub fn messages_left(&self) -> Result<i64, OpenError> {
        Ok(self.0.query_row("SELECT count(*) FROM webhooks", [], |row| row.get(0))?)
    }

    /// The shared context.
    ///
    /// # Errors
    /// SQLite's.
    pub fn context(&self) -> Result<SharedContext, OpenError> {
        Ok(kept::context(&self.0)?)
    }

    /// What was decided of queues.
    ///
    /// # Errors
    /// SQLite's.
    pub fn queues(&self) -> Result<BTreeMap<String, QueueSettings>, OpenError> {
        Ok(kept::queues(&self.0)?)
    }

    /// By name, for the index: of a hundred thousand closed ones none is looked at.
    fn replayed(&self, states: &[State]) -> Result<Vec<Record>, OpenError> {
        let words: Vec<_> = states.iter().map(|state| format!("'{state}'")).collect();
        let condition = format!("state IN ({})", words.join(", "));
        let found = self
            .0
            .prepare(&format!(
                "SELECT n, id FROM runners WHERE state <> 'closed' AND {condition} ORDER BY n"
            ))?
            .query_map([], |row| Ok((row.get(0)?, id_from_row(row, 1)?)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let replay = |(n, id)| {
            replay(&self.0, n, id).map_err(|error| OpenError::Damaged(format!("Runner {id}: {error}")))
        };
        found.into_iter().map(replay).collect()
    }
}

impl Records for Lookup {
    fn load(&self, id: RunnerId) -> Result<Option<Record>, Unreadable> {
        readable(record(&self.0, id))
    }

    fn load_at(&self, submitted_seq: u64) -> Result<Option<Record>, Unreadable> {
        readable(record_at(&self.0, submitted_seq))
    }
}

/// A damaged record is as good as none; a store that can't be read is something else.
fn readable(record: rusqlite::Result<Option<Record>>) -> Result<Option<Record>, Unreadable> {
    record.or_else(|error| match error {
        rusqlite::Error::FromSqlConversionFailure(..) => {
            tracing::error!(%error, "a record is damaged");
            Ok(None)
        }
        error => Err(Unreadable(error.to_string())),
    })
}

/// A text that is looked at where it is.
fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<Option<&'a str>> {
    let unreadable = |error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error));
    row.get_ref(column)?.as_str_or_null().map_err(unreadable)
}

// Its events are read as long as the row is: nobody sees it being forgotten.

fn record(connection: &Connection, id: RunnerId) -> rusqlite::Result<Option<Record>> {
    connection
        .prepare_cached("SELECT n FROM runners WHERE id = ?1")?
        .query_row([id_to_row(id)], |row| replay(connection, row.get(0)?, id))
        .optional()
}

/// The same by its place.
fn record_at(connection: &Connection, n: u64) -> rusqlite::Result<Option<Record>> {
    connection
        .prepare_cached("SELECT id FROM runners WHERE n = ?1")?
        .query_row([n], |row| replay(connection, n, id_from_row(row, 0)?))
        .optional()
}

/// Events after a place, of one Runner or of all.
fn events(
    connection: &Connection,
    after: u64,
    runner: Option<RunnerId>,
    limit: usize,
) -> rusqlite::Result<Vec<Event>> {
    let mut statement = connection.prepare_cached(match runner {
        None => {
            "SELECT e.seq, e.at, e.data, r.id FROM events AS e CROSS JOIN runners AS r ON r.n = e.n
             WHERE e.seq > ?1 - ?2 AND e.seq + e.count - 1 > ?1
             ORDER BY e.seq"
        }
        Some(_) => {
            "SELECT e.seq, e.at, e.data, r.id FROM runners AS r CROSS JOIN events AS e ON e.seq = r.n
             WHERE r.id = ?3 AND e.seq > ?1 - ?2 AND e.seq + e.count - 1 > ?1
             UNION ALL
             SELECT e.seq, e.at, e.data, r.id
             FROM runners AS r CROSS JOIN events AS e ON e.n = r.n AND e.seq > e.n
             WHERE r.id = ?3 AND e.seq > ?1 - ?2 AND e.seq + e.count - 1 > ?1
             ORDER BY 1"
        }
    })?;
    let mut rows = match runner {
        None => statement.query((after, EVENTS_OF_ROW)),
        Some(id) => statement.query((after, EVENTS_OF_ROW, id_to_row(id))),
    }?;
    let mut events = Vec::new();
    while events.len() < limit
        && let Some(row) = rows.next()?
    {
        let id = id_from_row(row, 3)?;
        events.extend(events_from_row(row, id)?.filter(|event| event.seq > after));
    }
    events.truncate(limit);
    Ok(events)
}

//! The least that a durable job takes with the parts that runward is made of: a server of axum, one thread that commits
//! to SQLite whatever waits for it, and one thread for each core that starts a process and waits for it. It has no
//! states, no checks, no containment and no recovery, so nothing that has them with these parts can be faster. What lies
//! between the floor and the yardstick is the machine's; what lies above the floor is ours.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::StatusCode,
    routing,
};
use nix::{
    fcntl::OFlag,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn},
    sys::wait::waitpid,
    unistd::pipe2,
};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::{
    Result,
    yardstick::{self, Submission, Submitted},
};

/// More than there are clients.
const WAITING: usize = 1024;

/// What is to be on the disk, and whom to tell.
type Commit = (String, oneshot::Sender<()>);
/// What is to be started, and whom to tell when nothing of it is left.
type Start = (Vec<String>, oneshot::Sender<()>);

#[derive(Clone)]
struct Parts {
    commits: SyncSender<Commit>,
    starts: SyncSender<Start>,
    next: Arc<AtomicU64>,
}

pub(crate) fn serve(socket: &Path) -> Result<()> {
    let (commits, to_commit) = sync_channel(WAITING);
    let (starts, to_start) = sync_channel(WAITING);
    let database = socket.with_extension("db");
    forget(&database);
    let connection = Connection::open(&database)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch("CREATE TABLE events (seq INTEGER PRIMARY KEY, event TEXT NOT NULL)")?;
    thread::spawn(move || commit_all(&connection, &to_commit).expect("the store takes it"));
    let to_start = Arc::new(Mutex::new(to_start));
    for _ in 0..thread::available_parallelism()?.get() {
        let to_start = Arc::clone(&to_start);
        thread::spawn(move || start_all(&to_start).expect("it starts"));
    }
    let parts = Parts { commits, starts, next: Arc::default() };
    let router = Router::new().route("/v1/runners", routing::post(submit)).with_state(parts);
    let served = yardstick::serve(socket, router);
    forget(&database);
    served
}

fn forget(database: &Path) {
    for extension in ["db", "db-wal", "db-shm"] {
        drop(fs::remove_file(database.with_extension(extension)));
    }
}

/// One commit for a job that only waits; with `?wait` one more when it has ended.
async fn submit(
    State(parts): State<Parts>,
    RawQuery(query): RawQuery,
    Json(body): Json<Submission>,
) -> (StatusCode, Json<Submitted>) {
    let id = parts.next.fetch_add(1, Ordering::Relaxed);
    let arguments = body.job.command.len();
    parts.commit(format!(r#"{{"submitted":{id},"command":{:?}}}"#, body.job.command)).await;
    if query.is_none() {
        return (StatusCode::CREATED, Json(Submitted { id, arguments }));
    }
    if arguments > 0 {
        let (done, ended) = oneshot::channel();
        parts.starts.send((body.job.command, done)).expect("its threads live");
        ended.await.expect("it is told");
    }
    parts.commit(format!(r#"{{"closed":{id},"outcome":"succeeded"}}"#)).await;
    (StatusCode::OK, Json(Submitted { id, arguments }))
}

impl Parts {
    async fn commit(&self, event: String) {
        let (done, committed) = oneshot::channel();
        self.commits.send((event, done)).expect("its thread lives");
        committed.await.expect("it is told");
    }
}

fn commit_all(connection: &Connection, commits: &Receiver<Commit>) -> Result<()> {
    let mut insert = connection.prepare("INSERT INTO events (event) VALUES (?1)")?;
    let mut told = Vec::new();
    while let Ok(first) = commits.recv() {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for (event, done) in std::iter::once(first).chain(commits.try_iter()) {
            insert.execute([event])?;
            told.push(done);
        }
        connection.execute_batch("COMMIT")?;
        // Who has gone needs no answer.
        told.drain(..).for_each(|done: oneshot::Sender<()>| _ = done.send(()));
    }
    Ok(())
}

fn start_all(starts: &Mutex<Receiver<Start>>) -> Result<()> {
    loop {
        let next = starts.lock().expect("nobody panics with it").recv();
        let Ok((command, done)) = next else { return Ok(()) };
        run(&command)?;
        _ = done.send(());
    }
}

/// Runs it to its end, with its output read.
fn run(command: &[String]) -> Result<()> {
    let words: Vec<_> =
        command.iter().map(|word| CString::new(word.as_str())).collect::<std::result::Result<_, _>>()?;
    let (read, write): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC)?;
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(write.as_raw_fd(), 1)?;
    actions.add_dup2(write.as_raw_fd(), 2)?;
    let program = words.first().ok_or("no command")?;
    let pid = posix_spawn(
        program.as_c_str(),
        &actions,
        &PosixSpawnAttr::init()?,
        &words,
        &[c"PATH=/usr/bin:/bin"],
    )?;
    drop(write);
    File::from(read).read_to_end(&mut Vec::new())?;
    waitpid(pid, None)?;
    Ok(())
}

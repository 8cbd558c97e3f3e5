//! What the machine can do at best, measured bare. Processes are started by a small process of its own (this program
//! again), as the keeper does it: what starts them is to have little memory. The least that a durable job takes with the
//! parts that runward is made of is in `floor.rs`.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing};
use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{Bench, Result, floor};

/// What the helper process does: `--helper=spawn`, `--helper=serve:SOCKET`, `--helper=durable:SOCKET`.
pub(crate) fn help(what: &str) -> ExitCode {
    let done = match what.split_once(':') {
        None if what == "spawn" => spawn_as_told(),
        Some(("serve", socket)) => {
            let submit = routing::post(acknowledge).with_state(&NEXT);
            serve(Path::new(socket), Router::new().route("/v1/runners", submit))
        }
        Some(("durable", socket)) => floor::serve(Path::new(socket)),
        _ => Err(format!("there is no helper {what}").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("helper {what}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// This program again, as a helper that ends with its standard input.
struct Helper {
    child: Child,
    tell: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    fn start(what: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(format!("--helper={what}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let tell = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, tell, answers })
    }

    fn ask(&mut self, line: &str) -> Result<Vec<u64>> {
        writeln!(self.tell.as_mut().ok_or("it was let go")?, "{line}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.tell.take());
        drop(self.child.wait());
    }
}

/// Bare processes.
pub(crate) struct Spawner(Helper);

impl Spawner {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self(Helper::start("spawn")?))
    }

    /// How many times in a second `/bin/true` is started and waited for, with as many at a time.
    pub(crate) fn rate(&mut self, at_a_time: usize, during: Duration) -> Result<f64> {
        match self.0.ask(&format!("rate {at_a_time} {}", during.as_millis()))?[..] {
            [count, nanos] => Ok(count as f64 / Duration::from_nanos(nanos).as_secs_f64()),
            _ => Err("the helper has failed".into()),
        }
    }

    /// How long one takes.
    pub(crate) fn one(&mut self) -> Result<Duration> {
        self.figure("one")
    }

    /// How long it takes to signal and reap so many sleeps that run.
    pub(crate) fn stop_sleeps(&mut self, count: usize) -> Result<Duration> {
        self.figure(&format!("sleeps {count}"))
    }

    /// The same where each is the child of a process of its own, a shell here that is told through a socket, and alone in a
    /// cgroup, which is removed.
    pub(crate) fn stop_sleeps_of_others(&mut self, count: usize) -> Result<Duration> {
        self.figure(&format!("others {count}"))
    }

    fn figure(&mut self, ask: &str) -> Result<Duration> {
        match self.0.ask(ask)?[..] {
            [nanos] => Ok(Duration::from_nanos(nanos)),
            _ => Err("the helper has failed".into()),
        }
    }
}

fn start(program: &CStr, arguments: &[&CStr]) -> Result<Pid> {
    const ENVIRONMENT: [&CStr; 1] = [c"PATH=/usr/bin:/bin"];
    Ok(posix_spawn(
        program,
        &PosixSpawnFileActions::init()?,
        &PosixSpawnAttr::init()?,
        arguments,
        &ENVIRONMENT,
    )?)
}

fn spawn_and_wait() -> Result<()> {
    match waitpid(start(c"/bin/true", &[c"/bin/true"])?, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(format!("/bin/true: {other:?}").into()),
    }
}

fn spawn_as_told() -> Result<()> {
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let began = Instant::now();
        match words[..] {
            ["rate", at_a_time, millis] => {
                let count = spawn_for(at_a_time.parse()?, Duration::from_millis(millis.parse()?))?;
                println!("{count} {}", began.elapsed().as_nanos());
            }
            ["one"] => {
                spawn_and_wait()?;
                println!("{}", began.elapsed().as_nanos());
            }
            ["sleeps", count] => {
                let sleeps = start_all(count.parse()?, c"/bin/sleep", &[c"/bin/sleep", c"1000"])?;
                println!("{}", stop(&sleeps, &sleeps)?.as_nanos());
            }
            ["others", count] => println!("{}", stop_of_others(count.parse()?)?.as_nanos()),
            _ => return Err(format!("{line:?} is nothing it can do").into()),
        }
    }
    Ok(())
}

fn spawn_for(at_a_time: usize, during: Duration) -> Result<u64> {
    let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let work = || {
            while !over.load(Ordering::Relaxed) {
                spawn_and_wait()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        thread::sleep(during);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread has panicked")?)
    })
    .map(|()| count.into_inner())
}

fn start_all(count: usize, program: &CStr, arguments: &[&CStr]) -> Result<Vec<Pid>> {
    let all = (0..count).map(|_| start(program, arguments)).collect::<Result<_>>()?;
    // Until they sleep; nothing tells when.
    thread::sleep(Duration::from_secs(1));
    Ok(all)
}

/// Shells that each start a sleep, stop it when they are told, tell that it has ended, and end: what a shim does at the
/// least. The sleeps are alone in their cgroups.
fn stop_of_others(count: usize) -> Result<Duration> {
    const SHELL: &str = "exec 2>/dev/null; sleep 1000 & echo $!; read told; kill $!; wait $!; echo ended";
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut shells = Vec::new();
    for _ in 0..count {
        let (socket, theirs) = UnixStream::pair()?;
        let input = Stdio::from(OwnedFd::from(theirs.try_clone()?));
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SHELL]).stdin(input).stdout(OwnedFd::from(theirs));
        shells.push((shell.spawn()?, BufReader::new(socket)));
    }
    let mut groups = Vec::new();
    for (_, socket) in &mut shells {
        let mut line = String::new();
        socket.read_line(&mut line)?;
        groups.push(alone(Pid::from_raw(line.trim().parse()?))?);
    }
    // Until they sleep; nothing tells when.
    thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    for (_, socket) in &shells {
        socket.get_ref().write_all(b"\n")?;
    }
    for ((shell, socket), group) in shells.iter_mut().zip(&groups) {
        let mut line = String::new();
        socket.read_line(&mut line)?;
        shell.wait()?;
        fs::remove_dir(group)?;
    }
    Ok(began.elapsed())
}

/// Puts a process into a cgroup that it has for itself, below the one of this process.
fn alone(pid: Pid) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup v2")?;
    let group = Path::new(mount.ok_or("no cgroup v2")?[1]).join(own).join(format!("runward-floor-{pid}"));
    fs::create_dir(&group)?;
    fs::write(group.join("cgroup.procs"), pid.to_string())?;
    Ok(group)
}

fn stop(signalled: &[Pid], reaped: &[Pid]) -> Result<Duration> {
    let began = Instant::now();
    for pid in signalled {
        kill(*pid, Signal::SIGTERM)?;
    }
    for pid in reaped {
        waitpid(*pid, None)?;
    }
    Ok(began.elapsed())
}

/// A server in a process of its own.
pub(crate) struct Server {
    _helper: Helper,
    socket: PathBuf,
}

impl Server {
    /// A bare server of axum that takes a job in JSON and answers with a number for it.
    pub(crate) fn start(bench: &Bench) -> Result<Self> {
        Self::of(bench, "serve")
    }

    /// One that answers when the job is on the disk; see [`floor`].
    pub(crate) fn durable(bench: &Bench) -> Result<Self> {
        Self::of(bench, "durable")
    }

    fn of(bench: &Bench, what: &str) -> Result<Self> {
        let socket = bench.base.join(format!("{what}.sock"));
        let mut helper = Helper::start(&format!("{what}:{}", socket.display()))?;
        let mut ready = String::new();
        helper.answers.read_line(&mut ready)?;
        Ok(Self { _helper: helper, socket })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

#[derive(Deserialize)]
pub(crate) struct Submission {
    pub(crate) job: Job,
}

#[derive(Deserialize)]
pub(crate) struct Job {
    #[serde(default)]
    pub(crate) command: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct Submitted {
    pub(crate) id: u64,
    pub(crate) arguments: usize,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

async fn acknowledge(
    State(next): State<&'static AtomicU64>,
    Json(body): Json<Submission>,
) -> (StatusCode, Json<Submitted>) {
    let id = next.fetch_add(1, Ordering::Relaxed);
    (StatusCode::CREATED, Json(Submitted { id, arguments: body.job.command.len() }))
}

/// Serves these routes until standard input ends with whoever started this.
pub(crate) fn serve(socket: &Path, router: Router) -> Result<()> {
    if socket.exists() {
        fs::remove_file(socket)?;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket)?;
        println!("ready");
        let over = async { drop(tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await) };
        tokio::select! {
            served = std::future::IntoFuture::into_future(axum::serve(listener, router)) => Ok(served?),
            () = over => Ok(()),
        }
    })
}

/// A file whose blocks are all there already, to write and sync them again.
pub(crate) struct Synced {
    file: File,
    path: PathBuf,
    next: u64,
}

/// What a commit writes at the least: a page of SQLite.
const PAGE: usize = 4096;
/// Pages that are written in turn.
const PAGES: u64 = 1024;

impl Synced {
    pub(crate) fn make(bench: &Bench) -> Result<Self> {
        let path = bench.base.join("synced");
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        for page in 0..PAGES {
            file.write_all_at(&[0; PAGE], page * PAGE as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file, path, next: 0 })
    }

    /// How long it takes until 4 KiB are on the disk.
    pub(crate) fn one(&mut self) -> Result<Duration> {
        self.next += 1;
        let page = [self.next as u8; PAGE];
        let began = Instant::now();
        self.file.write_all_at(&page, self.next % PAGES * PAGE as u64)?;
        self.file.sync_data()?;
        Ok(began.elapsed())
    }
}

impl Drop for Synced {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

//! `command` and `script`: jobs that are processes. The main task speaks with the shim and with nobody else.

use std::{
    collections::VecDeque,
    ffi::{CString, OsString},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use nix::sys::signal::Signal;

use super::{Done, Link, Main, Reporter, Shared, script};
use crate::{
    job::{Action, AttemptKey, Exit, Failure, Job, OutputFacts, Process, Record, Script},
    process::{Ending, ExitReport, Launch, Shim, ShimEvent, Stage, User, spool::Spooled},
    runner::{AsyncRunner, Cancelled, Scope, ScopeError},
    supervisor::{
        attempt_dir,
        ports::{End, News},
    },
};

/// The main task ended before anything was executed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error("aborted")]
    Aborted,
}

impl ScopeError for Stopped {
    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }
}

/// A shim that holds its exit until it is told that this is durable.
pub(super) struct Hold(Shim);

impl Hold {
    pub(super) async fn release(mut self) {
        if let Err(error) = self.0.ack().await {
            tracing::debug!(%error, "a shim went before it was told to");
        }
    }
}

/// Starts the main task of a process job on its Runner.
pub(super) fn start(
    runner: &mut AsyncRunner,
    shared: Arc<Shared>,
    record: Arc<Record>,
    key: AttemptKey,
    link: Link,
    reporter: Reporter,
) -> Main {
    runner.start_scoped(move |scope| run(scope, shared, record, key, link, reporter))
}

async fn run(
    scope: Scope,
    shared: Arc<Shared>,
    record: Arc<Record>,
    key: AttemptKey,
    mut link: Link,
    reporter: Reporter,
) -> Result<Done, Stopped> {
    let signal = stop_signal(&record.spec.job);
    let prepared = async {
        let launch = plan(&scope, &shared, record, key).await?;
        shared.launcher.launch(key.as_u128(), &launch).await.map_err(|error| Failure {
            stage: Some("launch".into()),
            ..Failure::new("start_failed", error.to_string())
        })
    };
    let shim = scope.cancellable(prepared).await?;
    scope.cancellable(link.until(|orders| orders.go)).await?.map_err(|_| Stopped::Aborted)?;
    let mut shim = match shim {
        Ok(shim) => shim,
        Err(failure) => return Ok(Done { end: End { error: Some(failure), ..End::default() }, hold: None }),
    };
    // From here on the job may execute. Its end is always awaited: a cancellation only changes how.
    if let Err(error) = shim.go().await {
        tracing::debug!(%error, "a shim went before its job was started");
    }
    let mut watch = Watch { shim, pid: None, news: VecDeque::new(), reporter };
    let end = match scope.cancellable(watch.end()).await {
        Ok(end) => end,
        Err(Cancelled { .. }) => watch.stop(signal, &mut link).await,
    };
    Ok(Done { end, hold: Some(Hold(watch.shim)) })
}

/// A job's process tree, seen through its shim.
struct Watch {
    shim: Shim,
    pid: Option<i32>,
    /// What the shim told and the supervisor was not told yet.
    news: VecDeque<News>,
    reporter: Reporter,
}

impl Watch {
    /// Waits for the end. Cancel-safe: what was heard and not yet told is kept.
    async fn end(&mut self) -> End {
        loop {
            if let Some(news) = self.news.front() {
                self.reporter.send(news.clone()).await;
                self.news.pop_front();
            } else if let Some(end) = self.hear().await {
                return end;
            }
        }
    }

    /// Asks the job to stop, kills it when that is ordered, and waits for its end.
    async fn stop(&mut self, signal: Signal, link: &mut Link) -> End {
        // A shim that is gone says so itself.
        drop(self.shim.signal(signal as i32).await);
        let forced = tokio::select! {
            biased;
            end = self.end() => return end,
            forced = link.until(|orders| orders.force) => forced,
        };
        if forced.is_ok() {
            drop(self.shim.kill().await);
        }
        self.end().await
    }

    /// The next thing the shim tells. Cancel-safe.
    async fn hear(&mut self) -> Option<End> {
        let news = match self.shim.next().await {
            ShimEvent::Started { pid, start_time } => {
                self.pid = Some(pid);
                News::Running { pid: u32::try_from(pid).ok(), start_time: Some(start_time) }
            }
            ShimEvent::Signalled { signal, .. } => {
                let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
                let group = self.pid.map_or_else(String::new, |pid| format!(" to process group {pid}"));
                News::Step { action: Action::Signal, target: Some(format!("{name}{group}")) }
            }
            ShimEvent::Killing { .. } => {
                News::Step { action: Action::Kill, target: Some("the whole process tree".into()) }
            }
            ShimEvent::KillPending { pids } => {
                let pids: Vec<_> = pids.iter().map(i32::to_string).collect();
                News::Step {
                    action: Action::KillPending,
                    target: Some(format!("processes {}", pids.join(", "))),
                }
            }
            ShimEvent::StartFailed { stage, errno } => {
                return Some(End { error: Some(start_failure(stage, errno)), ..End::default() });
            }
            ShimEvent::Exited(report) => return Some(end_of(&report)),
            // Nobody swept: the keeper is gone too. The daemon is about to end, and recovery to tell the truth.
            ShimEvent::Gone { status: None } => return std::future::pending().await,
            ShimEvent::Gone { status: Some(status) } => {
                let how = match status {
                    Ending::Code(code) => format!("ended with code {code}"),
                    Ending::Signal(signal) => format!("was killed by signal {signal}"),
                };
                let failure =
                    Failure::new("shim_lost", format!("the job's shim {how}; its processes were killed"));
                return Some(End { error: Some(failure), lost: true, ..End::default() });
            }
        };
        self.news.push_back(news);
        None
    }
}

/// How an attempt ended, from what its shim left for the next start.
pub fn end_of_spooled(spooled: &Spooled) -> End {
    match spooled {
        Spooled::Exited { report, lifeline: false } => end_of(report),
        Spooled::Exited { report, lifeline: true } => {
            let failure = Failure::new("daemon_lost", "the daemon died under it; its processes were killed");
            End { error: Some(failure), lost: true, ..end_of(report) }
        }
        Spooled::StartFailed { stage, errno } => {
            End { error: Some(start_failure(*stage, *errno)), ..End::default() }
        }
    }
}

fn end_of(report: &ExitReport) -> End {
    let exit = match report.ending {
        Ending::Code(code) => Exit::Code(code),
        Ending::Signal(signal) => Exit::Signal(signal),
    };
    let output = OutputFacts {
        bytes: report.output_bytes,
        dropped: report.dropped_bytes,
        incomplete: report.output_incomplete,
    };
    End { exit: Some(exit), output: Some(output), swept: report.killed_processes, ..End::default() }
}

fn start_failure(stage: Stage, errno: i32) -> Failure {
    let what = match stage {
        Stage::Directory => "the directory for its output could not be made",
        Stage::Stdio => "its pipes could not be made",
        Stage::Cgroup => "its cgroup could not be made",
        Stage::Fork => "no process could be created",
        Stage::User => "its user could not be taken on",
        Stage::Rlimit => "its limits could not be set",
        Stage::Cwd => "its working directory could not be entered",
        Stage::Exec => "its program could not be executed",
    };
    Failure {
        kind: "start_failed".into(),
        message: format!("{what}: {}", io::Error::from_raw_os_error(errno)),
        stage: Some(stage.name().into()),
        errno: Some(errno),
    }
}

fn stop_signal(job: &Job) -> Signal {
    // Names were checked when the job was submitted.
    let name = job.process().and_then(|process| process.stop_signal.as_deref());
    name.and_then(|name| Signal::from_str(&format!("SIG{name}")).ok()).unwrap_or(Signal::SIGTERM)
}

/// What the shim is to do. Files are written and users looked up on the Runner's executor.
async fn plan(
    scope: &Scope,
    shared: &Arc<Shared>,
    record: Arc<Record>,
    key: AttemptKey,
) -> Result<Launch, Failure> {
    let shared = Arc::clone(shared);
    let blocks = match &record.spec.job {
        Job::Command(command) => command.process.user.is_some(),
        Job::Script(_) => true,
        Job::Http(_) | Job::Handler(_) => false,
    };
    let planned = move || plan_now(&shared, &record, key);
    let planned = match blocks {
        false => planned(),
        true => match scope.spawn_blocking(planned).with_name("plan").await {
            Ok(planned) => planned,
            Err(error) => return Err(Failure::new("internal", error.to_string())),
        },
    };
    planned.map_err(|(stage, error)| {
        let errno = error.raw_os_error();
        Failure { errno, ..start_failure(stage, errno.unwrap_or(0)) }
    })
}

fn plan_now(shared: &Shared, record: &Record, key: AttemptKey) -> Result<Launch, (Stage, io::Error)> {
    let (run, attempt) = record.position().unwrap_or((1, 1));
    let dir = attempt_dir(&shared.log_root, record.id, run, attempt);
    let runner_dir = dir.parent().unwrap_or(&dir);
    prepare_dir(runner_dir).map_err(|error| (Stage::Directory, error))?;
    let argv = argv(&record.spec.job, runner_dir)?;
    let Process { env, cwd, stdin, user, stop_signal: _ } = record.spec.job.process().ok_or_else(no_process)?;
    let user = user.as_deref().map(find_user).transpose().map_err(|error| (Stage::User, error))?;
    let env = shared.environment.of(record, key, user.as_ref().map(|(user, _)| user), env);
    let cwd = cwd.clone().unwrap_or_else(|| PathBuf::from("/"));
    let mut launch = Launch::new(dir, argv, env, cwd);
    launch.stdin = stdin.as_ref().map(|text| text.as_bytes().to_vec());
    // Who is that user already need not and, unless root, may not switch.
    launch.user = user.map(|(_, user)| user).filter(|user| user.uid != nix::unistd::geteuid().as_raw());
    launch.segment_bytes = shared.segment_bytes;
    launch.max_log_bytes = shared.max_log_bytes;
    Ok(launch)
}

/// The program and its arguments.
fn argv(job: &Job, runner_dir: &Path) -> Result<Vec<OsString>, (Stage, io::Error)> {
    match job {
        Job::Command(command) => Ok(command.argv.iter().map(OsString::from).collect()),
        Job::Script(Script { source, args, process: _ }) => {
            let path = script::write(runner_dir, source).map_err(|error| (Stage::Directory, error))?;
            Ok(script::argv(source, &path, args))
        }
        Job::Http(_) | Job::Handler(_) => Err(no_process()),
    }
}

/// Only process jobs come here.
fn no_process() -> (Stage, io::Error) {
    (Stage::Exec, io::ErrorKind::Unsupported.into())
}

fn prepare_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // The directory above may have been tidied away under the daemon.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn find_user(name: &str) -> io::Result<(nix::unistd::User, User)> {
    let user = nix::unistd::User::from_name(name)?.ok_or(nix::errno::Errno::ENOENT)?;
    let c_name = CString::new(name).map_err(|_| nix::errno::Errno::EINVAL)?;
    let groups = nix::unistd::getgrouplist(&c_name, user.gid)?.into_iter().map(|gid| gid.as_raw()).collect();
    let ids = User { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups };
    Ok((user, ids))
}

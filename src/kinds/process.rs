//! `command` and `script`: jobs that are processes. The main task speaks with the shim and with nobody else.

use std::{
    ffi::{CString, OsString},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use super::{
    Attempt, Context, Done, Ended, Link, LogQuota, Main, Reporter, Shared, Variables, ending, python,
    run_files::RunFiles, script,
};
use crate::{
    job::{self, Action, AttemptKey, Failure, Job, Limits, Process, Record, Rlimit, Script},
    process::{
        Ending, Files, KILL_PENDING_AFTER, Launch, LaunchError, RLimit, Resource, Shim, ShimEvent, Stage,
        StartFailure, TreeLimits, User,
    },
    runner::{AsyncRunner, Cancelled, RunError, Scope, ScopeError},
    supervisor::{
        attempt_dir,
        ports::{End, News},
    },
};

/// One processor, in microseconds for each 100 ms.
const PERIOD_US: f64 = 100_000.0;

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
#[derive(Debug)]
pub(super) struct Hold(Box<Shim>);

impl Hold {
    /// The shim may take another attempt.
    pub(super) fn release(self) {
        self.0.release();
    }
}

/// What the main task of a process job works with.
struct Work {
    scope: Scope,
    shared: Arc<Shared>,
}

/// What its launch is planned from, in a box of its own: it goes before the job begins.
struct Origin {
    attempt: Arc<Attempt>,
    record: Arc<Record>,
    context: Context,
}

/// Starts the main task of a process job on its Runner. Its driver polls it: it waits for others only, and a task of the
/// runtime takes 300 bytes.
pub(super) fn start(
    runner: &mut AsyncRunner,
    shared: Arc<Shared>,
    record: Arc<Record>,
    attempt: Arc<Attempt>,
    context: Context,
) -> Result<impl Main + use<>, RunError> {
    let told = Arc::clone(&attempt);
    let origin = Box::new(Origin { attempt, record, context });
    runner.start_scoped_here(move |scope| told.told(run(Work { scope, shared }, origin)))
}

/// Boxed, all but the wait for the end: there may be thousands that wait, and they need less.
#[expect(clippy::manual_async_fn, reason = "an async function would keep what it is given twice")]
fn run(work: Work, origin: Box<Origin>) -> impl Future<Output = Ended> {
    async move {
        let mut watch = match Box::pin(work.begin(origin)).await? {
            Ok(watch) => watch,
            Err(failure) => return Ok(Done::failed(*failure)),
        };
        // Its end is always awaited: a cancellation only changes how.
        let end = match work.scope.cancellable(watch.end()).await {
            Ok(end) => end,
            Err(Cancelled { .. }) => Box::pin(watch.stop()).await,
        };
        if end.lost {
            Box::pin(work.tidy(&watch.reporter)).await;
        }
        Ok(Box::new(Done { end: *end, hold: Some(Hold(watch.shim)) }))
    }
}

impl Work {
    /// Starts the job when it is told to.
    async fn begin(&self, origin: Box<Origin>) -> Result<Result<Watch, Box<Failure>>, Stopped> {
        // It may have to wait for its turn, and a thousand others with it: until then there is nothing else.
        let shim = async { self.shared.launcher.shim().await.map(Box::new) };
        let shim = self.scope.cancellable(shim).await?;
        let mut link = Link(Arc::clone(&origin.attempt));
        let prepared = Box::pin(self.prepare(shim, origin)).await?;
        self.scope.cancellable(link.until(|orders| orders.go)).await?.map_err(|_| Stopped::Aborted)?;
        let mut shim = match prepared {
            Ok(shim) => shim,
            Err(failure) => return Ok(Err(failure)),
        };
        // From here on the job may execute.
        shim.go().await;
        Ok(Ok(Watch { shim, pid: None, news: None, ended: None, reporter: Reporter(link.0) }))
    }

    /// Tells the shim what is to be done on *go*.
    async fn prepare(
        &self,
        shim: Result<Box<Shim>, LaunchError>,
        origin: Box<Origin>,
    ) -> Result<Result<Box<Shim>, Box<Failure>>, Cancelled> {
        let failed = |error: LaunchError| Failure {
            stage: Some("launch".into()),
            ..Failure::new("start_failed", error.to_string())
        };
        let prepared = async {
            let mut shim = shim.map_err(failed)?;
            let Origin { attempt, record, context } = *origin;
            let variables = context.variables(&record).await?;
            let launch = plan(&self.scope, &self.shared, record, attempt.key, variables).await?;
            shim.prepare(&launch).map_err(failed)?;
            Ok(shim)
        };
        Ok(self.scope.cancellable(prepared).await?.map_err(Box::new))
    }

    /// Removes the files of an attempt whose shim could not. Nobody knows how much its user has put there.
    async fn tidy(&self, attempt: &Arc<Attempt>) {
        let (shared, attempt) = (Arc::clone(&self.shared), Arc::clone(attempt));
        let tidy = move || {
            let switch = attempt.job().process().and_then(|process| identity(process).ok()?.switch);
            if let Ok(files) = files(&shared, attempt.job(), attempt.key, switch.as_ref()) {
                remove(&files.into_files());
            }
        };
        drop(self.scope.spawn_blocking(tidy).with_name("tidy").await);
    }
}

/// A job's process tree, seen through its shim.
struct Watch {
    shim: Box<Shim>,
    pid: Option<i32>,
    /// What the shim told and the supervisor was not told yet. Nothing else is heard until that is done.
    news: Option<Box<News>>,
    /// How it ended, heard while an order was to be answered.
    ended: Option<Box<End>>,
    reporter: Reporter,
}

/// Removes the files of an attempt. Blocking.
fn remove(files: &Files) {
    if files.own_dir {
        match std::fs::remove_dir_all(&files.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %files.dir.display(), %error, "a job's files are left until the next start");
            }
            Ok(()) | Err(_) => {}
        }
        return;
    }
    for name in files.given.iter().map(|(name, _)| name).chain(&files.taken) {
        // Mostly there is none.
        std::fs::remove_file(files.dir.join(name)).ok();
    }
}

impl Watch {
    /// Waits for the end. Cancel-safe: what was heard and not yet told is kept.
    async fn end(&mut self) -> Box<End> {
        loop {
            if let Some(news) = &self.news {
                Box::pin(self.reporter.send(News::clone(news))).await;
                self.news = None;
            } else if let Some(end) = self.ended.take() {
                return end;
            } else {
                self.hear().await;
            }
        }
    }

    /// Asks the job to stop, kills it when that is ordered, and waits for its end.
    async fn stop(&mut self) -> Box<End> {
        let (signal, mut link) = (stop_signal(self.reporter.job()), Link(Arc::clone(&self.reporter.0)));
        // A shim that is gone says so itself.
        drop(self.shim.signal(signal as i32).await);
        let forced = tokio::select! {
            biased;
            end = self.end() => return end,
            forced = link.until(|orders| orders.force) => forced,
        };
        if forced.is_ok() {
            if matches!(self.reporter.job(), Job::Python(_)) && signal == Signal::SIGINT {
                // As a second Ctrl-C, which asyncio answers at once.
                drop(self.shim.signal(signal as i32).await);
                tokio::select! {
                    biased;
                    end = self.end() => return end,
                    _ = link.until(|orders| orders.at_once) => {}
                    () = sleep(python::INTERRUPT_GRACE) => {}
                }
            }
            drop(self.shim.kill().await);
            let answered = self.answer();
            if timeout(KILL_PENDING_AFTER, answered).await.is_err() {
                drop(self.shim.kill_shim().await);
            }
        }
        self.end().await
    }

    /// Waits until the shim has told something. Cancel-safe.
    async fn answer(&mut self) {
        if self.news.is_none() && self.ended.is_none() {
            self.hear().await;
        }
    }

    /// Waits until the shim has told the next thing. Cancel-safe.
    async fn hear(&mut self) {
        let event = self.shim.next().await;
        if matches!(event, ShimEvent::Gone { status: None }) {
            // Nobody swept: the keeper is gone too. The daemon is about to end, and recovery to tell the truth.
            drop(event);
            return std::future::pending().await;
        }
        self.take(event);
    }

    fn take(&mut self, event: ShimEvent) {
        let news = match event {
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
            ShimEvent::StartFailed(failure) => {
                self.ended = Some(Box::new(ending::not_started(&failure, self.reporter.job())));
                return;
            }
            ShimEvent::Exited(report) => {
                self.ended = Some(Box::new(ending::end_of(&report)));
                return;
            }
            ShimEvent::Gone { status: None } => return,
            ShimEvent::Gone { status: Some(status) } => {
                let how = match status {
                    Ending::Code(code) => format!("ended with code {code}"),
                    Ending::Signal(signal) => format!("was killed by signal {signal}"),
                };
                let failure =
                    Failure::new("shim_lost", format!("the job's shim {how}; its processes were killed"));
                self.ended = Some(Box::new(End { error: Some(failure), lost: true, ..End::default() }));
                return;
            }
        };
        self.news = Some(Box::new(news));
    }
}

fn stop_signal(job: &Job) -> Signal {
    let default = match job {
        Job::Command(_) | Job::Script(_) | Job::Http(_) | Job::Handler(_) => Signal::SIGTERM,
        Job::Python(_) => Signal::SIGINT,
    };
    // Names were checked when the job was submitted.
    let name = job.process().and_then(|process| process.stop_signal.as_deref());
    name.and_then(|name| Signal::from_str(&format!("SIG{name}")).ok()).unwrap_or(default)
}

/// What the shim is to do. Files are written and users looked up on the Runner's executor.
async fn plan(
    scope: &Scope,
    shared: &Arc<Shared>,
    record: Arc<Record>,
    key: AttemptKey,
    variables: Variables,
) -> Result<Launch, Failure> {
    let (shared, job) = (Arc::clone(shared), Arc::clone(&record));
    let switches =
        job.job().process().is_some_and(|process| process.user.is_some() || process.group.is_some());
    let blocks = switches || matches!(job.job(), Job::Script(_));
    let planned = move || plan_now(&shared, &record, key, &variables);
    let planned = match blocks {
        false => planned(),
        true => match scope.spawn_blocking(planned).with_name("plan").await {
            Ok(planned) => planned,
            Err(error) => return Err(Failure::new("internal", error.to_string())),
        },
    };
    planned.map_err(|(stage, error)| {
        let failure = StartFailure::new(stage, error.raw_os_error().unwrap_or(0));
        Failure { errno: error.raw_os_error(), ..ending::start_failure(&failure, job.job()) }
    })
}

fn plan_now(
    shared: &Shared,
    record: &Record,
    key: AttemptKey,
    variables: &Variables,
) -> Result<Launch, (Stage, io::Error)> {
    let (run, attempt) = record.position().unwrap_or((1, 1));
    let dir = attempt_dir(&shared.log_root, record.id, run, attempt);
    let runner_dir = dir.parent().unwrap_or(&dir);
    let process = record.job().process().ok_or_else(no_process)?;
    let identity = identity(process).map_err(|error| (Stage::User, error))?;
    let unmade = |error| (Stage::Directory, error);
    let other = is_other(identity.switch.as_ref());
    let mut run_files = files(shared, record.job(), key, identity.switch.as_ref()).map_err(unmade)?;
    let argv = match record.job() {
        Job::Command(command) => command.argv.iter().map(OsString::from).collect(),
        Job::Script(script) => {
            let Script { source, args, process: _ } = &**script;
            let path = if other {
                run_files.give(script::NAME, source.as_bytes().to_vec())
            } else {
                prepare_dir(runner_dir).and_then(|()| script::write(runner_dir, source)).map_err(unmade)?;
                runner_dir.join(script::NAME)
            };
            script::argv(source, &path, args)
        }
        Job::Python(job) => {
            let request = python::request(job, record, variables).map_err(|error| unmade(error.into()))?;
            python::argv(job, request, &mut run_files)
        }
        Job::Http(_) | Job::Handler(_) => return Err(no_process()),
    };
    let mut env = shared.environment.of(record, key, identity.user.as_ref(), variables, &process.env);
    env.extend(run_files.environment());
    let cwd = process.cwd.clone().unwrap_or_else(|| PathBuf::from("/"));
    let mut launch = Launch::new(key.as_u128(), dir, argv, env, cwd);
    launch.place = record.last_seq;
    launch.files = run_files.into_files();
    if matches!(record.job(), Job::Python(_)) {
        launch.blocked_signals = vec![Signal::SIGINT as i32];
    }
    launch.stdin = process.stdin.as_ref().map(|text| text.as_bytes().to_vec());
    launch.user = identity.switch;
    // Checked when the job was submitted.
    if let Some(umask) = process.umask.as_deref().and_then(|text| u32::from_str_radix(text, 8).ok()) {
        launch.umask = umask;
    }
    launch.nice = process.nice;
    launch.rlimits = process.rlimits.iter().map(rlimit).collect();
    launch.limits = tree_limits(process.limits);
    LogQuota { segment_bytes: launch.segment_bytes, max_bytes: launch.max_log_bytes } =
        *shared.quota.borrow();
    Ok(launch)
}

/// Whether it is another user than the daemon's: then it can't reach into the state directory.
fn is_other(user: Option<&User>) -> bool {
    user.is_some_and(|user| user.uid != nix::unistd::geteuid().as_raw())
}

/// Where the files of an attempt are, and those that every one may leave.
fn files(shared: &Shared, job: &Job, key: AttemptKey, user: Option<&User>) -> io::Result<RunFiles> {
    Ok(match job {
        _ if is_other(user) => RunFiles::alone(shared.handover.dir(key)?),
        // What Python finds beside a program, it may import.
        Job::Python(_) => RunFiles::alone(shared.files.join(format!("{:032x}", key.as_u128()))),
        Job::Command(_) | Job::Script(_) | Job::Http(_) | Job::Handler(_) => {
            RunFiles::among(&shared.files, key)
        }
    })
}

/// Only process jobs come here.
fn no_process() -> (Stage, io::Error) {
    (Stage::Exec, io::ErrorKind::Unsupported.into())
}

fn rlimit((resource, limit): (&job::Resource, &Rlimit)) -> RLimit {
    let resource = match resource {
        job::Resource::As => Resource::AddressSpace,
        job::Resource::Core => Resource::Core,
        job::Resource::Cpu => Resource::Cpu,
        job::Resource::Data => Resource::Data,
        job::Resource::Fsize => Resource::FileSize,
        job::Resource::Memlock => Resource::LockedMemory,
        job::Resource::Nofile => Resource::OpenFiles,
        job::Resource::Nproc => Resource::Processes,
        job::Resource::Stack => Resource::Stack,
    };
    RLimit { resource, soft: limit.soft.get(), hard: limit.hard.get() }
}

fn tree_limits(limits: Limits) -> TreeLimits {
    let Limits { memory, cpu, pids } = limits;
    TreeLimits { memory, cpu: cpu.map(|processors| (processors * PERIOD_US).round() as u64), pids }
}

fn prepare_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // The directory above may have been tidied away under the daemon.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Who a job runs as.
struct Identity {
    /// The user it names.
    user: Option<nix::unistd::User>,
    /// Who to become, where the daemon is not that already: then there is nothing to do, nor, unless it is root, any
    /// right to.
    switch: Option<User>,
}

fn identity(process: &Process) -> io::Result<Identity> {
    let unknown = nix::errno::Errno::ENOENT;
    let user = match &process.user {
        Some(name) => Some(nix::unistd::User::from_name(name)?.ok_or(unknown)?),
        None => None,
    };
    let group = match &process.group {
        Some(name) => Some(nix::unistd::Group::from_name(name)?.ok_or(unknown)?.gid),
        None => None,
    };
    let (own_uid, own_gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let uid = user.as_ref().map_or(own_uid, |user| user.uid);
    let gid = group.or(user.as_ref().map(|user| user.gid)).unwrap_or(own_gid);
    if uid == own_uid && group.is_none_or(|group| group == own_gid) {
        return Ok(Identity { user, switch: None });
    }
    let groups = match &user {
        Some(user) => {
            let name = CString::new(user.name.as_str()).map_err(|_| nix::errno::Errno::EINVAL)?;
            nix::unistd::getgrouplist(&name, gid)?
        }
        None => vec![gid],
    };
    let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    Ok(Identity { user, switch: Some(User { uid: uid.as_raw(), gid: gid.as_raw(), groups }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<T>(_: fn(Work, Box<Origin>) -> T) -> usize {
        size_of::<T>()
    }

    #[test]
    fn the_main_task_of_a_job_that_runs_is_small() {
        assert!(size(run) <= 288, "{}", size(run));
    }
}

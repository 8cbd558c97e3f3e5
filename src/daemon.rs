//! The daemon: what it is made of, the order in which it starts and the order in which it stops.
//!
//! Three loops: the supervisor and the Runners of process jobs on a thread of their own, the control plane on others,
//! in-process jobs on others again. A handler that blocks is somebody's mistake: it may hold up other handlers, but
//! neither the supervisor that stops it nor the API that tells of it.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    descriptors, http,
    job::{EventKind, Record, RunnerId, SharedContext},
    kinds::{self, Environment, Fleet, Handlers, Handover, HttpClient, HttpRules, Inside, LogQuota},
    metrics::Metrics,
    private_file::PrivateFileError,
    process::{
        self, HandedOver, KeeperLink, KeeperSetup, Permits,
        containment::{self, Tier},
        spool::{self, Found, Slots},
    },
    reload::{self, Live, Reloader, limits},
    retention::Keeping,
    secrets::{self, SecretsLost, Vault, VaultError},
    settings::{self, Flags, Listen, Settings, SettingsError},
    signals::{SignalThread, WhileStarting},
    state_dir::{DaemonFile, StateDir, StateDirError},
    store::{self, Lookup, OpenError, Readers, Tally},
    supervisor::{
        self, Actor, Ended, Fatal, Parts, REPORTS, Supervisor, Urgent,
        core::{Core, Now},
        ports::{AppendError, Batch, ContextChange, EventLog, Records},
        recovery::{self, Evidence},
    },
    systemd::Notifier,
    telemetry,
    webhooks::Webhooks,
};

/// Signals that may wait for the supervisor: more than anybody sends before the process ends.
const URGENT: usize = 16;

/// How long answers in flight may take when the daemon stops.
const HTTP_STOP: Duration = Duration::from_secs(2);

/// How long the keeper may take to follow the last shim. It has nothing left to do, so it is only a busy machine that
/// makes it late.
const KEEPER_LEAVES: Duration = Duration::from_secs(10);

/// The same where something of a job may not die: whoever gave up on that waits no longer for the keeper.
const KEEPER_IS_LEFT: Duration = Duration::from_secs(1);

/// The daemon's exit codes, after `sysexits.h` where that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// A signal came, everything was cancelled, drained, closed and recorded.
    Stopped = 0,
    /// The store is damaged, of a later version, or missing though it should be there; or the key of its secrets is.
    StoreUnusable = 65,
    /// An address can't be listened on.
    Unavailable = 69,
    /// A mistake of runward's own.
    Internal = 70,
    /// The keeper died, or the system gives no processes, threads or descriptors.
    System = 71,
    /// The store failed while the daemon ran. What happened since the last record is recovered at the next start.
    StoreFailed = 74,
    /// Another daemon has the state directory.
    InUse = 75,
    /// The state directory is not private, or the token or the key in it is not.
    NotPrivate = 77,
    /// The settings are wrong.
    Settings = 78,
    /// The time for the shutdown was up and something could not be killed: it is named in the log.
    Abandoned = 80,
    /// A second signal: everything was killed.
    Forced = 81,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("{0}")]
    Telemetry(String),
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("the store {path}: {error}")]
    Store { path: PathBuf, error: OpenError },
    #[error("the settings demand a cgroup for each job, but there is none to be had: {0}")]
    Containment(String),
    #[error(transparent)]
    Token(#[from] PrivateFileError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    SecretsLost(#[from] SecretsLost),
    #[error("can't listen on {address}: {error}; choose another address with --listen")]
    Bind { address: String, error: io::Error },
    #[error("the socket {name} of the service manager can't be served: {error}")]
    HandedOver { name: String, error: io::Error },
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
    #[error("recovery: {0}")]
    Recovery(String),
    #[error("recovery: {0}; make room and start again")]
    Append(AppendError),
}

impl StartError {
    fn code(&self) -> Code {
        match self {
            Self::Settings(_) | Self::Telemetry(_) | Self::Containment(_) | Self::HandedOver { .. } => {
                Code::Settings
            }
            Self::StateDir(StateDirError::InUse { .. }) => Code::InUse,
            Self::StateDir(StateDirError::NotPrivate { .. } | StateDirError::Io { .. })
            | Self::Token(_)
            | Self::Vault(_) => Code::NotPrivate,
            Self::Store { error, .. } if error.may_pass() => Code::StoreFailed,
            Self::Append(_) => Code::StoreFailed,
            Self::Store { .. } | Self::Recovery(_) | Self::SecretsLost(_) => Code::StoreUnusable,
            Self::Bind { .. } => Code::Unavailable,
            Self::System { .. } => Code::System,
        }
    }
}

/// A daemon to be: what a program that embeds it decides of it.
///
/// ```no_run
/// use runward::{
///     daemon::Daemon,
///     kinds::{Call, Handlers},
///     settings::Flags,
/// };
///
/// fn main() -> std::process::ExitCode {
///     let handlers = Handlers::new().register("greet", |call: Call| async move {
///         Ok(format!("hello, {}", call.args::<String>()?).into())
///     });
///     let code = Daemon::new(Flags::default()).handlers(handlers).serve();
///     std::process::ExitCode::from(code as u8)
/// }
/// ```
pub struct Daemon {
    flags: Flags,
    handlers: Handlers,
    on_loop: Box<dyn FnOnce(&Handle)>,
}

impl Daemon {
    /// A daemon with these flags, and the built-in handlers only.
    pub fn new(flags: Flags) -> Self {
        Self { flags, handlers: Handlers::new(), on_loop: Box::new(|_| {}) }
    }

    /// The functions that jobs of the kind `handler` can name.
    #[must_use]
    pub fn handlers(self, handlers: Handlers) -> Self {
        Self { handlers, ..self }
    }

    /// Given the loop of in-process jobs before the daemon serves, to put other work there.
    #[must_use]
    pub fn on_loop(self, on_loop: impl FnOnce(&Handle) + 'static) -> Self {
        Self { on_loop: Box::new(on_loop), ..self }
    }

    /// Runs it until it is told to stop. Call it in `main`, before any thread exists.
    pub fn serve(self) -> Code {
        match start(self) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("runward: {error}");
                error.code()
            }
        }
    }
}

fn start(Daemon { flags, handlers, on_loop }: Daemon) -> Result<Code, StartError> {
    let started = (Timestamp::now(), Instant::now());
    process::reset_inherited_signals();
    let sockets = process::handed_over().map_err(system("the sockets of the service manager"))?;
    let starting = WhileStarting::start().map_err(system("signals"))?;
    let mut settings = settings::load(&flags)?;
    let filter =
        telemetry::start(&settings.log_filter, settings.log_format).map_err(StartError::Telemetry)?;
    let notifier = Notifier::from_environment().map_err(system("the service manager"))?;
    let state = StateDir::open(&settings.state_dir)?;

    // The keeper is a fork of this process as it is now: single-threaded, small, with nothing open that a job
    // could get hold of.
    let children_lock = state.children_lock().map_err(system("children.lock"))?;
    process::children_lock::take(&children_lock).map_err(system("children.lock"))?;
    let (tier, why) = containment::probe(instance(&state));
    let why = why.map(|why| why.to_string());
    if settings.require_cgroup && !matches!(tier, Tier::Cgroup { .. }) {
        return Err(StartError::Containment(why.unwrap_or_default()));
    }
    let permits =
        Permits::of_this_process(process::hand_on(&tier)).map_err(system("what this process may do"))?;
    let setup = KeeperSetup { children_lock: children_lock.into(), tier: tier.clone(), slots: state.slots() };
    let keeper = process::fork_keeper(setup)
        .map_err(|error| StartError::System { what: "the keeper", error: io::Error::other(error) })?;

    // Only now: the keeper, and so every job, keeps the limit that the daemon was started with.
    let budget = descriptors::take().map_err(system("the limit of descriptors"))?;
    descriptors::fit(&mut settings);
    let boot_id = boot_id().map_err(system("the boot id"))?;
    let mut metrics = Metrics::default();
    let recovered = recover(&state, &settings, &tier, &boot_id, &metrics, flags.forget_secrets)?;
    // After the store: a token without a store tells that there was one. Each is synced to disk; both together take
    // hardly longer than one.
    let (token, vault) = thread::scope(|scope| {
        let vault = scope.spawn(|| Vault::open(state.path(), credentials()));
        let token = http::token::load_or_create(state.path());
        (token, vault.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (token, vault) = (token?, Arc::new(vault?));
    let listeners = if sockets.is_empty() { bind(&settings, &state)? } else { take(sockets)? };

    let (urgent_sender, urgent) = mpsc::channel(URGENT);
    let (reload, reloads) = mpsc::channel(reload::REQUESTS);
    let signals = SignalThread::start(urgent_sender.clone(), reload.clone(), keeper.pid())
        .map_err(system("signals"))?;
    drop(starting);
    let readers = Readers::start(&state.database())
        .map_err(|error| StartError::Store { path: state.database(), error })?;

    let runtime = multi_thread("runward-http").map_err(system("the control plane's threads"))?;
    let jobs = multi_thread("runward-jobs").map_err(system("the threads of in-process jobs"))?;
    on_loop(jobs.handle());
    metrics.in_process = Some(jobs.handle().clone());
    let metrics = Arc::new(metrics);
    let (rules, rules_now) = watch::channel(http_rules(&settings, &listeners));
    let (quota, quota_now) = watch::channel(reload::quota(&settings));
    let (retention, retention_now) = watch::channel(settings.retention);
    let config = http::Config {
        max_body: settings.max_body_bytes,
        drain_timeout: settings.drain_timeout,
        hosts: settings.allowed_hosts.clone(),
        limits: limits(&settings),
        handlers: handlers.names().into_iter().map(str::to_owned).collect(),
        permits,
    };
    let (config, config_now) = watch::channel(Arc::new(config));
    let client = Arc::new(HttpClient::new(rules_now, budget.requests));
    let background = Background {
        tally: recovered.tally.clone(),
        readers: readers.clone(),
        vault: Arc::clone(&vault),
        client: Arc::clone(&client),
        logs: state.logs(),
        retention: retention_now,
        metrics: Arc::clone(&metrics),
        reloader: Reloader {
            flags,
            settings: settings.clone(),
            fit: descriptors::fit,
            live: Live { http: config, retention, rules, quota, filter },
            metrics: Arc::clone(&metrics),
            notify: Box::new({
                let notifier = notifier.clone();
                move |begins| if begins { notifier.reloading() } else { notifier.ready() }
            }),
        },
        reloads,
    };
    let inside = Inside::new(jobs.handle().clone(), handlers, client, state.logs(), quota_now.clone())
        .map_err(system("the writer of output"))?;
    let shared = kinds_shared(quota_now, &state, Arc::clone(&vault))
        .map_err(system("what an earlier daemon's jobs left"))?;
    let counted = Arc::clone(&metrics);
    let supervised =
        Supervised { recovered, keeper, shared, inside, readers, urgent, urgent_sender, metrics: counted };
    let core = CoreThread::start(move |ready| supervise(supervised, ready))
        .map_err(system("the supervisor's thread"))?;
    let api = |supervisor| http::Api {
        supervisor,
        access: http::access::Access { token, uid: nix::unistd::geteuid().as_raw() },
        vault,
        config: config_now,
        reload,
        metrics: Arc::clone(&metrics),
        connections: budget.connections,
        info: info(&tier, why, &boot_id, started),
    };
    let code = runtime.block_on(run(core, &state, listeners, background, notifier, api));
    // A worker may be stuck in somebody's code: it is not waited for.
    jobs.shutdown_background();
    runtime.shutdown_background();
    drop(signals);
    state.withdraw();
    if let Err(error) = tier.remove() {
        tracing::debug!(%error, "the jobs' cgroup is left for the next start");
    }
    Ok(code)
}

fn multi_thread(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread().thread_name(name).enable_all().build()
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System { what, error }
}

/// Serves until the supervisor has ended, then stops in order: HTTP, store, keeper.
async fn run(
    mut core: CoreThread,
    state: &StateDir,
    listeners: Vec<http::Listener>,
    background: Background,
    notifier: Notifier,
    api: impl FnOnce(Supervisor) -> http::Api,
) -> Code {
    let Ok(supervisor) = (&mut core.ready).await else { return core.join() };
    announce(state, &listeners);
    let _told = notifier.follow(&supervisor);
    // Ended wherever it stands: the next start goes on with it.
    let _background = background.start(&supervisor);
    let (stop, stopping) = watch::channel(false);
    let mut server = JoinSet::new();
    server.spawn(http::serve(listeners, api(supervisor), async move {
        let mut stopping = stopping;
        // An error is a sender that is gone: stop then too.
        drop(stopping.wait_for(|stop| *stop).await);
    }));
    let ended = (&mut core.ended).await;
    stop.send_replace(true);
    let forced =
        matches!(ended, Ok(Ended::Drained { forced: true } | Ended::Abandoned(_) | Ended::Fatal(_)) | Err(_));
    if !forced && timeout(HTTP_STOP, server.join_next()).await.is_err() {
        tracing::info!("some answers were cut off");
    }
    server.abort_all();
    core.join()
}

/// What goes on beside the jobs.
struct Background {
    tally: watch::Receiver<Tally>,
    readers: Readers,
    vault: Arc<Vault>,
    client: Arc<HttpClient>,
    logs: PathBuf,
    retention: watch::Receiver<settings::Retention>,
    metrics: Arc<Metrics>,
    reloader: Reloader,
    reloads: mpsc::Receiver<http::ReloadRequest>,
}

impl Background {
    fn start(self, supervisor: &Supervisor) -> JoinSet<()> {
        let Self { tally, readers, vault, client, logs, retention, metrics, reloader, reloads } = self;
        let supervisor = supervisor.clone();
        let keeping = Keeping { supervisor: supervisor.clone(), readers: readers.clone(), logs, retention };
        let mut tasks = JoinSet::new();
        tasks.spawn(keeping.run(tally.clone()));
        tasks.spawn(reloader.run(supervisor.clone(), reloads));
        tasks.spawn(Webhooks { supervisor, readers, vault, client, metrics }.run(tally));
        tasks
    }
}

/// What the log and `daemon.json` say when the daemon is ready.
fn announce(state: &StateDir, listeners: &[http::Listener]) {
    let listen: Vec<String> = listeners.iter().map(http::Listener::address).collect();
    let daemon = DaemonFile {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        listen: listen.clone(),
    };
    if let Err(error) = state.publish(&daemon) {
        tracing::warn!(%error, "daemon.json could not be written: clients have to be told the address");
    }
    let target = listen.iter().find_map(|address| address.strip_prefix("unix:")).map_or_else(
        || {
            let address = listen.first().map_or("", String::as_str);
            let token = state.path().join("token");
            format!("-H \"Authorization: Bearer $(cat '{}')\" 'http://{address}", token.display())
        },
        |path| format!("--unix-socket '{path}' 'http://localhost"),
    );
    tracing::info!(
        "ready on {}. Try: curl -sS {target}/v1/runners?wait=30s' -H 'content-type: text/x-shellscript' \
         --data-binary 'echo hello'",
        listen.join(", ")
    );
}

/// The supervisor's thread.
struct CoreThread {
    ready: oneshot::Receiver<Supervisor>,
    ended: oneshot::Receiver<Ended>,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<Code>,
}

/// The supervisor's end of it.
struct CoreEnds {
    ready: oneshot::Sender<Supervisor>,
    ended: oneshot::Sender<Ended>,
    stopped: oneshot::Receiver<()>,
}

impl CoreThread {
    fn start(body: impl FnOnce(CoreEnds) -> io::Result<Code> + Send + 'static) -> io::Result<Self> {
        let (ready_sender, ready) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let ends = CoreEnds { ready: ready_sender, ended: ended_sender, stopped };
        let thread = thread::Builder::new().name("runward-core".into()).spawn(move || {
            body(ends).unwrap_or_else(|error| {
                tracing::error!(%error, "the supervisor could not start");
                Code::System
            })
        })?;
        Ok(Self { ready, ended, stop, thread })
    }

    /// Lets it close the store and end.
    fn join(self) -> Code {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| {
            tracing::error!("the supervisor failed; the next start recovers from its log");
            Code::Internal
        })
    }
}

/// What the supervisor is made of.
struct Supervised {
    recovered: Recovered,
    keeper: KeeperLink,
    shared: KindsShared,
    inside: Inside,
    readers: Readers,
    urgent: mpsc::Receiver<Urgent>,
    urgent_sender: mpsc::Sender<Urgent>,
    metrics: Arc<Metrics>,
}

/// The body of the supervisor's thread.
fn supervise(parts: Supervised, ends: CoreEnds) -> io::Result<Code> {
    let Supervised { recovered, keeper, shared, inside, readers, urgent, urgent_sender, metrics } = parts;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (launcher, keeper) = keeper.attach()?;
        let log_root = shared.log_root.clone();
        let (reports_sender, reports) = mpsc::channel(REPORTS);
        let fleet = Fleet::new(shared.with(launcher), inside, Handle::current(), reports_sender);
        let Recovered { core, log, lookup, last_seq, tally: _ } = recovered;
        let parts = Parts { core, runners: fleet, reports, urgent, log, records: lookup, last_seq, metrics };
        let (mut actor, supervisor) = Actor::new(parts, Arc::new(readers), log_root)?;
        // Nobody waits for it only when the control plane failed; then it is told to stop at once.
        drop(ends.ready.send(supervisor));
        let mut keeper_end = JoinSet::new();
        keeper_end.spawn(async move {
            let end = keeper.ended().await;
            drop(urgent_sender.send(Urgent::Fatal(Fatal::KeeperDied)).await);
            end
        });
        let ended = actor.run().await;
        let code = tell(&ended);
        let patience = match &ended {
            Ended::Drained { forced: false } => KEEPER_LEAVES,
            Ended::Drained { forced: true } | Ended::Abandoned(_) | Ended::Fatal(_) => KEEPER_IS_LEFT,
        };
        drop(ends.ended.send(ended));
        drop(ends.stopped.await);
        // Closes the store, then the last lifeline: the keeper leaves.
        drop(actor);
        if timeout(patience, keeper_end.join_next()).await.is_err() {
            tracing::warn!(
                "the keeper has not ended within {} seconds: it is left to end when nothing of a job lives any more",
                patience.as_secs()
            );
        }
        Ok(code)
    })
}

fn tell(ended: &Ended) -> Code {
    match ended {
        Ended::Drained { forced: false } => {
            tracing::info!("stopped: every job is closed and recorded");
            Code::Stopped
        }
        Ended::Drained { forced: true } => {
            tracing::warn!("stopped by force: every job is closed and recorded");
            Code::Forced
        }
        Ended::Abandoned(runners) => {
            let names: Vec<_> = runners.iter().map(ToString::to_string).collect();
            tracing::error!(runners = names.join(", "), "gave up: something of these jobs does not die");
            Code::Abandoned
        }
        Ended::Fatal(fatal) => {
            tracing::error!(%fatal, "can't go on: every job is being killed; the next start recovers");
            match fatal {
                Fatal::KeeperDied => Code::System,
                Fatal::StoreBroken(_) => Code::StoreFailed,
            }
        }
    }
}

/// What recovery leaves for the supervisor.
struct Recovered {
    core: Core,
    log: Box<dyn EventLog>,
    lookup: Lookup,
    last_seq: u64,
    tally: watch::Receiver<Tally>,
}

fn recover(
    state: &StateDir,
    settings: &Settings,
    tier: &Tier,
    boot_id: &str,
    metrics: &Metrics,
    forget_secrets: bool,
) -> Result<Recovered, StartError> {
    let broken = |error| StartError::Store { path: state.database(), error };
    let sql = |error: rusqlite::Error| broken(OpenError::from(error));
    let mut log = store::open(&state.database(), state.was_used()).map_err(broken)?;
    let lookup = Lookup::open(&state.database()).map_err(broken)?;
    let executed = state.last_executed().map_err(system("the output of earlier jobs"))?;
    if let Some(id) = executed.and_then(|name| name.parse::<RunnerId>().ok())
        && lookup.load(id).map_err(|error| broken(OpenError::Damaged(error.0)))?.is_none()
    {
        return Err(broken(OpenError::Forgotten(id)));
    }
    let slots = Slots::read(&state.slots()).map_err(system("what an earlier daemon's jobs left"))?;
    if slots.latest > Some(log.last_seq().map_err(sql)?) {
        return Err(broken(OpenError::ForgottenStart));
    }
    // Before anything is changed: a start that is refused leaves all as it was.
    let vault = Vault::find(state.path(), credentials())?;
    let context = lookup.context().map_err(broken)?;
    match secrets::check_sealed(vault.as_ref(), &context) {
        Err(lost) if forget_secrets => forget(&mut log, &context, &lost)?,
        checked => checked?,
    }
    let under_way = lookup.under_way().map_err(broken)?;
    metrics.webhooks.pending.add(lookup.messages_left().map_err(broken)?);
    sweep(tier, &under_way).map_err(system("what an earlier daemon's jobs left"))?;
    let last_seq = log.last_seq().map_err(sql)?;
    let count = under_way.len();
    let now = Now { wall: Timestamp::now(), mono: Duration::ZERO, jitter: supervisor::jitter };
    let batch = recovery::plan(
        under_way,
        |record| evidence(state, &slots, boot_id, record, &lookup),
        last_seq + 1,
        now,
    )
    .map_err(|illegal| StartError::Recovery(illegal.to_string()))?;
    let last_seq = batch.events.last().map_or(last_seq, |event| event.seq);
    for event in &batch.events {
        if let EventKind::AttemptEnded { outcome, error, .. } = &event.kind {
            let error = error.as_ref().map(|error| error.message.as_str());
            tracing::warn!(runner = %event.runner, %outcome, error, "ended with the earlier daemon");
        }
    }
    if !batch.events.is_empty() {
        log.append(&batch).map_err(StartError::Append)?;
        supervisor::count_durable(metrics, &batch, &[]);
    }
    for error in &slots.damaged {
        tracing::warn!(%error, "how a job ended is not known");
    }
    slots.forget();
    state.clear_files().map_err(system("what an earlier daemon's jobs left"))?;
    let mut core = Core::new(limits(settings), boot_id.to_owned(), last_seq + 1);
    core.configure(settings.queues.clone(), lookup.queues().map_err(broken)?);
    core.set_context(lookup.context().map_err(broken)?);
    lookup.waiting(|restored| core.restore(restored, now)).map_err(broken)?;
    for record in lookup.idle().map_err(broken)? {
        core.restore_idle(record, now);
    }
    let queued = core.counts().queued;
    if count + queued > 0 {
        tracing::info!(queued, under_way = count, "recovered what an earlier daemon left");
    }
    Ok(Recovered { core, tally: log.tally(), log: Box::new(log), lookup, last_seq })
}

/// Unsets secrets that nobody can have any more.
fn forget(log: &mut impl EventLog, context: &SharedContext, lost: &SecretsLost) -> Result<(), StartError> {
    let unset =
        |(version, name): (u64, &String)| ContextChange { version, name: name.clone(), variable: None };
    let changes = (context.version + 1..).zip(&lost.names).map(unset).collect();
    log.append(&Batch { context: changes, ..Batch::default() }).map_err(StartError::Append)?;
    tracing::warn!(names = lost.names.join(", "), "secrets whose key is lost were unset: set them again");
    Ok(())
}

/// Where systemd puts credentials.
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Kills what may be left when daemon, keeper and shims were killed at once. Shims do it otherwise.
fn sweep(tier: &Tier, under_way: &[Record]) -> io::Result<()> {
    if let Tier::Cgroup { base } = tier {
        containment::sweep_leftovers(base)?;
    }
    let marks: Vec<u128> =
        under_way.iter().filter_map(|record| Some(record.attempt()?.key.as_u128())).collect();
    if !marks.is_empty() {
        let killed = process::recovery::sweep_marked(&marks)?;
        if killed > 0 {
            tracing::warn!(killed, "processes of an earlier daemon's jobs were killed");
        }
    }
    Ok(())
}

fn evidence(state: &StateDir, slots: &Slots, boot_id: &str, record: &Record, lookup: &Lookup) -> Evidence {
    let (Some(attempt), Some((run, number))) = (record.attempt(), record.position()) else {
        return Evidence::Unknown;
    };
    if record.job().process().is_none() {
        // No shim vouches for it. *Go* follows the commit of its start, so it may have been given.
        return Evidence::Unknown;
    }
    let found = match slots.find(attempt.key.as_u128()) {
        Found::NeverStarted => {
            let dir = crate::supervisor::attempt_dir(&state.logs(), record.id, run, number);
            spool::find_in_attempt(&dir)
        }
        found => found,
    };
    match found {
        // After a power loss its absence proves nothing: no slot is ever synced. Nor does it where there were none.
        Found::NeverStarted if *attempt.boot_id == *boot_id && state.had_slots() => Evidence::NotExecuted,
        Found::NeverStarted | Found::Unknown => Evidence::Unknown,
        Found::Ended(spooled) => {
            let mut end = kinds::end_of_spooled(&spooled, record.job());
            // The shim knew of it before the daemon recorded what came before it.
            end.at = end.at.max(end.at.and(lookup.at(record.last_seq)));
            Evidence::Ended(end)
        }
    }
}

fn bind(settings: &Settings, state: &StateDir) -> Result<Vec<http::Listener>, StartError> {
    settings
        .listen
        .iter()
        .map(|listen| {
            let (bound, address) = match listen {
                Listen::Unix(path) => {
                    let path = state.path().join(path);
                    (http::Listener::bind_unix(&path), format!("unix:{}", path.display()))
                }
                Listen::Tcp(address) => (http::Listener::bind_tcp(*address), address.to_string()),
            };
            bound.map_err(|error| StartError::Bind { address, error })
        })
        .collect()
}

/// A service manager that hands over sockets has decided where the API is served.
fn take(sockets: Vec<HandedOver>) -> Result<Vec<http::Listener>, StartError> {
    let listener = |HandedOver { name, descriptor }| {
        http::Listener::from_socket(descriptor).map_err(|error| StartError::HandedOver { name, error })
    };
    sockets.into_iter().map(listener).collect()
}

/// Tells this state directory's cgroups from another daemon's: FNV-1a of its path.
fn instance(state: &StateDir) -> u32 {
    use std::os::unix::ffi::OsStrExt;
    state
        .path()
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What process jobs share, before there is a launcher.
struct KindsShared {
    environment: Environment,
    vault: Arc<Vault>,
    log_root: PathBuf,
    files: PathBuf,
    handover: Handover,
    quota: watch::Receiver<LogQuota>,
}

impl KindsShared {
    fn with(self, launcher: process::Launcher) -> kinds::Shared {
        kinds::Shared {
            launcher,
            environment: self.environment,
            vault: self.vault,
            log_root: self.log_root,
            files: self.files,
            handover: self.handover,
            quota: self.quota,
        }
    }
}

fn kinds_shared(
    quota: watch::Receiver<LogQuota>,
    state: &StateDir,
    vault: Arc<Vault>,
) -> io::Result<KindsShared> {
    Ok(KindsShared {
        environment: Environment::inherit(),
        vault,
        log_root: state.logs(),
        files: state.files(),
        handover: Handover::take_over(handover_dir(instance(state)))?,
        quota,
    })
}

/// Where jobs of other users find their files. Only root has such jobs, so `/run` is open to it: nobody else may write
/// there, and it is empty after a boot.
fn handover_dir(instance: u32) -> PathBuf {
    let given = std::env::var_os("RUNTIME_DIRECTORY").and_then(|dirs| std::env::split_paths(&dirs).next());
    let above = given.filter(|dir| dir.is_absolute()).unwrap_or_else(|| PathBuf::from("/run"));
    above.join(format!("runward-{instance:08x}"))
}

/// What requests of the daemon may reach.
fn http_rules(settings: &Settings, listeners: &[http::Listener]) -> HttpRules {
    HttpRules {
        own: listeners.iter().filter_map(|listener| listener.address().parse().ok()).collect(),
        allow_own_api: settings.http_jobs_own_api,
        allow_link_local: settings.http_jobs_link_local,
    }
}

fn info(
    tier: &Tier,
    why: Option<String>,
    boot_id: &str,
    (started_at, started): (Timestamp, Instant),
) -> http::Info {
    http::Info {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        boot_id: boot_id.into(),
        started_at,
        started,
        containment: http::Containment { tier: tier.name().into(), detail: why.unwrap_or_default() },
    }
}

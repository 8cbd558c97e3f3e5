//! The daemon: what it is made of, the order in which it starts and the order in which it stops.
//!
//! Three loops: the supervisor and the Runners of process jobs on a thread of their own, the control plane on others,
//! in-process jobs on others again. A handler that blocks is somebody's mistake: it may hold up other handlers, but
//! neither the supervisor that stops it nor the API that tells of it.

mod core_thread;
mod exit;
mod recover;

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
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

pub use self::exit::Code;
use self::{
    core_thread::{CoreThread, Supervised, supervise},
    exit::{StartError, system},
    recover::{credentials, recover},
};
use crate::{
    descriptors, http,
    kinds::{self, Environment, Handlers, Handover, HttpClient, HttpRules, Inside, LogQuota},
    metrics::Metrics,
    process::{
        self, HandedOver, KeeperSetup, Permits,
        containment::{self, Tier},
    },
    reload::{self, Live, Reloader, limits},
    retention::Keeping,
    secrets::Vault,
    settings::{self, Flags, Listen, Settings},
    signals::{SignalThread, WhileStarting},
    state_dir::{DaemonFile, StateDir},
    store::{Readers, Tally},
    supervisor::{Ended, Supervisor},
    systemd::Notifier,
    telemetry,
    webhooks::Webhooks,
};

/// Signals that may wait for the supervisor: more than anybody sends before the process ends.
const URGENT: usize = 16;

/// How long answers in flight may take when the daemon stops.
const HTTP_STOP: Duration = Duration::from_secs(2);

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

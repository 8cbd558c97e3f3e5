//! A keeper in one tier, as one user, and what the cases ask of it.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{Gid, Uid};
use runward::process::containment::{Tier, probe};
use runward::process::log::{Item, LogReader, Stream};
use runward::process::recovery::{ATTEMPT_MARK, mark};
use runward::process::spool::{Found, Slots};
use runward::process::{
    Ending, ExitReport, KeeperSetup, KeeperWatch, Launch, Launcher, Shim, ShimEvent, fork_keeper,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long anything may take before a case fails: far above what it does, for a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Who runs the tests.
    Own,
    /// User and group 65534.
    Nobody,
}

pub(crate) struct World {
    pub(crate) launcher: RefCell<Option<Launcher>>,
    watch: RefCell<Option<KeeperWatch>>,
    pub(crate) keeper: i32,
    pub(crate) tier: Tier,
    pub(crate) dir: TempDir,
    pub(crate) root: bool,
    attempts: RefCell<Vec<u128>>,
    next: Cell<u128>,
    /// Held open and without close-on-exec, to be leaked if anybody does.
    _bait: OwnedFd,
}

/// The children lock in `dir`, blocking until nobody else holds it.
pub(crate) fn take_lock(dir: &Path) -> OwnedFd {
    let file = File::create(dir.join("children.lock")).expect("make the lock");
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("take the lock");
    // The descriptor holds it, not the guard, which would unlock it for all who share it.
    let copy = lock.try_clone().expect("share the lock");
    std::mem::forget(lock);
    copy.into()
}

pub(crate) fn become_nobody() {
    nix::unistd::setgroups(&[]).expect("setgroups");
    nix::unistd::setgid(Gid::from_raw(65534)).expect("setgid");
    nix::unistd::setuid(Uid::from_raw(65534)).expect("setuid");
}

#[expect(unsafe_code, reason = "an ignored signal is inherited, which is the point")]
fn ignore(which: Signal, handler: SigHandler) {
    // SAFETY: neither handler runs any code.
    unsafe { signal(which, handler) }.expect("set a disposition");
}

impl World {
    /// With everything wrong that a keeper may inherit: signals ignored and blocked, a descriptor that exec keeps.
    pub(crate) fn enter(tier: &str, identity: Identity) -> (Self, Runtime) {
        if identity == Identity::Nobody {
            become_nobody();
        }
        let dir = tempfile::Builder::new().prefix("runward-world-").tempdir().expect("a temporary directory");
        let bait = nix::unistd::dup(File::open("/etc/passwd").expect("bait")).expect("dup");
        let tier = match tier {
            "cgroup2" => match probe(std::process::id()) {
                (tier @ Tier::Cgroup { .. }, None) => tier,
                (_, why) => panic!("no cgroups in this world: {why:?}"),
            },
            _ => Tier::Subreaper,
        };
        let lock = take_lock(dir.path());
        ignore(Signal::SIGHUP, SigHandler::SigIgn);
        ignore(Signal::SIGCHLD, SigHandler::SigIgn);
        SigSet::from_iter([Signal::SIGTERM]).thread_block().expect("block TERM");
        let link =
            fork_keeper(KeeperSetup { children_lock: lock, tier: tier.clone(), slots: slots(dir.path()) })
                .expect("fork the keeper");
        ignore(Signal::SIGCHLD, SigHandler::SigDfl);
        let keeper = link.pid();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (launcher, watch) = runtime.block_on(async { link.attach() }).expect("attach");
        let world = Self {
            launcher: RefCell::new(Some(launcher)),
            watch: RefCell::new(Some(watch)),
            keeper,
            tier,
            dir,
            root: nix::unistd::geteuid().is_root(),
            attempts: RefCell::new(Vec::new()),
            next: Cell::new(u128::from(std::process::id()) << 64),
            _bait: bait,
        };
        (world, runtime)
    }

    pub(crate) fn leave(&self, runtime: &Runtime) {
        self.launcher.take();
        let watch = self.watch.take().expect("left once");
        assert_eq!(runtime.block_on(watch.ended()).ending, Some(Ending::Code(0)), "the keeper's end");
        self.tier.remove().expect("remove the base");
    }

    pub(crate) fn launcher(&self) -> Launcher {
        self.launcher.borrow().clone().expect("the world is not left")
    }

    pub(crate) fn attempt(&self) -> u128 {
        let attempt = self.next.get();
        self.next.set(attempt + 1);
        self.attempts.borrow_mut().push(attempt);
        attempt
    }

    /// A job of these words, with its attempt id.
    pub(crate) fn job(&self, argv: &[&str]) -> (u128, Launch) {
        let attempt = self.attempt();
        (attempt, launch(attempt, self.dir.path(), argv))
    }

    pub(crate) fn script(&self, script: &str) -> (u128, Launch) {
        self.job(&["sh", "-c", script])
    }

    /// Launches and gives *go*; returns at `Started`, with the main process.
    pub(crate) async fn start(&self, (_, spec): &(u128, Launch)) -> (Shim, i32) {
        let mut shim = self.launcher().launch(spec).await.expect("launch");
        shim.go().await;
        match event(&mut shim).await {
            ShimEvent::Started { pid, start_time } => {
                assert!(start_time > 0);
                (shim, pid)
            }
            other => panic!("not started: {other:?}"),
        }
    }

    /// Runs a job to its end and acknowledges it.
    pub(crate) async fn run(&self, job: &(u128, Launch)) -> ExitReport {
        let (mut shim, _pid) = self.start(job).await;
        finish(&mut shim).await
    }

    /// Nothing of any attempt so far is left, but files.
    pub(crate) fn assert_clean(&self, name: &str) {
        // What is acknowledged leaves by itself a moment later.
        eventually(&format!("{name} leaves no shim"), || children_of(self.keeper).is_empty());
        let attempts = self.attempts.borrow();
        assert_eq!(marked(&attempts), Vec::<i32>::new(), "processes that {name} left");
        if let Tier::Cgroup { base } = &self.tier {
            let dirs = fs::read_dir(base).expect("list cgroups").filter(|entry| {
                entry.as_ref().is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            });
            assert_eq!(dirs.count(), 0, "cgroups that {name} left");
        }
    }
}

pub(crate) fn launch(attempt: u128, below: &Path, argv: &[&str]) -> Launch {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let env: Vec<(OsString, OsString)> = vec![("PATH".into(), path), mark(attempt)];
    let argv = argv.iter().map(OsString::from).collect();
    Launch::new(attempt, below.join(format!("{attempt:032x}")), argv, env, "/".into())
}

/// Makes a directory of slots.
pub(crate) fn slots(below: &Path) -> PathBuf {
    let slots = below.join("slots");
    fs::create_dir(&slots).expect("make the slots");
    slots
}

/// What the slots tell of an attempt.
pub(crate) fn find(below: &Path, attempt: u128) -> Found {
    let slots = Slots::read(&below.join("slots")).expect("read the slots");
    assert!(slots.damaged.is_empty(), "{:?}", slots.damaged);
    slots.find(attempt)
}

/// The endings that shims have left.
pub(crate) fn endings(below: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(below.join("slots")).expect("list the slots");
    let files = files.map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some()).collect()
}

/// The next event, within [`PATIENCE`].
pub(crate) async fn event(shim: &mut Shim) -> ShimEvent {
    tokio::time::timeout(PATIENCE, shim.next()).await.expect("an event in time")
}

/// The ending, whatever comes before it; not acknowledged.
pub(crate) async fn exit_of(shim: &mut Shim) -> ExitReport {
    loop {
        match event(shim).await {
            ShimEvent::Exited(report) => return report,
            ShimEvent::Gone { status } => panic!("gone without a report: {status:?}"),
            ShimEvent::StartFailed(failure) => panic!("not started: {failure:?}"),
            _ => {}
        }
    }
}

pub(crate) async fn finish(shim: &mut Shim) -> ExitReport {
    let report = exit_of(shim).await;
    shim.ack().await.expect("ack");
    assert_eq!(event(shim).await, ShimEvent::Gone { status: Some(Ending::Code(0)) });
    report
}

/// Waits for a condition that no event announces here.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Processes that carry the mark of one of these attempts.
pub(crate) fn marked(attempts: &[u128]) -> Vec<i32> {
    let marks: Vec<String> =
        attempts.iter().map(|attempt| format!("{ATTEMPT_MARK}={attempt:032x}")).collect();
    let pids = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| marks.iter().any(|mark| mark.as_bytes() == entry))
    })
    .collect()
}

pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// State letter and parent of a process, if it is there.
pub(crate) fn stat(pid: i32) -> Option<(char, i32)> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/stat")).ok()?.read_to_string(&mut text).ok()?;
    let mut fields = text.rsplit(')').next()?.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// What one stream, or both, have in the log.
pub(crate) fn output(dir: &Path, only: Option<Stream>) -> Vec<u8> {
    let mut reader = LogReader::new(dir, 0);
    let mut all = Vec::new();
    while let Some(item) = reader.next_item().expect("read the log") {
        if let Item::Frame(frame) = item
            && only.is_none_or(|only| only == frame.stream)
        {
            all.extend(frame.bytes);
        }
    }
    all
}

pub(crate) fn text(dir: &Path) -> String {
    String::from_utf8(output(dir, None)).expect("text")
}

/// This program, where every user may run it.
pub(crate) fn program() -> PathBuf {
    std::env::current_exe().expect("own path")
}

/// A named pipe, for telling a job to go on.
pub(crate) fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    path
}

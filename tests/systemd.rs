//! What the daemon tells a service manager, and what it takes from one. The manager is the test; `.ci/systemd` has the
//! real one.

mod common;
#[path = "common/nothing.rs"]
mod nothing;

use std::{
    os::{
        fd::AsRawFd,
        unix::{
            net::{UnixDatagram, UnixListener},
            process::ExitStatusExt,
        },
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use common::{PATIENCE, Setup, until};
use nix::sys::signal::{Signal, kill};
use nothing::Nothing;
use runward::{
    job::{AttemptKey, Record, SharedContext},
    supervisor::{
        Actor, Parts, REPORTS, Urgent,
        core::{Core, Limits},
        ports::{AppendError, Batch, Duplicate, EventLog, LoopFacts, Runners},
    },
    systemd::Notifier,
};
use serde_json::{Value, json};

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        Self(socket)
    }

    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).expect("a message in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// The first message that holds this text; the others are forgotten.
    fn told(&self, text: &str) -> String {
        loop {
            let message = self.next();
            if message.contains(text) {
                return message;
            }
        }
    }
}

#[test]
fn a_manager_is_told_of_readiness_of_what_runs_and_of_the_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    let mut daemon =
        Setup::new().env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "200000").start();
    // Every message until it is ready is about that.
    assert_eq!(manager.told("STATUS="), "READY=1\nSTATUS=0 running, 0 queued");
    manager.told("WATCHDOG=1");
    let script = "trap 'while :; do sleep 0.1; done' TERM; echo up; while :; do sleep 0.1; done";
    let id = daemon.submit(json!({"job": {"script": script}}));
    daemon.output_with(&id, "up");
    assert_eq!(manager.told("STATUS=1"), "STATUS=1 running, 0 queued");
    let environment = daemon.run(json!({"job": {"command": ["env"]}}));
    let text = daemon.text(&format!("/v1/runners/{}/logs", common::id(&environment)));
    assert!(!text.contains("NOTIFY_SOCKET") && !text.contains("WATCHDOG"), "{text}");

    daemon.signal(Signal::SIGTERM);
    let stopping = manager.told("STOPPING=1");
    assert!(stopping.contains("\nEXTEND_TIMEOUT_USEC=30000000\n"), "{stopping}");
    assert!(stopping.contains("\nSTATUS=Stopping: 1 jobs clean up, "), "{stopping}");
    // Again and again, with the watchdog, as long as it is not stuck.
    assert_eq!(manager.told("EXTEND_TIMEOUT_USEC"), "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000000");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(81));
}

#[test]
fn what_a_manager_says_wrongly_is_refused_by_name() {
    for (name, value) in [("NOTIFY_SOCKET", "somewhere"), ("WATCHDOG_USEC", "soon")] {
        let setup = Setup::new().env("NOTIFY_SOCKET", "/nowhere").env(name, value);
        let output = setup.command().output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(71) && said.contains(name) && said.contains(value), "{said}");
    }
}

/// A daemon that is given these sockets, as a service manager would.
fn activated(setup: &Setup, count: usize, sockets: &[&dyn AsRawFd]) -> Command {
    let plain = setup.command();
    let fds: Vec<String> = sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect();
    // Moves them to 3 and on, and becomes the daemon: `LISTEN_PID` is a pid that only it can know. Far away first, so
    // that none is overwritten.
    let program = r#"
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 200) for fd in sys.argv[2].split(",") if fd]
for place, fd in enumerate(fds, 3):
    os.dup2(fd, place)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[1], LISTEN_FDNAMES="one.socket:two.socket")
os.execv(sys.argv[3], sys.argv[3:])
"#;
    let mut command = Command::new("python3");
    command.args(["-c", program, &count.to_string(), &fds.join(",")]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Lets children inherit it.
fn inheritable(socket: &impl std::os::fd::AsFd) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("an open descriptor");
}

#[test]
fn sockets_that_are_handed_over_are_served_and_no_job_has_them() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("api.sock");
    let unix = UnixListener::bind(&path).expect("bound");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = tcp.local_addr().expect("an address").to_string();
    inheritable(&unix);
    inheritable(&tcp);
    let mut child = activated(&setup, 2, &[&unix, &tcp]).spawn().expect("python3 runs");
    drop((unix, tcp));
    let client = reqwest::blocking::Client::builder().unix_socket(path.clone()).timeout(PATIENCE).build();
    let client = client.expect("a client");
    // It waits in the socket until the daemon serves it.
    let body = json!({"job": {"script": "ls -l /proc/self/fd; ls -l /proc/$PPID/fd"}});
    let answer = client.post("http://localhost/v1/runners?wait=60s").json(&body).send().expect("an answer");
    let runner: Value = answer.json().expect("JSON");
    let logs = format!("http://localhost/v1/runners/{}/logs", common::id(&runner));
    let listed = client.get(logs).send().expect("an answer").text().expect("text");
    let own = listed.split("total 0").nth(1).expect("the job's own descriptors");
    assert!(!own.contains("socket:"), "{listed}");
    let file = std::fs::read(setup.state_dir().join("daemon.json")).expect("daemon.json");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    assert_eq!(file["listen"], json!([format!("unix:{}", path.display()), address]));
    assert!(!setup.state_dir().join("api.sock").exists(), "what `listen` says is not served besides");
    // The keeper has its one socket to the daemon.
    let daemon = i32::try_from(child.id()).expect("a pid");
    let keeper = common::children(daemon)[0];
    let fds = std::fs::read_dir(format!("/proc/{keeper}/fd")).expect("readable").flatten();
    let sockets = fds.filter(|fd| {
        std::fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    });
    assert_eq!(sockets.count(), 1);
    kill(nix::unistd::Pid::from_raw(daemon), Signal::SIGTERM).expect("it is there");
    let status = child.wait().expect("it ends");
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    until("the socket is left to who made it", || path.exists());
}

#[test]
fn a_socket_that_can_not_be_served_is_refused_by_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let unix = UnixListener::bind(dir.path().join("api.sock")).expect("bound");
    let everywhere = std::net::TcpListener::bind("0.0.0.0:0").expect("bound");
    inheritable(&unix);
    inheritable(&everywhere);
    let setup = Setup::new();
    let output = activated(&setup, 2, &[&unix, &everywhere]).output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("two.socket") && said.contains("not on loopback"), "{said}");
    let output = activated(&setup, 40, &[]).output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(71) && said.contains("LISTEN_FDS is not open"), "{said}");
}

/// A store whose writer hangs as long as the test says.
struct Hanging(Arc<Mutex<()>>);

fn lock(gate: &Mutex<()>) -> MutexGuard<'_, ()> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EventLog for Hanging {
    fn append(&mut self, _: &Batch) -> Result<Vec<Duplicate>, AppendError> {
        drop(lock(&self.0));
        Ok(Vec::new())
    }
}

/// Runners that do nothing.
struct NoRunners;

impl Runners for NoRunners {
    fn prepare(&mut self, _: Arc<Record>, _: AttemptKey, _: Arc<SharedContext>) {}

    fn go(&mut self, _: AttemptKey) {}

    fn cancel(&mut self, _: AttemptKey) {}

    fn force(&mut self, _: AttemptKey) {}

    fn abort(&mut self, _: AttemptKey) {}

    fn settled(&mut self, _: AttemptKey) {}

    fn close(&mut self, _: Arc<Record>, _: AttemptKey) {}

    fn get_loop(&self, _: AttemptKey) -> Option<LoopFacts> {
        None
    }
}

/// Takes a lock on the loop that it is polled on, each time it is told to.
async fn stall(gate: Arc<Mutex<()>>, mut told: tokio::sync::mpsc::Receiver<()>) {
    while told.recv().await.is_some() {
        drop(lock(&gate));
    }
}

/// A supervisor over a store that hangs while `store` is locked, and itself while `core` is, once it was stalled.
struct Watched {
    store: Arc<Mutex<()>>,
    core: Arc<Mutex<()>>,
    stall: tokio::sync::mpsc::Sender<()>,
    manager: Manager,
    urgent: tokio::sync::mpsc::Sender<Urgent>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn watched() -> Watched {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    let watchdog = Some(Duration::from_millis(100));
    let notifier = Notifier::to(&path.display().to_string(), watchdog).expect("a notifier");
    let (store, core) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(())));
    let (urgent, urgent_receiver) = tokio::sync::mpsc::channel(1);
    let (stall_sender, stalls) = tokio::sync::mpsc::channel(1);
    let (ready, is_ready) = mpsc::channel();
    let (log, gate) = (Hanging(Arc::clone(&store)), Arc::clone(&core));
    let supervising = std::thread::spawn(move || {
        let second = Duration::from_secs(1);
        let limits = Limits {
            max_running: 1,
            max_in_process: 1,
            max_queued: 1,
            cancel_grace: second,
            shutdown: second,
        };
        // Nobody reports: there are no Runners.
        let (_reports, reports) = tokio::sync::mpsc::channel(REPORTS);
        let parts = Parts {
            core: Core::new(limits, "boot".into(), 1),
            runners: NoRunners,
            reports,
            urgent: urgent_receiver,
            log: Box::new(log),
            records: Nothing,
            last_seq: 0,
            metrics: Arc::default(),
        };
        runtime().block_on(async move {
            let (mut actor, supervisor) =
                Actor::new(parts, Arc::new(Nothing), "/nowhere".into()).expect("an actor");
            ready.send(supervisor).expect("the test waits");
            tokio::select! {
                _ = actor.run() => {}
                () = stall(gate, stalls) => {}
            }
        });
    });
    let supervisor = is_ready.recv().expect("a supervisor");
    let telling = std::thread::spawn(move || {
        runtime().block_on(async move {
            let mut tasks = notifier.follow(&supervisor);
            while tasks.join_next().await.is_some() {}
        });
    });
    let threads = vec![supervising, telling];
    Watched { store, core, stall: stall_sender, manager, urgent, threads, _dir: dir }
}

impl Watched {
    fn ends(self) {
        self.urgent.blocking_send(Urgent::Signal("SIGTERM")).expect("it lives");
        self.manager.told("STATUS=Stopped");
        for thread in self.threads {
            thread.join().expect("it ends");
        }
    }

    /// Nothing more is told than what was on its way.
    fn starves(&self) {
        let silence = Duration::from_millis(500);
        self.manager.0.set_read_timeout(Some(silence)).expect("a limit");
        // What was on its way fits into a socket's queue.
        let fed = (0..100).all(|_| self.manager.0.recv(&mut [0; 4096]).is_ok());
        assert!(!fed, "the watchdog is still fed");
        self.manager.0.set_read_timeout(Some(PATIENCE)).expect("a limit");
    }
}

#[test]
fn a_store_that_hangs_starves_the_watchdog() {
    let watched = watched();
    watched.manager.told("WATCHDOG=1");
    let store = Arc::clone(&watched.store);
    let held = lock(&store);
    watched.starves();
    drop(held);
    watched.manager.told("WATCHDOG=1");
    watched.ends();
}

#[test]
fn a_supervisor_that_hangs_starves_the_watchdog() {
    let watched = watched();
    watched.manager.told("WATCHDOG=1");
    let core = Arc::clone(&watched.core);
    let held = lock(&core);
    watched.stall.blocking_send(()).expect("it lives");
    watched.starves();
    drop(held);
    watched.manager.told("WATCHDOG=1");
    watched.ends();
}

//! The control plane over real sockets, with the real supervisor and the real store below it. Only the jobs are not
//! real: each does what its program's name says, when the test says so.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc as std_mpsc},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use runward::{
    http::{self, Api, Config, Containment, Info, Listener, Reload, ReloadRequest, Reloaded, access::Access},
    job::{AttemptKey, Drain, Exit, Job, Record, RunnerId, SharedContext, State},
    secrets::Vault,
    store::{self, Lookup, Readers},
    supervisor::{
        Actor, Archive, Parts, REPORTS, Stage, Supervisor, Urgent, attempt_dir,
        core::{self, Core},
        ports::{End, LoopFacts, News, Report, Runners},
    },
};
use tokio::{runtime, sync::mpsc, sync::watch};

use crate::client::{Client, Request, Response};

/// Jobs that never execute; what they are told is told back.
#[derive(Clone)]
pub(crate) struct Jobs {
    reports: mpsc::Sender<Report>,
    records: Arc<Mutex<HashMap<AttemptKey, Arc<Record>>>>,
    logs: PathBuf,
}

impl Jobs {
    /// The job ends by itself.
    pub(crate) fn exit(&self, runner: RunnerId, code: i32) {
        let exit = Some(Exit::Code(code));
        self.report(runner, News::Ended(End { exit, closed: Some(Drain::default()), ..End::default() }));
    }

    /// The job is lost: nobody knows how it ended.
    pub(crate) fn lose(&self, runner: RunnerId) {
        self.report(
            runner,
            News::Ended(End { lost: true, closed: Some(Drain::default()), ..End::default() }),
        );
    }

    /// The job ends, and its executor does not drain yet.
    pub(crate) fn end_main_task(&self, runner: RunnerId) {
        self.report(runner, News::Ended(End { exit: Some(Exit::Code(0)), ..End::default() }));
    }

    fn report(&self, runner: RunnerId, news: News) {
        let records = self.records.lock().expect("unpoisoned").clone();
        for (key, _) in records.iter().filter(|(_, record)| record.id == runner) {
            self.tell(*key, news.clone());
        }
    }

    fn end(&self, key: AttemptKey, exit: Exit) {
        self.tell(
            key,
            News::Ended(End { exit: Some(exit), closed: Some(Drain::default()), ..End::default() }),
        );
    }

    fn tell(&self, key: AttemptKey, news: News) {
        let runner = self.records.lock().expect("unpoisoned").get(&key).map(|record| record.id);
        if let Some(runner) = runner {
            self.reports.try_send(Report { runner, key, news }).expect("room for a report");
        }
    }

    fn program(&self, key: AttemptKey) -> String {
        // What was aborted is told to go all the same where the store refused it, and does nothing.
        let record = self.records.lock().expect("unpoisoned").get(&key).cloned();
        match record.as_ref().map(|record| record.job()) {
            Some(Job::Command(command)) => command.argv[0].clone(),
            Some(Job::Script(script)) => script.source.clone(),
            Some(Job::Handler(handler)) => handler.name.clone(),
            Some(Job::Http(http)) => http.url.clone(),
            Some(Job::Python(_)) | None => String::new(),
        }
    }
}

impl Runners for Jobs {
    fn prepare(&mut self, record: Arc<Record>, key: AttemptKey, _: Arc<SharedContext>) {
        let (run, attempt) = record.position().expect("an attempt");
        fs::create_dir_all(attempt_dir(&self.logs, record.id, run, attempt)).expect("made");
        self.records.lock().expect("unpoisoned").insert(key, record);
    }

    fn go(&mut self, key: AttemptKey) {
        self.tell(key, News::Running { pid: Some(4711), start_time: Some(1) });
        match self.program(key).as_str() {
            "true" => self.end(key, Exit::Code(0)),
            "false" => self.end(key, Exit::Code(1)),
            _ => {}
        }
    }

    fn cancel(&mut self, key: AttemptKey) {
        // "stubborn" waits for force.
        if self.program(key) != "stubborn" {
            self.end(key, Exit::Signal(15));
        }
    }

    fn force(&mut self, key: AttemptKey) {
        self.end(key, Exit::Signal(9));
    }

    fn abort(&mut self, key: AttemptKey) {
        self.records.lock().expect("unpoisoned").remove(&key);
    }

    fn settled(&mut self, key: AttemptKey) {
        self.records.lock().expect("unpoisoned").remove(&key);
    }

    fn close(&mut self, record: Arc<Record>, key: AttemptKey) {
        // One that has just ended tells so itself.
        if !self.records.lock().expect("unpoisoned").contains_key(&key) {
            let report = Report { runner: record.id, key, news: News::Closed(Drain::default()) };
            self.reports.try_send(report).expect("room for a report");
        }
    }

    fn get_loop(&self, _: AttemptKey) -> Option<LoopFacts> {
        Some(LoopFacts::default())
    }
}

/// A running control plane. Dropping it stops everything.
pub(crate) struct Rig {
    pub supervisor: Supervisor,
    pub jobs: Jobs,
    pub tcp: SocketAddr,
    pub socket: PathBuf,
    pub token: String,
    urgent: mpsc::Sender<Urgent>,
    stop: watch::Sender<bool>,
    core: Option<thread::JoinHandle<()>>,
    server: Option<thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// `limits` may change what the operator decides.
    pub(crate) fn with(limits: impl FnOnce(&mut core::Limits)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        http::token::load_or_create(dir.path()).expect("a token");
        let token = fs::read_to_string(dir.path().join("token")).expect("readable").trim().to_owned();
        let (reports, received) = mpsc::channel(REPORTS);
        let jobs = Jobs { reports, records: Arc::default(), logs: dir.path().join("logs") };
        let (urgent, signals) = mpsc::channel(4);
        let (sender, ready) = std_mpsc::channel();
        let mut decided = core::Limits {
            max_running: 64,
            max_in_process: 64,
            max_queued: 10_000,
            cancel_grace: Duration::from_secs(3600),
            shutdown: Duration::from_secs(3600),
        };
        limits(&mut decided);
        let core = {
            let (root, jobs) = (dir.path().to_owned(), jobs.clone());
            thread::spawn(move || supervise(&root, decided, jobs, received, signals, &sender))
        };
        let supervisor = ready.recv().expect("the supervisor started");
        let tcp = Listener::bind_tcp("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let address = tcp.address().parse().expect("an address");
        let socket = dir.path().join("api.sock");
        let unix = Listener::bind_unix(&socket).expect("bound");
        let config = Config { hosts: vec!["build.example".into()], limits: decided, ..Config::default() };
        let api = Api {
            supervisor: supervisor.clone(),
            access: Access {
                token: http::token::load_or_create(dir.path()).expect("the token"),
                uid: nix::unistd::geteuid().as_raw(),
            },
            vault: Arc::new(Vault::open(dir.path(), None).expect("a key")),
            config: watch::channel(Arc::new(config)).1,
            reload: reloads_nothing(),
            metrics: Arc::default(),
            connections: 512,
            info: info(),
        };
        let (stop, mut stopping) = watch::channel(false);
        let server = thread::spawn(move || {
            let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(http::serve(vec![tcp, unix], api, async move {
                drop(stopping.wait_for(|stop| *stop).await);
            }));
        });
        let (core, server) = (Some(core), Some(server));
        Self { supervisor, jobs, tcp: address, socket, token, urgent, stop, core, server, _dir: dir }
    }

    /// A client on the unix socket.
    pub(crate) fn unix(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// A client on TCP, without the token.
    pub(crate) fn tcp(&self) -> Client {
        Client::tcp(self.tcp)
    }

    /// A request that is answered, over the unix socket.
    pub(crate) fn ask(&self, request: Request) -> Response {
        self.unix().send(&request)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.ask(Request::new("GET", path))
    }

    /// Submits JSON.
    pub(crate) fn submit(&self, body: &str) -> Response {
        self.ask(Request::new("POST", "/v1/runners").header("content-type", "application/json").body(body))
    }

    /// Sends JSON.
    pub(crate) fn send(&self, method: &str, path: &str, body: &serde_json::Value) -> Response {
        let request = Request::new(method, path).header("content-type", "application/json");
        self.ask(request.body(body.to_string()))
    }

    /// A request without a body.
    pub(crate) fn bare(&self, method: &str, path: &str) -> Response {
        self.ask(Request::new(method, path))
    }

    /// Submits a job that is accepted.
    pub(crate) fn accepted(&self, body: &serde_json::Value) -> RunnerId {
        let answer = self.send("POST", "/v1/runners", body);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["id"].as_str().expect("an id").parse().expect("an id")
    }

    /// Submits a job by its program's name, and waits until it executes.
    pub(crate) fn running(&self, program: &str) -> RunnerId {
        let answer = self.submit(&format!(r#"{{"job": {{"command": ["{program}"]}}}}"#));
        assert_eq!(answer.status, 201, "{}", answer.text());
        let id = answer.json()["id"].as_str().expect("an id").parse().expect("an id");
        self.until(id, |record| matches!(record.state, State::Running | State::Closed));
        id
    }

    /// Waits until a committed record is so.
    pub(crate) fn until(&self, id: RunnerId, so: impl Fn(&Record) -> bool) -> Arc<Record> {
        block_on(async {
            let mut changes = self.supervisor.subscribe(id);
            let known = self.supervisor.archive().record(id).await.expect("readable");
            if let Some(record) = known.filter(&so) {
                return Arc::new(record);
            }
            loop {
                let record = changes.changed().await;
                if so(&record) {
                    return record;
                }
            }
        })
    }

    /// The job writes this and ends, and the control plane stops in the moment in which that is committed.
    pub(crate) fn end_and_stop(self, id: RunnerId, words: &[u8]) {
        block_on(async {
            let mut changes = self.supervisor.subscribe(id);
            self.write_output(id, &[(1, words)]);
            self.jobs.exit(id, 0);
            while changes.changed().await.state != State::Closed {}
        });
    }

    /// Waits until the supervisor is there.
    pub(crate) fn until_stage(&self, so: impl Fn(&Stage) -> bool) {
        block_on(async {
            let mut status = self.supervisor.status();
            status.wait_for(|status| so(&status.stage)).await.expect("it lives");
        });
    }

    /// What a signal does.
    pub(crate) fn signal(&self) {
        self.urgent.blocking_send(Urgent::Signal("SIGTERM")).expect("it lives");
    }

    /// Writes output of the first attempt, as a shim does.
    pub(crate) fn write_output(&self, id: RunnerId, frames: &[(u8, &[u8])]) {
        self.write_output_of(id, 1, frames);
    }

    pub(crate) fn write_output_of(&self, id: RunnerId, attempt: u32, frames: &[(u8, &[u8])]) {
        self.write_output_of_run(id, (1, attempt), frames);
    }

    /// The same of any run and attempt.
    pub(crate) fn write_output_of_run(
        &self,
        id: RunnerId,
        (run, attempt): (u32, u32),
        frames: &[(u8, &[u8])],
    ) {
        self.write_to(&self.supervisor.log_dir(id, run, attempt), 0, frames);
    }

    /// Writes output of the first attempt to the file that begins at this place of its log.
    pub(crate) fn write_segment(&self, id: RunnerId, start: u64, frames: &[(u8, &[u8])]) {
        self.write_to(&self.supervisor.log_dir(id, 1, 1), start, frames);
    }

    fn write_to(&self, dir: &Path, start: u64, frames: &[(u8, &[u8])]) {
        let path = dir.join(format!("output.{start:020}"));
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("opened");
        for (stream, bytes) in frames {
            let mut frame = Vec::with_capacity(16 + bytes.len());
            frame.extend_from_slice(&u32::try_from(bytes.len()).expect("short").to_le_bytes());
            frame.extend_from_slice(&[*stream, 0, 0, 0]);
            frame.extend_from_slice(&1_700_000_000_000_000_u64.to_le_bytes());
            frame.extend_from_slice(bytes);
            file.write_all(&frame).expect("written");
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Held open answers, then the server, then the supervisor: by force, jobs may be stubborn.
        self.stop.send_replace(true);
        drop(self.server.take().map(thread::JoinHandle::join));
        drop(self.urgent.blocking_send(Urgent::Fatal(runward::supervisor::Fatal::KeeperDied)));
        drop(self.core.take().map(thread::JoinHandle::join));
    }
}

fn supervise(
    root: &Path,
    limits: core::Limits,
    jobs: Jobs,
    reports: mpsc::Receiver<Report>,
    urgent: mpsc::Receiver<Urgent>,
    ready: &std_mpsc::Sender<Supervisor>,
) {
    let database = root.join("runward.db");
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let log = Box::new(store::open(&database, false).expect("a store"));
        let records = Lookup::open(&database).expect("the store");
        let archive: Arc<dyn Archive> = Arc::new(Readers::start(&database).expect("readers"));
        let core = Core::new(limits, "boot".into(), 1);
        let parts = Parts {
            core,
            runners: jobs,
            reports,
            urgent,
            log,
            records,
            last_seq: 0,
            metrics: Arc::default(),
        };
        let (mut actor, supervisor) = Actor::new(parts, archive, root.join("logs")).expect("an actor");
        ready.send(supervisor).expect("somebody waits");
        actor.run().await;
    });
}

/// Settings that are always the same.
fn reloads_nothing() -> Reload {
    let (reload, mut asked) = mpsc::channel::<ReloadRequest>(4);
    thread::spawn(move || {
        while let Some(request) = asked.blocking_recv() {
            if let Some(answer) = request.answer {
                drop(answer.send(Ok(Reloaded::default())));
            }
        }
    });
    reload
}

fn info() -> Info {
    Info {
        version: "1.2.3".into(),
        pid: std::process::id(),
        boot_id: "boot".into(),
        started_at: Timestamp::now(),
        started: Instant::now(),
        containment: Containment { tier: "none".into(), detail: "a test".into() },
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

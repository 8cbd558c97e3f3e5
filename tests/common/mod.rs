//! A real daemon for a test: its own state directory, ended with all it started when the test is over.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Far more than anything here takes on a busy machine; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Builds a daemon.
pub struct Setup {
    dir: Arc<tempfile::TempDir>,
    env: Vec<(String, String)>,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Setup {
    pub fn new() -> Self {
        Self::of(env!("CARGO_BIN_EXE_runward").into(), "serve")
    }

    /// A daemon that another program starts.
    pub fn through(program: &str, arguments: &[&str]) -> Self {
        let mut setup = Self::of(program.into(), "");
        setup.arguments = arguments.iter().map(ToString::to_string).collect();
        setup.arguments.extend([env!("CARGO_BIN_EXE_runward").into(), "serve".into()]);
        setup
    }

    /// A daemon that is another program's.
    pub fn of(program: PathBuf, argument: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self { dir, env: Vec::new(), program, arguments: vec![argument.into()] }
    }

    /// Sets a setting: `("JOBS__MAX_RUNNING", "50")`.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((format!("RUNWARD__{key}"), value.to_string()));
        self
    }

    /// Gives it another argument.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What would start it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(["--state-dir", &self.state_dir().display().to_string()])
            .args(["--listen", "unix:api.sock", "--listen", "127.0.0.1:0"])
            .env("RUNWARD__TELEMETRY__FORMAT", "json")
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    pub fn start(self) -> Daemon {
        Daemon::start(Arc::new(self))
    }
}

/// The daemon's log so far, and whether it has ended.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Log {
    /// The first line that fits, when it comes; `None` if the log ends before.
    fn wait_for(&self, fits: impl Fn(&str) -> bool) -> Option<String> {
        let mut guard = self.lines.lock().expect("the log");
        let start = Instant::now();
        loop {
            if let Some(line) = guard.0.iter().find(|line| fits(line)) {
                return Some(line.clone());
            }
            if guard.1 {
                return None;
            }
            let left = PATIENCE.checked_sub(start.elapsed()).expect("the line comes in time");
            guard = self.grown.wait_timeout(guard, left).expect("the log").0;
        }
    }
}

/// A running daemon.
pub struct Daemon {
    setup: Arc<Setup>,
    child: Child,
    log: Arc<Log>,
    reader: Option<thread::JoinHandle<()>>,
    http: reqwest::blocking::Client,
    /// Another one runs over the same state now.
    succeeded: bool,
}

impl Daemon {
    fn start(setup: Arc<Setup>) -> Self {
        let mut child = setup.command().spawn().expect("the daemon starts");
        let log = Arc::new(Log::default());
        let reader = read_log(&mut child, Arc::clone(&log));
        let http = reqwest::blocking::Client::builder()
            .unix_socket(setup.state_dir().join("api.sock"))
            .timeout(PATIENCE)
            .build()
            .expect("a client");
        let daemon = Self { setup, child, log, reader: Some(reader), http, succeeded: false };
        if daemon.log.wait_for(|line| line.contains("\"ready on ")).is_none() {
            panic!("the daemon did not get ready:\n{}", daemon.log_text());
        }
        daemon
    }

    /// Starts a new one over the same state, after this one has ended.
    pub fn restart(mut self) -> Self {
        self.wait();
        self.succeeded = true;
        Self::start(Arc::clone(&self.setup))
    }

    pub fn state_dir(&self) -> PathBuf {
        self.setup.state_dir()
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// The keeper: the daemon's only child.
    pub fn keeper(&self) -> i32 {
        children(self.pid())[0]
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the daemon is there");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("the daemon ends");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("its log ends");
        }
        status
    }

    /// Stops it and gives its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait().code()
    }

    /// Kills it as the out-of-memory killer would.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.wait().signal(), Some(9));
    }

    /// The same where a process that holds its log open is left, which the next one finds.
    pub fn crash_alone(&mut self) {
        drop(self.reader.take());
        self.crash();
    }

    /// The first line of its log that holds this text.
    pub fn logged(&self, text: &str) -> String {
        self.log
            .wait_for(|line| line.contains(text))
            .unwrap_or_else(|| panic!("{text:?} was never logged:\n{}", self.log_text()))
    }

    pub fn log_text(&self) -> String {
        self.log.lines.lock().expect("the log").0.join("\n")
    }

    pub fn token(&self) -> String {
        fs::read_to_string(self.state_dir().join("token")).expect("the token").trim().to_owned()
    }

    /// The TCP address it bound.
    pub fn address(&self) -> String {
        let file: Value =
            serde_json::from_slice(&fs::read(self.state_dir().join("daemon.json")).expect("daemon.json"))
                .expect("JSON");
        let addresses = file["listen"].as_array().expect("addresses");
        let tcp = addresses.iter().filter_map(Value::as_str).find(|address| !address.starts_with("unix:"));
        tcp.expect("a TCP address").to_owned()
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::blocking::RequestBuilder {
        self.http.request(method, format!("http://localhost{path}"))
    }

    pub fn get(&self, path: &str) -> Value {
        let answer = self.request(reqwest::Method::GET, path).send().expect("an answer");
        let status = answer.status();
        let value: Value = answer.json().expect("JSON");
        assert!(status.is_success(), "GET {path}: {status} {value}");
        value
    }

    pub fn text(&self, path: &str) -> String {
        self.request(reqwest::Method::GET, path).send().expect("an answer").text().expect("text")
    }

    pub fn status(&self, path: &str) -> u16 {
        self.request(reqwest::Method::GET, path).send().expect("an answer").status().as_u16()
    }

    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.request(reqwest::Method::POST, path).json(&body).send().expect("an answer");
        (answer.status().as_u16(), answer.json().unwrap_or(Value::Null))
    }

    /// Submits a job and gives its id.
    pub fn submit(&self, body: Value) -> String {
        let (status, runner) = self.post("/v1/runners", body);
        assert_eq!(status, 201, "{runner}");
        id(&runner)
    }

    /// Submits a job and gives its record when it is closed.
    pub fn run(&self, body: Value) -> Value {
        let (status, runner) = self.post("/v1/runners?wait=60s", body);
        assert_eq!(status, 200, "{runner}");
        runner
    }

    pub fn cancel(&self, id: &str) -> (u16, Value) {
        let path = format!("/v1/runners/{id}/cancel");
        let answer = self.request(reqwest::Method::POST, &path).send().expect("an answer");
        (answer.status().as_u16(), answer.json().expect("JSON"))
    }

    pub fn runner(&self, id: &str) -> Value {
        self.get(&format!("/v1/runners/{id}"))
    }

    /// The record when it has come so far.
    pub fn runner_when(&self, id: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        until(&format!("runner {id}: {what}"), || {
            last = self.runner(id);
            condition(&last)
        });
        last
    }

    pub fn closed(&self, id: &str) -> Value {
        self.runner_when(id, "closed", |runner| runner["state"] == "closed")
    }

    pub fn running(&self, id: &str) -> Value {
        self.runner_when(id, "running", |runner| runner["state"] == "running")
    }

    /// What a job wrote, when it has written this.
    pub fn output_with(&self, id: &str, text: &str) -> String {
        let mut output = String::new();
        until(&format!("runner {id} writes {text:?}"), || {
            output = self.text(&format!("/v1/runners/{id}/logs"));
            output.contains(text)
        });
        output
    }

    /// `curl` on the unix socket.
    pub fn curl(&self, arguments: &[&str]) -> Output {
        let socket = self.state_dir().join("api.sock");
        Command::new("curl")
            .args(["-sS", "--unix-socket", &socket.display().to_string()])
            .args(arguments)
            .output()
            .expect("curl runs; if it is missing: apt-get install curl")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // By force: a test that failed must leave nothing behind either.
            for signal in [Signal::SIGTERM, Signal::SIGINT] {
                kill(Pid::from_raw(self.pid()), signal).ok();
            }
            if let Ok(status) = self.child.wait() {
                assert!(thread::panicking() || status.code().is_some(), "the daemon ended badly: {status}");
            }
        }
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        // The keeper and shims hold this as long as they live: then the directory can go.
        if !self.succeeded
            && let Ok(lock) = fs::File::open(self.state_dir().join("children.lock"))
        {
            lock.lock().expect("the last process of the daemon ends");
        }
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log_text());
        }
    }
}

fn read_log(child: &mut Child, log: Arc<Log>) -> thread::JoinHandle<()> {
    let stderr = child.stderr.take().expect("piped");
    thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            log.lines.lock().expect("the log").0.push(String::from_utf8_lossy(&line).into_owned());
            log.grown.notify_all();
        }
        log.lines.lock().expect("the log").1 = true;
        log.grown.notify_all();
    })
}

/// Waits until a condition holds that no event tells of.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(3));
    }
}

pub fn id(runner: &Value) -> String {
    runner["id"].as_str().unwrap_or_else(|| panic!("no id: {runner}")).to_owned()
}

/// Child processes of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// All living processes of a job, however they hide: each carries the Runner's id in its environment.
pub fn processes_of(id: &str) -> Vec<i32> {
    let mark = format!("RUNWARD_RUNNER={id}");
    processes_with(|environment| environment.split('\0').any(|entry| entry == mark))
}

pub fn processes_with(fits: impl Fn(&str) -> bool) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let mut environment = Vec::new();
        let read = fs::File::open(entry.path().join("environ"))
            .and_then(|mut file| file.read_to_end(&mut environment));
        if read.is_ok() && fits(&String::from_utf8_lossy(&environment)) {
            found.push(pid);
        }
    }
    found
}

pub fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/environ")).exists()
        && fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Runs things at once and gives their results.
pub fn in_parallel<T: Send + 'static>(
    count: usize,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let work = Arc::new(work);
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..count)
        .map(|number| {
            let (work, sender) = (Arc::clone(&work), sender.clone());
            thread::spawn(move || sender.send(work(number)).expect("the receiver waits"))
        })
        .collect();
    drop(sender);
    let results = receiver.iter().collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    results
}

/// Fails with a sentence where there is no Python that jobs can use.
pub fn python_is_there() {
    let output =
        Command::new("python3").args(["-c", "import sys; print(sys.version_info >= (3, 11))"]).output();
    let fine = output.is_ok_and(|output| output.stdout == b"True\n");
    assert!(
        fine,
        "python3 is missing or older than 3.11: apt-get install python3, or put a newer one first in PATH"
    );
}

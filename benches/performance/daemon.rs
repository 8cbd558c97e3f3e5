//! A daemon of the program that users get: its own state directory on the disk, ended when it is dropped.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    Bench, Result,
    client::{Connection, request},
    machine,
};

/// Longer than any start or stop takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether it is ready: little beside a start.
const LOOK: Duration = Duration::from_micros(200);

/// Builds the program as its users do, and gives its path. The one that Cargo makes beside a benchmark has crates with
/// the features that the tests add.
pub(crate) fn build() -> Result<PathBuf> {
    // What Cargo tells of the benchmark's package would make it build anew what asks for it.
    let built = cargo_without(&["CARGO_PKG_", "CARGO_MANIFEST_"])
        .args(["build", "--release", "--locked", "--bin", "runward"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    if !built.status.success() {
        return Err(format!("cargo build: {}", built.status).into());
    }
    let mut messages = serde_json::Deserializer::from_slice(&built.stdout).into_iter::<serde_json::Value>();
    let program = messages.find_map(|message| Some(PathBuf::from(message.ok()?["executable"].as_str()?)));
    program.ok_or_else(|| "cargo build names no program".into())
}

/// Cargo, without the variables whose names begin so.
pub(crate) fn cargo_without(prefixes: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars() {
        if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) struct Daemon {
    child: Child,
    program: PathBuf,
    dir: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Daemon {
    /// Starts one over a new state directory. Settings: `("JOBS__MAX_RUNNING", 50)`.
    pub(crate) fn start(bench: &Bench, settings: &[(&'static str, usize)]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("d").tempdir_in(&bench.base)?;
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.to_string())).collect();
        let program = bench.program.clone();
        let child = spawn(&program, dir.path(), &settings)?;
        let mut daemon = Self { child, program, dir, settings };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Stops it and starts another one over the same state; how long that took to be ready.
    pub(crate) fn restart(&mut self) -> Result<Duration> {
        self.stop()?;
        let began = Instant::now();
        self.child = spawn(&self.program, self.dir.path(), &self.settings)?;
        self.wait_until_ready()?;
        Ok(began.elapsed())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        let ask = request("GET", "/readyz", "");
        loop {
            if let Ok(mut connection) = Connection::open(&self.socket())
                && connection.ask(&ask).is_ok_and(|(status, _)| status == 200)
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended with {status}; see {}", self.log().display()).into());
            }
            if began.elapsed() > PATIENCE {
                return Err("the daemon does not get ready".into());
            }
            thread::sleep(LOOK);
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s/api.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The keeper: the daemon's only child.
    pub(crate) fn keeper(&self) -> Result<u32> {
        machine::children(self.pid())?.first().copied().ok_or_else(|| "the daemon has no keeper".into())
    }

    /// One for each job that runs.
    pub(crate) fn shims(&self) -> Result<Vec<u32>> {
        machine::children(self.keeper()?)
    }

    pub(crate) fn connection(&self) -> Result<Connection> {
        Connection::open(&self.socket())
    }

    /// Stops it, and how long that took.
    pub(crate) fn stop(&mut self) -> Result<Duration> {
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.pid())?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(began.elapsed())
        } else {
            Err(format!("the daemon ended with {status}").into())
        }
    }

    /// The number of a metric without labels.
    pub(crate) fn metric(connection: &mut Connection, name: &str) -> Result<f64> {
        let text = connection.good("GET", "/metrics", "")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.ok_or_else(|| format!("no metric {name}").into())
    }

    /// Waits until there is no Runner that fits this query.
    pub(crate) fn wait_for_none(connection: &mut Connection, query: &str) -> Result<()> {
        let began = Instant::now();
        while !connection.good("GET", &format!("/v1/runners?limit=1&{query}"), "")?.contains(r#""items":[]"#)
        {
            if began.elapsed() > PATIENCE {
                return Err(format!("some are still {query}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets what is submitted to this queue wait.
    pub(crate) fn pause(connection: &mut Connection, queue: &str) -> Result<()> {
        connection.good("PUT", &format!("/v1/queues/{queue}"), r#"{"paused": true}"#).map(drop)
    }
}

fn spawn(program: &Path, dir: &Path, settings: &[(&'static str, String)]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let child = Command::new(program)
        .args(["serve", "--listen", "unix:api.sock", "--state-dir"])
        .arg(dir.join("s"))
        .envs(settings.iter().map(|(key, value)| (format!("RUNWARD__{key}"), value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // What runs is of no use to anybody: the second signal kills it.
            let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
            for _ in 0..2 {
                if kill(pid, Signal::SIGTERM).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
            drop(self.child.wait());
        }
    }
}

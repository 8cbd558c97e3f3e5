//! A daemon for one job: started for it in a temporary directory, stopped after it, both gone then.

use std::{
    fs::{self, DirBuilder},
    io::{BufRead, BufReader},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    client::Client,
    connect::{Place, Target},
    error::{Code, Error},
    record::text,
    run::Interrupts,
};

/// What such a daemon is started with, besides its directory and the process whose end is its own.
pub const HIDDEN_PARENT: &str = "parent";

/// The daemon and its directory.
pub(super) struct Local {
    dir: PathBuf,
    daemon: Child,
}

impl Local {
    /// Starts it, and waits until it is ready.
    pub(super) async fn start() -> Result<Self, Error> {
        let failed = |what: String| {
            Error::new(Code::NoDaemon, format!("no daemon could be started for the job: {what}"))
        };
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let dir = std::env::temp_dir().join(format!("runward-{}", uuid::Uuid::now_v7()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| failed(format!("{}: {error}", dir.display())))?;
        let mut command = Command::new(program);
        command
            .args(["serve", "--listen", "unix:api.sock", "--state-dir"])
            .arg(&dir)
            .args([format!("--{HIDDEN_PARENT}"), std::process::id().to_string()])
            // The file of settings is the machine's daemon's. It must be one that is there.
            .args(["--config", "/dev/null"])
            .envs([("RUNWARD__TELEMETRY__FORMAT", "json"), ("RUNWARD__TELEMETRY__FILTER", "info")])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Out of reach of the terminal's Ctrl-C: that is for the job, and comes from here.
            .process_group(0);
        let spawned = command.spawn().map_err(|error| failed(error.to_string()));
        let mut daemon = spawned.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        let ready = daemon.stderr.take().map(listen);
        let local = Self { dir, daemon };
        let Some(ready) = ready else { return Err(failed("its log can't be read".into())) };
        ready.await.unwrap_or_else(|_| Err("it ended".into())).map_err(failed)?;
        Ok(local)
    }

    pub(super) fn client(&self) -> Client {
        let place = Place::Unix(self.dir.join("api.sock"));
        Client::new(Target { place, token: None, silent: "the job's own daemon is gone".into() })
    }

    /// Stops it and waits for its end; a signal meanwhile forces.
    pub(super) async fn stop(&mut self, interrupts: &mut Interrupts) {
        let Ok(pid) = i32::try_from(self.daemon.id()).map(Pid::from_raw) else { return };
        // Our own child, not waited for yet: the pid is its.
        if kill(pid, Signal::SIGTERM).is_err() {
            return;
        }
        let mut stopping = Stopping::wait_for(pid);
        loop {
            tokio::select! {
                () = stopping.ended() => break,
                _ = interrupts.next() => if kill(pid, Signal::SIGTERM).is_err() { break },
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if matches!(self.daemon.try_wait(), Ok(None)) {
            // Given up: its keeper kills what is left of the job.
            drop(self.daemon.kill());
            drop(self.daemon.wait());
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Tells when a child has ended, without taking its status.
struct Stopping(oneshot::Receiver<bool>);

impl Stopping {
    fn wait_for(pid: Pid) -> Self {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let (tell, ended) = oneshot::channel();
        thread::spawn(move || {
            let waited = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            // Nobody may wait any more.
            tell.send(waited.is_ok()).unwrap_or_default();
        });
        Self(ended)
    }

    async fn ended(&mut self) {
        drop((&mut self.0).await);
    }
}

/// Reads the daemon's log on a thread: tells that it is ready, or why it is not.
fn listen(log: ChildStderr) -> oneshot::Receiver<Result<(), String>> {
    let (tell, ready) = oneshot::channel();
    thread::spawn(move || {
        let mut tell = Some(tell);
        let mut last = String::new();
        // To its end: a pipe that nobody reads would stop the daemon.
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let entry: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            if text(&entry, "/message").starts_with("ready on ")
                && let Some(tell) = tell.take()
            {
                drop(tell.send(Ok(())));
            }
            if tell.is_some() {
                last = if entry.is_null() { line } else { text(&entry, "/message").to_owned() };
            }
        }
        if let Some(tell) = tell {
            drop(tell.send(Err(last)));
        }
    });
    ready
}

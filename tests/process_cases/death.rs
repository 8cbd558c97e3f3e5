//! Deaths: of a shim, of the keeper, of the daemon, of all at once.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc::{ENOENT, SIGKILL};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runward::process::containment::{Tier, sweep_leftovers};
use runward::process::recovery::sweep_marked;
use runward::process::spool::{Found, Spooled};
use runward::process::{Ending, ShimEvent, Stage, StartFailure};

use crate::world::{
    World, children_of, endings, event, eventually, exit_of, find, marked, program, stat, take_lock,
};

/// A job that hides, and stays.
const HIDES: &str =
    "trap '' TERM HUP; (setsid sleep 700 &); setsid sh -c 'sleep 701 & sleep 702' & echo up; wait";
const HIDING: usize = 5;

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signal a process of ours");
}

/// A daemon of its own, in the same tier, to be killed.
struct Daemon {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    dir: tempfile::TempDir,
    keeper: i32,
    base: Option<PathBuf>,
    attempts: Vec<u128>,
}

impl Daemon {
    /// Returns when all jobs are launched.
    fn start(world: &World, jobs: &[&str]) -> Self {
        let dir = tempfile::tempdir_in(world.dir.path()).expect("a directory");
        let base = match &world.tier {
            Tier::Cgroup { base } => {
                let base = base.with_file_name(format!("runward-daemon-{}", std::process::id()));
                std::fs::create_dir_all(&base).expect("make a base");
                Some(base)
            }
            Tier::Subreaper => None,
        };
        let mut command = Command::new(program());
        command.args(["--daemon", world.tier.name()]).arg(base.clone().unwrap_or_default()).arg(dir.path());
        let mut process = command.args(jobs).stdout(Stdio::piped()).spawn().expect("spawn a daemon");
        let lines = BufReader::new(process.stdout.take().expect("its stdout")).lines();
        let mut daemon = Self { process, lines, dir, keeper: 0, base, attempts: Vec::new() };
        daemon.keeper = daemon.until("keeper ").parse().expect("a pid");
        for number in 0..jobs.len() {
            let attempt = daemon.until(&format!("ready {number} "));
            daemon.attempts.push(u128::from_str_radix(&attempt, 16).expect("an id"));
        }
        daemon
    }

    /// What follows `start` in the first line from here that begins with it.
    fn until(&mut self, start: &str) -> String {
        let line = self.lines.find_map(|line| line.expect("a line").strip_prefix(start).map(str::to_owned));
        line.unwrap_or_else(|| panic!("the daemon ended before it said {start:?}"))
    }

    /// What it has said from here to its end.
    fn rest(&mut self) -> Vec<String> {
        self.lines.by_ref().map_while(Result::ok).collect()
    }

    fn kill(&mut self) {
        self.process.kill().expect("kill the daemon");
        self.process.wait().expect("reap the daemon");
    }

    fn find(&self, number: usize) -> Found {
        find(self.dir.path(), self.attempts[number])
    }

    /// Waits, as a restarted daemon does, for everything of the earlier one to be gone.
    fn wait_for_lock(&self) {
        drop(take_lock(self.dir.path()));
        assert_eq!(marked(&self.attempts), Vec::<i32>::new(), "alive though the lock is free");
    }

    fn all_hide(&self, number: usize) {
        eventually("the tree is up", || marked(&[self.attempts[number]]).len() == HIDING);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Whatever a failed case has left.
        self.process.kill().ok();
        self.process.wait().ok();
        if let Some(base) = &self.base {
            eventually("the base is empty", || {
                sweep_leftovers(base).ok();
                std::fs::remove_dir(base).is_ok()
            });
        }
    }
}

pub(crate) async fn case_15_shim_killed(world: &World) {
    let job = world.script(HIDES);
    let (mut shim, pid) = world.start(&job).await;
    let other = world.start(&world.job(&["sleep", "600"])).await;
    eventually("the tree is up", || marked(&[job.0]).len() == HIDING);
    let (_, parent) = stat(pid).expect("the job is there");
    signal(parent, Signal::SIGKILL);
    assert_eq!(event(&mut shim).await, ShimEvent::Gone { status: Some(Ending::Signal(SIGKILL)) });
    assert_eq!(marked(&[job.0]), Vec::<i32>::new(), "alive when it was told gone");
    assert_eq!(find(world.dir.path(), job.0), Found::Unknown);
    // The others are left alone.
    let (mut other, pid) = other;
    assert!(stat(pid).is_some_and(|(state, _)| state != 'Z'));
    other.kill().await.expect("kill");
    exit_of(&mut other).await;
    other.ack().await.expect("ack");
}

pub(crate) async fn case_16_keeper_killed(world: &World) {
    let mut daemon = Daemon::start(world, &[HIDES, HIDES, "nogo:true"]);
    daemon.all_hide(0);
    daemon.all_hide(1);
    let from = Instant::now();
    signal(daemon.keeper, Signal::SIGKILL);
    assert_eq!(daemon.until("keeper-ended "), "Some(Signal(9))");
    eventually("all trees are dead", || marked(&daemon.attempts).is_empty());
    assert!(from.elapsed() < Duration::from_secs(1), "took {:?}", from.elapsed());
    assert_eq!(daemon.find(2), Found::NeverStarted);
    // The shims keep the endings for the next start, which knows what they mean.
    daemon.kill();
    assert!(daemon.rest().iter().all(|line| !line.contains("Exited")), "an ending was told");
    daemon.wait_for_lock();
    for number in 0..2 {
        let found = daemon.find(number);
        let Found::Ended(Spooled::Exited { report, lifeline: true }) = found else { panic!("{found:?}") };
        assert_eq!(report.ending, Ending::Signal(SIGKILL));
    }
}

pub(crate) async fn daemon_killed_while_running(world: &World) {
    let mut daemon = Daemon::start(world, &[HIDES, HIDES]);
    daemon.all_hide(0);
    daemon.all_hide(1);
    let from = Instant::now();
    daemon.kill();
    daemon.wait_for_lock();
    assert!(from.elapsed() < Duration::from_secs(1), "took {:?}", from.elapsed());
    for number in 0..2 {
        let found = daemon.find(number);
        let Found::Ended(Spooled::Exited { report, lifeline: true }) = found else { panic!("{found:?}") };
        assert_eq!(report.ending, Ending::Signal(SIGKILL));
        assert_eq!(report.output_bytes, 3);
    }
}

pub(crate) async fn daemon_killed_after_exit(world: &World) {
    let mut daemon = Daemon::start(world, &["echo said; exit 3"]);
    assert!(daemon.until("event 0 Exited").contains("Code(3)"));
    assert_eq!(daemon.find(0), Found::Unknown, "nothing is spooled while it is held");
    daemon.kill();
    daemon.wait_for_lock();
    let found = daemon.find(0);
    let Found::Ended(Spooled::Exited { report, lifeline: false }) = found else { panic!("{found:?}") };
    assert_eq!((report.ending, report.output_bytes), (Ending::Code(3), 5));
    // The file is plain JSON, as others read it.
    let text = std::fs::read_to_string(&endings(daemon.dir.path())[0]).expect("read");
    assert!(text.contains(r#""ending":{"code":3}"#) && text.contains(r#""lifeline":false"#), "{text}");
}

pub(crate) async fn daemon_killed_before_go(world: &World) {
    let mut daemon = Daemon::start(world, &["nogo:touch ran", "nogo:true"]);
    daemon.kill();
    daemon.wait_for_lock();
    for number in 0..2 {
        assert_eq!(daemon.find(number), Found::NeverStarted);
    }
}

pub(crate) async fn daemon_killed_after_failed_start(world: &World) {
    let mut daemon = Daemon::start(world, &["missing"]);
    daemon.until("event 0 StartFailed");
    daemon.kill();
    daemon.wait_for_lock();
    let found = daemon.find(0);
    assert_eq!(found, Found::Ended(Spooled::StartFailed(StartFailure::new(Stage::Exec, ENOENT))));
}

pub(crate) async fn dropping_the_shim_kills(world: &World) {
    let job = world.script(HIDES);
    let (shim, _pid) = world.start(&job).await;
    eventually("the tree is up", || marked(&[job.0]).len() == HIDING);
    drop(shim);
    eventually("the tree is dead", || marked(&[job.0]).is_empty());
    eventually("the ending is left", || matches!(find(world.dir.path(), job.0), Found::Ended(_)));
    eventually("the shim leaves", || children_of(world.keeper).is_empty());
    let found = find(world.dir.path(), job.0);
    assert!(matches!(found, Found::Ended(Spooled::Exited { lifeline: true, .. })), "{found:?}");
}

/// No shim is left to kill its tree: the next start finds it.
pub(crate) async fn all_killed_at_once(world: &World) {
    let mut daemon = Daemon::start(world, &[HIDES, HIDES]);
    daemon.all_hide(0);
    daemon.all_hide(1);
    let shims = children_of(daemon.keeper);
    assert_eq!(shims.len(), 2);
    // Stopped first, so that none of them acts on the death of another.
    shims.iter().chain([&daemon.keeper]).for_each(|pid| signal(*pid, Signal::SIGSTOP));
    shims.iter().chain([&daemon.keeper]).for_each(|pid| signal(*pid, Signal::SIGKILL));
    daemon.kill();
    let lock = take_lock(daemon.dir.path());
    let left = 2 * (HIDING - 1);
    eventually("the main processes died with their shims", || marked(&daemon.attempts).len() == left);
    match &daemon.base {
        Some(base) => assert_eq!(sweep_leftovers(base).expect("sweep"), 2),
        None => assert_eq!(sweep_marked(&daemon.attempts).expect("sweep"), left),
    }
    assert_eq!(marked(&daemon.attempts), Vec::<i32>::new());
    assert_eq!(daemon.find(0), Found::Unknown);
    drop(lock);
}

pub(crate) async fn case_10_strays(_world: &World) {
    let status = Command::new(program()).arg("--strays").status().expect("run the role");
    assert!(status.success());
}

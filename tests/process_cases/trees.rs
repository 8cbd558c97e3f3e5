//! Trees and signals.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::{SIGKILL, SIGTERM};
use runward::process::spool::Found;
use runward::process::{DRAIN_LIMIT, Ending, KILL_PENDING_AFTER, ShimEvent};

use crate::world::{
    World, children_of, endings, event, eventually, exit_of, fifo, find, finish, marked, program, stat, text,
};

pub(crate) async fn runs_and_reports(world: &World) {
    let job = world.script("echo out; echo err >&2; exit 3");
    let report = world.run(&job).await;
    assert_eq!(report.ending, Ending::Code(3));
    assert_eq!((report.output_bytes, report.dropped_bytes, report.killed_processes), (8, 0, 0));
    assert!(!report.output_incomplete && report.max_rss_kib > 0 && report.at > 1_700_000_000_000_000);
    assert_eq!(text(&job.1.dir), "out\nerr\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(&job.1.dir).expect("the directory").permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(endings(world.dir.path()), [] as [PathBuf; 0], "an acknowledged ending is not spooled");
}

pub(crate) async fn nothing_before_go(world: &World) {
    let touched = world.dir.path().join("touched-before-go");
    let job = world.job(&["touch", touched.to_str().expect("a path")]);
    let shim = world.launcher().launch(&job.1).await.expect("launch");
    let shims = children_of(world.keeper);
    assert_eq!(shims.len(), 1);
    assert_eq!(children_of(shims[0]), Vec::<i32>::new(), "no child before go");
    drop(shim);
    eventually("the shim leaves", || children_of(world.keeper).is_empty());
    assert_eq!(find(world.dir.path(), job.0), Found::NeverStarted);
    assert!(!touched.exists());
}

pub(crate) async fn kill_before_go(world: &World) {
    let job = world.job(&["true"]);
    let mut shim = world.launcher().launch(&job.1).await.expect("launch");
    shim.kill().await.expect("kill");
    assert_eq!(event(&mut shim).await, ShimEvent::Gone { status: Some(Ending::Code(0)) });
    assert_eq!(find(world.dir.path(), job.0), Found::NeverStarted);
}

pub(crate) async fn signal_before_go(world: &World) {
    let job = world.job(&["sleep", "600"]);
    let mut shim = world.launcher().launch(&job.1).await.expect("launch");
    shim.signal(SIGTERM).await.expect("signal");
    shim.go().await;
    assert!(matches!(event(&mut shim).await, ShimEvent::Started { .. }));
    assert!(matches!(event(&mut shim).await, ShimEvent::Signalled { signal: SIGTERM, .. }));
    assert_eq!(finish(&mut shim).await.ending, Ending::Signal(SIGTERM));
}

pub(crate) async fn held_until_ack(world: &World) {
    let job = world.job(&["true"]);
    let (mut shim, _pid) = world.start(&job).await;
    exit_of(&mut shim).await;
    let shims = children_of(world.keeper);
    // Orders that have crossed with the ending are harmless, and show that it goes on listening.
    shim.signal(SIGTERM).await.expect("signal");
    shim.kill().await.expect("kill");
    let waited = tokio::time::timeout(Duration::from_millis(50), shim.next()).await;
    assert!(waited.is_err(), "nothing comes before the ack: {waited:?}");
    assert_eq!(children_of(world.keeper), shims, "the shim is there");
    shim.ack().await.expect("ack");
    assert_eq!(event(&mut shim).await, ShimEvent::Gone { status: Some(Ending::Code(0)) });
}

pub(crate) async fn case_01_grandchild_holds_the_pipe(world: &World) {
    let job = world.script("sleep 300 & echo done");
    let report = world.run(&job).await;
    assert_eq!((report.ending, report.killed_processes), (Ending::Code(0), 1));
    assert!(!report.output_incomplete, "the tree is dead, so the pipe has ended");
    assert_eq!(text(&job.1.dir), "done\n");
}

pub(crate) async fn case_01_pipe_held_from_outside(world: &World) {
    let gate = fifo(world.dir.path(), "gate-01");
    let job = world.script(&format!("cat {}; echo last", gate.display()));
    let (mut shim, pid) = world.start(&job).await;
    // As a descriptor handed to another process would: this one is not of the tree.
    let held = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1")).expect("the job's stdout");
    fs::write(&gate, "first\n").expect("open the gate");
    let from = Instant::now();
    let report = finish(&mut shim).await;
    assert!(from.elapsed() >= DRAIN_LIMIT, "drained for {:?} only", from.elapsed());
    assert!(report.output_incomplete);
    assert_eq!(text(&job.1.dir), "first\nlast\n");
    drop(held);
}

const ESCAPEES: &str = "trap '' TERM HUP INT; (setsid sleep 601 &); (setsid sh -c '(setsid sleep 602 &)' &);
    setsid sh -c \"trap '' TERM; sleep 603 & wait\" & echo up; ";

pub(crate) async fn case_02_escape(world: &World) {
    for end in ["exit 0", "while :; do sleep 604; done"] {
        let job = world.script(&format!("{ESCAPEES} {end}"));
        let (mut shim, _pid) = world.start(&job).await;
        if end != "exit 0" {
            eventually("all of the tree is up", || marked(&[job.0]).len() >= 6);
            shim.kill().await.expect("kill");
        }
        let report = exit_of(&mut shim).await;
        assert_eq!(marked(&[job.0]), Vec::<i32>::new(), "alive when the ending was told");
        if end != "exit 0" {
            assert_eq!(report.ending, Ending::Signal(SIGKILL));
            assert!(report.killed_processes >= 4, "{report:?}");
        }
        shim.ack().await.expect("ack");
        event(&mut shim).await;
    }
}

pub(crate) async fn case_03_fork_exit_chain(world: &World) {
    for kill in [false, true] {
        let program = program();
        let program = program.to_str().expect("a path");
        // Out of the group, so that no signal to it helps; the main process stays when it is to be killed.
        let tail = if kill { "exec sleep 600" } else { "" };
        let job = world.script(&format!("setsid {program} --fork-chain & read ready < $GATE; {tail}"));
        let gate = fifo(world.dir.path(), &format!("gate-03-{kill}"));
        let (attempt, mut spec) = job;
        spec.env.push(("GATE".into(), gate.clone().into()));
        let (mut shim, _pid) = world.start(&(attempt, spec)).await;
        // The chain's first link opens the gate: it runs from then on.
        if kill {
            eventually("the chain runs", || !gate.exists());
            shim.kill().await.expect("kill");
        }
        exit_of(&mut shim).await;
        assert_eq!(marked(&[attempt]), Vec::<i32>::new(), "a link of the chain lives");
        shim.ack().await.expect("ack");
        event(&mut shim).await;
    }
}

pub(crate) async fn case_04_stopped_child(world: &World) {
    let job = world.script("trap 'exit 5' TERM; kill -STOP $$; while :; do sleep 0.01; done");
    let (mut shim, pid) = world.start(&job).await;
    eventually("it is stopped", || stat(pid).is_some_and(|(state, _)| state == 'T'));
    shim.signal(SIGTERM).await.expect("signal");
    assert!(matches!(event(&mut shim).await, ShimEvent::Signalled { signal: SIGTERM, .. }));
    assert_eq!(finish(&mut shim).await.ending, Ending::Code(5));
}

pub(crate) async fn case_05_term_ignored(world: &World) {
    let job = world.script("trap '' TERM; echo up; while :; do sleep 600; done");
    let (mut shim, pid) = world.start(&job).await;
    eventually("it ignores TERM", || job.1.dir.exists() && text(&job.1.dir) == "up\n");
    shim.signal(SIGTERM).await.expect("signal");
    assert!(matches!(event(&mut shim).await, ShimEvent::Signalled { signal: SIGTERM, .. }));
    assert!(stat(pid).is_some_and(|(state, _)| state != 'Z'), "it goes on");
    shim.kill().await.expect("kill");
    assert!(matches!(event(&mut shim).await, ShimEvent::Killing { .. }));
    assert_eq!(finish(&mut shim).await.ending, Ending::Signal(SIGKILL));
}

/// The freezer of cgroup v1 holds a process so that not even SIGKILL ends it, as an uninterruptible wait does.
pub(crate) async fn case_05_uninterruptible(world: &World) {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !world.root || !freezer.join("tasks").exists() {
        println!("  case_05_uninterruptible: only shown as root with the v1 freezer");
        return;
    }
    let group = freezer.join(format!("runward-{}", std::process::id()));
    fs::create_dir(&group).expect("make a freezer");
    let job = world.job(&["sleep", "600"]);
    let (mut shim, pid) = world.start(&job).await;
    fs::write(group.join("cgroup.procs"), pid.to_string()).expect("put it in");
    fs::write(group.join("freezer.state"), "FROZEN").expect("freeze");
    let from = Instant::now();
    shim.kill().await.expect("kill");
    assert!(matches!(event(&mut shim).await, ShimEvent::Killing { .. }));
    assert_eq!(event(&mut shim).await, ShimEvent::KillPending { pids: vec![pid] });
    assert!(from.elapsed() >= KILL_PENDING_AFTER);
    // Nothing else is blocked meanwhile.
    assert_eq!(world.run(&world.job(&["true"])).await.ending, Ending::Code(0));
    fs::write(group.join("freezer.state"), "THAWED").expect("thaw");
    assert_eq!(finish(&mut shim).await.ending, Ending::Signal(SIGKILL));
    eventually("the freezer is empty", || fs::remove_dir(&group).is_ok());
}

pub(crate) async fn many_at_once(world: &World) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let (_, spec) = world.script(&format!("(setsid sleep 300 &); echo {number}; exit {number}"));
        let launcher = world.launcher();
        tasks.spawn(async move {
            let mut shim = launcher.launch(&spec).await.expect("launch");
            shim.go().await;
            let report = finish(&mut shim).await;
            assert_eq!(report.ending, Ending::Code(number));
            assert_eq!(text(&spec.dir), format!("{number}\n"));
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("one of many");
    }
}

pub(crate) async fn wide_tree(world: &World) {
    let job =
        world.script("i=0; while [ $i -lt 300 ]; do setsid sleep 600 & i=$((i+1)); done; echo up; wait");
    let (mut shim, _pid) = world.start(&job).await;
    eventually("all are up", || text(&job.1.dir) == "up\n");
    shim.kill().await.expect("kill");
    let report = finish(&mut shim).await;
    assert_eq!((report.ending, report.killed_processes), (Ending::Signal(SIGKILL), 300));
}

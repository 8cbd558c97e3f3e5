//! A shim that takes one attempt after another: nothing of an earlier one is there for the next.

use std::fs;
use std::path::PathBuf;

use nix::libc::{SIGINT, SIGKILL, SIGTERM};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runward::process::containment::Tier;
use runward::process::spool::Found;
use runward::process::{Ending, ExitReport, Files, Launch, RLimit, Resource, ShimEvent};

use crate::world::{World, children_of, event, eventually, exit_of, find, stat, text};

/// Says all that a process can tell of what it has inherited.
const TELL: &str = "env | grep -v RUNWARD_ATTEMPT | sort; pwd; umask; ulimit -a; nice; id; ls /proc/$$/fd; \
    grep -E '^(Sig[PBIC]|Shd|Cap|NoNew|Seccomp|Groups)' /proc/self/status; \
    cat /proc/$$/oom_score_adj; cat /proc/$$/cgroup; ls $WHERE; cat";

/// Runs a job to its end and leaves its shim idle.
async fn run_and_release(world: &World, job: &(u128, Launch)) -> (ExitReport, i32) {
    let (mut shim, pid) = world.start(job).await;
    let (_, parent) = stat(pid).unwrap_or_default();
    let report = exit_of(&mut shim).await;
    shim.release();
    (report, parent)
}

fn only_shim(world: &World) -> i32 {
    let shims = children_of(world.keeper);
    assert_eq!(shims.len(), 1, "{shims:?}");
    shims[0]
}

fn let_go(world: &World) {
    world.launcher().limit_idle(0);
    world.launcher().limit_idle(8);
    eventually("idle shims leave", || children_of(world.keeper).is_empty());
}

/// A job with files, in a directory that it can list.
fn with_files(world: &World, script: &str) -> (u128, Launch) {
    let (attempt, mut spec) = world.script(script);
    let place = world.dir.path().join("files");
    fs::create_dir_all(&place).expect("a place");
    spec.env.push(("WHERE".into(), place.clone().into()));
    spec.files = Files { dir: place, taken: vec!["result".into(), "other".into()], ..Files::default() };
    (attempt, spec)
}

pub(crate) async fn nothing_of_an_attempt_is_there_for_the_next(world: &World) {
    let tell = || with_files(world, TELL);
    let fresh = tell();
    run_and_release(world, &fresh).await;
    let shim = only_shim(world);

    let script = "echo 1 > $WHERE/result; mkdir $WHERE/other; echo out; echo err >&2; trap '' HUP; \
        (setsid sleep 600 &); i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exec head -c 50000000 /dev/zero | \
        sort | wc -c";
    let mut dirty = with_files(world, script);
    let spec = &mut dirty.1;
    spec.env.push(("EARLIER".into(), "yes".into()));
    (spec.cwd, spec.umask, spec.nice) = ("/tmp".into(), 0o077, Some(7));
    spec.blocked_signals = vec![SIGINT];
    spec.stdin = Some(vec![b'x'; 1 << 20]);
    spec.rlimits = vec![RLimit { resource: Resource::OpenFiles, soft: 50, hard: 50 }];
    let (report, parent) = run_and_release(world, &dirty).await;
    assert_eq!(parent, shim);
    assert_eq!(report.files.len(), 2);
    assert_eq!((report.killed_processes, &report.files[0]), (1, &Ok(Some("1\n".into()))));
    assert!(report.user_time_us > 10_000 && report.max_rss_kib > 10_000, "{report:?}");

    let again = tell();
    let (report, _) = run_and_release(world, &again).await;
    assert_eq!(only_shim(world), shim);
    assert_eq!(text(&again.1.dir), text(&fresh.1.dir));
    assert_eq!((report.ending, report.killed_processes, report.asked), (Ending::Code(0), 0, false));
    assert_eq!(report.files, [Ok(None), Ok(None)]);
    assert_eq!(report.output_bytes, text(&again.1.dir).len() as u64);
    // What it tells of its use is its own: the earlier one took more of each.
    let (small, _) = run_and_release(world, &world.job(&["true"])).await;
    assert!(small.user_time_us < 10_000 && small.max_rss_kib < 10_000, "{small:?}");
    assert_eq!(small.output_bytes, 0);
    assert_eq!(find(world.dir.path(), dirty.0), Found::NeverStarted, "its slot is another's");
    let_go(world);
}

pub(crate) async fn a_failed_start_and_a_killed_job_leave_a_shim_that_works(world: &World) {
    let mut missing = world.job(&["/does/not/exist"]);
    missing.1.stdin = Some(b"unread".into());
    let mut shim = world.launcher().launch(&missing.1).await.expect("launch");
    shim.go().await;
    assert!(matches!(event(&mut shim).await, ShimEvent::StartFailed(_)));
    shim.release();
    let pid = only_shim(world);
    let (mut shim, _) = world.start(&world.script("(setsid sleep 600 &) ; sleep 600")).await;
    shim.kill().await.expect("kill");
    assert_eq!(exit_of(&mut shim).await.ending, Ending::Signal(SIGKILL));
    // Crossed with the ending: it must not meet the next one.
    shim.kill().await.expect("kill");
    shim.signal(SIGKILL).await.expect("signal");
    shim.release();
    let (report, _) = run_and_release(world, &world.script("sleep 0.05; exit 3")).await;
    assert_eq!((report.ending, report.asked), (Ending::Code(3), false));
    assert_eq!(only_shim(world), pid);
    let_go(world);
}

pub(crate) async fn a_changed_cgroup_is_not_the_next_ones(world: &World) {
    let Tier::Cgroup { base } = &world.tier else { return };
    let group = base.join("slot-0");
    run_and_release(world, &world.job(&["true"])).await;
    for change in [
        "mkdir $G/below && mkdir $G/below/deeper",
        "mkdir $G/below && (echo 0 > $G/below/cgroup.procs; exec setsid sleep 600) & sleep 0.1",
        "echo 0 > $G/cgroup.max.descendants",
        "mkdir $G/below; echo threaded > $G/below/cgroup.type",
        "(setsid sleep 600 &); echo 1 > $G/cgroup.freeze",
    ] {
        let job = world.script(&change.replace("$G", &group.display().to_string()));
        let (mut shim, _) = world.start(&job).await;
        if change.contains("freeze") {
            let frozen =
                || fs::read_to_string(group.join("cgroup.events")).is_ok_and(|t| t.contains("frozen 1"));
            eventually("it is frozen", frozen);
            shim.kill().await.expect("kill");
        }
        exit_of(&mut shim).await;
        shim.release();
        let (report, _) = run_and_release(world, &world.script("cat /proc/self/cgroup; sleep 0.01")).await;
        assert_eq!(report.ending, Ending::Code(0), "after {change}");
        let said = |file: &str| fs::read_to_string(group.join(file)).expect("a file of the group");
        assert_eq!(said("cgroup.events"), "populated 0\nfrozen 0\n", "after {change}");
        assert_eq!((said("cgroup.freeze"), said("cgroup.type")), ("0\n".into(), "domain\n".into()));
        assert_eq!(said("cgroup.max.descendants"), "max\n");
        assert!(!group.join("below").exists(), "after {change}");
    }
    only_shim(world);
    let_go(world);
}

pub(crate) async fn a_killed_idle_shim_harms_nothing(world: &World) {
    for told in [false, true] {
        run_and_release(world, &world.job(&["true"])).await;
        let idle = only_shim(world);
        let launched = if told { None } else { Some(world.job(&["true"])) };
        // Once it is picked before it dies, and once after.
        let picked = match &launched {
            Some(job) => Some(world.launcher().launch(&job.1).await.expect("launch")),
            None => None,
        };
        kill(Pid::from_raw(idle), Signal::SIGKILL).expect("it is there");
        eventually("it is gone", || !children_of(world.keeper).contains(&idle));
        match picked {
            Some(mut shim) => {
                shim.go().await;
                assert_eq!(exit_of(&mut shim).await.ending, Ending::Code(0));
                shim.release();
            }
            None => {
                let (report, _) = run_and_release(world, &world.job(&["true"])).await;
                assert_eq!(report.ending, Ending::Code(0));
            }
        }
        let_go(world);
    }
}

/// It was sent what to do, and did not read it: its slot names another attempt still.
pub(crate) async fn a_job_whose_shim_is_killed_before_it_reads_it_goes_to_another(world: &World) {
    let pass = |pid: i32, signal| kill(Pid::from_raw(pid), signal).expect("it is there");
    let file = world.dir.path().join("executed");
    let once = world.script(&format!("echo once >> {}", file.display()));
    let stopped = world.job(&["sleep", "600"]);
    for (job, order) in [(&once, None), (&stopped, Some(SIGTERM))] {
        run_and_release(world, &world.job(&["true"])).await;
        let idle = only_shim(world);
        let mut shim = world.launcher().launch(&job.1).await.expect("launch");
        // The keeper would continue it.
        [world.keeper, idle].into_iter().for_each(|pid| pass(pid, Signal::SIGSTOP));
        eventually("they are stopped", || {
            [world.keeper, idle].into_iter().all(|pid| stat(pid).is_some_and(|(state, _)| state == 'T'))
        });
        shim.go().await;
        if let Some(order) = order {
            shim.signal(order).await.expect("signal");
        }
        pass(idle, Signal::SIGKILL);
        pass(world.keeper, Signal::SIGCONT);
        let ending = exit_of(&mut shim).await.ending;
        assert_eq!(ending, order.map_or(Ending::Code(0), Ending::Signal));
        shim.release();
        assert_ne!(only_shim(world), idle);
        let_go(world);
    }
    assert_eq!(fs::read_to_string(file).expect("written"), "once\n");
}

/// Nobody can tell how far it came, whether or not an order could still be sent.
pub(crate) async fn a_job_that_has_begun_goes_to_no_other_shim(world: &World) {
    for order in [None, Some(SIGTERM)] {
        run_and_release(world, &world.job(&["true"])).await;
        let idle = only_shim(world);
        let file = world.dir.path().join(format!("begun-{order:?}"));
        let job = world.script(&format!("echo once >> '{}'; kill -KILL $PPID", file.display()));
        let mut shim = world.launcher().launch(&job.1).await.expect("launch");
        shim.go().await;
        eventually("its shim is gone", || !children_of(world.keeper).contains(&idle));
        if let Some(order) = order {
            // Nobody is there to take it.
            shim.signal(order).await.ok();
        }
        // Mostly before its shim has told that it runs.
        let mut last = event(&mut shim).await;
        if matches!(last, ShimEvent::Started { .. }) {
            last = event(&mut shim).await;
        }
        assert_eq!(last, ShimEvent::Gone { status: Some(Ending::Signal(SIGKILL)) });
        assert_eq!(fs::read_to_string(file).expect("written"), "once\n");
        shim.release();
        let_go(world);
    }
}

pub(crate) async fn no_more_idle_than_allowed(world: &World) {
    let launcher = world.launcher();
    launcher.limit_idle(2);
    let mut shims = Vec::new();
    for _ in 0..4 {
        shims.push(world.start(&world.job(&["true"])).await.0);
    }
    for mut shim in shims {
        exit_of(&mut shim).await;
        shim.release();
    }
    eventually("two are kept", || children_of(world.keeper).len() == 2);
    let_go(world);
    let files: Vec<PathBuf> = crate::world::endings(world.dir.path());
    assert_eq!(files, [] as [PathBuf; 0], "what is on record is not left for the next start");
}

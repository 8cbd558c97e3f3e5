//! Exec, descriptors, identity, limits.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::libc::{E2BIG, EACCES, ENOENT, ENOEXEC, EOPNOTSUPP, EPERM, SIGKILL, SIGTERM, SIGXCPU};
use runward::process::containment::Tier;
use runward::process::{
    Ending, Files, LaunchError, RLimit, Resource, ShimEvent, Stage, StartFailure, TreeLimits, User,
};
use rustix::process::{Pid, Rlimit, getrlimit, prlimit};

use crate::world::{World, children_of, event, eventually, finish, output, text};

pub(crate) async fn case_08_inherited_dispositions(world: &World) {
    let job = world.job(&["cat", "/proc/self/status"]);
    world.run(&job).await;
    let status = text(&job.1.dir);
    for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
        assert_eq!(value, Some("0000000000000000"), "{field}");
    }
}

/// The world was entered with SIGCHLD ignored, which its keeper has inherited.
pub(crate) async fn case_09_sigchld_ignored(world: &World) {
    assert_eq!(world.run(&world.script("exit 7")).await.ending, Ending::Code(7));
    assert_eq!(world.run(&world.script("(exit 9); exit $?")).await.ending, Ending::Code(9));
}

/// With every number of descriptors, in keeper and shim and then in the daemon, it fails whole or works whole.
pub(crate) async fn case_11_descriptors_run_out(world: &World) {
    let keeper = Pid::from_raw(world.keeper);
    let before =
        prlimit(keeper, rustix::process::Resource::Nofile, getrlimit(rustix::process::Resource::Nofile))
            .expect("the keeper's limit");
    let (mut failed, mut worked) = (0, 0);
    // With fewer than 3 poll itself refuses to watch two.
    for limit in 3..40 {
        let low = Rlimit { current: Some(limit), maximum: before.maximum };
        prlimit(keeper, rustix::process::Resource::Nofile, low).expect("limit the keeper");
        match attempt_true(world).await {
            Ok(true) => worked += 1,
            Ok(false) => failed += 1,
            Err(LaunchError::Descriptors(_)) => failed += 1,
            // Below what a shim needs to be one at all.
            Err(LaunchError::ShimEnded(Some(Ending::Code(1)))) => failed += 1,
            Err(other) => panic!("with {limit} descriptors: {other:?}"),
        }
    }
    prlimit(keeper, rustix::process::Resource::Nofile, before).expect("restore the keeper");
    assert!(failed > 5 && worked > 5, "{failed} failed, {worked} worked");

    let before = getrlimit(rustix::process::Resource::Nofile);
    let numbers = fs::read_dir("/proc/self/fd").expect("list descriptors");
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    let highest = numbers.max().expect("some are open");
    let (mut failed, mut worked) = (0, 0);
    for limit in 3..highest + 4 {
        let low = Rlimit { current: Some(limit), maximum: before.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, low).expect("limit the daemon");
        let (_, spec) = world.job(&["true"]);
        let launched = world.launcher().launch(&spec).await;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, before).expect("restore the daemon");
        match launched {
            Err(LaunchError::Descriptors(_)) => failed += 1,
            Ok(shim) => {
                worked += 1;
                drop(shim);
            }
            Err(other) => panic!("with {limit} descriptors: {other:?}"),
        }
        eventually("no shim stays", || children_of(world.keeper).is_empty());
        assert!(!spec.dir.exists());
    }
    assert!(failed > 2 && worked > 0, "{failed} failed, {worked} worked");
    assert!(attempt_true(world).await.expect("it recovers"));
}

/// One `true` to its end, whether it could be started, or the error with nothing left behind.
async fn attempt_true(world: &World) -> Result<bool, LaunchError> {
    let (_, spec) = world.job(&["true"]);
    let mut shim = match world.launcher().launch(&spec).await {
        Ok(shim) => shim,
        Err(error) => {
            eventually("no shim stays", || children_of(world.keeper).is_empty());
            assert!(!spec.dir.exists(), "a directory without go");
            return Err(error);
        }
    };
    shim.go().await;
    loop {
        match event(&mut shim).await {
            ShimEvent::Exited(report) => assert_eq!(report.ending, Ending::Code(0)),
            ShimEvent::StartFailed(_) => {
                shim.ack().await.expect("ack");
                event(&mut shim).await;
                return Ok(false);
            }
            ShimEvent::Started { .. } => continue,
            other => panic!("{other:?}"),
        }
        shim.ack().await.expect("ack");
        event(&mut shim).await;
        return Ok(true);
    }
}

pub(crate) async fn case_11_no_more_processes(world: &World) {
    if world.root {
        println!("  case_11_no_more_processes: root has no such limit, shown as an ordinary user");
        return;
    }
    let keeper = Pid::from_raw(world.keeper);
    let processes = rustix::process::Resource::Nproc;
    let before = prlimit(keeper, processes, getrlimit(processes)).expect("the keeper's limit");
    prlimit(keeper, processes, Rlimit { current: Some(0), maximum: before.maximum })
        .expect("limit the keeper");
    let (_, spec) = world.job(&["true"]);
    let refused = world.launcher().launch(&spec).await;
    prlimit(keeper, processes, before).expect("restore the keeper");
    assert!(matches!(refused, Err(LaunchError::NotForked(_))), "{refused:?}");
    assert!(attempt_true(world).await.expect("it recovers"));
}

/// How a start fails; whatever is said is acknowledged.
async fn failure(world: &World, job: &(u128, runward::process::Launch)) -> (Stage, i32) {
    let failure = whole_failure(world, job).await;
    (failure.stage, failure.errno)
}

async fn whole_failure(world: &World, job: &(u128, runward::process::Launch)) -> StartFailure {
    let mut shim = world.launcher().launch(&job.1).await.expect("launch");
    shim.go().await;
    let ShimEvent::StartFailed(failure) = event(&mut shim).await else {
        panic!("it started: {:?}", job.1.argv)
    };
    shim.ack().await.expect("ack");
    assert_eq!(event(&mut shim).await, ShimEvent::Gone { status: Some(Ending::Code(0)) });
    failure
}

pub(crate) async fn case_17_exec_errors(world: &World) {
    let file = |name: &str, content: &str, mode| {
        let path = world.dir.path().join(name);
        fs::write(&path, content).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path.to_str().expect("a path").to_owned()
    };
    let no_interpreter = file("no-interpreter", "#!/does/not/exist\n", 0o755);
    let no_format = file("no-format", "echo no shell runs this\n", 0o755);
    let not_executable = file("not-executable", "#!/bin/sh\n", 0o644);
    for (argv, errno) in [
        (vec!["/does/not/exist"], ENOENT),
        (vec!["does-not-exist-in-path"], ENOENT),
        (vec![no_interpreter.as_str()], ENOENT),
        (vec![no_format.as_str()], ENOEXEC),
        (vec![not_executable.as_str()], EACCES),
        (vec!["/"], EACCES),
    ] {
        assert_eq!(failure(world, &world.job(&argv)).await, (Stage::Exec, errno), "{argv:?}");
    }
    // The same number, and what it is that is missing.
    let loader = fs::read(std::env::current_exe().expect("own path")).expect("read");
    let at = loader.windows(4).position(|four| four == b"/ld-" || four == b"ld-l").expect("a loader's name");
    let no_loader = world.dir.path().join("no-loader");
    fs::write(&no_loader, [&loader[..at], b"/xx-", &loader[at + 4..]].concat()).expect("write");
    fs::set_permissions(&no_loader, fs::Permissions::from_mode(0o755)).expect("chmod");
    for (program, missing) in [
        (no_interpreter.as_str(), "its interpreter /does/not/exist is not"),
        (no_loader.to_str().expect("a path"), "the loader that it was built for is not"),
    ] {
        let StartFailure { stage, errno, detail } = whole_failure(world, &world.job(&[program])).await;
        let expected = format!("{program} is there, but {missing}");
        assert_eq!((stage, errno, detail), (Stage::Exec, ENOENT, Some(expected)));
    }
    assert_eq!(whole_failure(world, &world.job(&["/does/not/exist"])).await.detail, None);
    let mut job = world.job(&["true"]);
    job.1.cwd = "/does/not/exist".into();
    assert_eq!(failure(world, &job).await, (Stage::Cwd, ENOENT));
    let mut job = world.job(&["true"]);
    job.1.files = Files { dir: "/does/not/exist".into(), taken: vec!["result".into()], ..Files::default() };
    assert_eq!(failure(world, &job).await, (Stage::Directory, ENOENT));
    // Without a place for it output is lost, and counted.
    let mut job = world.script("echo lost");
    job.1.dir = "/does/not/exist/attempt".into();
    let report = world.run(&job).await;
    assert_eq!((report.ending, report.output_bytes, report.dropped_bytes), (Ending::Code(0), 5, 5));
    if !world.root {
        let mut job = world.job(&["true"]);
        job.1.user = Some(User { uid: 0, gid: 0, groups: Vec::new() });
        assert_eq!(failure(world, &job).await, (Stage::User, EPERM));
        let mut job = world.job(&["true"]);
        job.1.nice = Some(-20);
        assert_eq!(failure(world, &job).await, (Stage::Rlimit, EACCES));
    }
    // The job's own 127 is an exit code like another.
    assert_eq!(world.run(&world.script("exit 127")).await.ending, Ending::Code(127));
}

pub(crate) async fn case_18_too_big(world: &World) {
    let long = "x".repeat(128 << 10);
    assert_eq!(failure(world, &world.job(&["true", &long])).await, (Stage::Exec, E2BIG));
    let (_, spec) = world.job(&["true", "a\0b"]);
    let refused = world.launcher().launch(&spec).await;
    assert!(matches!(refused, Err(LaunchError::Nul { what: "argv" })), "{refused:?}");
    let (_, mut spec) = world.job(&["true"]);
    spec.stdin = Some(vec![0; runward::process::FRAME_LIMIT + 1]);
    assert!(matches!(world.launcher().launch(&spec).await, Err(LaunchError::System(_))));
}

pub(crate) async fn case_19_descriptor_leak(world: &World) {
    let job = world.script("ls /proc/$$/fd");
    world.run(&job).await;
    assert_eq!(text(&job.1.dir), "0\n1\n2\n");
}

pub(crate) async fn case_22_environment(world: &World) {
    let (attempt, mut spec) = world.job(&["env"]);
    spec.env.push(("ONE".into(), "a b=c\nd".into()));
    world.run(&(attempt, spec.clone())).await;
    let given: BTreeSet<String> =
        spec.env.iter().map(|(key, value)| format!("{}={}\n", key.display(), value.display())).collect();
    let seen = text(&spec.dir);
    assert_eq!(seen.len(), given.iter().map(String::len).sum::<usize>());
    assert!(given.iter().all(|entry| seen.contains(entry)), "{seen}");

    // The program is searched in the job's own PATH, and in a default one if it has none.
    let (attempt, mut spec) = world.job(&["env"]);
    spec.env.retain(|(key, _)| key != "PATH");
    world.run(&(attempt, spec.clone())).await;
    assert!(!text(&spec.dir).contains("PATH="));
    let mut job = world.job(&["env"]);
    job.1.env[0].1 = "/does/not/exist:/proc".into();
    assert_eq!(failure(world, &job).await, (Stage::Exec, ENOENT));
}

pub(crate) async fn case_23_user_switch(world: &World) {
    if !world.root {
        println!("  case_23_user_switch: only root may, refusal is shown by case_17");
        return;
    }
    let user = Some(User { uid: 65534, gid: 65534, groups: vec![12345] });
    let mut job =
        world.script("id -u; id -g; id -G; grep -E '^(Uid|Gid|NoNewPrivs|CapEff|CapPrm):' /proc/self/status");
    job.1.user.clone_from(&user);
    assert_eq!(world.run(&job).await.ending, Ending::Code(0));
    let seen = text(&job.1.dir);
    let wanted = "65534\n65534\n65534 12345\n\
        Uid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(seen, wanted);
    // The working directory is entered as that user, and its processes are still ours to kill.
    let closed = world.dir.path().join("closed");
    fs::create_dir(&closed).expect("mkdir");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
    let mut job = world.job(&["true"]);
    job.1.user.clone_from(&user);
    job.1.cwd = closed;
    assert_eq!(failure(world, &job).await, (Stage::Cwd, EACCES));
    let mut job = world.script("(setsid sleep 600 &); exit 0");
    job.1.user = user;
    assert_eq!(world.run(&job).await.killed_processes, 1);
}

pub(crate) async fn limits_are_the_jobs(world: &World) {
    let mut job = world.script("ulimit -n; ulimit -c; umask; nice; pwd; yes > /dev/null");
    job.1.umask = 0o077;
    job.1.nice = Some(5);
    job.1.cwd = "/tmp".into();
    job.1.rlimits = vec![
        RLimit { resource: Resource::OpenFiles, soft: 17, hard: 17 },
        RLimit { resource: Resource::Core, soft: 0, hard: 0 },
        RLimit { resource: Resource::Cpu, soft: 1, hard: 2 },
    ];
    let report = world.run(&job).await;
    // The shell reports its child's signal in its own way.
    assert_eq!(report.ending, Ending::Code(128 + SIGXCPU));
    assert!(report.user_time_us + report.system_time_us > 500_000, "{report:?}");
    let seen =
        String::from_utf8(output(&job.1.dir, Some(runward::process::log::Stream::Stdout))).expect("text");
    assert_eq!(seen, "17\n0\n0077\n5\n/tmp\n");
}

pub(crate) async fn case_14_who_killed_it(world: &World) {
    let report = world.run(&world.script("kill -9 $$")).await;
    assert_eq!((report.ending, report.asked, report.oom), (Ending::Signal(SIGKILL), false, None));
    // What is left when the main process ends is killed by us, which does not make its own end ours.
    let report = world.run(&world.script("(setsid sleep 600 &); kill -9 $$")).await;
    assert_eq!((report.ending, report.asked), (Ending::Signal(SIGKILL), false));

    let (mut shim, _pid) = world.start(&world.job(&["sleep", "600"])).await;
    shim.kill().await.expect("kill");
    let report = finish(&mut shim).await;
    assert_eq!((report.ending, report.asked), (Ending::Signal(SIGKILL), true));
    let (mut shim, _pid) = world.start(&world.job(&["sleep", "600"])).await;
    shim.signal(SIGTERM).await.expect("signal");
    assert!(finish(&mut shim).await.asked);
}

/// The world hands no controllers on, so these never hold here: nothing starts without them.
pub(crate) async fn limits_of_a_tree_hold_or_it_does_not_start(world: &World) {
    let none = TreeLimits::default();
    for limits in [
        TreeLimits { memory: Some(64 << 20), ..none },
        TreeLimits { cpu: Some(50_000), ..none },
        TreeLimits { pids: Some(10), ..none },
    ] {
        let (attempt, mut spec) = world.script("echo ran");
        spec.limits = limits;
        let refused = failure(world, &(attempt, spec.clone())).await;
        let errno = match &world.tier {
            Tier::Cgroup { .. } => ENOENT,
            Tier::Subreaper => EOPNOTSUPP,
        };
        assert_eq!(refused, (Stage::Limits, errno), "{limits:?}");
        assert!(!spec.dir.exists(), "nothing was executed");
    }
}

//! What starting a job through keeper and shim costs, beside a bare spawn and wait in the same run.
//!
//! `cargo run --release --example process_probe [JOBS]`

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runward::process::containment::{Tier, probe};
use runward::process::{KeeperSetup, Launch, Launcher, ShimEvent, fork_keeper};

const PROGRAM: &str = "/bin/true";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let jobs = std::env::args().nth(1).map_or(Ok(2000), |jobs| jobs.parse())?;
    let dir = tempfile::tempdir()?;
    let (best, why) = probe(std::process::id());
    if let Some(why) = why {
        println!("no cgroups: {why}");
    }
    // Both keepers are forked before the first thread.
    let mut links = Vec::new();
    for tier in [Some(best.clone()), matches!(best, Tier::Cgroup { .. }).then_some(Tier::Subreaper)] {
        let Some(tier) = tier else { continue };
        let slots = dir.path().join(format!("slots-{}", tier.name()));
        std::fs::create_dir(&slots)?;
        let children_lock = std::fs::File::create(dir.path().join(tier.name()))?.into();
        links.push((tier.name(), fork_keeper(KeeperSetup { children_lock, tier, slots })?));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;

    println!("{PROGRAM}, {jobs} times: median and 99th percentile of one, and the rate of all");
    for (flight, jobs) in [(1, jobs / 2), (16, jobs)] {
        show("bare spawn and wait", flight, bare(jobs, flight)?);
    }
    for (tier, link) in links {
        let (launcher, watch) = runtime.block_on(async { link.attach() })?;
        for (flight, jobs) in [(1, jobs / 2), (16, jobs)] {
            let all = runtime.block_on(through_shims(&launcher, dir.path(), tier, jobs, flight));
            show(tier, flight, all);
        }
        runtime.block_on(memory(&launcher, dir.path(), tier))?;
        runtime.block_on(flood(&launcher, dir.path(), tier));
        drop(launcher);
        runtime.block_on(watch.ended());
    }
    best.remove()?;
    Ok(())
}

fn show(name: &str, flight: usize, (mut each, all): (Vec<Duration>, Duration)) {
    each.sort_unstable();
    let at = |share: usize| each[(each.len() - 1) * share / 100];
    let rate = each.len() as f64 / all.as_secs_f64();
    println!("{name:>20}, {flight:>2} in flight: {:>9.1?} {:>9.1?}  {rate:>7.0}/s", at(50), at(99));
}

fn bare(jobs: usize, flight: usize) -> std::io::Result<(Vec<Duration>, Duration)> {
    let from = Instant::now();
    let left = AtomicUsize::new(jobs);
    let mut each = Vec::new();
    std::thread::scope(|scope| {
        let run = || {
            let mut each = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let from = Instant::now();
                Command::new(PROGRAM).env_clear().spawn()?.wait()?;
                each.push(from.elapsed());
            }
            Ok::<_, std::io::Error>(each)
        };
        let threads: Vec<_> = (0..flight).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            each.extend(thread.join().expect("a thread")?);
        }
        Ok((each, from.elapsed()))
    })
}

async fn through_shims(
    launcher: &Launcher,
    dir: &Path,
    tier: &str,
    jobs: usize,
    flight: usize,
) -> (Vec<Duration>, Duration) {
    let from = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..flight {
        let (launcher, dir, tier) = (launcher.clone(), dir.to_owned(), tier.to_owned());
        tasks.spawn(async move {
            let mut each = Vec::new();
            for number in (lane..jobs).step_by(flight) {
                let from = Instant::now();
                let attempt = (flight as u128) << 64 | number as u128;
                let spec = spec(attempt, &dir.join(format!("{tier}-{attempt:032x}")), &[PROGRAM]);
                let mut shim = launcher.launch(&spec).await.expect("launch");
                shim.go().await;
                while !matches!(shim.next().await, ShimEvent::Exited(_)) {}
                each.push(from.elapsed());
                shim.release();
            }
            each
        });
    }
    let mut each = Vec::new();
    while let Some(lane) = tasks.join_next().await {
        each.extend(lane.expect("a lane"));
    }
    (each, from.elapsed())
}

fn spec(attempt: u128, dir: &Path, argv: &[&str]) -> Launch {
    Launch::new(attempt, dir.to_owned(), argv.iter().map(Into::into).collect(), Vec::new(), "/".into())
}

/// The memory of a shim whose job runs, of 32 at once: shared pages count by their share.
async fn memory(launcher: &Launcher, dir: &Path, tier: &str) -> std::io::Result<()> {
    let mut shims = Vec::new();
    let mut kib = 0;
    for number in 0..32u128 {
        let spec =
            spec(1 << 80 | number, &dir.join(format!("{tier}-memory-{number}")), &["/bin/sleep", "600"]);
        let mut shim = launcher.launch(&spec).await.expect("launch");
        shim.go().await;
        let ShimEvent::Started { pid, .. } = shim.next().await else { panic!("not started") };
        shims.push((shim, pid));
    }
    for (_, pid) in &shims {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).unwrap_or_default();
        let rollup = std::fs::read_to_string(format!("/proc/{parent}/smaps_rollup"))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
        kib += pss.and_then(|pss| pss.parse::<u64>().ok()).unwrap_or_default();
    }
    println!("{tier:>20}, a shim of 32: PSS {} KiB", kib / shims.len() as u64);
    for (mut shim, _) in shims {
        shim.kill().await.expect("kill");
        while !matches!(shim.next().await, ShimEvent::Exited(_)) {}
        shim.ack().await.expect("ack");
    }
    Ok(())
}

/// How fast a flood is carried to disk, within the default quota.
async fn flood(launcher: &Launcher, dir: &Path, tier: &str) {
    let spec =
        spec(1 << 81, &dir.join(format!("{tier}-flood")), &["/bin/sh", "-c", "yes | head -c 4000000000"]);
    let mut shim = launcher.launch(&spec).await.expect("launch");
    let from = Instant::now();
    shim.go().await;
    let report = loop {
        if let ShimEvent::Exited(report) = shim.next().await {
            break report;
        }
    };
    let rate = report.output_bytes as f64 / from.elapsed().as_secs_f64() / (1 << 20) as f64;
    println!("{tier:>20}, a flood: {rate:.0} MiB/s, {} MiB dropped", report.dropped_bytes >> 20);
    shim.ack().await.expect("ack");
}

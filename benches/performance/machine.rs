//! What `/proc` knows: the machine, and what a process takes of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{Bench, Result};

/// More than this runs already: figures will be worse than they are.
const BUSY: f64 = 0.5;

/// The machine, the disk and the day, for the head of the table.
pub(crate) fn describe(bench: &Bench) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("\t: unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let memory = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal:")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: f64 = load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default();
    let (kind, mount) = file_system(&bench.base)?;
    if ["tmpfs", "ramfs", "overlay"].contains(&kind.as_str()) {
        eprintln!("{} is on {kind}: figures of a disk are none here", bench.base.display());
    }
    let date = output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
    let commit = output("git", &["describe", "--always", "--dirty", "--exclude=*"]);
    let rustc = output("rustc", &["--version"]);
    let busy = if load > BUSY { ", **busy: others run on it**" } else { "" };
    // What makes development builds fast makes the program slower.
    let profile = match option_env!("CARGO_PROFILE_RELEASE_LTO") {
        None => String::new(),
        Some(lto) => format!(", not the real profile (LTO {lto})"),
    };
    let quick = if bench.quick { "**A quick run: small numbers, no figures to quote.** " } else { "" };
    Ok(format!(
        "{quick}{date}, commit {commit}, {rustc}{profile}: {cores} cores of {model}, {memory} GiB, Linux {kernel}, {kind} \
         ({mount}), load {load:.2} at the start{busy}\n",
        cores = bench.cores,
        memory = memory >> 20,
        kernel = kernel.trim(),
    ))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if text.is_empty() { "unknown".to_owned() } else { text }
}

/// The kind of file system that a path is on, and its device.
fn file_system(path: &Path) -> Result<(String, String)> {
    let path = path.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut parts = line.split(' ');
        Some((parts.next()?, PathBuf::from(parts.next()?), parts.next()?))
    });
    let found =
        mounts.filter(|(_, at, _)| path.starts_with(at)).max_by_key(|(_, at, _)| at.as_os_str().len());
    found.map(|(device, _, kind)| (kind.to_owned(), device.to_owned())).ok_or_else(|| "no mount".into())
}

/// Bytes that may still be written where this path is.
pub(crate) fn free_space(path: &Path) -> Result<u64> {
    let facts = nix::sys::statvfs::statvfs(path)?;
    Ok(facts.blocks_available() as u64 * facts.fragment_size() as u64)
}

/// The number after a name, as in `Pss:   12 kB`.
fn field(text: &str, name: &str) -> Result<u64> {
    let number =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("no {name}").into())
}

/// The memory of a process in KiB, its share of what others have too.
pub(crate) fn pss(pid: u32) -> Result<f64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss:")? as f64)
}

/// The memory of a process in KiB that is no file's. Other than of PSS, its share of the program's own pages does not
/// fall when more processes have these too.
pub(crate) fn anonymous(pid: u32) -> Result<f64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Anonymous:")? as f64)
}

/// What one of these says when it has come to rest, or after half a minute.
pub(crate) fn settled(of: fn(u32) -> Result<f64>, pid: u32) -> Result<f64> {
    let began = Instant::now();
    let mut last = of(pid)?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = of(pid)?;
        if (now - last).abs() <= 0.002 * last || began.elapsed() > Duration::from_secs(30) {
            return Ok(now);
        }
        last = now;
    }
}

/// The processes that a process has started.
pub(crate) fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// For each thread of a process.
fn threads<T>(pid: u32, read: impl Fn(&Path) -> Option<T>) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // One that ends meanwhile has nothing to tell.
        if let Some(value) = read(&path) {
            found.insert(path.display().to_string(), value);
        }
    }
    Ok(found)
}

/// The processor time that the threads of a process have taken.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let times = threads(pid, |path| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    })?;
    Ok(Duration::from_nanos(times.into_values().sum()))
}

/// How often each thread of a process has been switched to, with its name.
pub(crate) fn switches(pid: u32) -> Result<BTreeMap<String, (String, u64)>> {
    threads(pid, |path| {
        let status = fs::read_to_string(path.join("status")).ok()?;
        let name = status.lines().next()?.strip_prefix("Name:")?.trim().to_owned();
        let count = |kind: &str| field(&status, kind).ok();
        Some((name, count("voluntary_ctxt_switches:")? + count("nonvoluntary_ctxt_switches:")?))
    })
}

//! How a job's tree is held together, so that all of it can be killed.

use std::fs;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::cgroup::Cgroup;
use super::keeper::sys;

/// The means in force, probed once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tier {
    /// Each attempt has a cgroup (v2) to itself, below `base`: one write kills all of it.
    Cgroup {
        /// `<own cgroup>/runward-<8 hex digits>`.
        base: PathBuf,
    },
    /// The shim adopts every orphan of the tree, and kills its children until there are none.
    Subreaper,
}

impl Tier {
    /// The name in `/v1/info`: `cgroup2` or `subreaper`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cgroup { .. } => "cgroup2",
            Self::Subreaper => "subreaper",
        }
    }

    /// The cgroup of the attempts in one slot, whether it exists or not.
    pub(super) fn slot(&self, slot: u32) -> Option<Cgroup> {
        match self {
            Self::Cgroup { base } => Some(Cgroup::at(base.join(format!("slot-{slot}")))),
            Self::Subreaper => None,
        }
    }

    /// Removes the base at the daemon's end, when no attempt has a cgroup any more. Without it the next start finds it
    /// again.
    pub fn remove(&self) -> io::Result<()> {
        match self {
            Self::Cgroup { base } => {
                Cgroup::at(base.clone()).remove()?;
                super::controllers::move_back(base)
            }
            Self::Subreaper => Ok(()),
        }
    }
}

/// Why cgroups can't be used; the text is for people.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no cgroup v2 here, or its files are not readable.
    #[error("no cgroup v2 hierarchy: {0}")]
    NotFound(#[source] io::Error),
    /// No group can be made below the daemon's own.
    #[error("can't make {}: {error}", dir.display())]
    NotOurs {
        /// The group.
        dir: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The kernel is older than 5.14.
    #[error("the kernel has no cgroup.kill")]
    NoKill,
    /// A test process could not be put into a group and killed by it.
    #[error("a test process can't be held: {0}")]
    Trial(#[source] io::Error),
}

/// Finds the best tier, and why it is no better one. Call it in `main` before any thread exists: it forks a test
/// process.
///
/// `instance` tells this daemon's cgroups from those of another; it should stay the same over restarts, so that
/// [`sweep_leftovers`] finds what an earlier incarnation left.
pub fn probe(instance: u32) -> (Tier, Option<Unusable>) {
    match probe_cgroup(instance) {
        Ok(base) => (Tier::Cgroup { base }, None),
        Err(why) => (Tier::Subreaper, Some(why)),
    }
}

fn probe_cgroup(instance: u32) -> Result<PathBuf, Unusable> {
    let own = own_cgroup().map_err(Unusable::NotFound)?;
    let base = own.join(format!("runward-{instance:08x}"));
    match fs::create_dir(&base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Unusable::NotOurs { dir: base, error });
        }
        Ok(()) | Err(_) => {}
    }
    let usable = if base.join("cgroup.kill").exists() { trial(&base) } else { Err(Unusable::NoKill) };
    if usable.is_err() {
        // Not empty when an earlier incarnation could use it; then it is not ours to tidy.
        fs::remove_dir(&base).ok();
    }
    usable.map(|()| base)
}

/// Puts a process into a group and kills it there, as is done with a job.
fn trial(base: &Path) -> Result<(), Unusable> {
    let group = Cgroup::at(base.join(format!("trial-{}", std::process::id())));
    let dir = group.create().map_err(|error| Unusable::NotOurs { dir: base.to_owned(), error })?;
    let result = trial_in(&group, &dir).map_err(Unusable::Trial);
    group.remove().ok();
    result
}

fn trial_in(group: &Cgroup, dir: &fs::File) -> io::Result<()> {
    let (mut inside, tell) = io::pipe()?;
    let pid = match sys::fork_into(dir.as_fd(), || wait_for_death(&tell)) {
        Err(e) if sys::clone3_is_unknown(&e) => sys::fork(|| match group.join() {
            Ok(()) => wait_for_death(&tell),
            Err(error) => error.raw_os_error().unwrap_or(1),
        })?,
        forked => forked?,
    };
    drop(tell);
    let is_inside = inside.read_exact(&mut [0]).is_ok();
    let killed = if is_inside { group.kill() } else { Err(io::ErrorKind::PermissionDenied.into()) };
    if killed.is_err() {
        sys::kill(pid, Signal::SIGKILL as i32)?;
    }
    while sys::reap(pid)?.is_none() {
        // The pipe closes with the process.
        inside.read_to_end(&mut Vec::new())?;
    }
    killed
}

fn wait_for_death(mut tell: &PipeWriter) -> i32 {
    let ready = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    match ready.and_then(|()| tell.write_all(&[1])) {
        Ok(()) => loop {
            nix::unistd::pause();
        },
        Err(error) => error.raw_os_error().unwrap_or(1),
    }
}

/// The directory of the daemon's own group, in a hierarchy that may have no controllers at all.
fn own_cgroup() -> io::Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(not_found)?;
    mounts.lines().find_map(|line| dir_of(own, line)).filter(|dir| dir.is_dir()).ok_or_else(not_found)
}

/// The directory of group `own` below one line of mountinfo, if that is a cgroup2 mount which shows it.
fn dir_of(own: &str, mount: &str) -> Option<PathBuf> {
    let (fields, kind) = mount.split_once(" - ")?;
    if !kind.starts_with("cgroup2 ") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    // A container may see only a part of the hierarchy, named from its true root.
    let below = Path::new(own).strip_prefix(&root).ok()?;
    // A group outside our namespace shows as a path that climbs.
    if below.components().any(|part| part == std::path::Component::ParentDir) {
        return None;
    }
    Some(Path::new(&point).join(below))
}

/// Space, tab, newline and backslash are octal in mountinfo.
fn unescape(field: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// Kills and removes what an earlier incarnation left below `base`. Returns how many groups there were. Call it with
/// the children lock held, before anything is launched. Blocks until their processes are dead.
///
/// # Errors
/// `TimedOut` when one has not died [`LEFTOVER_LIMIT`](super::LEFTOVER_LIMIT) after its kill.
pub fn sweep_leftovers(base: &Path) -> io::Result<usize> {
    let mut left = Vec::new();
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            left.push(Cgroup::at(entry.path()));
        }
    }
    // All at once, then one after the other: they die in parallel.
    left.iter().try_for_each(Cgroup::kill)?;
    for group in &left {
        group.wait_empty(super::LEFTOVER_LIMIT)?;
        group.remove()?;
    }
    Ok(left.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_own_group_in_every_layout() {
        let at = |own, mount| dir_of(own, mount).map(|dir| dir.display().to_string());
        let unified = "25 1 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw";
        assert_eq!(
            at("/system.slice/r.service", unified).as_deref(),
            Some("/sys/fs/cgroup/system.slice/r.service")
        );
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(at("/", hybrid).as_deref(), Some("/sys/fs/cgroup/unified/"));
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        assert_eq!(at("/", v1), None);
        let bound = "41 31 0:38 /docker/1f /sys/fs/cgroup rw - cgroup2 cgroup rw";
        assert_eq!(at("/docker/1f/inner", bound).as_deref(), Some("/sys/fs/cgroup/inner"));
        assert_eq!(at("/elsewhere", bound), None);
        assert_eq!(at("/../../other", unified), None);
        let spaced = "41 31 0:38 / /mnt/a\\040b rw - cgroup2 none rw";
        assert_eq!(at("/x", spaced).as_deref(), Some("/mnt/a b/x"));
    }
}

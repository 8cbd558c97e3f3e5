//! One cgroup (v2) as files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Oom, TreeLimits};

/// The period over which processor time is measured, in microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// A cgroup, whether it exists or not.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes it and opens it, to be forked into. Nothing stays behind on failure.
    pub(super) fn create(&self) -> io::Result<File> {
        fs::create_dir(&self.dir)?;
        File::open(&self.dir).inspect_err(|_| drop(fs::remove_dir(&self.dir)))
    }

    /// Tells it from another that has been made in its place.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.dir)?.ino())
    }

    /// Sets the limits of all that will be in it. A controller that is not there shows as `NotFound`.
    pub(super) fn limit(&self, limits: &TreeLimits) -> io::Result<()> {
        let TreeLimits { memory, cpu, pids } = *limits;
        if let Some(bytes) = memory {
            self.set("memory.max", &bytes.to_string())?;
            // Else it would swap where it should end. Not there without swap.
            match self.set("memory.swap.max", "0") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                set => set?,
            }
            // All of it or nothing: half a job is no job.
            self.set("memory.oom.group", "1")?;
        }
        if let Some(quota) = cpu {
            self.set("cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
        }
        if let Some(number) = pids {
            self.set("pids.max", &number.to_string())?;
        }
        Ok(())
    }

    /// Writes to a file that is there: the kernel makes them, and nobody else.
    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.dir.join(file))?.write_all(value.as_bytes())
    }

    /// What the kernel has killed in it for want of memory, `None` without the memory controller; `limit` is its own.
    pub(super) fn oom(&self, limit: Option<u64>) -> Option<Oom> {
        let events = fs::read_to_string(self.dir.join("memory.events")).ok()?;
        let count = |name: &str| {
            let line = events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let kills = count("oom_kill");
        (kills > 0).then(|| Oom { kills, limit: limit.filter(|_| count("oom") > 0) })
    }

    /// Whether controllers reach it: then it has files beyond those of every cgroup.
    pub(super) fn is_controlled(&self) -> bool {
        fs::read(self.dir.join("cgroup.controllers")).is_ok_and(|names| !names.trim_ascii().is_empty())
    }

    /// Opens one of its files.
    pub(super) fn open(&self, file: &str) -> io::Result<File> {
        File::open(self.dir.join(file))
    }

    /// Moves the calling process into it.
    pub(super) fn join(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), "0")
    }

    /// Kills all of it, groups below it and what is being forked included. Returns before they are dead.
    pub(super) fn kill(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1")
    }

    /// Removes it, with the groups that a job has made below. `ResourceBusy` while something of it lives.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                for entry in fs::read_dir(&self.dir)? {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        Self::at(entry.path()).remove()?;
                    }
                }
                fs::remove_dir(&self.dir)
            }
            removed => removed,
        }
    }

    /// Waits until nothing in it or below lives; `TimedOut` after `limit`.
    pub(super) fn wait_empty(&self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut events = File::open(self.dir.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // The kernel signals a change of this file as an exceptional condition.
            let mut changed = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            if poll(&mut changed, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
                let message = format!("{} is still populated", self.dir.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }
}

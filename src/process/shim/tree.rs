//! The job's processes: who is left, and killing them all.
//!
//! As a subreaper the shim inherits every orphan of the job, however it hides, so its direct children are the roots
//! of all that lives. Killing them, reaping them and looking again ends when there are none. Only two numbers are
//! ever signalled: an unreaped child's, and the group's of the main process while that is unreaped.

use std::io;
use std::time::Instant;

use nix::libc;

use crate::process::cgroup::Cgroup;
use crate::process::keeper::children::Children;
use crate::process::keeper::sys;

/// The processes of one attempt, from the fork of the main one to the death of the last.
#[derive(Debug)]
pub(super) struct Tree {
    main: i32,
    /// Whether `main` is unreaped, and so still its own number.
    main_unreaped: bool,
    cgroup: Option<Cgroup>,
    /// Opened when it is needed.
    children: Option<Children>,
    killing_since: Option<Instant>,
    killed: u32,
    usage: Usage,
}

/// What the processes of a tree have used, each counted when it was reaped. The kernel's own sum goes on from attempt to
/// attempt.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) max_rss_kib: u64,
    pub(super) user_us: u64,
    pub(super) system_us: u64,
}

impl Usage {
    fn add(&mut self, used: &libc::rusage) {
        let micros =
            |time: libc::timeval| time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs();
        self.max_rss_kib = self.max_rss_kib.max(used.ru_maxrss.unsigned_abs());
        self.user_us += micros(used.ru_utime);
        self.system_us += micros(used.ru_stime);
    }
}

/// What [`Tree::reap`] found.
#[derive(Debug, Default)]
pub(super) struct Reaped {
    /// The main process has ended, with this wait status.
    pub(super) main: Option<i32>,
    /// Nothing lives any more.
    pub(super) dead: bool,
}

impl Tree {
    pub(super) fn new(main: i32, cgroup: Option<Cgroup>) -> Self {
        let (killing_since, killed, usage) = (None, 0, Usage::default());
        Self { main, main_unreaped: true, cgroup, children: None, killing_since, killed, usage }
    }

    pub(super) fn killing_since(&self) -> Option<Instant> {
        self.killing_since
    }

    fn killing(&self) -> bool {
        self.killing_since.is_some() || !self.main_unreaped
    }

    /// Processes other than the main one that had to be killed.
    pub(super) fn killed(&self) -> u32 {
        self.killed
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Sends `signal` to the main process's group, and CONT so that a stopped one takes it. `false` when the main
    /// process has ended.
    pub(super) fn signal(&self, signal: i32) -> bool {
        if !self.main_unreaped {
            return false;
        }
        // EPERM, when the job has changed its user: as for anyone else, it is not ours to signal then.
        sys::kill(-self.main, signal).ok();
        if !matches!(signal, libc::SIGKILL | libc::SIGSTOP | libc::SIGCONT) {
            sys::kill(-self.main, libc::SIGCONT).ok();
        }
        true
    }

    /// Kills all of it, now and whatever it still forks.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.begin_kill();
        self.kill_children()
    }

    fn begin_kill(&mut self) {
        if self.killing_since.is_none() {
            self.killing_since = Some(Instant::now());
            if let Some(cgroup) = &self.cgroup {
                // The rest kills it as well, only slower.
                cgroup.kill().ok();
            }
        }
        if self.main_unreaped {
            // One signal to a group can't be outrun by forks. ESRCH before the child has made its group.
            sys::kill(-self.main, libc::SIGKILL).ok();
        }
    }

    fn kill_children(&mut self) -> io::Result<()> {
        for pid in self.left()? {
            // EPERM, for one that has changed its user: it shows as pending.
            sys::kill(pid, libc::SIGKILL).ok();
        }
        Ok(())
    }

    /// Who is left of the direct children.
    pub(super) fn left(&mut self) -> io::Result<Vec<i32>> {
        match &mut self.children {
            Some(children) => children.list(),
            None => self.children.insert(Children::open()?).list(),
        }
    }

    /// Takes every child that has ended. Once the main one has, the rest is killed.
    pub(super) fn reap(&mut self) -> io::Result<Reaped> {
        let mut found = Reaped::default();
        loop {
            let mut reaped = 0;
            loop {
                let pid = match sys::ended_child() {
                    Ok(Some(pid)) => pid,
                    Ok(None) => break,
                    Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                        found.dead = true;
                        return Ok(found);
                    }
                    Err(error) => return Err(error),
                };
                if pid == self.main {
                    // While its number is still held, for the group's sake.
                    sys::kill(-self.main, libc::SIGKILL).ok();
                }
                let Some((status, used)) = sys::reap_with_usage(pid)? else { continue };
                self.usage.add(&used);
                reaped += 1;
                if pid == self.main {
                    self.main_unreaped = false;
                    found.main = Some(status);
                } else if self.killing() && libc::WTERMSIG(status) == libc::SIGKILL {
                    self.killed += 1;
                }
            }
            // Here something lives. A chain of forks hands over its next link as fast as the last is reaped, so look
            // again at once until nothing comes; then SIGCHLD tells.
            if reaped == 0 || !self.killing() {
                return Ok(found);
            }
            self.kill()?;
        }
    }
}

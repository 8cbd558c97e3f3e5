//! One job, from the start of its child to its ending.

use std::io::{self, PipeWriter};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::PollFlags;

use super::files::make_dir;
use super::output::{Input, Output, now_us};
use super::tree::Tree;
use crate::process::handle::ending;
use crate::process::protocol::FromShim;
use crate::process::{DRAIN_LIMIT, Ending, ExitReport, KILL_PENDING_AFTER, StartFailure};

/// A job that was started.
#[derive(Debug)]
pub(super) struct Job {
    tree: Tree,
    /// Why its program does not run.
    failure: Option<StartFailure>,
    /// Where its output goes; `None` when the directory is there.
    log_dir: Option<PathBuf>,
    input: Option<Input>,
    output: Output,
    /// Our own copies of the job's ends of its pipes, until its tree is dead: so that its end is told once, by a signal,
    /// and not by each pipe as well.
    ends: Option<[PipeWriter; 2]>,
    /// Whether a signal was sent, or the tree killed, before the main process ended.
    asked: bool,
    /// How the main process ended, and when.
    ended: Option<(Ending, u64)>,
    /// When the last process of the tree was reaped.
    dead_since: Option<Instant>,
    pending_told: bool,
    /// When to look again for what a stuck process has handed over, which gives no sign.
    look_again: Option<Instant>,
}

/// How it ended, once nothing of it lives and its output is on disk.
#[derive(Debug, Clone)]
pub(super) enum Over {
    Exited(ExitReport),
    Failed(StartFailure),
}

/// What a poll has to watch for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Input,
    Output(usize),
}

impl Job {
    pub(super) fn new(
        tree: Tree,
        failure: Option<StartFailure>,
        log_dir: PathBuf,
        input: Option<Input>,
        output: Output,
        ends: [PipeWriter; 2],
    ) -> Self {
        Self {
            tree,
            failure,
            log_dir: Some(log_dir),
            input,
            output,
            ends: Some(ends),
            asked: false,
            ended: None,
            dead_since: None,
            pending_told: false,
            look_again: None,
        }
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let input = self.input.iter().map(|input| (Source::Input, input.fd()));
        input.chain(self.output.open().map(|(number, fd)| (Source::Output(number), fd)))
    }

    /// Call it with what a poll has found at a source.
    pub(super) fn ready(&mut self, source: Source, found: PollFlags) {
        match source {
            Source::Input => {
                if !self.input.as_mut().is_some_and(Input::feed) {
                    self.input = None;
                }
            }
            Source::Output(number) if found == PollFlags::POLLHUP => self.output.end(number),
            Source::Output(number) => {
                if let Some(dir) = self.log_dir.take() {
                    // If it can't be made, the log can't be written, which is counted.
                    make_dir(&dir, ABOVE).ok();
                }
                self.output.carry(number);
            }
        }
    }

    /// Sends a signal to the job. `false` when its main process has ended.
    pub(super) fn signal(&mut self, signal: i32) -> bool {
        let sent = self.tree.signal(signal);
        self.asked |= sent;
        sent
    }

    /// Kills the tree; it is dead when [`over`](Self::over) says so.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.asked |= self.ended.is_none();
        self.tree.kill()
    }

    /// Whether the tree is being killed, by order or because the main process has ended and left something.
    pub(super) fn is_killed(&self) -> bool {
        self.tree.killing_since().is_some()
    }

    /// Whether the main process has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Call it on SIGCHLD.
    pub(super) fn reap(&mut self) -> io::Result<()> {
        if self.dead_since.is_some() {
            return Ok(());
        }
        let reaped = self.tree.reap()?;
        if let Some(status) = reaped.main {
            self.ended = ending(status).map(|ending| (ending, now_us()));
            self.input = None;
        }
        if reaped.dead {
            self.dead_since = Some(Instant::now());
            // What is in the pipes is read to its end.
            self.ends = None;
        }
        Ok(())
    }

    /// When [`tick`](Self::tick) has something to do though no event comes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match (self.dead_since, self.tree.killing_since()) {
            (Some(dead), _) => Some(dead + DRAIN_LIMIT),
            (None, Some(since)) => Some(self.look_again.unwrap_or(since + KILL_PENDING_AFTER)),
            (None, None) => None,
        }
    }

    /// What time alone brings about.
    pub(super) fn tick(&mut self, say: impl FnOnce(FromShim)) -> io::Result<()> {
        let now = Instant::now();
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if self.dead_since.is_some() {
            self.output.give_up();
            return Ok(());
        }
        if !self.pending_told {
            self.pending_told = true;
            say(FromShim::KillPending { pids: self.tree.left()? });
        }
        self.look_again = Some(now + KILL_PENDING_AFTER);
        self.tree.kill()
    }

    /// How it ended, when nothing lives and both outputs have ended or were given up.
    pub(super) fn over(&self) -> Option<Over> {
        self.dead_since?;
        if !self.output.ended() {
            return None;
        }
        if let Some(failure) = self.failure.clone() {
            return Some(Over::Failed(failure));
        }
        let (ending, at) = self.ended?;
        let usage = self.tree.usage();
        Some(Over::Exited(ExitReport {
            ending,
            at,
            asked: self.asked,
            oom: None,
            killed_processes: self.tree.killed(),
            output_bytes: self.output.bytes(),
            dropped_bytes: self.output.dropped(),
            output_incomplete: self.output.incomplete(),
            max_rss_kib: usage.max_rss_kib,
            user_time_us: usage.user_us,
            system_time_us: usage.system_us,
            files: Vec::new(),
        }))
    }
}

/// How many directories above the attempt's are made anew, if somebody has tidied them away: its Runner's, and that of all.
const ABOVE: u32 = 2;

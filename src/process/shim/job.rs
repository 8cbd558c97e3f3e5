//! One job, from the fork of its child to its ending.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::child;
use super::output::{Input, Output, now_us};
use super::tree::Tree;
use crate::process::handle::ending;
use crate::process::protocol::FromShim;
use crate::process::{DRAIN_LIMIT, Ending, ExitReport, KILL_PENDING_AFTER, Oom, StartFailure};

/// A job that has been forked.
#[derive(Debug)]
pub(super) struct Job {
    tree: Tree,
    /// Open until it is known whether the program runs.
    verdict: Option<PipeReader>,
    failure: Option<StartFailure>,
    /// Signals that came before the program ran.
    early_signals: Vec<i32>,
    input: Option<Input>,
    output: Output,
    /// The tree's limit of memory.
    memory: Option<u64>,
    /// Whether a signal was sent, or the tree killed, before the main process ended.
    asked: bool,
    oom: Option<Oom>,
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
    Verdict,
    Input,
    Output(usize),
}

impl Job {
    pub(super) fn new(
        verdict: PipeReader,
        tree: Tree,
        early_signals: Vec<i32>,
        input: Option<Input>,
        output: Output,
        memory: Option<u64>,
    ) -> Self {
        Self {
            tree,
            verdict: Some(verdict),
            failure: None,
            early_signals,
            input,
            output,
            memory,
            asked: false,
            oom: None,
            ended: None,
            dead_since: None,
            pending_told: false,
            look_again: None,
        }
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let verdict = self.verdict.iter().map(|pipe| (Source::Verdict, pipe.as_fd()));
        let input = self.input.iter().map(|input| (Source::Input, input.fd()));
        verdict.chain(input).chain(self.output.open().map(|(number, fd)| (Source::Output(number), fd)))
    }

    pub(super) fn ready(&mut self, source: Source, say: &mut impl FnMut(FromShim)) {
        match source {
            Source::Verdict => self.take_verdict(say),
            Source::Input => {
                if !self.input.as_mut().is_some_and(Input::feed) {
                    self.input = None;
                }
            }
            Source::Output(number) => self.output.carry(number),
        }
    }

    fn take_verdict(&mut self, say: &mut impl FnMut(FromShim)) {
        let Some(mut verdict) = self.verdict.take() else { return };
        self.failure = child::read_verdict(&mut verdict);
        // A child that was killed on its way closes the pipe as well; it is not called started.
        if self.failure.is_none() && self.tree.killing_since().is_none() {
            let pid = self.tree.main();
            say(FromShim::Started { pid, start_time: start_time(pid) });
            for signal in std::mem::take(&mut self.early_signals) {
                self.signal(signal, say);
            }
        }
    }

    pub(super) fn signal(&mut self, signal: i32, say: &mut impl FnMut(FromShim)) {
        if self.verdict.is_some() {
            self.early_signals.push(signal);
        } else if self.tree.signal(signal) {
            self.asked = true;
            say(FromShim::Signalled { signal, at: now_us() });
        }
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
    pub(super) fn reap(&mut self, say: &mut impl FnMut(FromShim)) -> io::Result<()> {
        if self.dead_since.is_some() {
            return Ok(());
        }
        let reaped = self.tree.reap()?;
        if let Some(status) = reaped.main {
            // It closed the pipe before it ended, so this does not block; the order of the events is kept.
            self.take_verdict(say);
            self.ended = ending(status).map(|ending| (ending, now_us()));
            self.input = None;
        }
        if reaped.dead {
            self.dead_since = Some(Instant::now());
            self.oom = self.tree.oom(self.memory);
            self.tree.remove_cgroup();
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
    pub(super) fn tick(&mut self, say: &mut impl FnMut(FromShim)) -> io::Result<()> {
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
        // Of all that was reaped here, and what that had reaped.
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok();
        let micros = |time: nix::sys::time::TimeVal| {
            Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000).as_micros() as u64
        };
        Some(Over::Exited(ExitReport {
            ending,
            at,
            asked: self.asked,
            oom: self.oom,
            killed_processes: self.tree.killed(),
            output_bytes: self.output.bytes(),
            dropped_bytes: self.output.dropped(),
            output_incomplete: self.output.incomplete(),
            max_rss_kib: usage.map_or(0, |usage| usage.max_rss().unsigned_abs()),
            user_time_us: usage.map_or(0, |usage| micros(usage.user_time())),
            system_time_us: usage.map_or(0, |usage| micros(usage.system_time())),
            files: Vec::new(),
        }))
    }
}

/// Field 22 of the process's stat, in clock ticks since boot; 0 if it can't be read.
fn start_time(pid: i32) -> u64 {
    // One read: the name is 16 bytes at most, and up to this field there are 20 numbers.
    let mut bytes = [0; 512];
    let stat = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut bytes));
    let stat = String::from_utf8_lossy(&bytes[..stat.unwrap_or(0)]);
    // The name in the second field may contain anything; the last parenthesis ends it.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

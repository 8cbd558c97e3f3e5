//! What to start, and how it ended: the vocabulary that daemon and shim share.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Files, Taken};

/// Everything a shim needs to start one job. Nothing is taken from the daemon's own environment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The attempt, unique for ever: on *go* it is written to the shim's slot, by which the
    /// [next start](super::spool) knows that it was executed.
    pub attempt: u128,
    /// The place of its start in the caller's log, which is written beside it.
    pub place: u64,
    /// The attempt directory, for its output. It is made (0700) with the first output, and its parent as well.
    #[serde(with = "path_bytes")]
    pub dir: PathBuf,
    /// The program and its arguments. A program without a slash is searched in the `PATH` of [`env`](Self::env).
    pub argv: Vec<OsString>,
    /// The whole environment. Put [`ATTEMPT_MARK`](super::recovery::ATTEMPT_MARK) in it: without cgroups it is
    /// what recovery finds an orphaned tree by.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory of the job, entered as the job's user.
    #[serde(with = "path_bytes")]
    pub cwd: PathBuf,
    /// What the job reads from its standard input; `None` is `/dev/null`.
    pub stdin: Option<Vec<u8>>,
    /// Who the job runs as; `None` is the daemon's own user.
    pub user: Option<User>,
    /// The file mode creation mask, as in `umask(2)`.
    pub umask: u32,
    /// The nice value of the job, -20..=19; `None` leaves the daemon's.
    pub nice: Option<i32>,
    /// Limits set on the job, not on its shim.
    pub rlimits: Vec<RLimit>,
    /// Files that it is given, and that it may leave.
    pub files: Files,
    /// Signals that are blocked when its program starts, and wait until it is ready for them.
    pub blocked_signals: Vec<i32>,
    /// Limits of the whole tree.
    pub limits: TreeLimits,
    /// A log segment is closed once it exceeds this many bytes. See [`Launch::SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// Above this many bytes of log the oldest segment is dropped. See [`Launch::MAX_LOG_BYTES`].
    pub max_log_bytes: u64,
}

impl Launch {
    /// Default size of a log segment, in bytes: 8 of them fit the default quota, so a drop loses an eighth.
    pub const SEGMENT_BYTES: u64 = 8 << 20;
    /// Default quota of an attempt's log, in bytes: 1,000 kept attempts at the quota are 64 GiB at worst.
    pub const MAX_LOG_BYTES: u64 = 64 << 20;

    /// The rest at its defaults: no input, own user, umask 022, no limits, default log bounds.
    pub fn new(
        attempt: u128,
        dir: PathBuf,
        argv: Vec<OsString>,
        env: Vec<(OsString, OsString)>,
        cwd: PathBuf,
    ) -> Self {
        Self {
            attempt,
            place: 0,
            dir,
            argv,
            env,
            cwd,
            stdin: None,
            user: None,
            umask: 0o022,
            nice: None,
            rlimits: Vec::new(),
            files: Files::default(),
            blocked_signals: Vec::new(),
            limits: TreeLimits::default(),
            segment_bytes: Self::SEGMENT_BYTES,
            max_log_bytes: Self::MAX_LOG_BYTES,
        }
    }
}

/// Without the values of the environment and the input: they may be secrets, and this may go to a log.
impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("dir", &self.dir)
            .field("argv", &self.argv)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("stdin", &self.stdin.as_ref().map(Vec::len))
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A numeric identity. The shim looks nothing up: names are resolved by who writes the [`Launch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// Supplementary groups; all others are given up.
    pub groups: Vec<u32>,
}

/// One limit, as in `setrlimit(2)`; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RLimit {
    /// What is limited.
    pub resource: Resource,
    /// The soft limit, in the unit of the resource.
    pub soft: u64,
    /// The hard limit, in the unit of the resource.
    pub hard: u64,
}

/// Limits of a tree, kept by its cgroup: where there is none, or not the controller, the start fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeLimits {
    /// Bytes of memory, page cache included. It has no swap then, and when it needs more, all of it is killed.
    pub memory: Option<u64>,
    /// Processor time in microseconds for each 100 ms: 100,000 is one processor.
    pub cpu: Option<u64>,
    /// Processes and threads at once.
    pub pids: Option<u64>,
}

/// The resources that a job may be limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Address space, bytes.
    AddressSpace,
    /// Core file, bytes.
    Core,
    /// Processor time, seconds.
    Cpu,
    /// Data segment, bytes.
    Data,
    /// Size of a file written, bytes.
    FileSize,
    /// Locked memory, bytes.
    LockedMemory,
    /// Open descriptors, count.
    OpenFiles,
    /// Processes of the user, count.
    Processes,
    /// Main thread's stack, bytes.
    Stack,
}

/// Where a start failed. Together with the errno it says what `ENOENT` alone does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Writing to the slot, or making the job's files.
    Directory,
    /// Making or placing the pipes and `/dev/null`.
    Stdio,
    /// Making or joining the attempt's cgroup.
    Cgroup,
    /// Setting the limits of the whole tree.
    Limits,
    /// Creating the process.
    Fork,
    /// Changing groups, gid, uid, or making that irreversible.
    User,
    /// Setting a limit or the nice value.
    Rlimit,
    /// Entering the working directory.
    Cwd,
    /// Finding or executing the program.
    Exec,
}

impl Stage {
    /// The name used in records: `directory`, `stdio`, `cgroup`, `limits`, `fork`, `user`, `rlimit`, `cwd`, `exec`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Stdio => "stdio",
            Self::Cgroup => "cgroup",
            Self::Limits => "limits",
            Self::Fork => "fork",
            Self::User => "user",
            Self::Rlimit => "rlimit",
            Self::Cwd => "cwd",
            Self::Exec => "exec",
        }
    }
}

/// Why a job did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// What was being done.
    pub stage: Stage,
    /// Why it failed.
    pub errno: i32,
    /// What the error number does not say, as half a sentence for people: what it is that was not found.
    #[serde(default)]
    pub detail: Option<String>,
}

impl StartFailure {
    /// A failure that the error number says all about.
    pub fn new(stage: Stage, errno: i32) -> Self {
        Self { stage, errno, detail: None }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// What is known once the main process has ended and nothing of its tree lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// How the main process ended.
    pub ending: Ending,
    /// When it ended, microseconds since the epoch, by the wall clock.
    pub at: u64,
    /// The shim had sent a signal to the job, or was killing it, when the main process ended. Otherwise a signal that
    /// ended it was somebody else's.
    #[serde(default)]
    pub asked: bool,
    /// The kernel killed of the tree for want of memory.
    #[serde(default)]
    pub oom: Option<Oom>,
    /// Processes of the tree, other than the main one, that had to be killed. A lower bound: one that its own
    /// parent reaped in time is not seen.
    pub killed_processes: u32,
    /// Bytes the job wrote to stdout and stderr, kept or not.
    pub output_bytes: u64,
    /// Of these, bytes that are in no segment: over the quota, or not writable.
    pub dropped_bytes: u64,
    /// The pipes were still open somewhere [`DRAIN_LIMIT`](super::DRAIN_LIMIT) after the tree was dead, or
    /// reading them failed: there may have been more.
    pub output_incomplete: bool,
    /// Largest resident set of any process of the tree, in KiB.
    pub max_rss_kib: u64,
    /// Processor time of the tree in user mode, microseconds.
    pub user_time_us: u64,
    /// Processor time of the tree in the kernel, microseconds.
    pub system_time_us: u64,
    /// What it has left under each of the names in [`Files::taken`].
    #[serde(default)]
    pub files: Vec<Taken>,
}

/// That the kernel killed for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Oom {
    /// How many processes of the tree.
    pub kills: u64,
    /// The tree's own limit, in bytes, if that was reached; otherwise a group above, or the machine, had no more.
    pub limit: Option<u64>,
}

/// A path as the bytes it is: serde's own form refuses names that are not UTF-8.
mod path_bytes {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(from).map(PathBuf::from)
    }
}

//! The job's own process, from its creation to its exec.
//!
//! It runs in the shim's memory until then, which costs neither side a page. It has a copy of its own where it may run out
//! of the tree's memory, for the kernel kills all that share what it kills, and where it becomes another user, who must
//! not reach the shim's memory; and where the kernel does not know the call. The shim waits either way: if the file
//! system of a program or of a working directory hangs, the daemon has the keeper kill the shim.

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::setrlimit;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Pid, Uid};
use rustix::time::{ClockId, clock_gettime};

use super::vfork::{self, Stack};
use crate::process::cgroup::Cgroup;
use crate::process::keeper::sys::{self, ExecStrings};
use crate::process::{Launch, RLimit, Stage, StartFailure, TreeLimits, User};

/// Where programs are searched when the job's environment has no `PATH`: what `getconf PATH` and a login have in
/// common.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// The exit code of a child that could not become the job. Nobody sees it: the stage and errno come another way.
const NOT_STARTED: i32 = 127;

/// How much of a program's first line is looked at, in bytes: the kernel itself reads 256.
const FIRST_LINE: usize = 512;

/// A clock tick of `/proc/PID/stat`, in nanoseconds: `USER_HZ` is 100 wherever runward runs.
const TICK_NS: i64 = 10_000_000;

pub(super) fn failed(stage: Stage) -> impl Fn(io::Error) -> StartFailure {
    move |error| StartFailure::new(stage, error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

pub(super) fn failed_errno(stage: Stage) -> impl Fn(Errno) -> StartFailure {
    move |errno| StartFailure::new(stage, errno as i32)
}

/// The program, its arguments and environment, in the form that exec takes.
#[derive(Debug)]
pub(super) struct Program {
    /// Paths to try in turn.
    candidates: Vec<CString>,
    argv: ExecStrings,
    env: ExecStrings,
}

impl Program {
    /// `EINVAL` for a NUL byte or no argument at all, which the daemon refuses before.
    pub(super) fn new(argv: Vec<OsString>, env: Vec<(OsString, OsString)>) -> Result<Self, StartFailure> {
        let invalid = || StartFailure::new(Stage::Exec, Errno::EINVAL as i32);
        let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|_nul| invalid());
        let name = argv.first().ok_or_else(invalid)?.as_bytes().to_vec();
        let path =
            env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_bytes());
        let candidates: Vec<_> = if name.contains(&b'/') {
            vec![c_string(name)?]
        } else {
            let below =
                |dir: &[u8]| c_string([if dir.is_empty() { b"." } else { dir }, b"/", &name].concat());
            path.split(|byte| *byte == b':').map(below).collect::<Result<_, _>>()?
        };
        let argv = argv.into_iter().map(|arg| c_string(arg.into_vec())).collect::<Result<_, _>>()?;
        let entry =
            |(key, value): (OsString, OsString)| c_string([key.as_bytes(), b"=", value.as_bytes()].concat());
        let env = env.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Self { candidates, argv: ExecStrings::new(argv), env: ExecStrings::new(env) })
    }

    /// Tries the candidates in turn, as a shell does: a directory that lacks the program, or may not be searched, is
    /// passed over; one that has it but may not run it is remembered. A file of an unknown format is not given to a
    /// shell. Allocates nothing.
    fn exec(&self) -> Errno {
        let mut worst = Errno::ENOENT;
        for candidate in &self.candidates {
            let error = sys::execve(candidate, &self.argv, &self.env);
            match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES if self.candidates.len() == 1 || exists(candidate) => worst = Errno::EACCES,
                Errno::EACCES => {}
                other => return other,
            }
        }
        worst
    }

    /// What the kernel did not find, when the program itself is there.
    fn missing(&self, cwd: &Path) -> Option<String> {
        let below = |candidate: &CString| cwd.join(OsStr::from_bytes(candidate.to_bytes()));
        let there = self.candidates.iter().map(below).find(|path| path.exists())?;
        Some(interpreter(&there))
    }
}

/// What a program that is there lacks, when the kernel says that something is not.
fn interpreter(program: &Path) -> String {
    let mut start = [0; FIRST_LINE];
    let length = File::open(program).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    let first_line = start[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let named = first_line.strip_prefix(b"#!").map(|line| String::from_utf8_lossy(line).trim().to_owned());
    let path = program.display();
    match named.as_deref().and_then(|line| line.split([' ', '\t']).next()) {
        Some(interpreter) => format!("{path} is there, but its interpreter {interpreter} is not"),
        None => format!("{path} is there, but the loader that it was built for is not"),
    }
}

fn exists(path: &CStr) -> bool {
    unistd::access(path, unistd::AccessFlags::F_OK).is_ok()
}

/// Everything the child is made of, before there is one.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) launch: &'a Launch,
    pub(super) program: Program,
    pub(super) cwd: CString,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: &'a PipeWriter,
    pub(super) stderr: &'a PipeWriter,
    /// The kernel is to spare this process when memory runs out, and not the job.
    pub(super) spared: bool,
}

/// A child that was made.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    /// Why it could not become the job: it has ended then, or is about to.
    pub(super) failure: Option<StartFailure>,
    /// Field 22 of its `/proc/PID/stat`.
    pub(super) start_time: u64,
}

/// The attempt's cgroup, and its directory, opened to be cloned into.
type Into<'a> = Option<(&'a Cgroup, &'a File)>;

/// Whether the child is to run in this process's memory until its exec.
pub(super) fn shares_memory(launch: &Launch) -> bool {
    vfork::SUPPORTED && launch.user.is_none() && launch.limits == TreeLimits::default()
}

/// Makes the child, and returns when it runs the job's program or can't. `None`: it was killed before it did anything,
/// and is gone.
pub(super) fn spawn(
    plan: &Plan<'_>,
    cgroup: Into<'_>,
    stack: &mut Option<Stack>,
) -> Result<Option<Child>, StartFailure> {
    let shared =
        if shares_memory(plan.launch) { spawn_sharing(plan, cgroup, stack)? } else { Shared::Unknown };
    let mut child = match shared {
        Shared::Unborn => return Ok(None),
        Shared::Born(child) => child,
        Shared::Unknown => spawn_copy(plan, cgroup)?,
    };
    if let Some(failure) = &mut child.failure
        && (failure.stage, failure.errno) == (Stage::Exec, Errno::ENOENT as i32)
    {
        failure.detail = plan.program.missing(&plan.launch.cwd);
    }
    Ok(Some(child))
}

enum Shared {
    /// The kernel does not know the call.
    Unknown,
    Unborn,
    Born(Child),
}

fn spawn_sharing(
    plan: &Plan<'_>,
    cgroup: Into<'_>,
    stack: &mut Option<Stack>,
) -> Result<Shared, StartFailure> {
    let stack = match stack {
        Some(stack) => stack,
        None => stack.insert(Stack::new().map_err(failed(Stage::Fork))?),
    };
    let began = Cell::new(None);
    let failure = Cell::new(None);
    let child = || {
        began.set(Some(tick()));
        failure.set(Some(become_job(plan, None)));
        NOT_STARTED
    };
    let before = tick();
    let pid = match stack.run_child(cgroup.map(|(_, dir)| dir.as_fd()), &child) {
        Ok(pid) => pid,
        Err(e) if sys::clone3_is_unknown(&e) => return Ok(Shared::Unknown),
        Err(e) => return Err(not_made(cgroup)(e)),
    };
    let Some(began) = began.get() else {
        sys::reap_at_its_end(pid).map_err(failed(Stage::Fork))?;
        return Ok(Shared::Unborn);
    };
    // The kernel took the time between ours.
    let start_time = if began == before { began } else { start_time(pid) };
    Ok(Shared::Born(Child { pid, failure: failure.take(), start_time }))
}

fn spawn_copy(plan: &Plan<'_>, cgroup: Into<'_>) -> Result<Child, StartFailure> {
    let (mut verdict, tell) = io::pipe().map_err(failed(Stage::Fork))?;
    let child = |join: Option<&Cgroup>| {
        let failure = become_job(plan, join);
        // It is made of two numbers: it can't fail.
        let bytes = postcard::to_stdvec(&failure).unwrap_or_default();
        // Fails only when the shim is gone, and then this process is being killed.
        (&tell).write_all(&bytes).ok();
        NOT_STARTED
    };
    let plain = |join| sys::fork(|| child(join)).map_err(failed(Stage::Fork));
    let pid = match cgroup {
        None => plain(None)?,
        Some((cgroup, dir)) => match sys::fork_into(dir.as_fd(), || child(None)) {
            Ok(pid) => pid,
            Err(e) if sys::clone3_is_unknown(&e) => plain(Some(cgroup))?,
            Err(e) => return Err(not_made(Some((cgroup, dir)))(e)),
        },
    };
    drop(tell);
    let mut bytes = Vec::new();
    // It ends when the program runs, or the child was killed on the way.
    verdict.read_to_end(&mut bytes).map_err(failed(Stage::Fork))?;
    Ok(Child { pid, failure: postcard::from_bytes(&bytes).ok(), start_time: start_time(pid) })
}

fn not_made(cgroup: Into<'_>) -> impl Fn(io::Error) -> StartFailure + use<> {
    let in_cgroup = cgroup.is_some();
    move |error| match error.raw_os_error() {
        Some(nix::libc::EAGAIN | nix::libc::ENOMEM) => failed(Stage::Fork)(error),
        _ if in_cgroup => failed(Stage::Cgroup)(error),
        _ => failed(Stage::Fork)(error),
    }
}

/// Now, in clock ticks since boot.
fn tick() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    ((now.tv_sec * 1_000_000_000 + now.tv_nsec) / TICK_NS).unsigned_abs()
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

/// In the child. Returns only when it fails. Where the memory is shared nothing here allocates, and it does not with what
/// only such a job has: no other user, no cgroup to join.
fn become_job(plan: &Plan<'_>, join: Option<&Cgroup>) -> StartFailure {
    match prepare(plan, join) {
        Ok(()) => StartFailure::new(Stage::Exec, plan.program.exec() as i32),
        Err(failure) => failure,
    }
}

fn prepare(plan: &Plan<'_>, join: Option<&Cgroup>) -> Result<(), StartFailure> {
    let launch = plan.launch;
    if let Some(cgroup) = join {
        cgroup.join().map_err(failed(Stage::Cgroup))?;
    }
    unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed_errno(Stage::Fork))?;

    unistd::dup2_stdin(&plan.stdin).map_err(failed_errno(Stage::Stdio))?;
    unistd::dup2_stdout(plan.stdout).map_err(failed_errno(Stage::Stdio))?;
    unistd::dup2_stderr(plan.stderr).map_err(failed_errno(Stage::Stdio))?;
    sys::close_all_on_exec().map_err(failed(Stage::Stdio))?;

    if plan.spared {
        share_risk();
    }
    // Before the user changes: raising a limit or a priority takes the daemon's rights.
    if let Some(nice) = launch.nice {
        sys::set_nice(nice).map_err(failed(Stage::Rlimit))?;
    }
    launch.rlimits.iter().try_for_each(set_limit).map_err(failed_errno(Stage::Rlimit))?;
    if let Some(user) = &launch.user {
        become_user(user).map_err(failed_errno(Stage::User))?;
    }
    // If the shim is killed, the main process dies with it at once; the keeper kills the rest. Forgotten by a change
    // of user, so it comes after; before what may hang, so that it ends with the shim then.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed_errno(Stage::Fork))?;
    // After the change as well: the directory must be open to the job's user.
    unistd::chdir(plan.cwd.as_c_str()).map_err(failed_errno(Stage::Cwd))?;
    umask(Mode::from_bits_truncate(launch.umask));

    // Last: from here a signal ends the child. The dispositions are the default ones since the keeper reset them.
    let numbers = launch.blocked_signals.iter();
    let blocked: SigSet = numbers.filter_map(|number| Signal::try_from(*number).ok()).collect();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None).map_err(failed_errno(Stage::Fork))
}

/// Groups, gid, uid in this order, for each needs the rights that the next gives up.
fn become_user(user: &User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<_> = user.groups.iter().copied().map(Gid::from_raw).collect();
    unistd::setgroups(&groups)?;
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)?;
    let (uids, gids) = (unistd::getresuid()?, unistd::getresgid()?);
    let changed = [uids.real, uids.effective, uids.saved] == [uid; 3]
        && [gids.real, gids.effective, gids.saved] == [gid; 3];
    // The proof that there is no way back; only for another user than root, who always has one.
    let regained = !uid.is_root() && unistd::setuid(Uid::from_raw(0)).is_ok();
    if !changed || regained {
        return Err(Errno::EPERM);
    }
    nix::sys::prctl::set_no_new_privs()
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Whether the kernel is to spare this process when memory runs out. Where nothing can be read, nothing was set.
pub(super) fn is_spared() -> bool {
    let score = std::fs::read_to_string(OOM_SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    score.is_some_and(|score| score < 0)
}

/// Takes that back: it is for the daemon and its shims. A child has its own score, also while it shares our memory.
fn share_risk() {
    std::fs::write(OOM_SCORE, "0").ok();
}

fn set_limit(limit: &RLimit) -> Result<(), Errno> {
    setrlimit(limit.resource.number(), limit.soft, limit.hard)
}

//! The job's own process, from the fork to its exec.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::sys::resource::setrlimit;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Pid, Uid};

use crate::process::cgroup::Cgroup;
use crate::process::keeper::sys::{self, ExecStrings};
use crate::process::{Launch, RLimit, Stage, StartFailure, User};

/// Where programs are searched when the job's environment has no `PATH`: what `getconf PATH` and a login have in
/// common.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// The exit code of a child that could not become the job. Nobody sees it: the stage and errno come by pipe.
const NOT_STARTED: i32 = 127;

/// The longest detail of a failure, in bytes: with it the message is still written to a pipe in one piece.
const MAX_DETAIL: usize = 1024;

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
    /// shell.
    fn exec(&self) -> StartFailure {
        let mut worst = Errno::ENOENT;
        let mut detail = None;
        for candidate in &self.candidates {
            let error = sys::execve(candidate, &self.argv, &self.env);
            match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT if detail.is_none() && exists(candidate) => {
                    detail = Some(interpreter(candidate))
                }
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES if self.candidates.len() == 1 || exists(candidate) => worst = Errno::EACCES,
                Errno::EACCES => {}
                other => return StartFailure::new(Stage::Exec, other as i32),
            }
        }
        StartFailure {
            detail: detail.filter(|_| worst == Errno::ENOENT),
            ..StartFailure::new(Stage::Exec, worst as i32)
        }
    }
}

/// What a program that is there lacks, when the kernel says that something is not.
fn interpreter(program: &CStr) -> String {
    let path = String::from_utf8_lossy(program.to_bytes());
    let mut start = [0; MAX_DETAIL / 2];
    let file = File::open(OsStr::from_bytes(program.to_bytes()));
    let length = file.and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    let first_line = start[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let named = first_line.strip_prefix(b"#!").map(|line| String::from_utf8_lossy(line).trim().to_owned());
    match named.as_deref().and_then(|line| line.split([' ', '\t']).next()) {
        Some(interpreter) => format!("{path} is there, but its interpreter {interpreter} is not"),
        None => format!("{path} is there, but the loader that it was built for is not"),
    }
}

fn exists(path: &CStr) -> bool {
    unistd::access(path, unistd::AccessFlags::F_OK).is_ok()
}

/// Everything the child is made of, before it is forked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) launch: Launch,
    pub(super) program: Program,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: PipeWriter,
    pub(super) stderr: PipeWriter,
    /// The attempt's cgroup, opened to be forked into.
    pub(super) cgroup: Option<(Cgroup, File)>,
}

/// A child on its way to become the job.
#[derive(Debug)]
pub(super) struct Forked {
    pub(super) pid: i32,
    /// Closes when the program runs; brings a [`StartFailure`] when it can't.
    pub(super) verdict: PipeReader,
}

/// Forks the child. The ends of its pipes are closed here with `plan`.
pub(super) fn fork(plan: Plan) -> Result<Forked, StartFailure> {
    let (verdict, tell) = io::pipe().map_err(failed(Stage::Fork))?;
    let plain = |join: Option<&Cgroup>| sys::fork(|| become_job(&plan, join, &tell));
    let pid = match &plan.cgroup {
        None => plain(None).map_err(failed(Stage::Fork))?,
        Some((cgroup, dir)) => match sys::fork_into(dir.as_fd(), || become_job(&plan, None, &tell)) {
            Ok(pid) => pid,
            Err(e) if sys::clone3_is_unknown(&e) => plain(Some(cgroup)).map_err(failed(Stage::Fork))?,
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EAGAIN | nix::libc::ENOMEM)) => {
                return Err(failed(Stage::Fork)(e));
            }
            Err(e) => return Err(failed(Stage::Cgroup)(e)),
        },
    };
    // Both sides set it, so that the group exists whoever comes first. Fails when the child has exec'd by now.
    unistd::setpgid(Pid::from_raw(pid), Pid::from_raw(pid)).ok();
    Ok(Forked { pid, verdict })
}

/// Reads the verdict once the pipe is readable; `None`: the program runs (or the child was killed on the way).
pub(super) fn read_verdict(verdict: &mut PipeReader) -> Option<StartFailure> {
    // It is written in one piece.
    let mut bytes = [0; 2 * MAX_DETAIL];
    let length = verdict.read(&mut bytes).ok()?;
    postcard::from_bytes(&bytes[..length]).ok()
}

/// In the child. Returns only when it fails.
fn become_job(plan: &Plan, join: Option<&Cgroup>, tell: &PipeWriter) -> i32 {
    let mut failure = match prepare(plan, join) {
        Ok(()) => plan.program.exec(),
        Err(failure) => failure,
    };
    failure.detail = failure.detail.map(|text| text.chars().take(MAX_DETAIL / 4).collect());
    // It is made of two numbers and a text: it can't fail.
    let bytes = postcard::to_stdvec(&failure).unwrap_or_default();
    let mut tell = tell;
    // Fails only when the shim is gone, and then this process is being killed.
    tell.write_all(&bytes).ok();
    NOT_STARTED
}

fn prepare(plan: &Plan, join: Option<&Cgroup>) -> Result<(), StartFailure> {
    let launch = &plan.launch;
    if let Some(cgroup) = join {
        cgroup.join().map_err(failed(Stage::Cgroup))?;
    }
    unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed_errno(Stage::Fork))?;

    unistd::dup2_stdin(&plan.stdin).map_err(failed_errno(Stage::Stdio))?;
    unistd::dup2_stdout(&plan.stdout).map_err(failed_errno(Stage::Stdio))?;
    unistd::dup2_stderr(&plan.stderr).map_err(failed_errno(Stage::Stdio))?;
    sys::close_all_on_exec().map_err(failed(Stage::Stdio))?;

    share_risk();
    // Before the user changes: raising a limit or a priority takes the daemon's rights.
    if let Some(nice) = launch.nice {
        sys::set_nice(nice).map_err(failed(Stage::Rlimit))?;
    }
    launch.rlimits.iter().try_for_each(set_limit).map_err(failed_errno(Stage::Rlimit))?;
    if let Some(user) = &launch.user {
        become_user(user).map_err(failed_errno(Stage::User))?;
    }
    // After it: the directory must be open to the job's user.
    unistd::chdir(&launch.cwd).map_err(failed_errno(Stage::Cwd))?;
    umask(Mode::from_bits_truncate(launch.umask));

    // If the shim is killed, the main process dies with it at once; the keeper kills the rest. Forgotten by a change
    // of user, so it comes after.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed_errno(Stage::Fork))?;
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

/// Takes back that the kernel is to spare this process when memory runs out: that is for the daemon and its shims.
/// It fails where nothing can be read, and then nothing was set.
fn share_risk() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score < 0) {
        std::fs::write(FILE, "0").ok();
    }
}

fn set_limit(limit: &RLimit) -> Result<(), Errno> {
    setrlimit(limit.resource.number(), limit.soft, limit.hard)
}

//! The job's own process, from the fork to its exec.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::sys::resource::{self, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Pid, Uid};

use crate::process::cgroup::Cgroup;
use crate::process::keeper::sys::{self, ExecStrings};
use crate::process::{Launch, RLimit, Resource, Stage, User};

/// Where programs are searched when the job's environment has no `PATH`: what `getconf PATH` and a login have in
/// common.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// The exit code of a child that could not become the job. Nobody sees it: the stage and errno come by pipe.
const NOT_STARTED: i32 = 127;

/// Why a start failed.
pub(super) type Failure = (Stage, i32);

pub(super) fn failed(stage: Stage) -> impl Fn(io::Error) -> Failure {
    move |error| (stage, error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

fn failed_errno(stage: Stage) -> impl Fn(Errno) -> Failure {
    move |errno| (stage, errno as i32)
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
    pub(super) fn new(argv: Vec<OsString>, env: Vec<(OsString, OsString)>) -> Result<Self, Failure> {
        let invalid = (Stage::Exec, Errno::EINVAL as i32);
        let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|_nul| invalid);
        let name = argv.first().ok_or(invalid)?.as_bytes().to_vec();
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
    fn exec(&self) -> Failure {
        let mut worst = Errno::ENOENT;
        for candidate in &self.candidates {
            let error = sys::execve(candidate, &self.argv, &self.env);
            match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES if self.candidates.len() == 1 || exists(candidate) => worst = Errno::EACCES,
                Errno::EACCES => {}
                other => return (Stage::Exec, other as i32),
            }
        }
        (Stage::Exec, worst as i32)
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
    /// Closes when the program runs; brings a [`Failure`] when it can't.
    pub(super) verdict: PipeReader,
}

/// Forks the child. The ends of its pipes are closed here with `plan`.
pub(super) fn fork(plan: Plan) -> Result<Forked, Failure> {
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
pub(super) fn read_verdict(verdict: &mut PipeReader) -> Option<Failure> {
    use std::io::Read;
    let mut bytes = [0; 8];
    verdict.read_exact(&mut bytes).ok()?;
    let (stage, errno) = bytes.split_at(4);
    let stage = *STAGES.get(u32::from_le_bytes(stage.try_into().ok()?) as usize)?;
    Some((stage, i32::from_le_bytes(errno.try_into().ok()?)))
}

const STAGES: [Stage; 8] = [
    Stage::Directory,
    Stage::Stdio,
    Stage::Cgroup,
    Stage::Fork,
    Stage::User,
    Stage::Rlimit,
    Stage::Cwd,
    Stage::Exec,
];

/// In the child. Returns only when it fails.
fn become_job(plan: &Plan, join: Option<&Cgroup>, tell: &PipeWriter) -> i32 {
    let (stage, errno) = match prepare(plan, join) {
        Ok(()) => plan.program.exec(),
        Err(failure) => failure,
    };
    let number = STAGES.iter().position(|known| *known == stage).unwrap_or_default() as u32;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&errno.to_le_bytes());
    let mut tell = tell;
    // Fails only when the shim is gone, and then this process is being killed.
    tell.write_all(&bytes).ok();
    NOT_STARTED
}

fn prepare(plan: &Plan, join: Option<&Cgroup>) -> Result<(), Failure> {
    let launch = &plan.launch;
    if let Some(cgroup) = join {
        cgroup.join().map_err(failed(Stage::Cgroup))?;
    }
    unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed_errno(Stage::Fork))?;

    unistd::dup2_stdin(&plan.stdin).map_err(failed_errno(Stage::Stdio))?;
    unistd::dup2_stdout(&plan.stdout).map_err(failed_errno(Stage::Stdio))?;
    unistd::dup2_stderr(&plan.stderr).map_err(failed_errno(Stage::Stdio))?;
    sys::close_all_on_exec().map_err(failed(Stage::Stdio))?;

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

fn set_limit(limit: &RLimit) -> Result<(), Errno> {
    let resource = match limit.resource {
        Resource::AddressSpace => resource::Resource::RLIMIT_AS,
        Resource::Core => resource::Resource::RLIMIT_CORE,
        Resource::Cpu => resource::Resource::RLIMIT_CPU,
        Resource::Data => resource::Resource::RLIMIT_DATA,
        Resource::FileSize => resource::Resource::RLIMIT_FSIZE,
        Resource::LockedMemory => resource::Resource::RLIMIT_MEMLOCK,
        Resource::OpenFiles => resource::Resource::RLIMIT_NOFILE,
        Resource::Processes => resource::Resource::RLIMIT_NPROC,
        Resource::Stack => resource::Resource::RLIMIT_STACK,
    };
    setrlimit(resource, limit.soft, limit.hard)
}

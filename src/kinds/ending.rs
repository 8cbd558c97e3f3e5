//! How an attempt at a process job ended, in words for its record.

use std::io;

use jiff::Timestamp;
use nix::errno::Errno;

use super::{
    python,
    run_files::{self, Left},
};
use crate::{
    job::{Exit, Failure, Job, OutputFacts},
    process::{Ending, ExitReport, Stage, StartFailure, spool::Spooled},
    supervisor::ports::End,
};

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// How an attempt ended, from what its shim left for the next start.
pub fn end_of_spooled(spooled: &Spooled, job: &Job) -> End {
    match spooled {
        Spooled::Exited { report, lifeline: false } => end_of(report),
        Spooled::Exited { report, lifeline: true } => {
            let failure = Failure::new("daemon_lost", "the daemon died under it; its processes were killed");
            // What it has left may be half of it.
            let End { exit, output, swept, at, .. } = end_of(report);
            End { exit, output, swept, at, error: Some(failure), lost: true, ..End::default() }
        }
        Spooled::StartFailed(failure) => not_started(failure, job),
    }
}

pub(super) fn not_started(failure: &StartFailure, job: &Job) -> End {
    End { error: Some(start_failure(failure, job)), ..End::default() }
}

pub(super) fn end_of(report: &ExitReport) -> End {
    let exit = match report.ending {
        Ending::Code(code) => Exit::Code(code),
        Ending::Signal(signal) => Exit::Signal(signal),
    };
    let output = OutputFacts {
        bytes: report.output_bytes,
        dropped: report.dropped_bytes,
        incomplete: report.output_incomplete,
    };
    let Left { result, context, error } = run_files::read(&report.files);
    // Who was killed may have been in the middle of writing.
    let error = error.filter(|_| matches!(exit, Exit::Code(_))).or_else(|| violence(report));
    let swept = report.killed_processes;
    let at = i64::try_from(report.at).ok().and_then(|micros| Timestamp::from_microsecond(micros).ok());
    End { exit: Some(exit), output: Some(output), swept, result, context, error, at, ..End::default() }
}

/// What the exit does not tell: who killed it.
fn violence(report: &ExitReport) -> Option<Failure> {
    match (report.ending, report.oom) {
        // What ended by itself with 0 did what it was to do, whatever became of the rest.
        (Ending::Code(0), _) => None,
        (Ending::Code(_) | Ending::Signal(_), Some(oom)) => {
            let message = match oom.limit {
                Some(limit) => format!(
                    "out of memory: it needed more than its limit of {}, so all of it was killed; raise \
                     `limits.memory`, or have it do less at once",
                    size(limit)
                ),
                None => "out of memory: the machine, or a cgroup above the job's, had no more, and the kernel killed \
                         it; run fewer jobs at once, or limit them with `limits.memory`"
                    .to_owned(),
            };
            Some(Failure::new("oom", message))
        }
        (Ending::Signal(SIGKILL), None) if !report.asked => Some(Failure::new(
            "killed_by_other",
            "signal 9, not ours: somebody else killed it, or the kernel did, out of memory (see its log with dmesg) \
             or for a hard limit of processor time",
        )),
        (Ending::Code(_) | Ending::Signal(_), None) => None,
    }
}

/// Bytes, as people write them.
fn size(bytes: u64) -> String {
    let units = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let whole = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{bytes} bytes"), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// Why it did not start: which step failed, on what, and what the system said.
pub(super) fn start_failure(failure: &StartFailure, job: &Job) -> Failure {
    let StartFailure { stage, errno, detail } = failure;
    let system = io::Error::from_raw_os_error(*errno);
    let process = job.process();
    let message = match stage {
        Stage::Directory => format!("the directory for its files could not be made: {system}"),
        Stage::Stdio => format!("its pipes could not be made: {system}"),
        Stage::Cgroup => format!("its cgroup could not be made: {system}"),
        Stage::Limits => format!(
            "its `limits` could not be set: {system}; `containment.limits` in /v1/info has those that can be had here"
        ),
        Stage::Fork => format!("no process could be created: {system}"),
        Stage::User => {
            let names = process.map(|process| [("user", &process.user), ("group", &process.group)]);
            let named = names.iter().flatten();
            let named = named.filter_map(|(what, name)| Some(format!("{what} {}", name.as_ref()?)));
            format!("it could not be run as {}: {system}", named.collect::<Vec<_>>().join(" and "))
        }
        Stage::Rlimit => format!("its rlimits or its nice value could not be set: {system}"),
        Stage::Cwd => {
            let cwd = process.and_then(|process| process.cwd.as_ref());
            let cwd = cwd.map_or_else(|| "/".into(), |cwd| cwd.to_string_lossy());
            format!("its working directory {cwd} could not be entered: {system}")
        }
        Stage::Exec => not_executed(job, *errno, &system, detail.as_deref()),
    };
    Failure {
        kind: "start_failed".into(),
        message,
        stage: Some(stage.name().into()),
        errno: Some(*errno),
        raised: None,
    }
}

fn not_executed(job: &Job, errno: i32, system: &io::Error, detail: Option<&str>) -> String {
    if let Some(detail) = detail {
        return format!("its program could not be executed: {detail}");
    }
    let (what, program) = match job {
        Job::Command(command) => ("program", command.argv.first().map_or("", String::as_str)),
        Job::Script(script) => ("interpreter", super::script::interpreter(&script.source).0),
        Job::Python(python) => ("interpreter", python::interpreter(python)),
        Job::Http(_) | Job::Handler(_) => ("program", ""),
    };
    let advice = if matches!(job, Job::Python(_)) { python::ADVICE } else { "" };
    let searched = !program.contains('/');
    match Errno::from_raw(errno) {
        Errno::ENOENT if searched => format!("its {what} {program} is in no directory of its PATH{advice}"),
        Errno::ENOENT => format!("its {what} {program} does not exist{advice}"),
        Errno::ENOEXEC => {
            format!(
                "its {what} {program} is none that Linux executes; one for the shell begins with `#!/bin/sh`"
            )
        }
        Errno::EAGAIN => {
            format!("its {what} {program} could not be executed: its user has as many processes as it may")
        }
        _ => format!("its {what} {program} could not be executed: {system}{advice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Command, Script},
        process::Oom,
    };

    fn report(ending: Ending, asked: bool, oom: Option<Oom>) -> ExitReport {
        ExitReport {
            ending,
            at: 0,
            asked,
            oom,
            killed_processes: 0,
            output_bytes: 0,
            dropped_bytes: 0,
            output_incomplete: false,
            max_rss_kib: 0,
            user_time_us: 0,
            system_time_us: 0,
            files: Vec::new(),
        }
    }

    #[test]
    fn case_14_out_of_memory_and_a_signal_of_others_are_told_apart() {
        let oom = |limit| Some(Oom { kills: 2, limit });
        let kind = |report: &ExitReport| end_of(report).error.map(|error| (error.kind, error.message));
        let (word, text) = kind(&report(Ending::Signal(9), false, oom(Some(512 << 20)))).expect("an error");
        assert_eq!(word, "oom");
        assert!(text.contains("its limit of 512M") && text.contains("raise `limits.memory`"), "{text}");
        let (word, text) = kind(&report(Ending::Code(137), false, oom(None))).expect("an error");
        assert_eq!(word, "oom");
        assert!(text.contains("the machine"), "{text}");
        let (word, text) = kind(&report(Ending::Signal(9), false, None)).expect("an error");
        assert_eq!(word, "killed_by_other");
        assert!(text.starts_with("signal 9, not ours"), "{text}");
        for quiet in [
            report(Ending::Signal(9), true, None),
            report(Ending::Signal(15), false, None),
            report(Ending::Code(137), false, None),
            report(Ending::Code(0), false, oom(None)),
        ] {
            assert_eq!(kind(&quiet), None, "{quiet:?}");
        }
    }

    #[test]
    fn a_start_that_failed_names_what_it_failed_on() {
        let command = |argv: &str| Job::Command(Command { argv: vec![argv.into()], ..Command::default() });
        let script = |source: &str| Job::Script(Script { source: source.into(), ..Script::default() }.into());
        let say = |job: &Job, stage, errno: Errno| {
            start_failure(&StartFailure::new(stage, errno as i32), job).message
        };
        for (message, expected) in [
            (
                say(&command("nope"), Stage::Exec, Errno::ENOENT),
                "its program nope is in no directory of its PATH",
            ),
            (say(&command("/x"), Stage::Exec, Errno::ENOENT), "its program /x does not exist"),
            (say(&script("#!/no/sh\n"), Stage::Exec, Errno::ENOENT), "its interpreter /no/sh does not exist"),
            (
                say(&command("/x"), Stage::Exec, Errno::EACCES),
                "its program /x could not be executed: Permission",
            ),
            (
                say(&command("/x"), Stage::Cwd, Errno::ENOENT),
                "its working directory / could not be entered: No such",
            ),
        ] {
            assert!(message.starts_with(expected), "{message}");
        }
    }
}

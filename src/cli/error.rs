//! What somebody is told when a command could not do its work, and the exit code that a script gets.

use serde_json::Value;

/// The exit codes of the client commands, after `sysexits.h`, `timeout` and `docker run` where those have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Done.
    Ok = 0,
    /// The job failed and has no exit code to pass on, or a probe says no.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The daemon refused what was asked for; the message names the field.
    Refused = 65,
    /// There is no such runner, variable, queue or file.
    NotFound = 66,
    /// No daemon answers.
    NoDaemon = 69,
    /// The daemon's answer makes no sense.
    Internal = 70,
    /// The connection broke and could not be made again, or input or output failed.
    Broken = 74,
    /// Try again later: the queue is full, the daemon is stopping, or the time to wait is up.
    TryAgain = 75,
    /// The token, or the user, is not admitted.
    Denied = 77,
    /// The settings are wrong.
    Settings = 78,
    /// The job timed out.
    TimedOut = 124,
    /// The daemon or the host died under the job.
    Lost = 125,
    /// The job was cancelled.
    Cancelled = 130,
    /// The job was killed.
    Killed = 137,
}

/// The table of exit codes that `--help` and the manual show.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done; of `run` and `wait`: the job succeeded
  1    the job failed and has no exit code to pass on; of `health`: not ready
  2    the command line is wrong
  65   the daemon refused what was asked for; the message names the field
  66   there is no such runner, variable or file
  69   no daemon answers
  70   the daemon's answer makes no sense
  74   the connection broke and could not be made again, or input or output failed
  75   try again later: the queue is full, the daemon is stopping, or the time to wait is up
  77   the token, or the user, is not admitted
  78   the settings are wrong
Of `run`, `wait` and `submit --wait` besides: the job's own exit code, 128 + N if signal N ended it, and
  124  it timed out
  125  the daemon or the host died under it
  126  it could not be executed
  127  its program does not exist
  130  it was cancelled
  137  it was killed";

/// Where it went wrong.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// Nobody answers there.
    Unreachable,
    /// The connection broke.
    Broken,
    /// The daemon refused it: the problem, as it came.
    Problem(Box<Value>),
    /// On this side.
    Here,
}

/// Why a command could not do its work.
#[derive(Clone, Debug)]
pub(super) struct Error {
    pub(super) code: Code,
    pub(super) cause: Cause,
    pub(super) message: String,
}

impl Error {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, cause: Cause::Here, message: message.into() }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self { code: Code::Broken, cause: Cause::Broken, message: message.into() }
    }

    /// A file of the caller's.
    pub(super) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::Denied,
            _ => Code::Broken,
        };
        Self::new(code, format!("{}: {error}", path.display()))
    }

    /// What the daemon answered instead of carrying it out.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let problem: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let text = |name: &str| problem.get(name).and_then(Value::as_str);
        let code = match status {
            401 | 403 => Code::Denied,
            404 => Code::NotFound,
            408 | 429 | 503 | 507 => Code::TryAgain,
            400..500 => Code::Refused,
            _ => Code::Internal,
        };
        let mut message = match (text("detail"), text("title")) {
            (Some(detail), _) => detail.to_owned(),
            (None, Some(title)) => title.to_owned(),
            (None, None) => format!("the daemon answered with the status {status} and no reason"),
        };
        if let Some(field) = text("field").filter(|field| !field.is_empty() && !message.contains(*field)) {
            message = format!("{field}: {message}");
        }
        if status == 401 {
            message.push_str("; set RUNWARD_TOKEN, or RUNWARD_TOKEN_FILE to the file `token` of the daemon's state directory");
        }
        Self { code, cause: Cause::Problem(Box::new(problem)), message }
    }

    /// Whether asking again may help: it was the connection that failed.
    pub(super) fn is_connection(&self) -> bool {
        match self.cause {
            Cause::Unreachable | Cause::Broken => true,
            Cause::Problem(_) | Cause::Here => false,
        }
    }

    /// The stable word of the daemon's problem.
    pub(super) fn problem(&self) -> Option<&str> {
        match &self.cause {
            Cause::Problem(problem) => problem.get("type")?.as_str()?.strip_prefix("urn:runward:problem:"),
            Cause::Unreachable | Cause::Broken | Cause::Here => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_becomes_its_detail_with_the_field_and_a_code() {
        let body =
            br#"{"type":"urn:runward:problem:invalid-field","detail":"must be shorter","field":"name"}"#;
        let error = Error::of_answer(422, body);
        assert_eq!((error.message.as_str(), error.code), ("name: must be shorter", Code::Refused));
        assert_eq!(error.problem(), Some("invalid-field"));
        for (status, code) in
            [(401, Code::Denied), (404, Code::NotFound), (503, Code::TryAgain), (500, Code::Internal)]
        {
            assert_eq!(Error::of_answer(status, b"<html>").code, code);
        }
    }

    #[test]
    fn the_table_has_every_code() {
        for code in [
            Code::Ok,
            Code::Failed,
            Code::Usage,
            Code::Refused,
            Code::NotFound,
            Code::NoDaemon,
            Code::Internal,
            Code::Broken,
            Code::TryAgain,
            Code::Denied,
            Code::Settings,
            Code::TimedOut,
            Code::Lost,
            Code::Cancelled,
            Code::Killed,
        ] {
            assert!(EXIT_CODES.contains(&format!("\n  {:<4} ", code as u8)), "{code:?}");
        }
    }
}

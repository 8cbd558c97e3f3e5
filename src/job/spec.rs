//! What was asked for. These are the stored types: HTTP has its own and converts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    limits::{Limits, Rlimits},
    state::words,
};

/// A submission, complete with the defaults that were in force when it was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What to do.
    pub job: Job,
    /// A name for people; need not be unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The queue it waits in.
    pub queue: String,
    /// Higher goes first; equal ones go in the order of their acceptance.
    #[serde(default)]
    pub priority: i32,
    /// Labels to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Variables over those of the shared context; a process sees them in its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    /// How long an attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How long the main task may clean up after a cancellation. `None`: the daemon's default, and on a
    /// shutdown all the time there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_grace: Option<Duration>,
    /// How long the executor may drain.
    pub drain_timeout: Duration,
    /// What to do when the daemon or the host dies under it.
    #[serde(default)]
    pub on_lost: OnLost,
    /// The Runner's debug mode; `None` follows the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug: Option<bool>,
}

/// The kinds of job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// A program and its arguments.
    Command(Command),
    /// A shell script.
    Script(Script),
}

impl Job {
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::Script(_) => "script",
        }
    }

    /// How its processes run.
    pub fn process(&self) -> &Process {
        match self {
            Self::Command(Command { process, .. }) | Self::Script(Script { process, .. }) => process,
        }
    }
}

/// A program, executed without a shell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The program, looked up in the job's `PATH`, and its arguments. Never empty.
    pub argv: Vec<String>,
    /// How it runs.
    #[serde(flatten)]
    pub process: Process,
}

/// A script. Its `#!` line chooses the interpreter; without one it is `/bin/sh`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Script {
    /// The script itself.
    pub source: String,
    /// Arguments, `$1` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// How it runs.
    #[serde(flatten)]
    pub process: Process,
}

/// How a process runs, whatever it executes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Environment, over the allow-list and the context.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; the default is `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// What it reads on its standard input; the default is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// The user to run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The group to run as; the default is the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The file mode creation mask, octal; the default is `0022`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<String>,
    /// The nice value; the default is the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// Limits of each of its processes; the default is the daemon's.
    #[serde(default, skip_serializing_if = "Rlimits::is_empty")]
    pub rlimits: Rlimits,
    /// Limits of all of it together.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// The signal that asks it to stop, without `SIG`; the default is `TERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The exit codes that count as success; none is 0 alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub success_exit_codes: Vec<i32>,
}

impl Process {
    /// Whether this exit code counts as success.
    pub fn succeeds_with(&self, code: i32) -> bool {
        if self.success_exit_codes.is_empty() { code == 0 } else { self.success_exit_codes.contains(&code) }
    }
}

words! {
    /// What happens to a job that was lost.
    #[derive(Default)]
    OnLost {
        /// It closes as `lost`.
        #[default]
        Fail = "fail",
        /// It is queued again, as a new attempt.
        Requeue = "requeue",
        /// It is queued again but held until somebody decides.
        Hold = "hold",
    }
}

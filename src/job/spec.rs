//! What was asked for. These are the stored types: HTTP has its own and converts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::state::words;

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
    /// A request over HTTP.
    Http(Http),
    /// An async function that was registered with the daemon.
    Handler(Handler),
}

impl Job {
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::Script(_) => "script",
            Self::Http(_) => "http",
            Self::Handler(_) => "handler",
        }
    }

    /// How its processes run; `None` for a job that runs in the daemon itself.
    pub fn process(&self) -> Option<&Process> {
        match self {
            Self::Command(Command { process, .. }) | Self::Script(Script { process, .. }) => Some(process),
            Self::Http(_) | Self::Handler(_) => None,
        }
    }

    /// Whether it is a coroutine: what it makes of a cancellation is its own affair, as with asyncio.
    pub fn is_coroutine(&self) -> bool {
        match self {
            Self::Command(_) | Self::Script(_) => false,
            Self::Http(_) | Self::Handler(_) => true,
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
    /// The signal that asks it to stop, without `SIG`; the default is `TERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// A request over HTTP, made by the daemon itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Http {
    /// `GET`, `POST`, …
    pub method: String,
    /// `http:` or `https:`, without a user or a password.
    pub url: String,
    /// By name, in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Text>,
    /// What is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// Codes such as `204`, classes such as `2xx`. Never empty.
    pub expected_status: Vec<String>,
    /// How many redirects are followed; the answer of one more is a failure. With 0 a redirect is the answer.
    pub follow_redirects: u32,
    /// How much of an answer's body is read.
    pub max_response_bytes: u64,
}

/// A text, or the name of the context variable that holds it when the job runs: so a secret is in no record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Text {
    /// The text itself.
    Plain(String),
    /// The value of this variable.
    Context(String),
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// A text, or where it stands.
    Text(Text),
    /// JSON.
    Json(serde_json::Value),
}

/// An async function that was registered with the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handler {
    /// The name it was registered under.
    pub name: String,
    /// What it is called with.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub args: serde_json::Value,
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

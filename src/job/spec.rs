//! What was asked for. These are the stored types: HTTP has its own and converts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error};
use serde_json::{Map, Value, value::RawValue};

use super::{
    event::Exit,
    limits::{Limits, Rlimits},
    rare::{Rare, Usual},
    state::words,
};

/// A submission, complete with the defaults that were in force when it was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What to do.
    pub job: Job,
    /// A name for people; need not be unique.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub name: Rare<Option<String>>,
    /// The queue it waits in.
    pub queue: String,
    /// Higher goes first; equal ones go in the order of their acceptance.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Labels to find it by.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub labels: Rare<BTreeMap<String, String>>,
    /// Variables over those of the shared context; a process sees them in its environment.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub context: Rare<BTreeMap<String, String>>,
    /// How many slots it takes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// How long it waits after its acceptance before it may start.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub delay: Rare<Option<Duration>>,
    /// When it may start, by the wall clock.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub start_at: Rare<Option<Timestamp>>,
    /// Of the jobs with the same key only one is started at a time.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub concurrency_key: Rare<Option<String>>,
    /// How long all of it may take, waiting and retries included, counted from its acceptance.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub deadline: Rare<Option<Duration>>,
    /// When a failed attempt is followed by another.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub retry: Rare<Retry>,
    /// How long an attempt may take.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub timeout: Rare<Option<Duration>>,
    /// How long the main task may clean up after a cancellation. `None`: the daemon's default, and on a
    /// shutdown all the time there is.
    #[serde(default, skip_serializing_if = "Rare::is_usual")]
    pub cancel_grace: Rare<Option<Duration>>,
    /// How long the executor may drain.
    pub drain_timeout: Duration,
    /// What to do when the daemon or the host dies under it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_lost: OnLost,
    /// What to do when a shutdown of the daemon stops it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_shutdown: OnLost,
    /// Whether the Runner stays open after a run, for others in the same context.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_open: bool,
    /// Who is told when it has closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_close: Option<Box<Webhook>>,
    /// The Runner's debug mode; `None` follows the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug: Option<bool>,
}

impl Spec {
    /// A job with nothing said of it but what to do.
    pub fn new(job: Job, drain_timeout: Duration) -> Self {
        Self {
            job,
            name: Rare::default(),
            queue: Self::DEFAULT_QUEUE.into(),
            priority: 0,
            labels: Rare::default(),
            context: Rare::default(),
            weight: one(),
            delay: Rare::default(),
            start_at: Rare::default(),
            concurrency_key: Rare::default(),
            deadline: Rare::default(),
            retry: Rare::default(),
            timeout: Rare::default(),
            cancel_grace: Rare::default(),
            drain_timeout,
            on_lost: OnLost::default(),
            on_shutdown: OnLost::default(),
            keep_open: false,
            on_close: None,
            debug: None,
        }
    }

    /// The queue of a job that names none.
    pub const DEFAULT_QUEUE: &str = "default";
}

fn one() -> u32 {
    1
}

fn is_one(weight: &u32) -> bool {
    *weight == one()
}

/// What a spec says nothing of is not stored with each: these defaults are the program's, not an operator's.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// When a failed attempt is followed by another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts in all; 1 is no retry.
    pub max_attempts: u32,
    /// The longest wait before the second attempt; it doubles for each further one.
    pub initial_backoff: Duration,
    /// The longest wait before any.
    pub max_backoff: Duration,
    /// The exit codes that are tried again; empty: any failure, a time-out included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_exit_codes: Vec<i32>,
}

impl Default for Retry {
    fn default() -> Self {
        Self::NONE
    }
}

impl Usual for Retry {
    const USUAL: &'static Self = &Self::NONE;
}

impl Retry {
    const NONE: Self = Self {
        max_attempts: 1,
        initial_backoff: Self::FLOOR,
        max_backoff: Duration::from_secs(60),
        on_exit_codes: Vec::new(),
    };

    /// No wait before another attempt is shorter: a job that fails at once is no busy loop.
    pub const FLOOR: Duration = Duration::from_secs(1);

    /// Whether a failure with this exit is one that is tried again.
    pub fn covers(&self, exit: Option<Exit>) -> bool {
        self.on_exit_codes.is_empty()
            || matches!(exit, Some(Exit::Code(code)) if self.on_exit_codes.contains(&code))
    }

    /// The wait after this many attempts, by exponential backoff with full jitter: anything from the floor to the
    /// ceiling is as likely, and `jitter`, from 0 to 1, says what it is. See "Exponential Backoff And Jitter", AWS
    /// Architecture Blog, 2015.
    pub fn backoff(&self, attempts: u32, jitter: f64) -> Duration {
        let doubled = self
            .initial_backoff
            .saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX));
        let ceiling = doubled.min(self.max_backoff).max(Self::FLOOR);
        Self::FLOOR + (ceiling - Self::FLOOR).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

/// Somebody who is told over HTTP that a Runner has closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Webhook {
    /// Where.
    pub url: String,
    /// The variable of the shared context that holds the key to sign with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// The kinds of job. Large ones are in boxes: tens of thousands of the others may be in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// A program and its arguments.
    Command(Command),
    /// A shell script.
    Script(Box<Script>),
    /// A coroutine of Python.
    Python(Box<Python>),
    /// A request over HTTP.
    Http(Box<Http>),
    /// An async function that was registered with the daemon.
    Handler(Handler),
}

impl Job {
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::Script(_) => "script",
            Self::Python(_) => "python",
            Self::Http(_) => "http",
            Self::Handler(_) => "handler",
        }
    }

    /// The user and the group that it asks to run as.
    pub fn identity(&self) -> (Option<&str>, Option<&str>) {
        let process = self.process();
        let user = process.and_then(|process| process.user.as_deref());
        (user, process.and_then(|process| process.group.as_deref()))
    }

    /// Whether it is a task of the daemon's own, not a process.
    pub fn in_process(&self) -> bool {
        self.process().is_none()
    }

    /// How its processes run; `None` for a job that runs in the daemon itself.
    pub fn process(&self) -> Option<&Process> {
        match self {
            Self::Command(command) => Some(&command.process),
            Self::Script(script) => Some(&script.process),
            Self::Python(python) => Some(&python.process),
            Self::Http(_) | Self::Handler(_) => None,
        }
    }

    /// Whether it is a coroutine: what it makes of a cancellation is its own affair, as with asyncio.
    pub fn is_coroutine(&self) -> bool {
        match self {
            Self::Command(_) | Self::Script(_) => false,
            Self::Python(_) | Self::Http(_) | Self::Handler(_) => true,
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
    pub process: Rare<Process>,
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
    pub process: Rare<Process>,
}

/// A coroutine of Python, run by `asyncio.Runner` in a process of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Python {
    /// Where it is.
    #[serde(flatten)]
    pub code: PythonCode,
    /// Positional arguments of its main function.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Value>,
    /// Arguments by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub kwargs: Map<String, Value>,
    /// The Python that runs it, looked up in the job's `PATH`; the default is [`Python::INTERPRETER`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// How it runs.
    #[serde(flatten)]
    pub process: Rare<Process>,
}

impl Python {
    /// The Python of a job that names none.
    pub const INTERPRETER: &str = "python3";
}

/// Where a coroutine function is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PythonCode {
    /// In this source, by the name `main`.
    Source(String),
    /// In a module that can be imported: `package.module:function`.
    Target(String),
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
    /// The signal that asks it to stop, without `SIG`; the default is `TERM`, for Python `INT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The exit codes that count as success; none is 0 alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub success_exit_codes: Vec<i32>,
}

impl Usual for Process {
    const USUAL: &'static Self = &Self {
        env: BTreeMap::new(),
        cwd: None,
        stdin: None,
        user: None,
        group: None,
        umask: None,
        nice: None,
        rlimits: Rlimits::new(),
        limits: Limits { memory: None, cpu: None, pids: None },
        stop_signal: None,
        success_exit_codes: Vec::new(),
    };
}

impl Process {
    /// Whether this exit code counts as success.
    pub fn succeeds_with(&self, code: i32) -> bool {
        if self.success_exit_codes.is_empty() { code == 0 } else { self.success_exit_codes.contains(&code) }
    }
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
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub args: Json,
}

/// A value of JSON, kept as text: as a tree even a small one takes 400 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Json(Box<str>);

impl Json {
    /// The value.
    pub fn value(&self) -> Value {
        // It was made from one.
        serde_json::from_str(&self.0).unwrap_or_default()
    }

    fn is_null(&self) -> bool {
        &*self.0 == "null"
    }
}

impl Default for Json {
    fn default() -> Self {
        Value::Null.into()
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}

words! {
    /// What happens to a job that the end of the daemon ended.
    #[derive(Default)]
    OnLost {
        /// It closes: as `lost`, or with what the shutdown made of it.
        #[default]
        Fail = "fail",
        /// It is queued again, as a new attempt.
        Requeue = "requeue",
        /// It is queued again but held until somebody decides.
        Hold = "hold",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_stored_as_they_were_given() {
        let args = json!({"z": [1, -0.5, null], "a": {"text": "\"é\n"}});
        let handler = Handler { name: "x".into(), args: args.clone().into() };
        let stored = serde_json::to_string(&handler).expect("written");
        assert_eq!(stored, format!(r#"{{"name":"x","args":{args}}}"#));
        let read: Handler = serde_json::from_str(&stored).expect("read");
        assert_eq!((&read, read.args.value()), (&handler, args));
        let none = Handler { args: Json::default(), ..handler };
        assert_eq!(serde_json::to_string(&none).expect("written"), r#"{"name":"x"}"#);
        assert_eq!(serde_json::from_str::<Handler>(r#"{"name":"x"}"#).expect("read"), none);
    }
}

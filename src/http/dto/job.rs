//! Jobs, as the API shows them.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::limits::{self, Limits, Rlimit, Rlimits};
use crate::job;

/// What to do: one key, the kind.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    /// A program and its arguments, without a shell.
    Command(Command),
    /// A script.
    Script(Script),
    /// A coroutine of Python.
    Python(Python),
    /// A request over HTTP.
    Http(Http),
    /// An async function of the program that embeds the daemon.
    Handler(Handler),
}

/// A program, executed without a shell.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Command {
    /// The program and its arguments.
    argv: Vec<String>,
    /// Where and as whom it runs.
    #[serde(flatten)]
    process: Process,
}

/// A script. Its `#!` line chooses the interpreter; without one it is `/bin/sh`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Script {
    /// The script itself.
    source: String,
    /// Its arguments, `$1` and so on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    /// Where and as whom it runs.
    #[serde(flatten)]
    process: Process,
}

/// A coroutine of Python, run by `asyncio.Runner`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Python {
    /// The source that defines its `main`.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// Where its main function can be imported: `package.module:function`.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Positional arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<serde_json::Value>,
    /// Arguments by name.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    kwargs: serde_json::Map<String, serde_json::Value>,
    /// The Python that runs it; `python3` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    interpreter: Option<String>,
    /// Where and as whom it runs.
    #[serde(flatten)]
    process: Process,
}

/// A request over HTTP, made by the daemon.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Http {
    /// The method.
    method: String,
    /// The address.
    url: String,
    /// The headers: texts, or `{"context": "NAME"}` for what a context variable holds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    headers: BTreeMap<String, serde_json::Value>,
    /// The body: a text, `{"context": "NAME"}`, or any other JSON, which is sent as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<serde_json::Value>,
    /// The codes and classes of an answer that is a success.
    expected_status: Vec<String>,
    /// How many redirects are followed.
    follow_redirects: u32,
    /// How much of the answer's body is read.
    max_response_bytes: u64,
}

/// An async function of the program that embeds the daemon.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Handler {
    /// Its name.
    name: String,
    /// What it is called with.
    args: serde_json::Value,
}

/// What all jobs that are processes have.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Process {
    /// Its environment, over the daemon's allow-list and the context.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    /// Its working directory; `/` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    /// What it reads on its standard input; nothing where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<String>,
    /// The user it runs as; the daemon's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// The group it runs as; its user's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// Its file mode creation mask, octal; `0022` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    umask: Option<String>,
    /// Its nice value; the daemon's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    nice: Option<i32>,
    /// Limits of each of its processes.
    #[serde(skip_serializing_if = "Rlimits::is_empty")]
    #[schema(value_type = BTreeMap<String, Rlimit>)]
    rlimits: Rlimits,
    /// Limits of all of it together.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    /// The signal that asks it to stop; `TERM` where it is not given, for Python `INT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    /// The exit codes that count as success; 0 where none is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    success_exit_codes: Vec<i32>,
}

impl From<&job::Job> for Job {
    fn from(job: &job::Job) -> Self {
        match job {
            job::Job::Command(job::Command { argv, process }) => {
                Self::Command(Command { argv: argv.clone(), process: (&**process).into() })
            }
            job::Job::Script(job::Script { source, args, process }) => Self::Script(Script {
                source: source.clone(),
                args: args.clone(),
                process: (&**process).into(),
            }),
            job::Job::Python(python) => {
                let job::Python { code, args, kwargs, interpreter, process } = &**python;
                let (source, target) = match code.clone() {
                    job::PythonCode::Source(source) => (Some(source), None),
                    job::PythonCode::Target(target) => (None, Some(target)),
                };
                Self::Python(Python {
                    source,
                    target,
                    args: args.clone(),
                    kwargs: kwargs.clone(),
                    interpreter: interpreter.clone(),
                    process: (&**process).into(),
                })
            }
            job::Job::Http(http) => Self::Http((&**http).into()),
            job::Job::Handler(job::Handler { name, args }) => {
                Self::Handler(Handler { name: name.clone(), args: args.value() })
            }
        }
    }
}

impl From<&job::Http> for Http {
    fn from(http: &job::Http) -> Self {
        let job::Http { method, url, headers, body, expected_status, follow_redirects, max_response_bytes } =
            http.clone();
        let text = |text: job::Text| match text {
            job::Text::Plain(text) => text.into(),
            job::Text::Context(name) => serde_json::json!({"context": name}),
        };
        let body = body.map(|body| match body {
            job::Body::Text(given) => text(given),
            job::Body::Json(value) => value,
        });
        let headers = headers.into_iter().map(|(name, value)| (name, text(value))).collect();
        Self { method, url, headers, body, expected_status, follow_redirects, max_response_bytes }
    }
}

impl From<&job::Process> for Process {
    fn from(process: &job::Process) -> Self {
        let job::Process {
            env,
            cwd,
            stdin,
            user,
            group,
            umask,
            nice,
            rlimits,
            limits: whole,
            stop_signal,
            success_exit_codes,
        } = process.clone();
        // The directory came as text.
        let cwd = cwd.map(|cwd| cwd.to_string_lossy().into_owned());
        Self {
            env,
            cwd,
            stdin,
            user,
            group,
            umask,
            nice,
            rlimits: limits::rlimits(&rlimits),
            limits: limits::limits(whole),
            stop_signal,
            success_exit_codes,
        }
    }
}

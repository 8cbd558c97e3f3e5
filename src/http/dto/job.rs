//! Jobs, as the API shows them.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use serde::Serialize;
use utoipa::ToSchema;

use super::limits::{self, Limits, Rlimit, Rlimits};
use crate::job;

/// What to do: one key, the kind.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job<'a> {
    /// A program and its arguments, without a shell.
    Command(Command<'a>),
    /// A script.
    Script(Script<'a>),
    /// A coroutine of Python.
    Python(Python<'a>),
    /// A request over HTTP.
    Http(Http<'a>),
    /// An async function of the program that embeds the daemon.
    Handler(Handler<'a>),
}

/// A program, executed without a shell.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Command<'a> {
    /// The program and its arguments.
    argv: &'a [String],
    /// Where and as whom it runs.
    #[serde(flatten)]
    process: Process<'a>,
}

/// A script. Its `#!` line chooses the interpreter; without one it is `/bin/sh`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Script<'a> {
    /// The script itself.
    source: &'a str,
    /// Its arguments, `$1` and so on.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    args: &'a [String],
    /// Where and as whom it runs.
    #[serde(flatten)]
    process: Process<'a>,
}

/// A coroutine of Python, run by `asyncio.Runner`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Python<'a> {
    /// The source that defines its `main`.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    /// Where its main function can be imported: `package.module:function`.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    /// Positional arguments.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    args: &'a [serde_json::Value],
    /// Arguments by name.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    kwargs: &'a serde_json::Map<String, serde_json::Value>,
    /// The Python that runs it; `python3` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    interpreter: Option<&'a str>,
    /// Where and as whom it runs.
    #[serde(flatten)]
    process: Process<'a>,
}

/// A request over HTTP, made by the daemon.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Http<'a> {
    /// The method.
    method: &'a str,
    /// The address.
    url: &'a str,
    /// The headers: texts, or `{"context": "NAME"}` for what a context variable holds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    headers: BTreeMap<&'a str, Given<'a>>,
    /// The body: a text, `{"context": "NAME"}`, or any other JSON, which is sent as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    body: Option<Given<'a>>,
    /// The codes and classes of an answer that is a success.
    expected_status: &'a [String],
    /// How many redirects are followed.
    follow_redirects: u32,
    /// How much of the answer's body is read.
    max_response_bytes: u64,
}

/// What is sent, or the context variable that holds it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Given<'a> {
    Text(&'a str),
    From { context: &'a str },
    Json(&'a serde_json::Value),
}

/// An async function of the program that embeds the daemon.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Handler<'a> {
    /// Its name.
    name: &'a str,
    /// What it is called with.
    #[schema(value_type = serde_json::Value)]
    args: &'a job::Json,
}

/// What all jobs that are processes have.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Process<'a> {
    /// Its environment, over the daemon's allow-list and the context.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: &'a BTreeMap<String, String>,
    /// Its working directory; `/` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<Cow<'a, str>>,
    /// What it reads on its standard input; nothing where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<&'a str>,
    /// The user it runs as; the daemon's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    /// The group it runs as; its user's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    /// Its file mode creation mask, octal; `0022` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    umask: Option<&'a str>,
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
    stop_signal: Option<&'a str>,
    /// The exit codes that count as success; 0 where none is given.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    success_exit_codes: &'a [i32],
}

impl<'a> From<&'a job::Job> for Job<'a> {
    fn from(job: &'a job::Job) -> Self {
        match job {
            job::Job::Command(job::Command { argv, process }) => {
                Self::Command(Command { argv, process: (&**process).into() })
            }
            job::Job::Script(script) => {
                let job::Script { source, args, process } = &**script;
                Self::Script(Script { source, args, process: (&**process).into() })
            }
            job::Job::Python(python) => {
                let job::Python { code, args, kwargs, interpreter, process } = &**python;
                let (source, target) = match code {
                    job::PythonCode::Source(source) => (Some(&**source), None),
                    job::PythonCode::Target(target) => (None, Some(&**target)),
                };
                Self::Python(Python {
                    source,
                    target,
                    args,
                    kwargs,
                    interpreter: interpreter.as_deref(),
                    process: (&**process).into(),
                })
            }
            job::Job::Http(http) => Self::Http((&**http).into()),
            job::Job::Handler(job::Handler { name, args }) => Self::Handler(Handler { name, args }),
        }
    }
}

impl<'a> From<&'a job::Http> for Http<'a> {
    fn from(http: &'a job::Http) -> Self {
        let job::Http { method, url, headers, body, expected_status, follow_redirects, max_response_bytes } =
            http;
        let body = body.as_ref().map(|body| match body {
            job::Body::Text(text) => text.into(),
            job::Body::Json(value) => Given::Json(value),
        });
        Self {
            method,
            url,
            headers: headers.iter().map(|(name, text)| (&**name, text.into())).collect(),
            body,
            expected_status,
            follow_redirects: *follow_redirects,
            max_response_bytes: *max_response_bytes,
        }
    }
}

impl<'a> From<&'a job::Text> for Given<'a> {
    fn from(text: &'a job::Text) -> Self {
        match text {
            job::Text::Plain(text) => Self::Text(text),
            job::Text::Context(name) => Self::From { context: name },
        }
    }
}

impl<'a> From<&'a job::Process> for Process<'a> {
    fn from(process: &'a job::Process) -> Self {
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
        } = process;
        Self {
            env,
            // The directory came as text.
            cwd: cwd.as_deref().map(Path::to_string_lossy),
            stdin: stdin.as_deref(),
            user: user.as_deref(),
            group: group.as_deref(),
            umask: umask.as_deref(),
            nice: *nice,
            rlimits: limits::rlimits(rlimits),
            limits: limits::limits(*whole),
            stop_signal: stop_signal.as_deref(),
            success_exit_codes,
        }
    }
}

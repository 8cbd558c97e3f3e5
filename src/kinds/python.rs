//! `python`: a coroutine, run by the host's Python in a real `asyncio.Runner`.
//!
//! What is to be run comes in a file beside the bootstrap: arguments and environment are seen by others, and standard
//! input is the job's. SIGINT is blocked until the bootstrap has got to the job's own code, so a cancellation that
//! overtakes it is neither lost nor answered with a traceback of something that the job has not written.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{environment, run_files::RunFiles};
use crate::job::{Failure, Job, Python, PythonCode, Record};

const BOOTSTRAP: &str = include_str!("python/bootstrap.py");

/// Named so that a list of processes tells what it is.
const BOOTSTRAP_NAME: &str = "runward-job.py";
const REQUEST_NAME: &str = "request";

/// How long a job may take to end by its second interrupt, as with a second Ctrl-C. Then it is killed.
pub(super) const INTERRUPT_GRACE: Duration = Duration::from_secs(1);

/// What the bootstrap reads.
#[derive(Serialize)]
struct Request<'a> {
    #[serde(flatten)]
    code: &'a PythonCode,
    args: &'a [Value],
    kwargs: &'a Map<String, Value>,
    debug: Option<bool>,
    /// The variables of the environment that are the job's context. Their values are there.
    variables: Vec<&'a str>,
}

/// The interpreter and its arguments.
pub(super) fn argv(python: &Python, files: &RunFiles) -> Vec<OsString> {
    let interpreter = python.interpreter.as_deref().unwrap_or(Python::INTERPRETER);
    vec![interpreter.into(), files.path(BOOTSTRAP_NAME).into()]
}

/// The files of the job, with its bootstrap and what that is to run.
pub(super) fn files(
    python: &Python,
    record: &Record,
    env: &[(OsString, OsString)],
    files: RunFiles,
) -> serde_json::Result<RunFiles> {
    let own = |name: &&str| record.spec.context.contains_key(*name) || python.process.env.contains_key(*name);
    let request = Request {
        code: &python.code,
        args: &python.args,
        kwargs: &python.kwargs,
        debug: record.spec.debug,
        variables: (env.iter())
            .filter_map(|(name, _)| name.to_str())
            .filter(|name| environment::is_set_for_jobs(OsStr::new(name)) || own(name))
            .collect(),
    };
    let request = serde_json::to_vec(&request)?;
    Ok(files.with_bootstrap([
        (BOOTSTRAP_NAME.to_owned(), BOOTSTRAP.as_bytes().to_vec()),
        (REQUEST_NAME.to_owned(), request),
    ]))
}

/// A failure to start, in words that help with Python.
pub(super) fn explain(job: &Job, failure: Failure) -> Failure {
    match job {
        Job::Python(python) if failure.stage.as_deref() == Some("exec") => {
            let interpreter = python.interpreter.as_deref().unwrap_or(Python::INTERPRETER);
            let message = format!(
                "the interpreter `{interpreter}` could not be executed ({}): install Python 3.11 or later, for \
                 example with `apt-get install python3`, or name one in `interpreter`",
                failure.message
            );
            Failure { message, ..failure }
        }
        Job::Python(_) | Job::Command(_) | Job::Script(_) | Job::Http(_) | Job::Handler(_) => failure,
    }
}

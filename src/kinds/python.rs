//! `python`: a coroutine, run by the host's Python in a real `asyncio.Runner`.
//!
//! What is to be run comes in a file beside the bootstrap: arguments and environment are seen by others, and standard
//! input is the job's. SIGINT is blocked until the bootstrap has got to the job's own code, so a cancellation that
//! overtakes it is neither lost nor answered with a traceback of something that the job has not written.

use std::{collections::BTreeSet, ffi::OsString, time::Duration};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Variables, run_files::RunFiles};
use crate::job::{Python, PythonCode, Record};

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
    variables: BTreeSet<&'a str>,
}

/// The interpreter and its arguments; the bootstrap and its request are among the files.
pub(super) fn argv(python: &Python, request: Vec<u8>, files: &mut RunFiles) -> Vec<OsString> {
    files.give(REQUEST_NAME, request);
    files.take_failure();
    let bootstrap = files.give(BOOTSTRAP_NAME, BOOTSTRAP.as_bytes().to_vec());
    vec![interpreter(python).into(), bootstrap.into()]
}

/// What the bootstrap is to run.
pub(super) fn request(python: &Python, record: &Record, context: &Variables) -> serde_json::Result<Vec<u8>> {
    let names = context.keys().chain(python.process.env.keys());
    serde_json::to_vec(&Request {
        code: &python.code,
        args: &python.args,
        kwargs: &python.kwargs,
        debug: record.spec.debug,
        variables: names.map(String::as_str).collect(),
    })
}

/// The Python that runs it.
pub(super) fn interpreter(python: &Python) -> &str {
    python.interpreter.as_deref().unwrap_or(Python::INTERPRETER)
}

/// What helps where that can't be executed.
pub(super) const ADVICE: &str = "; install Python 3.11 or later, for example with `apt-get install python3`, or name one in `interpreter`";

//! The body of a submission, for the API's description. `submission.rs` reads it, strictly and by hand, so that
//! each fault is named; a test keeps the two alike.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::limits::{LimitsForm, RlimitForm};

/// A job to run, and how.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct Submission {
    /// What to do: exactly one key, the kind.
    job: JobToRun,
    /// A name for people; need not be unique.
    #[schema(max_length = 255)]
    name: Option<String>,
    /// The queue to wait in.
    #[schema(default = "default", max_length = 255)]
    queue: Option<String>,
    /// Higher goes first.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// Labels to find it by.
    labels: Option<BTreeMap<String, String>>,
    /// Variables; a process sees them in its environment.
    context: Option<BTreeMap<String, String>>,
    /// How many slots it takes of those of its queue and of the daemon.
    #[schema(default = 1, minimum = 1, maximum = 1000)]
    weight: Option<u32>,
    /// How long it waits at the least before it may start. Not together with `start_at`.
    delay: Option<Duration>,
    /// When it may start, a time as in RFC 3339; one that has passed is now.
    #[schema(value_type = Option<String>, format = DateTime)]
    start_at: Option<String>,
    /// Of the jobs with the same key only one is started at a time.
    #[schema(max_length = 255)]
    concurrency_key: Option<String>,
    /// How long all of it may take from its submission, waiting and retries included.
    deadline: Option<Duration>,
    /// When a failed attempt is followed by another; without it never.
    retry: Option<RetryForm>,
    /// How long an attempt may take.
    timeout: Option<Duration>,
    /// How long it may clean up after a cancellation. The default is the daemon's, and on a shutdown all the time
    /// there is.
    cancel_grace: Option<Duration>,
    /// How long its executor may drain.
    drain_timeout: Option<Duration>,
    /// What happens when the daemon or the host dies under it: `fail`, `requeue` or `hold`.
    #[schema(default = "fail")]
    on_lost: Option<String>,
    /// What happens when a shutdown of the daemon stops it: `fail`, `requeue` or `hold`.
    #[schema(default = "fail")]
    on_shutdown: Option<String>,
    /// Whether the runner stays open after its run, for others in the same context: `POST /v1/runners/{id}/runs`.
    #[schema(default = false)]
    keep_open: Option<bool>,
    /// Who is told when it has closed.
    on_close: Option<WebhookForm>,
    /// The Runner's debug mode; the default is the daemon's.
    debug: Option<bool>,
}

/// When a failed attempt is followed by another.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct RetryForm {
    /// Attempts in all.
    #[schema(minimum = 1, maximum = 1000)]
    max_attempts: u32,
    /// The longest wait before the second attempt, 1 s at the least; it doubles for each further one. The wait is
    /// anything from 1 s to that, by chance.
    #[schema(default = "1s")]
    initial_backoff: Option<Duration>,
    /// The longest wait before any.
    #[schema(default = "1m")]
    max_backoff: Option<Duration>,
    /// The exit codes that are tried again; without any it is every failure, a time-out included.
    on_exit_codes: Option<Vec<u8>>,
}

/// Who is told when a runner has closed.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct WebhookForm {
    /// Where: `http:` or `https:`.
    url: String,
    /// The variable of the shared context that holds the key to sign with.
    secret: Option<String>,
}

/// Another run of a runner that is kept open.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct RunToAdd {
    /// What to do: exactly one key, the kind.
    job: JobToRun,
}

/// A text such as `30s`, `5m`, `1h30m`, `250ms`, or a number of seconds; ten years at the most.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
enum Duration {
    /// With units: `d`, `h`, `m`, `s`, `ms`.
    Text(String),
    /// Seconds.
    Seconds(f64),
}

/// What to do.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes what is read by hand")]
enum JobToRun {
    /// A program and its arguments, without a shell.
    Command(CommandToRun),
    /// A script.
    Script(ScriptToRun),
    /// A coroutine of Python.
    Python(PythonToRun),
    /// A request over HTTP, made by the daemon itself.
    Http(HttpToRun),
    /// An async function of the program that embeds the daemon; `echo` and `sleep` are always there.
    Handler(HandlerToRun),
}

/// The address to get, alone or with all that can be said of the request.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
enum HttpToRun {
    /// The address.
    Short(String),
    /// The same and more.
    Long(HttpForm),
}

/// A request over HTTP.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct HttpForm {
    /// The method.
    #[schema(default = "GET")]
    method: Option<String>,
    /// The address, `http:` or `https:`, without a user or a password.
    url: String,
    /// Headers: a text, or `{"context": "NAME"}` for what a context variable holds when it runs. A text stands in
    /// the record; a context variable does not.
    #[schema(value_type = Option<Object>)]
    headers: Option<BTreeMap<String, serde_json::Value>>,
    /// A text, `{"context": "NAME"}`, or any other JSON, which is sent as such.
    body: Option<serde_json::Value>,
    /// Codes and classes such as `2xx`; another status is a failure.
    #[schema(value_type = Option<Vec<String>>)]
    expected_status: Option<Vec<String>>,
    /// How many redirects are followed.
    #[schema(default = 5, maximum = 20)]
    follow_redirects: Option<u32>,
    /// How much of the answer's body is read; more is cut, and the result says so.
    #[schema(default = 1_048_576, maximum = 67_108_864)]
    max_response_bytes: Option<u64>,
}

/// The name of a handler, alone or with its arguments.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
enum HandlerToRun {
    /// The name.
    Short(String),
    /// The same and arguments.
    Long(HandlerForm),
}

/// A call of a handler.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct HandlerForm {
    /// Its name.
    name: String,
    /// What it is called with: any JSON.
    args: Option<serde_json::Value>,
}

/// The program and its arguments, alone or with all that can be said of it.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
enum CommandToRun {
    /// The program and its arguments.
    Short(Vec<String>),
    /// The same and more.
    Long(Box<CommandForm>),
}

/// A program, executed without a shell.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct CommandForm {
    /// The program and its arguments.
    #[schema(min_items = 1)]
    argv: Vec<String>,
    /// How it runs.
    #[serde(flatten)]
    process: ProcessForm,
}

/// How a process runs, whatever it executes.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct ProcessForm {
    /// Environment, over the daemon's allow-list and the context.
    env: Option<BTreeMap<String, String>>,
    /// Working directory, absolute.
    #[schema(default = "/")]
    cwd: Option<String>,
    /// What it reads on its standard input.
    stdin: Option<String>,
    /// The user to run as; only where the daemon runs as root.
    user: Option<String>,
    /// The group to run as, the user's own by default; only where the daemon runs as root.
    group: Option<String>,
    /// The file mode creation mask: a text of octal digits.
    #[schema(default = "0022", pattern = "^0?[0-7]{1,3}$")]
    umask: Option<String>,
    /// The nice value; the default is the daemon's. Lower ones only where the daemon may.
    #[schema(minimum = -20, maximum = 19)]
    nice: Option<i32>,
    /// Limits of each of its processes, by name: `as`, `core`, `cpu`, `data`, `fsize`, `memlock`, `nofile`, `nproc`,
    /// `stack`. Higher than the daemon's own only where it may.
    rlimits: Option<BTreeMap<String, RlimitForm>>,
    /// Limits of all of it together.
    limits: Option<LimitsForm>,
    /// The signal that asks it to stop; `TERM` by default, `INT` for Python.
    stop_signal: Option<String>,
    /// The exit codes that count as success. A coroutine of Python that returns has succeeded whatever stands here,
    /// with exit code 0; the list is for one that leaves with `sys.exit`.
    #[schema(default = json!([0]), min_items = 1)]
    success_exit_codes: Option<Vec<u8>>,
}

/// The script, alone or with all that can be said of it.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
enum ScriptToRun {
    /// The script itself.
    Short(String),
    /// The same and more.
    Long(Box<ScriptForm>),
}

/// A script. Its `#!` line chooses the interpreter; without one it is `/bin/sh`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct ScriptForm {
    /// The script itself.
    source: String,
    /// Its arguments, `$1` and so on.
    args: Option<Vec<String>>,
    /// How it runs.
    #[serde(flatten)]
    process: ProcessForm,
}

/// The source, alone or with all that can be said of it.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
enum PythonToRun {
    /// The source itself.
    Short(String),
    /// The same and more.
    Long(Box<PythonForm>),
}

/// A coroutine of Python, run by `asyncio.Runner` in Python 3.11 or later. Either `source` or `target`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
struct PythonForm {
    /// Source that defines `async def main(...)`.
    source: Option<String>,
    /// Where such a function can be imported: `package.module:function`.
    target: Option<String>,
    /// Its positional arguments.
    args: Option<Vec<serde_json::Value>>,
    /// Its arguments by name.
    #[schema(value_type = Option<Object>)]
    kwargs: Option<serde_json::Value>,
    /// The Python that runs it, a path or a name to be found in the job's `PATH`.
    #[schema(default = "python3")]
    interpreter: Option<String>,
    /// How it runs.
    #[serde(flatten)]
    process: ProcessForm,
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;
    use crate::http::submission::{
        FIELDS,
        handler_kind::HANDLER,
        http_kind::HTTP,
        job::{COMMAND, SCRIPT},
        on_close::ON_CLOSE,
        python_kind::PYTHON,
        retry::RETRY,
    };

    fn properties<T: PartialSchema>() -> Vec<String> {
        let schema = serde_json::to_value(T::schema()).expect("JSON");
        let mut names = own_properties(&schema);
        // What every process has stands once, and is referred to.
        for part in schema["allOf"].as_array().into_iter().flatten() {
            names.extend(match part["$ref"].as_str() {
                Some(_) => own_properties(&serde_json::to_value(ProcessForm::schema()).expect("JSON")),
                None => own_properties(part),
            });
        }
        names.sort();
        names
    }

    fn own_properties(schema: &serde_json::Value) -> Vec<String> {
        schema["properties"].as_object().into_iter().flat_map(|map| map.keys().cloned()).collect()
    }

    #[test]
    fn the_description_has_the_fields_that_are_read() {
        for (described, read) in [
            (properties::<Submission>(), &FIELDS[..]),
            (properties::<CommandForm>(), &COMMAND[..]),
            (properties::<ScriptForm>(), &SCRIPT[..]),
            (properties::<PythonForm>(), &PYTHON[..]),
            (properties::<HttpForm>(), &HTTP[..]),
            (properties::<HandlerForm>(), &HANDLER[..]),
            (properties::<RetryForm>(), &RETRY[..]),
            (properties::<WebhookForm>(), &ON_CLOSE[..]),
        ] {
            let mut read = read.to_vec();
            read.sort();
            assert_eq!(described, read);
        }
    }
}

//! The options that say what to run and how, and the submission made of them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::ArgGroup;
use serde_json::{Map, Value, json};

use super::error::{Code, Error};

/// What to run, and how.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(group = ArgGroup::new("kind").args(["script", "python", "target", "http", "handler"]))]
pub struct Submission {
    /// The program and its arguments; with --script, --python and --target the arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND",
        required_unless_present = "kind"
    )]
    argv: Vec<String>,

    /// Run the script in this file, or `-` for standard input; its `#!` line chooses the interpreter.
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    script: Option<PathBuf>,
    /// Run the Python program in this file, or `-` for standard input: it has an `async def main()`.
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    python: Option<PathBuf>,
    /// Run this `async def` of a Python module that the job's interpreter can import.
    #[arg(long, value_name = "MODULE:NAME", help_heading = "What to run")]
    target: Option<String>,
    /// The Python to run it with [default: python3].
    #[arg(long, value_name = "PROGRAM", help_heading = "What to run")]
    interpreter: Option<String>,
    /// Have the daemon make a request to this address.
    #[arg(long, value_name = "URL", help_heading = "What to run", conflicts_with = "argv")]
    http: Option<String>,
    /// Call this async function of the program that embeds the daemon.
    #[arg(long, value_name = "NAME", help_heading = "What to run", conflicts_with = "argv")]
    handler: Option<String>,
    /// The method of the request.
    #[arg(short = 'X', long, value_name = "METHOD", help_heading = "What to run", requires = "http")]
    method: Option<String>,
    /// A header of the request, as `Name: value`; repeatable.
    #[arg(short = 'H', long = "header", value_name = "HEADER", help_heading = "What to run", requires = "http", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The body of the request.
    #[arg(short = 'd', long, value_name = "TEXT", help_heading = "What to run", requires = "http")]
    data: Option<String>,
    /// What the handler is called with: any JSON.
    #[arg(long, value_name = "JSON", help_heading = "What to run", requires = "handler", value_parser = any_json)]
    args: Option<Value>,

    /// A variable of its environment; a name alone takes the value from here. Repeatable.
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Its process")]
    env: Vec<String>,
    /// Its working directory; the current one, if the daemon is on this machine's unix socket, else `/`.
    #[arg(short = 'C', long, value_name = "DIR", help_heading = "Its process")]
    cwd: Option<PathBuf>,
    /// Give it what stands on standard input.
    #[arg(short = 'i', long, help_heading = "Its process")]
    stdin: bool,
    /// The user to run as; only of a daemon that runs as root.
    #[arg(short, long, value_name = "USER", help_heading = "Its process")]
    user: Option<String>,
    /// The group to run as.
    #[arg(short, long, value_name = "GROUP", help_heading = "Its process")]
    group: Option<String>,
    /// The file mode creation mask, in octal digits.
    #[arg(long, value_name = "MASK", help_heading = "Its process")]
    umask: Option<String>,
    /// The nice value.
    #[arg(long, value_name = "N", help_heading = "Its process", allow_negative_numbers = true)]
    nice: Option<i32>,
    /// A limit of all of it: memory=512M, cpu=1.5 or pids=64. Repeatable.
    #[arg(long = "limit", value_name = "NAME=VALUE", help_heading = "Its process", value_parser = pair)]
    limits: Vec<(String, String)>,
    /// A limit of each of its processes, such as nofile=64 or core=unlimited. Repeatable.
    #[arg(long = "rlimit", value_name = "NAME=VALUE", help_heading = "Its process", value_parser = pair)]
    rlimits: Vec<(String, String)>,
    /// The signal that asks it to stop [default: TERM].
    #[arg(long, value_name = "SIGNAL", help_heading = "Its process")]
    stop_signal: Option<String>,
    /// An exit code that counts as success [default: 0]. Repeatable, or separated by commas.
    #[arg(long = "success-code", value_name = "CODE", help_heading = "Its process", value_delimiter = ',')]
    success_codes: Vec<u8>,

    /// A name for people; need not be unique.
    #[arg(short, long, value_name = "NAME", help_heading = "When and how")]
    name: Option<String>,
    /// The queue to wait in [default: default].
    #[arg(short, long, value_name = "QUEUE", help_heading = "When and how")]
    queue: Option<String>,
    /// Higher goes first [default: 0].
    #[arg(short, long, value_name = "N", help_heading = "When and how", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// How many slots it takes [default: 1].
    #[arg(long, value_name = "N", help_heading = "When and how")]
    weight: Option<u32>,
    /// A label to find it by; repeatable.
    #[arg(short, long = "label", value_name = "NAME=VALUE", help_heading = "When and how", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// A variable of its context, over the shared one; repeatable.
    #[arg(short = 'c', long = "context", value_name = "NAME=VALUE", help_heading = "When and how", value_parser = pair)]
    context: Vec<(String, String)>,
    /// Wait so long before it may start, such as 10s or 1h30m.
    #[arg(long, value_name = "TIME", help_heading = "When and how")]
    delay: Option<String>,
    /// Start it then, as in 2030-01-31T06:00:00Z.
    #[arg(long, value_name = "WHEN", help_heading = "When and how")]
    at: Option<String>,
    /// Of the jobs with the same key only one runs at a time.
    #[arg(short, long = "key", value_name = "KEY", help_heading = "When and how")]
    key: Option<String>,
    /// How long one attempt may take.
    #[arg(short, long, value_name = "TIME", help_heading = "When and how")]
    timeout: Option<String>,
    /// How long all of it may take, waiting and retries included.
    #[arg(long, value_name = "TIME", help_heading = "When and how")]
    deadline: Option<String>,
    /// How long it may clean up after a cancellation [default: 30s].
    #[arg(long, value_name = "TIME", help_heading = "When and how")]
    grace: Option<String>,
    /// How long its executor may drain [default: 5m].
    #[arg(long, value_name = "TIME", help_heading = "When and how")]
    drain: Option<String>,
    /// Try it so often in all, with a wait between.
    #[arg(short, long, value_name = "ATTEMPTS", help_heading = "When and how")]
    retry: Option<u32>,
    /// The longest wait before the second attempt; it doubles for each further one [default: 1s].
    #[arg(long, value_name = "TIME", help_heading = "When and how", requires = "retry")]
    backoff: Option<String>,
    /// The longest wait before any attempt [default: 1m].
    #[arg(long, value_name = "TIME", help_heading = "When and how", requires = "retry")]
    max_backoff: Option<String>,
    /// Try again after these exit codes only. Repeatable, or separated by commas.
    #[arg(
        long,
        value_name = "CODE",
        help_heading = "When and how",
        requires = "retry",
        value_delimiter = ','
    )]
    retry_on: Vec<u8>,
    /// When the daemon dies under it: fail, requeue or hold [default: fail].
    #[arg(long, value_name = "WHAT", help_heading = "When and how")]
    on_lost: Option<String>,
    /// When a stop of the daemon ends it: fail, requeue or hold [default: fail].
    #[arg(long, value_name = "WHAT", help_heading = "When and how")]
    on_shutdown: Option<String>,
    /// Post its record to this address when it has closed.
    #[arg(long, value_name = "URL", help_heading = "When and how")]
    on_close: Option<String>,
    /// Keep its runner open for further runs (`--on`), until `runward close`.
    #[arg(long, help_heading = "When and how")]
    keep_open: bool,
    /// Add it as a further run to this runner, which was submitted with --keep-open.
    #[arg(long, value_name = "RUNNER", help_heading = "When and how", conflicts_with_all = [
        "name", "queue", "priority", "weight", "labels", "context", "delay", "at", "key", "timeout", "deadline", "grace",
        "drain", "retry", "on_lost", "on_shutdown", "on_close", "keep_open", "idempotency_key", "debug",
    ])]
    pub(super) on: Option<String>,
    /// A retry with the same key gets the first answer instead of a second job.
    #[arg(long, value_name = "KEY", help_heading = "When and how")]
    pub(super) idempotency_key: Option<String>,
    /// The Runner's debug mode.
    #[arg(long, help_heading = "When and how")]
    debug: bool,
}

/// What of the place where the command was typed a job gets.
pub(super) struct Here {
    /// The working directory, where the daemon has the same one.
    pub(super) cwd: Option<PathBuf>,
    /// All of the environment.
    pub(super) env: bool,
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("must be NAME=VALUE".into()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("must be `Name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn any_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("must be JSON: {error}"))
}

fn object(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect())
}

/// Adds what was said.
struct Fields(Map<String, Value>);

impl Fields {
    fn add(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
        }
    }

    fn some(&mut self, name: &str, there: bool, value: impl FnOnce() -> Value) {
        self.add(name, there.then(value));
    }
}

impl Submission {
    /// The body of the request: a submission, or with `--on` a run.
    pub(super) fn body(&self, here: &Here) -> Result<Value, Error> {
        let mut fields = Fields(Map::new());
        fields.add("job", Some(self.job(here)?));
        fields.add("name", self.name.clone());
        fields.add("queue", self.queue.clone());
        fields.add("priority", self.priority);
        fields.add("weight", self.weight);
        fields.some("labels", !self.labels.is_empty(), || object(&self.labels));
        fields.some("context", !self.context.is_empty(), || object(&self.context));
        fields.add("delay", self.delay.clone());
        fields.add("start_at", self.at.clone());
        fields.add("concurrency_key", self.key.clone());
        fields.add("timeout", self.timeout.clone());
        fields.add("deadline", self.deadline.clone());
        fields.add("cancel_grace", self.grace.clone());
        fields.add("drain_timeout", self.drain.clone());
        fields.add("retry", self.retry.map(|attempts| self.retry(attempts)));
        fields.add("on_lost", self.on_lost.clone());
        fields.add("on_shutdown", self.on_shutdown.clone());
        fields.add("on_close", self.on_close.as_ref().map(|url| json!({"url": url})));
        fields.some("keep_open", self.keep_open, || true.into());
        fields.some("debug", self.debug, || true.into());
        Ok(Value::Object(fields.0))
    }

    fn retry(&self, attempts: u32) -> Value {
        let mut retry = Fields(Map::new());
        retry.add("max_attempts", Some(attempts));
        retry.add("initial_backoff", self.backoff.clone());
        retry.add("max_backoff", self.max_backoff.clone());
        retry.some("on_exit_codes", !self.retry_on.is_empty(), || json!(self.retry_on));
        Value::Object(retry.0)
    }

    fn job(&self, here: &Here) -> Result<Value, Error> {
        if let Some(url) = &self.http {
            self.no_process("http")?;
            return Ok(json!({"http": self.request(url)?}));
        }
        if let Some(name) = &self.handler {
            self.no_process("handler")?;
            return Ok(json!({"handler": {"name": name, "args": self.args}}));
        }
        let (kind, mut fields) = match (&self.script, &self.python, &self.target) {
            (Some(file), _, _) => ("script", self.source(file)?),
            (None, Some(file), _) => ("python", self.source(file)?),
            (None, None, Some(target)) => {
                let mut fields = Fields(Map::from_iter([("target".into(), json!(target))]));
                fields.some("args", !self.argv.is_empty(), || json!(self.argv));
                ("python", fields)
            }
            (None, None, None) => ("command", Fields(Map::from_iter([("argv".into(), json!(self.argv))]))),
        };
        if kind == "python" {
            fields.add("interpreter", self.interpreter.clone());
        } else if self.interpreter.is_some() {
            return Err(Error::usage(
                "--interpreter is of --python and --target; a script names its own in its first line, `#!…`",
            ));
        }
        self.process(&mut fields, here)?;
        Ok(json!({kind: fields.0}))
    }

    fn source(&self, file: &Path) -> Result<Fields, Error> {
        let source = if file == Path::new("-") {
            if self.stdin {
                return Err(Error::usage(
                    "standard input can't be both: it is the program already, leave out --stdin",
                ));
            }
            standard_input()?
        } else {
            fs::read_to_string(file).map_err(|error| Error::file(file, &error))?
        };
        let mut fields = Fields(Map::new());
        fields.add("source", Some(source));
        fields.some("args", !self.argv.is_empty(), || json!(self.argv));
        Ok(fields)
    }

    fn process(&self, fields: &mut Fields, here: &Here) -> Result<(), Error> {
        let mut env = Map::new();
        if here.env {
            let ours = |name: &str| name.starts_with("RUNWARD_");
            let all = std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
            env.extend(all.filter(|(name, _)| !ours(name)).map(|(name, value)| (name, value.into())));
        }
        for text in &self.env {
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let unset = |_| {
                        Error::usage(format!(
                            "--env {text}: there is no such variable here; say {text}=VALUE"
                        ))
                    };
                    (text.as_str(), std::env::var(text).map_err(unset)?)
                }
            };
            env.insert(name.to_owned(), value.into());
        }
        fields.some("env", !env.is_empty(), || Value::Object(env));
        let cwd = self.cwd.as_ref().map(|dir| std::path::absolute(dir).unwrap_or_else(|_| dir.clone()));
        let cwd = cwd.or_else(|| here.cwd.clone()).map(|dir| dir.into_os_string().into_string());
        let cwd = cwd.transpose().map_err(|dir| {
            Error::usage(format!("the working directory {dir:?} is no UTF-8; choose another with --cwd"))
        })?;
        fields.add("cwd", cwd);
        fields.add("stdin", self.stdin.then(standard_input).transpose()?);
        fields.add("user", self.user.clone());
        fields.add("group", self.group.clone());
        fields.add("umask", self.umask.clone());
        fields.add("nice", self.nice);
        let number = |text: &str| {
            text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from))
        };
        let values = |pairs: &[(String, String)]| {
            let value = |text: &str| number(text).unwrap_or_else(|_| text.into());
            Value::Object(pairs.iter().map(|(name, text)| (name.clone(), value(text))).collect())
        };
        fields.some("limits", !self.limits.is_empty(), || values(&self.limits));
        fields.some("rlimits", !self.rlimits.is_empty(), || values(&self.rlimits));
        fields.add("stop_signal", self.stop_signal.clone());
        fields.some("success_exit_codes", !self.success_codes.is_empty(), || json!(self.success_codes));
        Ok(())
    }

    /// A job that is no process of its own has none of these.
    fn no_process(&self, kind: &str) -> Result<(), Error> {
        let given = [
            ("--env", !self.env.is_empty()),
            ("--cwd", self.cwd.is_some()),
            ("--stdin", self.stdin),
            ("--user", self.user.is_some()),
            ("--group", self.group.is_some()),
            ("--umask", self.umask.is_some()),
            ("--nice", self.nice.is_some()),
            ("--limit", !self.limits.is_empty()),
            ("--rlimit", !self.rlimits.is_empty()),
            ("--stop-signal", self.stop_signal.is_some()),
            ("--success-code", !self.success_codes.is_empty()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::usage(format!(
                "{option} is of a process, and a job of --{kind} has none of its own; leave it out"
            ))),
            None => Ok(()),
        }
    }

    fn request(&self, url: &str) -> Result<Value, Error> {
        let mut fields = Fields(Map::new());
        fields.add("url", Some(url));
        fields.add("method", self.method.clone().or_else(|| self.data.as_ref().map(|_| "POST".to_owned())));
        fields.some("headers", !self.headers.is_empty(), || object(&self.headers));
        fields.add("body", self.data.clone());
        Ok(Value::Object(fields.0))
    }
}

/// All that stands on standard input. How much may be the daemon decides.
pub(super) fn standard_input() -> Result<String, Error> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::InvalidData => "it is no UTF-8, and a job's input travels as text".to_owned(),
            _ => error.to_string(),
        };
        Error::new(Code::Broken, format!("standard input can't be read: {why}"))
    })?;
    Ok(text)
}

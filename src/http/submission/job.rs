//! The kinds of job, with what Linux says about arguments and environments.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;

use super::{handler_kind, http_kind, missing, process, python_kind};
use crate::{
    http::{
        Config,
        fields::{Fields, invalid, texts},
        nearest,
        problem::{Kind, Problem},
    },
    job::{Command, Job, Process, Rare, Script, Spec},
    json::join,
};

/// The longest argument or environment variable, with its closing NUL: `MAX_ARG_STRLEN` of Linux.
pub(super) const MAX_STRING: usize = 128 << 10;
/// What Linux takes for arguments and environment with the usual stack limit of 8 MiB, pointers included.
const MAX_EXEC: usize = 2 << 20;
/// Room in that for what the daemon itself adds to the environment, and for the interpreter of a script.
const EXEC_RESERVE: usize = 32 << 10;
/// A pointer to each argument and variable counts too.
const POINTER: usize = 8;
/// The kinds of job of the contract.
pub(super) const KINDS: [&str; 5] = ["command", "script", "http", "python", "handler"];
/// The fields of every job that is a process.
const PROCESS: [&str; 11] = [
    "env",
    "cwd",
    "stdin",
    "user",
    "group",
    "umask",
    "nice",
    "rlimits",
    "limits",
    "stop_signal",
    "success_exit_codes",
];
/// The fields of a command, and of a script.
pub(in crate::http) const COMMAND: [&str; 12] = of_a_process(["argv"]);
pub(in crate::http) const SCRIPT: [&str; 13] = of_a_process(["source", "args"]);

/// Fields of one kind, before those of every process.
pub(super) const fn of_a_process<const OWN: usize, const ALL: usize>(
    own: [&'static str; OWN],
) -> [&'static str; ALL] {
    assert!(OWN + PROCESS.len() == ALL, "all of them and no more");
    let mut all = [""; ALL];
    let mut place = 0;
    while place < ALL {
        all[place] = if place < OWN { own[place] } else { PROCESS[place - OWN] };
        place += 1;
    }
    all
}

/// Signals that may ask a job to stop. `KILL` and `STOP` are not among them: nothing can clean up after the first,
/// and nothing ends by the second.
pub(super) const STOP_SIGNALS: [&str; 8] = ["TERM", "INT", "HUP", "QUIT", "ABRT", "USR1", "USR2", "WINCH"];

pub(super) fn read_job(job: Value, config: &Config) -> Result<Job, Problem> {
    let one = || {
        let detail =
            "`job` must have exactly one key, the kind of job, as in {\"command\": [\"echo\", \"hi\"]}";
        Problem::new(Kind::InvalidField, detail).field("job").allowed(KINDS)
    };
    let Value::Object(map) = job else { return Err(one()) };
    let mut entries = map.into_iter();
    let (Some((kind, value)), None) = (entries.next(), entries.next()) else { return Err(one()) };
    match kind.as_str() {
        "command" => Ok(Job::Command(read_command(value)?)),
        "script" => Ok(Job::Script(Box::new(read_script(value)?))),
        "python" => Ok(Job::Python(Box::new(python_kind::read(value)?))),
        "http" => Ok(Job::Http(Box::new(http_kind::read(value)?))),
        "handler" => Ok(Job::Handler(handler_kind::read(value, &config.handlers)?)),
        other => Err(Problem::new(Kind::UnknownField, nearest::unknown("kind of job", other, &KINDS))
            .field(join("job", other))
            .allowed(KINDS)),
    }
}

fn read_command(value: Value) -> Result<Command, Problem> {
    const PATH: &str = "job.command";
    match value {
        Value::Array(_) => Ok(Command { argv: argv(value, PATH)?, ..Command::default() }),
        Value::Object(_) => {
            let mut fields = Fields::open(value, PATH, &COMMAND)?;
            let path = fields.path("argv");
            let list = fields
                .value("argv")
                .ok_or_else(|| missing(&path, "it must be a non-empty list of strings"))?;
            Ok(Command { argv: argv(list, &path)?, process: read_process(&mut fields)? })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Err(invalid(
            PATH,
            "a non-empty list of strings, the program and its arguments, or an object with `argv`; a line for the \
             shell is a `script`",
        )),
    }
}

fn argv(value: Value, path: &str) -> Result<Vec<String>, Problem> {
    if !value.is_array() {
        return Err(invalid(path, "a non-empty list of strings"));
    }
    let argv = texts(value, path)?;
    match argv.first() {
        None => Err(invalid(path, "a non-empty list of strings: the program, then its arguments")),
        Some(program) if program.is_empty() => {
            Err(invalid(&format!("{path}[0]"), "the name or the path of a program, not empty"))
        }
        Some(_) => {
            arguments(&argv, path)?;
            Ok(argv)
        }
    }
}

pub(super) fn read_process(fields: &mut Fields) -> Result<Rare<Process>, Problem> {
    let process = Process {
        env: environment(fields)?,
        cwd: cwd(fields)?,
        stdin: fields.text("stdin")?,
        user: fields.text("user")?,
        group: fields.text("group")?,
        umask: process::umask(fields)?,
        nice: process::nice(fields)?,
        rlimits: process::rlimits(fields)?,
        limits: process::limits(fields)?,
        stop_signal: stop_signal(fields)?,
        success_exit_codes: process::success_exit_codes(fields)?,
    };
    Ok(process.into())
}

fn read_script(value: Value) -> Result<Script, Problem> {
    const PATH: &str = "job.script";
    match value {
        Value::String(source) => Ok(Script { source: script_source(source, PATH)?, ..Script::default() }),
        Value::Object(_) => {
            let mut fields = Fields::open(value, PATH, &SCRIPT)?;
            let path = fields.path("source");
            let source =
                fields.text("source")?.ok_or_else(|| missing(&path, "it is the script itself, a string"))?;
            let args = fields.texts("args")?.unwrap_or_default();
            arguments(&args, &fields.path("args"))?;
            let process = read_process(&mut fields)?;
            Ok(Script { source: script_source(source, &path)?, args, process })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            Err(invalid(PATH, "the script itself, a string, or an object with `source`"))
        }
    }
}

fn script_source(source: String, path: &str) -> Result<String, Problem> {
    if source.trim_ascii().is_empty() {
        return Err(invalid(path, "the script itself, not empty"));
    }
    without_nul(&source, path)?;
    Ok(source)
}

fn cwd(fields: &mut Fields) -> Result<Option<PathBuf>, Problem> {
    let Some(cwd) = fields.text("cwd")? else { return Ok(None) };
    let path = fields.path("cwd");
    without_nul(&cwd, &path)?;
    if !cwd.starts_with('/') {
        return Err(invalid(&path, "an absolute path, one that begins with `/`"));
    }
    Ok(Some(cwd.into()))
}

fn stop_signal(fields: &mut Fields) -> Result<Option<String>, Problem> {
    let Some(given) = fields.text("stop_signal")? else { return Ok(None) };
    let upper = given.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if STOP_SIGNALS.contains(&name) {
        return Ok(Some(name.to_owned()));
    }
    let path = fields.path("stop_signal");
    let detail = nearest::unknown(&format!("signal in `{path}`:"), &given, &STOP_SIGNALS);
    Err(Problem::new(Kind::InvalidField, detail).field(path).allowed(STOP_SIGNALS))
}

fn environment(fields: &mut Fields) -> Result<BTreeMap<String, String>, Problem> {
    let env = fields.text_map("env")?;
    variables(&env, &fields.path("env"))?;
    Ok(env)
}

pub(super) fn without_nul(text: &str, path: &str) -> Result<(), Problem> {
    if text.contains('\0') { Err(invalid(path, "free of NUL characters (\\u0000)")) } else { Ok(()) }
}

fn arguments(list: &[String], path: &str) -> Result<(), Problem> {
    for (index, argument) in list.iter().enumerate() {
        let path = || format!("{path}[{index}]");
        if argument.len() >= MAX_STRING {
            return Err(invalid(
                &path(),
                "shorter than 128 KiB, as Linux demands of an argument; use `stdin` or a file",
            ));
        }
        without_nul(argument, &path())?;
    }
    Ok(())
}

pub(super) fn variables(map: &BTreeMap<String, String>, path: &str) -> Result<(), Problem> {
    for (name, value) in map {
        let path = join(path, name);
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Problem::new(
                Kind::InvalidField,
                format!("{name:?} in `{path}` is no name of a variable; it must not be empty and have no `=` or NUL"),
            )
            .field(path));
        }
        without_nul(value, &path)?;
        if name.len() + 1 + value.len() >= MAX_STRING {
            return Err(invalid(&path, "shorter than 128 KiB with its name, as Linux demands of a variable"));
        }
    }
    Ok(())
}

/// Checks that Linux can execute it: arguments, environment and context have one limit together.
pub(super) fn fits(spec: &Spec) -> Result<(), Problem> {
    let (arguments, path): (&[String], _) = match &spec.job {
        Job::Command(command) => (&command.argv, "job.command"),
        Job::Script(script) => (&script.args, "job.script"),
        // Its arguments come in a file.
        Job::Python(_) => (&[], "job.python"),
        // Nothing is executed.
        Job::Http(_) | Job::Handler(_) => return Ok(()),
    };
    let env = spec.job.process().map(|process| &process.env).into_iter().flatten();
    let strings = arguments.iter().map(|argument| argument.len() + 1);
    let variables = env.chain(&*spec.context).map(|(name, value)| name.len() + value.len() + 2);
    let total: usize = strings.chain(variables).map(|length| length + POINTER).sum();
    if total + EXEC_RESERVE >= MAX_EXEC {
        return Err(invalid(
            path,
            "smaller: arguments, environment and context together reach 2 MiB, more than Linux takes; use `stdin` or a file",
        ));
    }
    Ok(())
}

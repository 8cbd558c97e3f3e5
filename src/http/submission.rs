//! What a client may submit, and the one place where it becomes a [`Spec`].

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde_json::Value;

use super::{
    Config,
    fields::{Fields, invalid, texts},
    nearest,
    problem::{Kind, Problem},
};
use crate::job::{Command, Job, OnLost, Script, Spec};

/// The longest argument or environment variable, with its closing NUL: `MAX_ARG_STRLEN` of Linux.
const MAX_STRING: usize = 128 << 10;
/// What Linux takes for arguments and environment with the usual stack limit of 8 MiB, pointers included.
const MAX_EXEC: usize = 2 << 20;
/// Room in that for what the daemon itself adds to the environment, and for the interpreter of a script.
const EXEC_RESERVE: usize = 32 << 10;
/// A pointer to each argument and variable counts too.
const POINTER: usize = 8;
/// Names are for people and for lists: long enough for any, short enough for a line.
const MAX_NAME: usize = 255;
/// Labels of one Runner: they are in every row of every list.
const MAX_LABELS: usize = 64;

/// The fields of a submission.
pub(super) const FIELDS: [&str; 15] = [
    "job",
    "name",
    "queue",
    "priority",
    "labels",
    "context",
    "delay",
    "timeout",
    "cancel_grace",
    "drain_timeout",
    "retry",
    "concurrency_key",
    "on_lost",
    "keep_open",
    "debug",
];
const KINDS: [&str; 5] = ["command", "script", "http", "python", "handler"];
pub(super) const COMMAND: [&str; 6] = ["argv", "env", "cwd", "stdin", "user", "stop_signal"];
pub(super) const SCRIPT: [&str; 7] = ["source", "args", "env", "cwd", "stdin", "user", "stop_signal"];

/// Signals that may ask a job to stop. `KILL` and `STOP` are not among them: nothing can clean up after the first,
/// and nothing ends by the second.
pub(super) const STOP_SIGNALS: [&str; 8] = ["TERM", "INT", "HUP", "QUIT", "ABRT", "USR1", "USR2", "WINCH"];

/// Reads a submission.
///
/// # Errors
/// A [`Problem`] that names the field.
pub(super) fn spec(body: Value, config: &Config) -> Result<Arc<Spec>, Problem> {
    let mut fields = Fields::open(body, "", &FIELDS)?;
    refuse_unsupported(&mut fields)?;
    let job = fields
        .value("job")
        .ok_or_else(|| missing("job", r#"say what to do, as in {"job": {"command": ["echo", "hi"]}}"#))?;
    let spec = Spec {
        job: read_job(job)?,
        name: fields.text("name")?,
        queue: fields.text("queue")?.unwrap_or_else(|| DEFAULT_QUEUE.to_owned()),
        priority: fields.integer("priority")?.unwrap_or(0),
        labels: fields.text_map("labels")?,
        context: fields.text_map("context")?,
        timeout: fields.duration("timeout")?,
        cancel_grace: fields.duration("cancel_grace")?,
        drain_timeout: fields.duration("drain_timeout")?.unwrap_or(config.drain_timeout),
        on_lost: on_lost(&mut fields)?,
        debug: fields.flag("debug")?,
    };
    check(&spec)?;
    Ok(Arc::new(spec))
}

/// The queue of a job that names none.
pub(super) const DEFAULT_QUEUE: &str = "default";

fn missing(path: &str, remedy: &str) -> Problem {
    Problem::new(Kind::MissingField, format!("`{path}` is missing; {remedy}")).field(path)
}

fn unsupported(path: &str, instead: &str) -> Problem {
    let detail = format!("`{path}` is not supported by this version of runward; {instead}");
    Problem::new(Kind::Unsupported, detail).field(path)
}

/// Fields of the contract that are not carried out yet pass where they hold what is so anyway.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), Problem> {
    for name in ["delay", "retry", "concurrency_key"] {
        if fields.value(name).is_some() {
            return Err(unsupported(name, "leave it out"));
        }
    }
    match fields.flag("keep_open")? {
        None | Some(false) => Ok(()),
        Some(true) => Err(unsupported("keep_open", "leave it out, and submit a new runner for each run")),
    }
}

fn read_job(job: Value) -> Result<Job, Problem> {
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
        "script" => Ok(Job::Script(read_script(value)?)),
        "http" | "python" | "handler" => {
            Err(unsupported(&format!("job.{kind}"), "submit a `command` or a `script`"))
        }
        other => Err(Problem::new(Kind::UnknownField, nearest::unknown("kind of job", other, &KINDS))
            .field(super::json::join("job", other))
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
            Ok(Command {
                argv: argv(list, &path)?,
                env: environment(&mut fields)?,
                cwd: cwd(&mut fields)?,
                stdin: fields.text("stdin")?,
                user: fields.text("user")?,
                stop_signal: stop_signal(&mut fields)?,
            })
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
            Ok(Script {
                source: script_source(source, &path)?,
                args,
                env: environment(&mut fields)?,
                cwd: cwd(&mut fields)?,
                stdin: fields.text("stdin")?,
                user: fields.text("user")?,
                stop_signal: stop_signal(&mut fields)?,
            })
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

fn on_lost(fields: &mut Fields) -> Result<OnLost, Problem> {
    let Some(word) = fields.text("on_lost")? else { return Ok(OnLost::default()) };
    OnLost::from_word(&word).ok_or_else(|| {
        let words: Vec<_> = OnLost::ALL.iter().map(|known| known.as_str()).collect();
        Problem::new(Kind::InvalidField, nearest::unknown("value of `on_lost`:", &word, &words))
            .field("on_lost")
            .allowed(words)
    })
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

fn without_nul(text: &str, path: &str) -> Result<(), Problem> {
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

fn variables(map: &BTreeMap<String, String>, path: &str) -> Result<(), Problem> {
    for (name, value) in map {
        let path = super::json::join(path, name);
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

/// What concerns more than one field, or is the same for all kinds of job.
fn check(spec: &Spec) -> Result<(), Problem> {
    if let Some(name) = &spec.name {
        printable(name, "name")?;
    }
    let queue_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if spec.queue.is_empty() || spec.queue.len() > MAX_NAME || !spec.queue.chars().all(queue_char) {
        return Err(invalid("queue", "1 to 255 letters, digits, `.`, `_` or `-`"));
    }
    if spec.labels.len() > MAX_LABELS {
        return Err(invalid("labels", "64 labels at the most"));
    }
    for (key, value) in &spec.labels {
        let path = super::json::join("labels", key);
        if key.contains('=') {
            return Err(invalid(
                &path,
                "a label without `=` in its name: lists are filtered by `label=name=value`",
            ));
        }
        printable(key, &path)?;
        if !value.is_empty() {
            printable(value, &path)?;
        }
    }
    variables(&spec.context, "context")?;
    if spec.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(invalid("timeout", "longer than 0; leave it out for no limit"));
    }
    let (arguments, env, path): (&[String], _, _) = match &spec.job {
        Job::Command(command) => (&command.argv, &command.env, "job.command"),
        Job::Script(script) => (&script.args, &script.env, "job.script"),
    };
    let strings = arguments.iter().map(|argument| argument.len() + 1);
    let variables = env.iter().chain(&spec.context).map(|(name, value)| name.len() + value.len() + 2);
    let total: usize = strings.chain(variables).map(|length| length + POINTER).sum();
    if total + EXEC_RESERVE >= MAX_EXEC {
        return Err(invalid(
            path,
            "smaller: arguments, environment and context together reach 2 MiB, more than Linux takes; use `stdin` or a file",
        ));
    }
    Ok(())
}

fn printable(text: &str, path: &str) -> Result<(), Problem> {
    let length = text.chars().count();
    if length == 0 || length > MAX_NAME || text.chars().any(char::is_control) {
        return Err(invalid(path, "1 to 255 characters, without control characters"));
    }
    Ok(())
}

/// The user that a job asks for.
pub(super) fn user(spec: &Spec) -> Option<(&str, &'static str)> {
    match &spec.job {
        Job::Command(command) => command.user.as_deref().map(|user| (user, "job.command.user")),
        Job::Script(script) => script.user.as_deref().map(|user| (user, "job.script.user")),
    }
}

/// Checks that a daemon of this user may run jobs as that one. Asks the system's user database, which may be on a network:
/// not for an async worker.
///
/// # Errors
/// A [`Problem`]: there is no such user, or the daemon may not switch.
pub(super) fn check_user(name: &str, path: &str, daemon: nix::unistd::Uid) -> Result<(), Problem> {
    let user = match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => user,
        Ok(None) | Err(nix::errno::Errno::EINVAL) => {
            return Err(invalid(path, &format!("the name of a user of this machine; it knows no {name:?}")));
        }
        Err(error) => {
            let detail =
                format!("the system's user database can't be read ({error}), so `{path}` can't be checked");
            return Err(Problem::new(Kind::InvalidField, detail).field(path));
        }
    };
    if daemon.is_root() || user.uid == daemon {
        return Ok(());
    }
    Err(invalid(path, "left out: this daemon does not run as root, so it can't run jobs as another user"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Arc<Spec>, Problem> {
        spec(body, &Config::default())
    }

    fn fault(body: Value) -> (Kind, String, String) {
        let shown = body.to_string();
        let problem = read(body).expect_err(&shown);
        (problem.kind(), problem.at().unwrap_or_default().to_owned(), problem.detail().to_owned())
    }

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = read(json!({"job": {"command": ["echo", "hi"]}})).expect("short");
        let long =
            read(json!({"job": {"command": {"argv": ["echo", "hi"]}}, "keep_open": false, "retry": null}));
        assert_eq!(short, long.expect("long"));
        let short = read(json!({"job": {"script": "true"}})).expect("short");
        assert_eq!(short, read(json!({"job": {"script": {"source": "true"}}})).expect("long"));
    }

    #[test]
    fn all_fields_arrive() {
        let spec = read(json!({
            "job": {"command": {"argv": ["x"], "env": {"A": "b"}, "cwd": "/tmp", "stdin": "in", "stop_signal": "sigint"}},
            "name": "n", "queue": "q", "priority": -3, "labels": {"team": "data"}, "context": {"PGHOST": "db1"},
            "timeout": "1h", "cancel_grace": 2.5, "drain_timeout": "0s", "on_lost": "hold", "debug": true,
        }))
        .expect("valid");
        let Job::Command(command) = &spec.job else { panic!("a command") };
        assert_eq!(command.stop_signal.as_deref(), Some("INT"));
        assert_eq!(command.cwd.as_deref(), Some(std::path::Path::new("/tmp")));
        assert_eq!((spec.priority, spec.on_lost, spec.debug), (-3, OnLost::Hold, Some(true)));
        assert_eq!(spec.timeout, Some(Duration::from_secs(3600)));
        assert_eq!(spec.cancel_grace, Some(Duration::from_millis(2500)));
        assert_eq!(spec.drain_timeout, Duration::ZERO);
        assert_eq!(spec.context["PGHOST"], "db1");
    }

    #[test]
    fn each_fault_names_its_field() {
        let job = json!({"command": ["true"]});
        let big = "x".repeat(MAX_STRING);
        let many: Vec<_> = std::iter::repeat_n("a", 210_000).collect();
        for (body, kind, field) in [
            (json!([]), Kind::InvalidField, ""),
            (json!({}), Kind::MissingField, "job"),
            (json!({"job": job, "tiemout": 1}), Kind::UnknownField, "tiemout"),
            (json!({"job": {"command": ["a"], "script": "b"}}), Kind::InvalidField, "job"),
            (json!({"job": {"comand": ["a"]}}), Kind::UnknownField, "job.comand"),
            (json!({"job": {"python": {}}}), Kind::Unsupported, "job.python"),
            (json!({"job": {"command": []}}), Kind::InvalidField, "job.command"),
            (json!({"job": {"command": "ls"}}), Kind::InvalidField, "job.command"),
            (json!({"job": {"command": [""]}}), Kind::InvalidField, "job.command[0]"),
            (json!({"job": {"command": ["a", 1]}}), Kind::InvalidField, "job.command[1]"),
            (json!({"job": {"command": ["a\u{0}"]}}), Kind::InvalidField, "job.command[0]"),
            (json!({"job": {"command": ["a", big]}}), Kind::InvalidField, "job.command[1]"),
            (json!({"job": {"command": many}}), Kind::InvalidField, "job.command"),
            (json!({"job": {"command": {"env": {}}}}), Kind::MissingField, "job.command.argv"),
            (
                json!({"job": {"command": {"argv": ["a"], "env": {"A=B": ""}}}}),
                Kind::InvalidField,
                "job.command.env[\"A=B\"]",
            ),
            (
                json!({"job": {"command": {"argv": ["a"], "env": {"": ""}}}}),
                Kind::InvalidField,
                "job.command.env[\"\"]",
            ),
            (
                json!({"job": {"command": {"argv": ["a"], "env": {"A": "\u{0}"}}}}),
                Kind::InvalidField,
                "job.command.env.A",
            ),
            (
                json!({"job": {"command": {"argv": ["a"], "cwd": "tmp"}}}),
                Kind::InvalidField,
                "job.command.cwd",
            ),
            (
                json!({"job": {"command": {"argv": ["a"], "stop_signal": "KILL"}}}),
                Kind::InvalidField,
                "job.command.stop_signal",
            ),
            (json!({"job": {"script": " \n"}}), Kind::InvalidField, "job.script"),
            (json!({"job": {"script": "a\u{0}"}}), Kind::InvalidField, "job.script"),
            (json!({"job": {"script": {"source": "a", "argv": []}}}), Kind::UnknownField, "job.script.argv"),
            (json!({"job": job, "context": {"A=": "x"}}), Kind::InvalidField, "context[\"A=\"]"),
            (json!({"job": job, "labels": {"a=b": "x"}}), Kind::InvalidField, "labels[\"a=b\"]"),
            (json!({"job": job, "labels": {"a": 1}}), Kind::InvalidField, "labels.a"),
            (json!({"job": job, "queue": "a b"}), Kind::InvalidField, "queue"),
            (json!({"job": job, "name": ""}), Kind::InvalidField, "name"),
            (json!({"job": job, "priority": 1.5}), Kind::InvalidField, "priority"),
            (json!({"job": job, "priority": 1e30}), Kind::InvalidField, "priority"),
            (json!({"job": job, "timeout": "soon"}), Kind::InvalidField, "timeout"),
            (json!({"job": job, "timeout": -1}), Kind::InvalidField, "timeout"),
            (json!({"job": job, "timeout": 0}), Kind::InvalidField, "timeout"),
            (json!({"job": job, "cancel_grace": 1e300}), Kind::InvalidField, "cancel_grace"),
            (json!({"job": job, "on_lost": "requeu"}), Kind::InvalidField, "on_lost"),
            (json!({"job": job, "debug": "yes"}), Kind::InvalidField, "debug"),
            (json!({"job": job, "retry": {"max_attempts": 3}}), Kind::Unsupported, "retry"),
            (json!({"job": job, "delay": "10s"}), Kind::Unsupported, "delay"),
            (json!({"job": job, "keep_open": true}), Kind::Unsupported, "keep_open"),
            (json!({"job": job, "concurrency_key": "a"}), Kind::Unsupported, "concurrency_key"),
        ] {
            let shown: String = body.to_string().chars().take(120).collect();
            let (is, at, detail) = fault(body);
            assert_eq!((is, at.as_str()), (kind, field), "{shown}: {detail}");
        }
    }

    #[test]
    fn a_misspelt_field_is_guessed() {
        let (_, _, detail) = fault(json!({"job": {"command": ["true"]}, "tiemout": 1}));
        assert!(detail.contains("did you mean \"timeout\"?"), "{detail}");
    }

    #[test]
    fn users_are_checked() {
        let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("readable").expect("known");
        let root = nix::unistd::Uid::from_raw(0);
        assert!(check_user(&me.name, "u", me.uid).is_ok());
        assert_eq!(check_user("no such user", "u", root).expect_err("unknown").at(), Some("u"));
        assert!(check_user("root", "u", nix::unistd::Uid::from_raw(12_345)).is_err());
        assert!(check_user("daemon", "u", root).is_ok());
    }
}

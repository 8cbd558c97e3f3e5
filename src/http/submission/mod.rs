//! What a client may submit, and the one place where it becomes a [`Spec`].

pub(super) mod handler_kind;
pub(super) mod http_kind;
pub(super) mod job;
pub(super) mod on_close;
pub(super) mod process;
pub(super) mod python_kind;
pub(super) mod retry;
mod when;

use std::sync::Arc;

use serde_json::Value;

use super::{
    Config,
    fields::{Fields, invalid},
    nearest,
    problem::{Kind, Problem},
};
use crate::{
    job::{Job, OnLost, Spec},
    json::join,
};
pub(super) use process::{check_identity, names_identity};

/// Names are for people and for lists: long enough for any, short enough for a line.
const MAX_NAME: usize = 255;
/// Labels of one Runner: they are in every row of every list.
const MAX_LABELS: usize = 64;
/// Slots that one job takes: more than any daemon has.
const MAX_WEIGHT: u32 = 1000;

/// The fields of a submission.
pub(super) const FIELDS: [&str; 20] = [
    "job",
    "name",
    "queue",
    "priority",
    "labels",
    "context",
    "weight",
    "delay",
    "start_at",
    "concurrency_key",
    "deadline",
    "retry",
    "timeout",
    "cancel_grace",
    "drain_timeout",
    "on_lost",
    "on_shutdown",
    "keep_open",
    "on_close",
    "debug",
];

/// Reads a submission.
///
/// # Errors
/// A [`Problem`] that names the field.
pub(super) fn spec(body: Value, config: &Config) -> Result<Arc<Spec>, Problem> {
    let mut fields = Fields::open(body, "", &FIELDS)?;
    let job = read_job(&mut fields, config)?;
    let mut spec = Spec {
        name: fields.text("name")?.into(),
        queue: fields.text("queue")?.unwrap_or_else(|| Spec::DEFAULT_QUEUE.to_owned()),
        priority: fields.integer("priority")?.unwrap_or(0),
        labels: fields.text_map("labels")?.into(),
        context: fields.text_map("context")?.into(),
        weight: fields.number("weight", 1..=MAX_WEIGHT)?.unwrap_or(1),
        concurrency_key: fields.text("concurrency_key")?.into(),
        retry: retry::read(&mut fields)?.into(),
        timeout: fields.duration("timeout")?.into(),
        cancel_grace: fields.duration("cancel_grace")?.into(),
        on_lost: on_lost(&mut fields, "on_lost")?,
        on_shutdown: on_lost(&mut fields, "on_shutdown")?,
        keep_open: fields.flag("keep_open")?.unwrap_or(false),
        on_close: on_close::read(&mut fields)?.map(Box::new),
        debug: fields.flag("debug")?,
        ..Spec::new(job, fields.duration("drain_timeout")?.unwrap_or(config.drain_timeout))
    };
    when::read(&mut fields, &mut spec)?;
    check(&spec)?;
    Ok(Arc::new(spec))
}

/// Reads another run of a Runner that is kept open. It has what the Runner has; only what to do is new.
///
/// # Errors
/// A [`Problem`] that names the field.
pub(super) fn run(body: Value, of: &Spec, config: &Config) -> Result<Arc<Spec>, Problem> {
    let mut fields = Fields::open(body, "", &["job"])?;
    let spec = Spec { job: read_job(&mut fields, config)?, ..of.clone() };
    job::fits(&spec)?;
    Ok(Arc::new(spec))
}

fn read_job(fields: &mut Fields, config: &Config) -> Result<Job, Problem> {
    let job = fields
        .value("job")
        .ok_or_else(|| missing("job", r#"say what to do, as in {"job": {"command": ["echo", "hi"]}}"#))?;
    let job = job::read_job(job, config)?;
    process::check_permits(&job, &config.permits)?;
    Ok(job)
}

fn missing(path: &str, remedy: &str) -> Problem {
    Problem::new(Kind::MissingField, format!("`{path}` is missing; {remedy}")).field(path)
}

fn on_lost(fields: &mut Fields, name: &str) -> Result<OnLost, Problem> {
    let Some(word) = fields.text(name)? else { return Ok(OnLost::default()) };
    OnLost::from_word(&word).ok_or_else(|| {
        let words: Vec<_> = OnLost::ALL.iter().map(|known| known.as_str()).collect();
        Problem::new(Kind::InvalidField, nearest::unknown(&format!("value of `{name}`:"), &word, &words))
            .field(name)
            .allowed(words)
    })
}

/// What concerns more than one field, or is the same for all kinds of job.
fn check(spec: &Spec) -> Result<(), Problem> {
    if let Some(name) = &*spec.name {
        printable(name, "name")?;
    }
    if !is_queue(&spec.queue) {
        return Err(invalid("queue", QUEUE));
    }
    if let Some(key) = &*spec.concurrency_key {
        printable(key, "concurrency_key")?;
    }
    if spec.labels.len() > MAX_LABELS {
        return Err(invalid("labels", "64 labels at the most"));
    }
    for (key, value) in &*spec.labels {
        let path = join("labels", key);
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
    job::variables(&spec.context, "context")?;
    if spec.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(invalid("timeout", "longer than 0; leave it out for no limit"));
    }
    job::fits(spec)
}

/// What names a queue.
pub(super) const QUEUE: &str = "1 to 255 letters, digits, `.`, `_` or `-`";

/// Whether it names a queue: it stands in addresses and in settings.
pub(super) fn is_queue(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits)
}

fn printable(text: &str, path: &str) -> Result<(), Problem> {
    let length = text.chars().count();
    if length == 0 || length > MAX_NAME || text.chars().any(char::is_control) {
        return Err(invalid(path, "1 to 255 characters, without control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::{job::*, on_close::ON_CLOSE, retry::RETRY, *};
    use crate::job::Retry;

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
            "timeout": "1h", "cancel_grace": 2.5, "drain_timeout": "0s", "on_lost": "hold", "debug": true, "weight": 4,
            "start_at": "2030-01-31T07:00:00+01:00", "concurrency_key": "dump app", "deadline": "2d", "on_shutdown": "requeue",
            "retry": {"max_attempts": 3, "initial_backoff": "90s", "on_exit_codes": [75, 2, 75]}, "keep_open": true,
            "on_close": {"url": "https://example.org/done?x=1", "secret": "SIGNING_KEY"},
        }))
        .expect("valid");
        assert_eq!((spec.weight, spec.keep_open, spec.on_shutdown), (4, true, OnLost::Requeue));
        assert_eq!(*spec.start_at, Some("2030-01-31T06:00:00Z".parse().expect("a time")));
        assert_eq!((*spec.delay, *spec.deadline), (None, Some(Duration::from_secs(2 * 24 * 3600))));
        assert_eq!(spec.concurrency_key.as_deref(), Some("dump app"));
        let minute_and_a_half = Duration::from_secs(90);
        assert_eq!(
            *spec.retry,
            Retry {
                max_attempts: 3,
                initial_backoff: minute_and_a_half,
                // The usual longest wait would be shorter than the first.
                max_backoff: minute_and_a_half,
                on_exit_codes: vec![2, 75],
            }
        );
        let webhook = spec.on_close.as_ref().expect("a webhook");
        assert_eq!(
            (webhook.url.as_str(), webhook.secret.as_deref()),
            ("https://example.org/done?x=1", Some("SIGNING_KEY"))
        );
        let Job::Command(command) = &spec.job else { panic!("a command") };
        assert_eq!(command.process.stop_signal.as_deref(), Some("INT"));
        assert_eq!(command.process.cwd.as_deref(), Some(std::path::Path::new("/tmp")));
        assert_eq!((spec.priority, spec.on_lost, spec.debug), (-3, OnLost::Hold, Some(true)));
        assert_eq!(*spec.timeout, Some(Duration::from_secs(3600)));
        assert_eq!(*spec.cancel_grace, Some(Duration::from_millis(2500)));
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
            (json!({"job": {"python": {}}}), Kind::MissingField, "job.python.source"),
            (
                json!({"job": {"script": {"source": "a", "limits": {"pids": 5}}}}),
                Kind::Unavailable,
                "job.script.limits.pids",
            ),
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
            (json!({"job": job, "on_shutdown": "lose"}), Kind::InvalidField, "on_shutdown"),
            (json!({"job": job, "weight": 0}), Kind::InvalidField, "weight"),
            (json!({"job": job, "weight": 1001}), Kind::InvalidField, "weight"),
            (json!({"job": job, "weight": "2"}), Kind::InvalidField, "weight"),
            (json!({"job": job, "delay": "soon"}), Kind::InvalidField, "delay"),
            (json!({"job": job, "start_at": "tomorrow"}), Kind::InvalidField, "start_at"),
            (json!({"job": job, "start_at": "2030-01-31T06:00:00"}), Kind::InvalidField, "start_at"),
            (json!({"job": job, "start_at": 1_900_000_000}), Kind::InvalidField, "start_at"),
            (
                json!({"job": job, "start_at": "2030-01-31T06:00:00Z", "delay": "1s"}),
                Kind::InvalidField,
                "start_at",
            ),
            (json!({"job": job, "deadline": 0}), Kind::InvalidField, "deadline"),
            (json!({"job": job, "deadline": "1m", "delay": "1m"}), Kind::InvalidField, "deadline"),
            (json!({"job": job, "concurrency_key": ""}), Kind::InvalidField, "concurrency_key"),
            (json!({"job": job, "concurrency_key": "a\n"}), Kind::InvalidField, "concurrency_key"),
            (json!({"job": job, "concurrency_key": "k".repeat(256)}), Kind::InvalidField, "concurrency_key"),
            (json!({"job": job, "keep_open": "yes"}), Kind::InvalidField, "keep_open"),
            (json!({"job": job, "retry": 3}), Kind::InvalidField, "retry"),
            (json!({"job": job, "retry": {}}), Kind::MissingField, "retry.max_attempts"),
            (json!({"job": job, "retry": {"attempts": 3}}), Kind::UnknownField, "retry.attempts"),
            (json!({"job": job, "retry": {"max_attempts": 0}}), Kind::InvalidField, "retry.max_attempts"),
            (json!({"job": job, "retry": {"max_attempts": 1001}}), Kind::InvalidField, "retry.max_attempts"),
            (
                json!({"job": job, "retry": {"max_attempts": 2, "initial_backoff": "999ms"}}),
                Kind::InvalidField,
                "retry.initial_backoff",
            ),
            (
                json!({"job": job, "retry": {"max_attempts": 2, "initial_backoff": "5s", "max_backoff": "4s"}}),
                Kind::InvalidField,
                "retry.max_backoff",
            ),
            (
                json!({"job": job, "retry": {"max_attempts": 2, "on_exit_codes": 1}}),
                Kind::InvalidField,
                "retry.on_exit_codes",
            ),
            (
                json!({"job": job, "retry": {"max_attempts": 2, "on_exit_codes": [1, 256]}}),
                Kind::InvalidField,
                "retry.on_exit_codes[1]",
            ),
            (json!({"job": job, "on_close": "http://x"}), Kind::InvalidField, "on_close"),
            (json!({"job": job, "on_close": {}}), Kind::MissingField, "on_close.url"),
            (json!({"job": job, "on_close": {"url": "x.org"}}), Kind::InvalidField, "on_close.url"),
            (json!({"job": job, "on_close": {"url": "ftp://x.org"}}), Kind::InvalidField, "on_close.url"),
            (json!({"job": job, "on_close": {"url": "https://"}}), Kind::InvalidField, "on_close.url"),
            (
                json!({"job": job, "on_close": {"url": "https://u:p@x.org"}}),
                Kind::InvalidField,
                "on_close.url",
            ),
            (
                json!({"job": job, "on_close": {"url": "https://x.org", "secret": ""}}),
                Kind::InvalidField,
                "on_close.secret",
            ),
            (
                json!({"job": job, "on_close": {"url": "https://x.org", "secret": "dGhlIGtleQ=="}}),
                Kind::InvalidField,
                "on_close.secret",
            ),
        ] {
            let shown: String = body.to_string().chars().take(120).collect();
            let (is, at, detail) = fault(body);
            assert_eq!((is, at.as_str()), (kind, field), "{shown}: {detail}");
        }
    }

    /// Anything, most likely with names and values that mean something somewhere.
    fn anything() -> impl Strategy<Value = Value> {
        let words = || {
            prop_oneof![
                proptest::sample::select(
                    [
                        &FIELDS[..],
                        &KINDS,
                        &COMMAND,
                        &SCRIPT,
                        &python_kind::PYTHON,
                        &STOP_SIGNALS,
                        &RETRY,
                        &ON_CLOSE
                    ]
                    .concat()
                )
                .prop_map(String::from),
                proptest::sample::select(vec![
                    "30s",
                    "/tmp",
                    "",
                    "\0",
                    "=",
                    "hold",
                    "1h30m",
                    "root",
                    "2030-01-31T06:00:00Z",
                    "http://x"
                ])
                .prop_map(String::from),
                "\\PC{0,8}",
            ]
        };
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            words().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(words(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(body in anything(), job in anything()) {
            let valid = json!({"command": ["true"]});
            let rest = [
                json!({"job": valid, "retry": body}),
                json!({"job": valid, "on_close": body}),
                json!({"job": valid, "start_at": body, "weight": job, "concurrency_key": body, "deadline": job}),
            ];
            let all = [body.clone(), json!({"job": job}), json!({"job": {"command": body}}), json!({"job": {"script": job}}), json!({"job": {"python": job}})];
            for body in all.into_iter().chain(rest) {
                if let Err(problem) = read(body) {
                    prop_assert!(problem.kind().status().is_client_error());
                    prop_assert!(problem.at().is_some());
                }
            }
        }
    }

    #[test]
    fn a_misspelt_field_is_guessed() {
        let (_, _, detail) = fault(json!({"job": {"command": ["true"]}, "tiemout": 1}));
        assert!(detail.contains("did you mean \"timeout\"?"), "{detail}");
    }
}

//! `$RUNWARD_RESULT` and `$RUNWARD_CONTEXT`: the files in which a process job leaves more than its exit code.
//!
//! The result is one JSON value. The context is lines that set variables for the next run of a Runner that is kept
//! open: `NAME=value` sets one, `NAME` alone unsets it, and a value of several lines stands between `NAME<<END` and a
//! line `END`, whatever word that is. What makes no sense fails a job that would have succeeded.
//!
//! They are in the state directory, with those of all jobs that run, each under its attempt; for a job of another user,
//! who can't reach into that, in a directory of that user's own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    job::{AttemptKey, Failure, Raised},
    json::{self, ANOTHER_KEY, Fault, MAX_DEPTH, WHOLE_NUMBER},
    process::{Files, Taken, Untaken},
};

const RESULT: &str = "result";
const CONTEXT: &str = "context";
/// Where the bootstrap of Python says what went wrong.
const FAILURE: &str = "failure";

const RESULT_VARIABLE: &str = "RUNWARD_RESULT";
const CONTEXT_VARIABLE: &str = "RUNWARD_CONTEXT";

/// Variables that a run may change: they are in the record as long as its Runner is.
const MAX_VARIABLES: usize = 256;
/// The longest message of an exception that is kept, bytes.
const MAX_MESSAGE: usize = 4 << 10;
/// The longest traceback that is kept, bytes. Its end is: that names the cause.
const MAX_TRACEBACK: usize = 16 << 10;

/// The files of an attempt, to be launched with it.
pub(super) struct RunFiles {
    /// What their names begin with.
    prefix: String,
    files: Files,
}

impl RunFiles {
    /// Those that every process job has, among those of other jobs in `dir`.
    pub(super) fn among(dir: &Path, key: AttemptKey) -> Self {
        let prefix = format!("{:032x}.", key.as_u128());
        Self::new(prefix, Files { dir: dir.to_owned(), ..Files::default() })
    }

    /// The same in a directory of their own.
    pub(super) fn alone(dir: PathBuf) -> Self {
        Self::new(String::new(), Files { dir, own_dir: true, ..Files::default() })
    }

    fn new(prefix: String, mut files: Files) -> Self {
        files.taken = [RESULT, CONTEXT].map(|name| format!("{prefix}{name}")).to_vec();
        Self { prefix, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.dir.join(format!("{}{name}", self.prefix))
    }

    /// The variables that tell the job.
    pub(super) fn environment(&self) -> [(OsString, OsString); 2] {
        [
            (RESULT_VARIABLE.into(), self.path(RESULT).into()),
            (CONTEXT_VARIABLE.into(), self.path(CONTEXT).into()),
        ]
    }

    /// Gives the job another file, and says where that will be.
    pub(super) fn give(&mut self, name: &str, content: Vec<u8>) -> PathBuf {
        self.files.given.push((format!("{}{name}", self.prefix), content));
        self.path(name)
    }

    /// Takes what the job's bootstrap says of a failure as well.
    pub(super) fn take_failure(&mut self) {
        self.files.taken.push(format!("{}{FAILURE}", self.prefix));
    }

    /// What its shim is told.
    pub(super) fn into_files(self) -> Files {
        self.files
    }
}

/// What a job has left in its files.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Left {
    pub(super) result: Option<Value>,
    pub(super) context: BTreeMap<String, Option<String>>,
    pub(super) error: Option<Failure>,
}

/// Reads what a shim has taken.
pub(super) fn read(taken: &[Taken]) -> Left {
    let mut left = Left::default();
    let mut files = taken.iter();
    let mut bad = |variable: &str, problem: String| {
        let failure = || Failure::new("bad_result", format!("the file named in {variable} {problem}"));
        left.error.get_or_insert_with(failure);
    };
    match files.next().map(result) {
        None => {}
        Some(Ok(result)) => left.result = result,
        Some(Err(problem)) => bad(RESULT_VARIABLE, problem),
    }
    match files.next().map(context) {
        None => {}
        Some(Ok(context)) => left.context = context,
        Some(Err(problem)) => bad(CONTEXT_VARIABLE, problem),
    }
    if let Some(failure) = files.next().and_then(failure) {
        left.error = Some(failure);
    }
    left
}

fn text(taken: &Taken) -> Result<&str, String> {
    match taken {
        Ok(text) => Ok(text.as_deref().unwrap_or_default()),
        Err(untaken) => Err(untaken.to_string()),
    }
}

fn result(taken: &Taken) -> Result<Option<Value>, String> {
    let text = text(taken)?;
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let value = json::parse(text).map_err(|fault| match fault {
        Fault::Syntax(error) => format!("is no JSON ({error}); write one value, such as {{\"rows\": 3}}"),
        Fault::Depth { place: _ } => {
            format!("is nested more than {MAX_DEPTH} levels deep; keep such data in a file of your own")
        }
        Fault::Duplicate { path, place } => {
            format!("has the key `{path}` twice, the second time at {place}; write it once")
        }
        Fault::Reserved { path } => format!("has `{path}`, which must be {ANOTHER_KEY}"),
        Fault::TooBig { path } if path.is_empty() => format!("must be {WHOLE_NUMBER}"),
        Fault::TooBig { path } => format!("has `{path}`, which must be {WHOLE_NUMBER}"),
    })?;
    // A `null` says nothing.
    Ok(Some(value).filter(|value| !value.is_null()))
}

/// Lines are named by their numbers only: what stands in them may be secret.
fn context(taken: &Taken) -> Result<BTreeMap<String, Option<String>>, String> {
    let mut changes = BTreeMap::new();
    let mut lines = (1..).zip(text(taken)?.lines());
    while let Some((number, line)) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = match line.find("<<").filter(|at| !line[..*at].contains('=')) {
            Some(at) => {
                let (name, end) = (&line[..at], &line[at + 2..]);
                if end.is_empty() {
                    return Err(format!("has no word after `<<` in line {number}"));
                }
                let mut value = Vec::new();
                loop {
                    match lines.next() {
                        Some((_, line)) if line == end => break,
                        Some((_, line)) => value.push(line),
                        None => {
                            return Err(format!("has no line that ends the value begun in line {number}"));
                        }
                    }
                }
                (name, Some(value.join("\n")))
            }
            None => match line.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (line, None),
            },
        };
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("says something else than NAME=value in line {number}"));
        }
        if value.as_ref().is_some_and(|value| value.contains('\0')) {
            return Err(format!("has a NUL in line {number}, which no variable can hold"));
        }
        changes.insert(name.to_owned(), value);
    }
    if changes.len() > MAX_VARIABLES {
        return Err(format!("sets {} variables, and {MAX_VARIABLES} are the most", changes.len()));
    }
    Ok(changes)
}

/// What the bootstrap says. It is the job's file as well, so it is held to what a bootstrap says.
#[derive(Deserialize)]
struct Told {
    kind: String,
    message: String,
    exception: Option<String>,
    traceback: Option<String>,
}

const KINDS: [&str; 4] = ["exception", "cancelled", "bad_result", "start_failed"];

fn failure(taken: &Taken) -> Option<Failure> {
    let told: Option<Told> = match taken {
        Ok(None) => return None,
        Ok(Some(text)) => serde_json::from_str(text).ok(),
        Err(
            Untaken::Link | Untaken::NotRegular | Untaken::Owner(_) | Untaken::TooLarge | Untaken::NotText,
        )
        | Err(Untaken::Unreadable(_)) => None,
    };
    let Some(told) = told.filter(|told| KINDS.contains(&told.kind.as_str())) else {
        return Some(Failure::new(
            "exception",
            "it failed, and what it has left of the reason can't be read",
        ));
    };
    let raised = told.exception.zip(told.traceback).map(|(exception, traceback)| {
        let traceback = end(traceback, MAX_TRACEBACK);
        Box::new(Raised { exception: start(exception, MAX_MESSAGE), traceback })
    });
    Some(Failure { raised, ..Failure::new(&told.kind, start(told.message, MAX_MESSAGE)) })
}

fn start(mut text: String, limit: usize) -> String {
    text.truncate(text.floor_char_boundary(limit));
    text
}

fn end(text: String, limit: usize) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(limit))..].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(text: &str) -> Taken {
        Ok(Some(text.into()))
    }

    fn changes(text: &str) -> Vec<(String, Option<String>)> {
        context(&taken(text)).expect("it makes sense").into_iter().collect()
    }

    fn set(name: &str, value: &str) -> (String, Option<String>) {
        (name.into(), Some(value.into()))
    }

    #[test]
    fn a_result_is_one_json_value() {
        let read = |text: &str| result(&taken(text));
        assert_eq!(result(&Ok(None)), Ok(None));
        assert_eq!(read(" \n"), Ok(None));
        assert_eq!(read("null"), Ok(None));
        assert_eq!(read("{\"rows\": 3}\n"), Ok(Some(json!({"rows": 3}))));
        assert!(read("{rows: 3}").is_err_and(|problem| problem.starts_with("is no JSON (")));
        assert!(read("1 2").is_err());
        // Nobody would find in the record what was written.
        for (text, says) in [
            ("1180591620717411303424", "must be a whole number of 64 bits"),
            (r#"{"a": [1, 1180591620717411303424]}"#, "has `a[1]`, which must be a whole number"),
            (r#"{"a": 1, "a": 2}"#, "has the key `a` twice"),
        ] {
            assert!(read(text).is_err_and(|problem| problem.contains(says)), "{text}");
        }
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert!(read(&nested(MAX_DEPTH + 1)).is_err_and(|problem| problem.contains("64 levels")));
    }

    #[test]
    fn a_line_sets_a_variable_or_unsets_it() {
        assert_eq!(changes("A=1\n\nB=x = y\nC=\nA=2"), [set("A", "2"), set("B", "x = y"), set("C", "")]);
        assert_eq!(changes("A=1\nA\n"), [("A".into(), None)]);
        assert_eq!(changes("A=<<END"), [set("A", "<<END")]);
        assert_eq!(changes("A<<E\none\n\nB=2\nE\nB=3\n"), [set("A", "one\n\nB=2"), set("B", "3")]);
        assert_eq!(changes("A<<E\nE\n"), [set("A", "")]);
    }

    #[test]
    fn a_context_that_makes_no_sense_is_named_by_its_line_and_not_shown() {
        for (text, line) in [
            ("A=1\nsecret word\n", "line 2"),
            ("=secret", "line 1"),
            ("A<<\n", "line 1"),
            ("\nA<<END\nsecret", "line 2"),
            ("A=secret\0", "line 1"),
        ] {
            let problem = context(&taken(text)).expect_err(text);
            assert!(problem.contains(line) && !problem.contains("secret"), "{problem}");
        }
        let many: String = (0..=MAX_VARIABLES).map(|number| format!("V{number}=\n")).collect();
        assert!(context(&taken(&many)).is_err());
    }

    #[test]
    fn what_a_bootstrap_says_of_a_failure_is_bounded_and_outranks_a_bad_result() {
        let traceback = format!("{}ä the end", "x".repeat(2 * MAX_TRACEBACK));
        let told = json!({"kind": "exception", "message": "m", "exception": "E", "traceback": traceback});
        let left = read(&[taken("no json"), Ok(None), taken(&told.to_string())]);
        let error = left.error.expect("an error");
        let Raised { exception, traceback: kept } = *error.raised.expect("an exception");
        assert_eq!((error.kind.as_str(), exception.as_str()), ("exception", "E"));
        assert!(kept.len() <= MAX_TRACEBACK && kept.ends_with("ä the end"));
        assert_eq!(read(&[taken("no json"), Ok(None)]).error.expect("an error").kind, "bad_result");
        let forged = json!({"kind": "daemon_lost", "message": "m"});
        let error = read(&[Ok(None), Ok(None), taken(&forged.to_string())]).error.expect("an error");
        assert_eq!(error.kind, "exception");
    }
}

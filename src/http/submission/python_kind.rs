//! The `python` kind of job.

use serde_json::Value;

use super::{
    job::{of_a_process, read_process, without_nul},
    missing,
};
use crate::{
    http::{
        fields::{Fields, invalid},
        problem::Problem,
    },
    job::{Python, PythonCode, Rare},
};

const PATH: &str = "job.python";
/// The fields of a Python job.
pub(in crate::http) const PYTHON: [&str; 16] =
    of_a_process(["source", "target", "args", "kwargs", "interpreter"]);

pub(super) fn read(value: Value) -> Result<Python, Problem> {
    match value {
        Value::String(text) => Ok(Python {
            code: source(text, PATH)?,
            args: Vec::new(),
            kwargs: Default::default(),
            interpreter: None,
            process: Rare::default(),
        }),
        Value::Object(_) => {
            let mut fields = Fields::open(value, PATH, &PYTHON)?;
            Ok(Python {
                code: code(&mut fields)?,
                args: match fields.value("args") {
                    None => Vec::new(),
                    Some(Value::Array(args)) => args,
                    Some(
                        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) | Value::Null,
                    ) => {
                        return Err(invalid(&fields.path("args"), "a list of any values"));
                    }
                },
                kwargs: match fields.value("kwargs") {
                    None => Default::default(),
                    Some(Value::Object(kwargs)) => kwargs,
                    Some(
                        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Null,
                    ) => {
                        return Err(invalid(&fields.path("kwargs"), "an object, with any values by name"));
                    }
                },
                interpreter: interpreter(&mut fields)?,
                process: read_process(&mut fields)?,
            })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            Err(invalid(PATH, "the source itself, a string, or an object with `source` or `target`"))
        }
    }
}

fn code(fields: &mut Fields) -> Result<PythonCode, Problem> {
    let path = fields.path("target");
    match (fields.text("source")?, fields.text("target")?) {
        (Some(text), None) => source(text, &fields.path("source")),
        (None, Some(text)) => target(text, &path),
        (Some(_), Some(_)) => Err(invalid(&path, "left out where there is a `source`: one of them is run")),
        (None, None) => Err(missing(
            &fields.path("source"),
            "it is the source itself, with `async def main(): …`; or name a function in `target`",
        )),
    }
}

fn source(text: String, path: &str) -> Result<PythonCode, Problem> {
    if text.trim_ascii().is_empty() {
        return Err(invalid(path, "the source itself, with `async def main(): …`, not empty"));
    }
    without_nul(&text, path)?;
    Ok(PythonCode::Source(text))
}

fn target(text: String, path: &str) -> Result<PythonCode, Problem> {
    let name = |part: &str| {
        let mut letters = part.chars();
        letters.next().is_some_and(|first| first.is_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_alphanumeric() || letter == '_')
    };
    let dotted = |part: &str| part.split('.').all(name);
    match text.split_once(':') {
        Some((module, function)) if dotted(module) && dotted(function) => Ok(PythonCode::Target(text)),
        Some(_) | None => Err(invalid(path, "a module and a function in it, as in `package.module:main`")),
    }
}

fn interpreter(fields: &mut Fields) -> Result<Option<String>, Problem> {
    let Some(text) = fields.text("interpreter")? else { return Ok(None) };
    let path = fields.path("interpreter");
    if text.is_empty() {
        return Err(invalid(&path, "the name or the path of a Python 3.11 or later, not empty"));
    }
    without_nul(&text, &path)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_are_read_and_kept_as_they_are() {
        let short = read(json!("async def main(): pass")).expect("read");
        assert_eq!(short.code, PythonCode::Source("async def main(): pass".into()));
        let long =
            json!({"target": "a.b:c.d", "args": [1, null], "kwargs": {"x": {"y": 2}}, "stop_signal": "int"});
        let long = read(long).expect("read");
        assert_eq!(long.code, PythonCode::Target("a.b:c.d".into()));
        assert_eq!(long.process.stop_signal.as_deref(), Some("INT"));
        let stored = serde_json::to_string(&long).expect("JSON");
        assert_eq!(serde_json::from_str::<Python>(&stored).expect("readable"), long, "{stored}");
    }

    #[test]
    fn each_fault_names_its_field() {
        for (value, field) in [
            (json!(3), "job.python"),
            (json!(" "), "job.python"),
            (json!({}), "job.python.source"),
            (json!({"source": "x", "target": "a:b"}), "job.python.target"),
            (json!({"target": "main"}), "job.python.target"),
            (json!({"target": "a b:main"}), "job.python.target"),
            (json!({"source": "x\0"}), "job.python.source"),
            (json!({"source": "x", "args": {}}), "job.python.args"),
            (json!({"source": "x", "kwargs": []}), "job.python.kwargs"),
            (json!({"source": "x", "interpreter": ""}), "job.python.interpreter"),
            (json!({"source": "x", "arguments": []}), "job.python.arguments"),
            (json!({"source": "x", "cwd": "here"}), "job.python.cwd"),
        ] {
            let problem = read(value.clone()).expect_err("a fault");
            assert_eq!(problem.at(), Some(field), "{value}");
        }
    }
}

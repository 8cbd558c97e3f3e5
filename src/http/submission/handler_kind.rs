//! The fields of a `handler` job.

use serde_json::Value;

use super::missing;
use crate::{
    http::{
        fields::{Fields, invalid},
        nearest,
        problem::{Kind, Problem},
    },
    job::Handler,
};

/// The fields of a `handler` job.
pub(in crate::http) const HANDLER: [&str; 2] = ["name", "args"];

/// Reads it; `known` are the handlers there are.
pub(super) fn read(value: Value, known: &[String]) -> Result<Handler, Problem> {
    const PATH: &str = "job.handler";
    let (name, args, path) = match value {
        Value::String(name) => (name, Value::Null, PATH.to_owned()),
        Value::Object(_) => {
            let mut fields = Fields::open(value, PATH, &HANDLER)?;
            let path = fields.path("name");
            let name = fields
                .text("name")?
                .ok_or_else(|| missing(&path, "it is the name of a handler, a string"))?;
            (name, fields.value("args").unwrap_or_default(), path)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return Err(invalid(PATH, "the name of a handler, or an object with `name` and `args`"));
        }
    };
    if known.contains(&name) {
        return Ok(Handler { name, args: args.into() });
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let detail = nearest::unknown("handler", &name, &known);
    Err(Problem::new(Kind::UnknownHandler, detail).field(path).allowed(known))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_that_nobody_registered_is_refused() {
        let known = ["echo".to_owned(), "sleep".to_owned()];
        let short = read(json!("echo"), &known).expect("known");
        assert_eq!(short, read(json!({"name": "echo", "args": null}), &known).expect("known"));
        for (job, kind, field) in [
            (json!("ehco"), Kind::UnknownHandler, "job.handler"),
            (json!({"name": "ehco"}), Kind::UnknownHandler, "job.handler.name"),
            (json!({"args": 1}), Kind::MissingField, "job.handler.name"),
            (json!({"name": "echo", "arg": 1}), Kind::UnknownField, "job.handler.arg"),
            (json!(7), Kind::InvalidField, "job.handler"),
        ] {
            let problem = read(job, &known).expect_err("refused");
            assert_eq!((problem.kind(), problem.at()), (kind, Some(field)), "{}", problem.detail());
        }
        let problem = read(json!("sleeep"), &known).expect_err("refused");
        assert!(problem.detail().contains("did you mean \"sleep\"?"), "{}", problem.detail());
    }
}

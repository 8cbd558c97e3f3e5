//! The JSON of a request's body, with a [`Problem`] for what is refused.

use std::fmt;

use serde_json::Value;

use super::{
    fields::invalid,
    problem::{Kind, Problem},
};
use crate::json::{self, ANOTHER_KEY, Fault, MAX_DEPTH, WHOLE_NUMBER};

/// Reads a body, as strictly as [`json::parse`].
///
/// # Errors
/// A [`Problem`] with the place.
pub(super) fn parse(body: &[u8]) -> Result<Value, Problem> {
    read(body, json::parse)
}

/// Reads a body with a list whose items are taken one by one, as [`json::parse_items`].
///
/// # Errors
/// A [`Problem`] with the place.
pub(super) fn parse_items(body: &[u8], name: &str, take: impl FnMut(Value)) -> Result<Value, Problem> {
    read(body, |text| json::parse_items(text, name, take))
}

fn read(body: &[u8], parse: impl FnOnce(&str) -> Result<Value, Fault>) -> Result<Value, Problem> {
    let text = utf8(body)?;
    if text.trim_ascii().is_empty() {
        return Err(Problem::new(
            Kind::InvalidJson,
            r#"the body is empty; send a JSON object such as {"job": {"command": ["echo", "hi"]}}"#,
        ));
    }
    parse(text).map_err(|fault| match fault {
        Fault::Duplicate { path, place } => {
            let detail = format!("`{path}` stands twice, the second time at {place}; say it once");
            Problem::new(Kind::DuplicateKey, detail).field(path)
        }
        Fault::TooBig { path } => invalid(&path, WHOLE_NUMBER),
        Fault::Reserved { path } => invalid(&path, ANOTHER_KEY),
        Fault::Depth { place } => Problem::new(
            Kind::TooDeep,
            format!("nested more than {MAX_DEPTH} levels deep at {place}; no field needs as many"),
        ),
        Fault::Syntax(error) => {
            Problem::new(Kind::InvalidJson, format!("{}; send valid JSON", Sentence(&error)))
        }
    })
}

/// The text of a body.
///
/// # Errors
/// A [`Problem`] with the place of the first byte that is no UTF-8.
pub(super) fn utf8(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        let line = body[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let detail = format!("the byte at offset {at} (line {line}) is no UTF-8; send the body in UTF-8");
        Problem::new(Kind::InvalidBody, detail)
    })
}

/// The error in serde_json's words: they name the place, and hold nothing of ours.
struct Sentence<'a>(&'a serde_json::Error);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not JSON: {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(body: &str) -> (Kind, Option<String>, String) {
        let problem = parse(body.as_bytes()).expect_err(body);
        (problem.kind(), problem.at().map(Into::into), problem.detail().to_owned())
    }

    #[test]
    fn a_duplicate_key_is_named_by_its_path() {
        let (kind, field, detail) = fault(r#"{"a": [{"b c": 1, "b c": 2}]}"#);
        assert_eq!((kind, field.as_deref()), (Kind::DuplicateKey, Some(r#"a[0]["b c"]"#)));
        assert!(detail.contains("line 1, column 2"), "{detail}");
        // Two spellings of one key are one key.
        assert_eq!(fault(r#"{"a": 1, "\u0061": 2}"#).1.as_deref(), Some("a"));
    }

    #[test]
    fn depth_64_is_read_and_65_is_not() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(64).as_bytes()).is_ok());
        assert_eq!(fault(&nested(65)).0, Kind::TooDeep);
        assert_eq!(fault(&"[".repeat(100_000)).0, Kind::TooDeep);
        assert_eq!(fault(&r#"{"a":"#.repeat(65)).0, Kind::TooDeep);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(problem) = parse(&body) {
                prop_assert!(problem.kind().status().is_client_error());
            }
        }

        #[test]
        fn nothing_like_json_makes_it_panic(body in r#"([\[\]{},: ]|"[a\\\\u0d8]{0,6}"|-?[0-9]{1,3}(e[0-9]{1,4})?|null|true){0,40}"#) {
            if let Err(problem) = parse(body.as_bytes()) {
                prop_assert!(problem.kind().status().is_client_error());
            }
        }
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for body in
            ["", " \n", "{", "{]", "NaN", "[Infinity]", "1e999", "-1e999", r#""\ud800""#, "{} {}", "'a'"]
        {
            let (kind, _, detail) = fault(body);
            assert_eq!(kind, Kind::InvalidJson, "{body}");
            assert!(detail.contains("line") || detail.contains("empty"), "{body}: {detail}");
        }
        let problem = parse(b"{\"a\":\n \"\xff\"}").expect_err("no UTF-8");
        assert_eq!(problem.kind(), Kind::InvalidBody);
        assert!(problem.detail().contains("line 2"), "{}", problem.detail());
    }
}

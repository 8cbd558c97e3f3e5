//! JSON, strictly: what one reader could take for this and another for that is refused here, by name.

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::problem::{Kind, Problem};

/// How deep arrays and objects may be nested: far more than any field needs, far less than a stack holds.
pub(super) const MAX_DEPTH: usize = 64;

/// Reads a body. Besides what is no JSON it refuses duplicate keys and deep nesting.
///
/// # Errors
/// A [`Problem`] with the place.
pub(super) fn parse(body: &[u8]) -> Result<Value, Problem> {
    let text = utf8(body)?;
    if text.trim_ascii().is_empty() {
        return Err(Problem::new(
            Kind::InvalidJson,
            r#"the body is empty; send a JSON object such as {"job": {"command": ["echo", "hi"]}}"#,
        ));
    }
    let fault = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let seed = Strict { path: Path::Root, depth: 0, fault: &fault };
    let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        match fault.take() {
            Some(Fault::Duplicate(path)) => {
                let detail = format!("`{path}` stands twice, the second time at {place}; say it once");
                Problem::new(Kind::DuplicateKey, detail).field(path)
            }
            Some(Fault::Depth) => Problem::new(
                Kind::TooDeep,
                format!("nested more than {MAX_DEPTH} levels deep at {place}; no field needs as many"),
            ),
            None => Problem::new(Kind::InvalidJson, format!("{}; send valid JSON", Sentence(&error))),
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

enum Fault {
    Duplicate(String),
    Depth,
}

/// Where a value stands, as a list through the stack: nothing is allocated until it is to be named.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(parent, key) => {
                let parent = parent.to_string();
                f.write_str(&join(&parent, key))
            }
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// The name of a field in an object: `job.command`, or `labels["a b"]` where a dot would mislead.
pub(super) fn join(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{key:?}]"),
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    path: Path<'a>,
    depth: usize,
    fault: &'a RefCell<Option<Fault>>,
}

impl<'a> Strict<'a> {
    fn inside<E: de::Error>(&self) -> Result<usize, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.fail(Fault::Depth));
        }
        Ok(self.depth + 1)
    }

    fn fail<E: de::Error>(&self, fault: Fault) -> E {
        self.fault.replace(Some(fault));
        // The text is not shown: `parse` words the fault, and takes the place from this error.
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.inside()?;
        let mut list = Vec::new();
        loop {
            let path = Path::Index(&self.path, list.len());
            match access.next_element_seed(Strict { path, depth, fault: self.fault })? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.inside()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path::Key(&self.path, &key);
            if map.contains_key(&key) {
                return Err(self.fail(Fault::Duplicate(path.to_string())));
            }
            let value = access.next_value_seed(Strict { path, depth, fault: self.fault })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
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

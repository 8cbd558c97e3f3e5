//! A JSON object, read field by field: every fault names the field and says what would be right there.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use serde_json::{Map, Value};

use super::{
    duration, nearest,
    problem::{Kind, Problem},
};
use crate::json::join;

/// The fields of one object that are not read yet. `null` counts as absent.
pub(super) struct Fields {
    path: String,
    map: Map<String, Value>,
}

/// What a field should hold but does not.
pub(super) fn invalid(path: &str, expected: &str) -> Problem {
    let name = if path.is_empty() { "the body".to_owned() } else { format!("`{path}`") };
    Problem::new(Kind::InvalidField, format!("{name} must be {expected}")).field(path)
}

impl Fields {
    /// Opens an object that may have these fields and no others.
    ///
    /// # Errors
    /// A [`Problem`] for another kind of value or an unknown field.
    pub(super) fn open(value: Value, path: &str, known: &[&str]) -> Result<Self, Problem> {
        let Value::Object(map) = value else {
            return Err(invalid(path, "a JSON object").allowed(known.iter().copied()));
        };
        if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Problem::new(Kind::UnknownField, nearest::unknown("field", unknown, known))
                .field(join(path, unknown))
                .allowed(known.iter().copied()));
        }
        Ok(Self { path: path.to_owned(), map })
    }

    /// The path of a field in it.
    pub(super) fn path(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Any value.
    pub(super) fn value(&mut self, name: &str) -> Option<Value> {
        // Most of what is known is not given.
        if self.map.is_empty() {
            return None;
        }
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A text.
    ///
    /// # Errors
    /// Another kind of value.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(&self.path(name), "a string")),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Another kind of value.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(invalid(&self.path(name), "true or false")),
        }
    }

    /// A whole number of 32 bits.
    ///
    /// # Errors
    /// Another kind of value, or a number that does not fit.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i32>, Problem> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
        let expected = || invalid(&self.path(name), "a whole number from -2147483648 to 2147483647");
        number.map(Some).ok_or_else(expected)
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// Another kind of value, or a number that is not in it.
    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Problem> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let number = number.filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| invalid(&self.path(name), &expected()))
    }

    /// Whether a field stands there as `null`, where that says something.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// A duration.
    ///
    /// # Errors
    /// What is none.
    pub(super) fn duration(&mut self, name: &str) -> Result<Option<Duration>, Problem> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let duration = match &value {
            Value::String(text) => duration::parse(text),
            Value::Number(number) => number.as_f64().and_then(duration::from_seconds),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        duration.map(Some).ok_or_else(|| invalid(&self.path(name), duration::EXPECTED))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// Another kind of value, or another kind of item: that is named by its number.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Problem> {
        self.value(name).map(|value| texts(value, &self.path(name))).transpose()
    }

    /// An object of texts.
    ///
    /// # Errors
    /// Another kind of value, in it or instead of it.
    pub(super) fn text_map(&mut self, name: &str) -> Result<BTreeMap<String, String>, Problem> {
        let Some(value) = self.value(name) else { return Ok(BTreeMap::new()) };
        let path = self.path(name);
        let Value::Object(map) = value else {
            return Err(invalid(&path, "an object with strings as its values"));
        };
        map.into_iter()
            .map(|(key, value)| match value {
                Value::String(text) => Ok((key, text)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    Err(invalid(&join(&path, &key), "a string; write numbers in quotes"))
                }
            })
            .collect()
    }
}

/// A list of texts.
///
/// # Errors
/// As [`Fields::texts`].
pub(super) fn texts(value: Value, path: &str) -> Result<Vec<String>, Problem> {
    let Value::Array(list) = value else { return Err(invalid(path, "a list of strings")) };
    let texts = list.into_iter().enumerate().map(|(index, value)| match value {
        Value::String(text) => Ok(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(invalid(&format!("{path}[{index}]"), "a string; write numbers in quotes"))
        }
    });
    let mut texts = texts.collect::<Result<Vec<_>, _>>()?;
    // They are in the memory of the values, which are three times as large.
    texts.shrink_to_fit();
    Ok(texts)
}

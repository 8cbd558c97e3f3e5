//! JSON, read strictly: what one reader could take for this and another for that is refused here, by name. And written.

use std::{
    cell::{Cell, RefCell},
    fmt,
    io::{self, Write},
};

use serde::Serialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deep arrays and objects may be nested: far more than any field needs, far less than a stack holds, and less than
/// the 128 with which the store's own reader takes what has become part of a record.
pub const MAX_DEPTH: usize = 64;

/// Why a text is not taken.
#[derive(Debug)]
pub enum Fault {
    /// One object has a key twice.
    Duplicate {
        /// Where the value with this key stands: `a[0].b`.
        path: String,
        /// Where the second one is in the text.
        place: String,
    },
    /// A whole number that does not fit into 64 bits: most readers would make another number of it.
    TooBig {
        /// Where it stands; empty where it is all there is.
        path: String,
    },
    /// A key that serde_json takes for a mark of its own: what stands below it would not be read back as it was written.
    Reserved {
        /// Where the value with this key stands.
        path: String,
    },
    /// Nested too deep.
    Depth {
        /// Where in the text.
        place: String,
    },
    /// It is no JSON. The words are serde_json's: they name the place, and hold nothing of the text's.
    Syntax(serde_json::Error),
}

/// What a number that is too big is to be.
pub const WHOLE_NUMBER: &str = "a whole number of 64 bits at the most, from -9223372036854775808 to \
     18446744073709551615; write a larger one as a string";

/// What a key that is reserved is to be.
pub const ANOTHER_KEY: &str =
    "called something else: the names that begin with `$serde_json::private` are reserved";

/// How the keys begin that are reserved.
const RESERVED: &str = "$serde_json::private";

/// Reads one value. Besides what is no JSON it refuses duplicate and reserved keys, deep nesting, and whole numbers that do not fit.
///
/// # Errors
/// [`Fault`].
pub fn parse(text: &str) -> Result<Value, Fault> {
    read(text, None)
}

/// The same, but that each item of the list `name` in the outermost object is given to `take` as it comes, and the list is
/// left empty: of many only one is in memory as a tree. What follows them may still be a [`Fault`].
///
/// # Errors
/// [`Fault`].
pub fn parse_items(text: &str, name: &str, mut take: impl FnMut(Value)) -> Result<Value, Fault> {
    read(text, Some(Items { name, take: RefCell::new(&mut take) }))
}

fn read(text: &str, items: Option<Items<'_>>) -> Result<Value, Fault> {
    let numbers = Numbers { too_big: first_too_big(text), seen: Cell::new(0) };
    let reading = Reading { numbers, items, fault: RefCell::new(None) };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let seed = Strict { path: Path::Root, depth: 0, reading: &reading };
    let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        match reading.fault.take() {
            Some(Refusal::Duplicate(path)) => Fault::Duplicate { path, place },
            Some(Refusal::TooBig(path)) => Fault::TooBig { path },
            Some(Refusal::Reserved(path)) => Fault::Reserved { path },
            Some(Refusal::Depth) => Fault::Depth { place },
            None => Fault::Syntax(error),
        }
    })
}

/// Appends a value to a text.
///
/// # Errors
/// What the value says of itself; a text takes everything.
pub fn write(text: &mut Vec<u8>, value: &impl Serialize) -> serde_json::Result<()> {
    serde_json::to_writer(Text(text), value)
}

/// A value as a text in pieces, none much larger than `size` but where a string is.
///
/// # Errors
/// What the value says of itself.
pub fn write_pieces(value: &impl Serialize, size: usize) -> serde_json::Result<Vec<Vec<u8>>> {
    let mut pieces = Pieces { size, done: Vec::new(), last: Vec::with_capacity(size) };
    serde_json::to_writer(&mut pieces, value)?;
    pieces.done.push(pieces.last);
    Ok(pieces.done)
}

struct Pieces {
    size: usize,
    done: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.last.len() + bytes.len() > self.size && !self.last.is_empty() {
            self.done.push(std::mem::replace(&mut self.last, Vec::with_capacity(self.size)));
        }
        Text(&mut self.last).write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Most of what is written of JSON are single bytes, for which copying a slice is long-winded.
struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline(always)]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match bytes {
            [byte] => self.0.push(*byte),
            bytes => self.0.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Which of the numbers in a text is the first whole one that does not fit into 64 bits: the parser gives what it has
/// made of it, not what was written.
fn first_too_big(text: &str) -> Option<usize> {
    let mut rest = text;
    let mut count = 0;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[at..];
        if let Some(string) = rest.strip_prefix('"') {
            rest = after_string(string);
            continue;
        }
        let end =
            rest.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')).unwrap_or(rest.len());
        let (literal, after) = rest.split_at(end);
        let whole = !literal.contains(['.', 'e', 'E']);
        if whole && literal.parse::<i64>().is_err() && literal.parse::<u64>().is_err() {
            return Some(count);
        }
        count += 1;
        rest = after;
    }
    None
}

/// What follows the closing quote.
fn after_string(text: &str) -> &str {
    let mut escaped = false;
    let end = text.find(|c: char| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    });
    end.map_or("", |end| &text[end + 1..])
}

/// The numbers of a text, as they are met.
struct Numbers {
    too_big: Option<usize>,
    seen: Cell<usize>,
}

/// Those who are taken one by one.
struct Items<'a> {
    name: &'a str,
    take: RefCell<&'a mut dyn FnMut(Value)>,
}

/// A text that is being read.
struct Reading<'a> {
    numbers: Numbers,
    items: Option<Items<'a>>,
    fault: RefCell<Option<Refusal>>,
}

enum Refusal {
    Duplicate(String),
    TooBig(String),
    Reserved(String),
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
pub fn join(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{key:?}]"),
    }
}

#[derive(Clone, Copy)]
struct Strict<'a, 'r> {
    path: Path<'a>,
    depth: usize,
    reading: &'a Reading<'r>,
}

impl<'r> Strict<'_, 'r> {
    fn inside<E: de::Error>(&self) -> Result<usize, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.fail(Refusal::Depth));
        }
        Ok(self.depth + 1)
    }

    /// Who takes the items of this list, if it is the one.
    fn items(&self) -> Option<&Items<'r>> {
        let items = self.reading.items.as_ref()?;
        matches!(self.path, Path::Key(Path::Root, name) if name == items.name).then_some(items)
    }

    /// Counts a number, and refuses the one that does not fit.
    fn number<E: de::Error>(&self, number: Number) -> Result<Value, E> {
        let place = self.reading.numbers.seen.replace(self.reading.numbers.seen.get() + 1);
        if self.reading.numbers.too_big == Some(place) {
            return Err(self.fail(Refusal::TooBig(self.path.to_string())));
        }
        Ok(Value::Number(number))
    }

    fn fail<E: de::Error>(&self, fault: Refusal) -> E {
        self.reading.fault.replace(Some(fault));
        // The text is not shown: `parse` words the fault, and takes the place from this error.
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_, '_> {
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

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.number(Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.inside()?;
        let items = self.items();
        let mut list = Vec::new();
        for place in 0.. {
            let path = Path::Index(&self.path, place);
            match (access.next_element_seed(Strict { path, depth, reading: self.reading })?, items) {
                (Some(value), None) => list.push(value),
                (Some(value), Some(items)) => (items.take.borrow_mut())(value),
                (None, _) => break,
            }
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.inside()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path::Key(&self.path, &key);
            if map.contains_key(&key) {
                return Err(self.fail(Refusal::Duplicate(path.to_string())));
            }
            if key.starts_with(RESERVED) {
                return Err(self.fail(Refusal::Reserved(path.to_string())));
            }
            let value = access.next_value_seed(Strict { path, depth, reading: self.reading })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_whole_number_that_does_not_fit_is_named_by_its_place() {
        let big = "1180591620717411303424";
        for (text, expected) in [
            (big.to_owned(), ""),
            (format!("-{big}"), ""),
            ("18446744073709551616".into(), ""),
            ("-9223372036854775809".into(), ""),
            (
                format!("[1, -2.5e3, {{\"a \\\" 99999999999999999999\": \"{big}\", \"b\": [0, {big}]}}]"),
                "[2].b[1]",
            ),
            (format!("{{\"\\\\\": {big}}}"), "[\"\\\\\"]"),
        ] {
            match parse(&text) {
                Err(Fault::TooBig { path }) => assert_eq!(path, expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in [
            "18446744073709551615",
            "-9223372036854775808",
            "[-0, 0, 1e30, 1.0, 123456789012345678901234567890.5, 12E+3]",
            r#""1180591620717411303424""#,
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
        // What is no JSON is said first.
        assert!(matches!(parse(&format!("[}}, {big}]")), Err(Fault::Syntax(_))));
    }

    #[test]
    fn what_is_written_in_pieces_is_the_same_in_all() {
        let value = json!({"a": ["x".repeat(5), "long".repeat(50)], "b": (0..100).collect::<Vec<_>>()});
        let pieces = write_pieces(&value, 16).expect("a value of plain parts");
        assert_eq!(pieces.concat(), value.to_string().as_bytes());
        assert!(pieces.len() > 20 && pieces.iter().all(|piece| piece.len() <= 16 || piece.len() == 200));
        assert_eq!(write_pieces(&value, 1 << 20).expect("the same").len(), 1);
    }

    #[test]
    fn the_items_of_a_list_are_given_as_they_come() {
        let text = r#"{"a": [1], "b": [{"b": [2]}, 3, []], "c": {"b": [4]}}"#;
        let mut items = Vec::new();
        let rest = parse_items(text, "b", |item| items.push(item)).expect("JSON");
        assert_eq!(items, [json!({"b": [2]}), json!(3), json!([])]);
        assert_eq!(rest, json!({"a": [1], "b": [], "c": {"b": [4]}}));
        for text in [r#"["b"]"#, r#"{"b": 1}"#, r#"[{"b": [1]}]"#] {
            let read = parse_items(text, "b", |item| panic!("{item}")).expect("JSON");
            assert_eq!(read, parse(text).expect("JSON"));
        }
        let mut count = 0;
        let fault = parse_items(r#"{"b": [1, {"x": 1, "x": 2}, 3]}"#, "b", |_| count += 1);
        assert!(matches!(fault, Err(Fault::Duplicate { path, .. }) if path == "b[1].x"));
        assert_eq!(count, 1);
    }

    #[test]
    fn a_key_that_would_not_be_read_back_is_refused_by_its_place() {
        for text in [
            r#"{"a": [{"$serde_json::private::RawValue": "x"}]}"#,
            r#"{"a": [{"$serde_json::private::Number": "1"}]}"#,
        ] {
            match parse(text) {
                Err(Fault::Reserved { path }) => {
                    assert!(path.starts_with("a[0][\"$serde_json::private"), "{path}")
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(parse(r#"{"serde_json": "$serde_json::private::RawValue"}"#).is_ok());
    }

    proptest! {
        #[test]
        fn a_number_is_read_back_as_it_was_read(number in any::<f64>().prop_filter("JSON has no others", |n| n.is_finite())) {
            let read = parse(&format!("{number:e}")).expect("a number");
            prop_assert_eq!(read.as_f64(), Some(number));
            prop_assert_eq!(serde_json::from_str::<Value>(&read.to_string()).expect("JSON"), read);
        }

        #[test]
        fn only_what_does_not_fit_is_refused(numbers in proptest::collection::vec(any::<i128>(), 0..9)) {
            let text = serde_json::to_string(&numbers.iter().map(|n| n >> 60).map(|n| n.to_string()).collect::<Vec<_>>())
                .expect("JSON");
            prop_assert!(parse(&text).is_ok(), "strings hold anything");
            let fits = numbers.iter().all(|n| i64::try_from(n >> 60).is_ok() || u64::try_from(n >> 60).is_ok());
            prop_assert_eq!(parse(&text.replace('"', "")).is_ok(), fits);
        }
    }
}

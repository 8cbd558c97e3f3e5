//! Query parameters: each route names those it knows, and all others are refused.

use axum::http::Uri;

use super::{
    nearest,
    problem::{Kind, Problem},
};

/// The parameters of one request that are not read yet.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

/// What a parameter should hold but does not.
pub(super) fn invalid(name: &str, expected: &str) -> Problem {
    Problem::new(Kind::InvalidParameter, format!("the query parameter `{name}` must be {expected}"))
        .field(name)
}

impl Query {
    /// Reads the parameters of a request that may have these and no others.
    ///
    /// # Errors
    /// An unknown parameter, or an encoding that is none.
    pub(super) fn parse(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let mut pairs = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| badly_encoded(name))?;
            if !known.contains(&name.as_str()) {
                return Err(unknown(&name, known));
            }
            let value = decode(value).ok_or_else(|| badly_encoded(&name))?;
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// Those that are not read yet.
    pub(super) fn rest(&self) -> &[(String, String)] {
        &self.0
    }

    /// All values of a parameter that may be repeated.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(known, _)| known == name).map(|(_, value)| value).collect()
    }

    /// The value of a parameter that stands once at most.
    ///
    /// # Errors
    /// It stands twice.
    pub(super) fn one(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        let value = values.pop();
        if values.is_empty() { Ok(value) } else { Err(invalid(name, "there once, not twice")) }
    }

    /// A switch: `follow=true`, or `follow` alone.
    ///
    /// # Errors
    /// Anything but true or false.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.one(name)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(invalid(name, "true or false").allowed(["true", "false"])),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// What is none, or is not in the range.
    pub(super) fn number(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let expected = || invalid(name, &format!("a whole number from {} to {}", range.start(), range.end()));
        number.map(Some).ok_or_else(expected)
    }

    /// Words out of a list; several by repeating the parameter or by commas.
    ///
    /// # Errors
    /// Another word.
    pub(super) fn words<T>(
        &mut self,
        name: &str,
        find: impl Fn(&str) -> Option<T>,
        all: &[&str],
    ) -> Result<Vec<T>, Problem> {
        let values = self.all(name);
        values
            .iter()
            .flat_map(|value| value.split(','))
            .map(|word| find(word).ok_or_else(|| wrong_word(name, word, all)))
            .collect()
    }

    /// `name=key=value`, repeatable.
    ///
    /// # Errors
    /// A value without `=`.
    pub(super) fn pairs(&mut self, name: &str) -> Result<Vec<(String, String)>, Problem> {
        let split = |text: String| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) | None => Err(invalid(name, &format!("`key=value`, as in `{name}=team=data`"))),
        };
        self.all(name).into_iter().map(split).collect()
    }
}

/// The problem of a parameter with a word that is none of the known.
pub(super) fn wrong_word(name: &str, word: &str, all: &[&str]) -> Problem {
    let detail = nearest::unknown(&format!("value of the query parameter `{name}`:"), word, all);
    Problem::new(Kind::InvalidParameter, detail).field(name).allowed(all.iter().copied())
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    Problem::new(Kind::UnknownParameter, nearest::unknown("query parameter", name, known))
        .field(name)
        .allowed(known.iter().copied())
}

fn badly_encoded(name: &str) -> Problem {
    invalid(name, "percent-encoded UTF-8, as curl's --data-urlencode makes it")
}

/// Percent-encoding undone; `None` for what no encoder makes.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &'static str) -> Result<Query, Problem> {
        let uri = format!("/v1/runners?{text}").parse().expect("a URI");
        Query::parse(&uri, &["label", "limit", "follow", "state"])
    }

    #[test]
    fn values_are_decoded() {
        let mut query = query("label=a%3Db=c+d&label=e=%C3%A9&follow").expect("valid");
        let pairs = query.pairs("label").expect("pairs");
        assert_eq!(pairs, [("a".into(), "b=c d".into()), ("e".into(), "é".into())]);
        assert!(query.flag("follow").expect("a flag"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(query("limt=3").expect_err("unknown").at(), Some("limt"));
        let problem = query("limt=3").expect_err("unknown");
        assert!(problem.detail().contains("did you mean \"limit\"?"), "{}", problem.detail());
        for text in ["label=%FF", "label=%", "label=%4", "label=%zz", "label=%+1"] {
            assert_eq!(query(text).expect_err(text).kind(), Kind::InvalidParameter, "{text}");
        }
        assert!(query("limit=1&limit=2").expect("known").number("limit", 1..=9).is_err());
        assert!(query("limit=10").expect("known").number("limit", 1..=9).is_err());
        assert!(query("label=x").expect("known").pairs("label").is_err());
    }
}

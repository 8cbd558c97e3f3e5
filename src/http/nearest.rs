//! "Did you mean": says that a word is unknown, and what would be right.

use crate::text;

/// A longer word is no misspelling of one of ours; comparing it would take long, and showing it would too.
const LONGEST: usize = 64;

/// The known word that `word` most likely was to be.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST { None } else { text::closest(known, word) }
}

/// Says that `word` is unknown: with the word that was meant, or else with all that could stand there.
pub(super) fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    let shown: String = word.chars().take(LONGEST).collect();
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("unknown {what} {shown:?}; did you mean {near:?}?"),
        None if known.is_empty() => format!("unknown {what} {shown:?}; there are none here"),
        None => format!("unknown {what} {shown:?}; there are `{}`", known.join("`, `")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_meant_or_what_there_is() {
        assert_eq!(
            unknown("field", "tiemout", &["timeout", "name"]),
            "unknown field \"tiemout\"; did you mean \"timeout\"?"
        );
        assert_eq!(unknown("field", "xyz", &["a", "b"]), "unknown field \"xyz\"; there are `a`, `b`");
        assert!(unknown("field", &"x".repeat(1 << 20), &["a"]).len() < 200);
    }
}

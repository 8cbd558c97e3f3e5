//! Small things about texts that people type.

/// The known word that was most likely meant: the one that differs least (Levenshtein), by at most a third of
/// its letters.
pub fn closest<'a>(known: impl IntoIterator<Item = &'a str>, typed: &str) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (distance(word, typed), word))
        .filter(|(distance, word)| distance * 3 <= word.chars().count().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_another_word_does_not() {
        let known = ["timeout", "max_queued", "max_running"];
        assert_eq!(closest(known, "tiemout"), Some("timeout"));
        assert_eq!(closest(known, "max_runing"), Some("max_running"));
        assert_eq!(closest(known, "priority"), None);
        assert_eq!(closest(["job"], "xyz"), None);
    }
}

//! Durations as people write them: `"30s"`, `"1h30m"`, `"250ms"`, or a number of seconds.

use std::{fmt::Write as _, time::Duration};

/// The longest there is: ten years. Nothing waits longer, and sums of a few never overflow.
pub(super) const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How to write one.
pub(super) const EXPECTED: &str = "a duration such as \"30s\", \"5m\", \"1h30m\" or \"250ms\", or a number of seconds, \
     from 0 to ten years";

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

/// Reads a duration; `None` for what is none, or too long.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return from_seconds(seconds);
    }
    if text.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    // Each unit once, the larger ones first: `1m1h` is more likely a mistake than an hour and a minute.
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let (unit, millis) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        if millis >= last || number.starts_with('.') || number.ends_with('.') {
            return None;
        }
        let part = number.parse::<f64>().ok()? * millis as f64 / 1_000.0;
        total = total.checked_add(from_seconds(part)?)?;
        last = millis;
        rest = &after[unit.len()..];
    }
    (total <= MAX).then_some(total)
}

/// From a number of seconds.
pub(super) fn from_seconds(seconds: f64) -> Option<Duration> {
    // Whole microseconds: what a person writes as a decimal fraction comes out as it was written.
    let micros = (seconds * 1e6).round();
    (0.0..=MAX.as_micros() as f64).contains(&micros).then(|| Duration::from_micros(micros as u64))
}

/// Writes a duration as people do, so that [`parse`] reads the same.
pub(super) fn format(duration: Duration) -> String {
    let (seconds, fraction) = (duration.as_secs(), duration.subsec_micros());
    // Into a string nothing fails to be written.
    let mut text = String::with_capacity(16);
    for (amount, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm')] {
        if amount > 0 {
            push(&mut text, amount);
            text.push(unit);
        }
    }
    let seconds = seconds % 60;
    if fraction > 0 {
        write!(text, "{seconds}.{fraction:06}").ok();
        text.truncate(text.trim_end_matches('0').len());
        text.push('s');
    } else if seconds > 0 || text.is_empty() {
        push(&mut text, seconds);
        text.push('s');
    }
    text
}

/// Adds a whole number. Each runner that is shown has a few of them, and `core::fmt` takes far longer.
fn push(text: &mut String, number: u64) {
    if number >= 10 {
        push(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, millis) in [
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("250ms", 250),
            ("1s500ms", 1_500),
            ("1.5s", 1_500),
            ("0s", 0),
            ("0", 0),
            ("12", 12_000),
            ("0.5", 500),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in [
            "",
            "s",
            "5 m",
            "-1s",
            "-1",
            "1x",
            "1s1m",
            "1s1s",
            "1.s",
            ".5s",
            "1..5s",
            "NaN",
            "inf",
            "1e99",
            "1h30",
            "99999999999999999999s",
            "4000d",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn writes_what_people_would() {
        for (millis, text) in [
            (0, "0s"),
            (250, "0.25s"),
            (1_500, "1.5s"),
            (59_000, "59s"),
            (60_000, "1m"),
            (5_400_000, "1h30m"),
            (86_461_001, "24h1m1.001s"),
        ] {
            assert_eq!(format(Duration::from_millis(millis)), text);
        }
        assert_eq!(format(MAX), "87600h");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same(micros in 0..=MAX.as_micros() as u64) {
            let duration = Duration::from_micros(micros);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC*") {
            if let Some(duration) = parse(&text) {
                prop_assert!(duration <= MAX);
            }
        }
    }
}

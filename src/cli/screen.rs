//! What reaches a terminal: its width, colours, and never a control character of a job.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
};

use unicode_width::UnicodeWidthChar;

use super::connect::When;

/// What is known of standard output and standard error.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    /// Standard output is a terminal.
    pub(super) out: bool,
    /// Standard error is one.
    pub(super) err: bool,
    colour: bool,
}

/// How a word looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Blue,
}

impl Screen {
    pub(super) fn new(when: When) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let out = io::stdout().is_terminal();
        let colour = match when {
            When::Always => true,
            When::Never => false,
            When::Auto if set("NO_COLOR").is_some() => false,
            When::Auto if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
            When::Auto => out && set("TERM").is_none_or(|term| term != "dumb"),
        };
        Self { out, err: io::stderr().is_terminal(), colour }
    }

    /// How wide a table may be; `None`: as wide as it is.
    pub(super) fn width(&self) -> Option<usize> {
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let of_terminal =
            || self.out.then(terminal_size::terminal_size).flatten().map(|(width, _)| usize::from(width.0));
        columns.or_else(of_terminal).filter(|width| *width > 0)
    }

    pub(super) fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Plain => return text.to_owned(),
            Look::Bold => 1,
            Look::Dim => 2,
            Look::Red => 31,
            Look::Green => 32,
            Look::Yellow => 33,
            Look::Blue => 34,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints, whole. Nobody reads on: that is no fault of this command.
///
/// # Errors
/// Any other than a closed pipe.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Says something to the person, beside the output.
pub(super) fn say(text: &str) {
    // Nobody may read it.
    drop(writeln!(io::stderr().lock(), "runward: {}", clean(text)));
}

/// Whether a terminal would obey it, or show the text in another order than it has.
fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(into: &mut String, letter: char) {
    match u32::from(letter) {
        code @ 0..0x20 => into.extend(['^', char::from(code as u8 + 0x40)]),
        0x7f => into.push_str("^?"),
        // A text can be written to without fail.
        code => drop(write!(into, "\\u{{{code:x}}}")),
    }
}

/// A text that a terminal shows as it is: what it would obey stands as `^[`. Lines and tabs stay.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\t' => cleaned.push(letter),
            letter if is_unsafe(letter) => escape(&mut cleaned, letter),
            letter => cleaned.push(letter),
        }
    }
    cleaned
}

/// The same for what must stay on one line.
pub(super) fn one_line(text: &str) -> String {
    clean(text).replace('\n', "⏎").replace('\t', " ")
}

/// Output of a job on its way to a terminal, piece by piece: a piece may end in the middle of a character.
#[derive(Default)]
pub(super) struct Cleaner {
    held: Vec<u8>,
}

impl Cleaner {
    pub(super) fn clean(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let keep = unfinished(&self.held);
        let rest = self.held.split_off(self.held.len() - keep);
        let whole = std::mem::replace(&mut self.held, rest);
        clean(&String::from_utf8_lossy(&whole).replace("\r\n", "\n"))
    }

    /// What was held back for more to come.
    pub(super) fn finish(&mut self) -> String {
        clean(&String::from_utf8_lossy(&std::mem::take(&mut self.held)))
    }
}

/// How many bytes at the end are the beginning of something: a character, or the end of a line.
fn unfinished(bytes: &[u8]) -> usize {
    if bytes.ends_with(b"\r") {
        return 1;
    }
    let from = bytes.len().saturating_sub(3);
    let Some(begin) = bytes[from..].iter().rposition(|byte| *byte >= 0xc0).map(|at| from + at) else {
        return 0;
    };
    match std::str::from_utf8(&bytes[begin..]) {
        Err(error) if error.error_len().is_none() => bytes.len() - begin,
        Ok(_) | Err(_) => 0,
    }
}

/// Cells that a text takes.
pub(super) fn cells(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// A text that takes so many cells at the most; what was cut is `…`.
pub(super) fn cut(text: &str, width: usize) -> String {
    if cells(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut taken = 1;
    for letter in text.chars() {
        taken += letter.width().unwrap_or(0);
        if taken > width {
            break;
        }
        kept.push(letter);
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_25_nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(
            clean("a\x1b[2Jb\x07\x7f\r\u{9b}31m\u{202e}\tc\nd"),
            "a^[[2Jb^G^?^M\\u{9b}31m\\u{202e}\tc\nd"
        );
        for byte in 0..=u8::MAX {
            let shown = Cleaner::default().clean(&[b'x', byte, b'y']);
            let obeyed = shown.chars().any(|letter| letter.is_control() && letter != '\n' && letter != '\t');
            assert!(!obeyed, "{byte:#x}: {shown:?}");
        }
    }

    #[test]
    fn characters_that_are_cut_between_pieces_are_whole() {
        for text in ["aé€😀b\r\nc", "\r\n", "é", "x\r"] {
            let mut cleaner = Cleaner::default();
            let mut shown: String = text.bytes().map(|byte| cleaner.clean(&[byte])).collect();
            shown += &cleaner.finish();
            assert_eq!(shown, text.replace("\r\n", "\n").replace('\r', "^M"), "{text:?}");
        }
        let mut cleaner = Cleaner::default();
        assert_eq!(cleaner.clean(b"\xff\xf0\x9f") + &cleaner.clean(b"!"), "\u{fffd}\u{fffd}!");
    }

    #[test]
    fn what_is_too_wide_is_cut_by_cells() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("abc", 0), "");
    }
}

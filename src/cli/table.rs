//! Tables that fit the terminal.

use super::screen::{Look, Screen, cells, cut, one_line};

/// Between two columns.
const GAP: usize = 2;
/// What a column is never cut below, if it had more.
const LEAST: usize = 6;

/// A cell: its text, and how it looks.
pub(super) struct Cell(pub(super) String, pub(super) Look);

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self(text, Look::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self(text.to_owned(), Look::Plain)
    }
}

/// Rows under a heading. Columns in which nothing stands are left out. Where it is too wide, the last column is cut
/// first, then the widest, never the first; then the last but one is left out.
pub(super) fn table(screen: &Screen, heading: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let rows: Vec<Vec<Cell>> = rows
        .into_iter()
        .map(|row| row.into_iter().map(|Cell(text, look)| Cell(one_line(&text), look)).collect())
        .collect();
    let mut used: Vec<usize> =
        (0..heading.len()).filter(|column| rows.iter().any(|row| !row[*column].0.is_empty())).collect();
    let mut widths: Vec<usize> = used
        .iter()
        .map(|column| {
            rows.iter().map(|row| cells(&row[*column].0)).max().unwrap_or(0).max(heading[*column].len())
        })
        .collect();
    if let Some(width) = screen.width() {
        let mut whole = widths.clone();
        while fit(&mut widths, width) > 0 && used.len() > 2 {
            used.remove(used.len() - 2);
            whole.remove(whole.len() - 2);
            // From what they were: the others share the room that it leaves.
            widths.clone_from(&whole);
        }
    }
    let line = |row: &dyn Fn(usize) -> (String, Look)| {
        let mut line = String::new();
        for (at, (column, width)) in used.iter().zip(&widths).enumerate() {
            let (text, look) = row(*column);
            let text = cut(&text, *width);
            line.push_str(&screen.paint(look, &text));
            if at + 1 < used.len() {
                line.extend(std::iter::repeat_n(' ', width - cells(&text) + GAP));
            }
        }
        let end = line.trim_end().len();
        line.truncate(end);
        line + "\n"
    };
    let mut printed = line(&|column| (heading[column].to_owned(), Look::Bold));
    for row in &rows {
        printed += &line(&|column| (row[column].0.clone(), row[column].1));
    }
    printed
}

/// Makes columns narrower until they fit; what they are too wide by after all.
fn fit(widths: &mut [usize], width: usize) -> usize {
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    let mut over = total(widths).saturating_sub(width);
    if let Some(last) = widths.last_mut() {
        let less = over.min(last.saturating_sub(LEAST * 2));
        *last -= less;
        over -= less;
    }
    while over > 0 {
        let widest = widths.iter_mut().skip(1).max().filter(|widest| **widest > LEAST);
        let Some(widest) = widest else { break };
        *widest -= 1;
        over -= 1;
    }
    over
}

/// Facts, one a line, under each other. What has no value is left out.
pub(super) fn facts(screen: &Screen, facts: &[(&str, String)]) -> String {
    let facts = facts.iter().filter(|(_, value)| !value.is_empty());
    let width = facts.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    let indent = format!("\n{:width$}  ", "");
    facts
        .map(|(name, value)| {
            let name = format!("{name:width$}");
            let value = super::screen::clean(value).replace('\n', &indent);
            format!("{}  {value}\n", screen.paint(Look::Dim, &name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_is_cut_first_and_then_the_widest() {
        let mut widths = [8, 4, 40];
        assert_eq!((fit(&mut widths, 40), widths), (0, [8, 4, 24]));
        let mut widths = [8, 30, 40];
        assert_eq!(fit(&mut widths, 40), 0);
        assert!(widths.iter().sum::<usize>() + 4 == 40 && widths[2] >= 12, "{widths:?}");
        let mut widths = [8, 4];
        assert_eq!((fit(&mut widths, 10), widths), (4, [8, 4]), "what is this narrow is not cut");
    }
}

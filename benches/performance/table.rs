//! The goals, the figures, and the table of both.

use std::fmt;

use serde_json::json;

use crate::{Bench, Result};

/// Where a figure is to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// What is claimed of one figure.
pub(crate) struct Claim {
    pub(crate) what: &'static str,
    /// What it is measured with; empty where the goal is a number of its own.
    pub(crate) yardstick: &'static str,
    pub(crate) goal: Goal,
    /// The unit of the goal: `×` where it is a ratio to the yardstick.
    pub(crate) unit: &'static str,
}

/// One measurement: it gives a figure for each of its claims.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) claims: &'static [Claim],
    pub(crate) measure: fn(&Bench) -> Result<Vec<Figure>>,
}

/// What was measured for a claim.
pub(crate) struct Figure {
    /// In the unit of the goal.
    pub(crate) value: f64,
    /// For people, with what it is made of.
    pub(crate) measured: String,
    /// The yardstick's own figure.
    pub(crate) yardstick: String,
    /// What the least that has to be done comes to, in the unit of the goal and for people; see `floor.rs`.
    pub(crate) floor: Option<(f64, String)>,
}

impl Figure {
    pub(crate) fn new(value: f64, measured: String, yardstick: impl Into<String>) -> Self {
        Self { value, measured, yardstick: yardstick.into(), floor: None }
    }

    pub(crate) fn with_floor(self, value: f64, measured: String) -> Self {
        Self { floor: Some((value, measured)), ..self }
    }
}

/// A line of the table.
pub(crate) struct Line {
    name: &'static str,
    claim: &'static Claim,
    figure: std::result::Result<Figure, String>,
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {}", with_unit(bound, unit)),
            Self::AtMost(bound) => format!("≤ {}", with_unit(bound, unit)),
        }
    }
}

/// A number as somebody would write it: three digits that count, and thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 1000.0 {
        let digits = format!("{:.0}", value.abs());
        let mut text = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        return if value < 0.0 { format!("-{text}") } else { text };
    }
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "×" => format!("{}×", number(value)),
        "" => number(value),
        unit => format!("{} {unit}", number(value)),
    }
}

/// The lines of one measurement. Where it failed, each of its claims says so.
pub(crate) fn lines(row: &'static Row, figures: Result<Vec<Figure>>) -> Vec<Line> {
    let mut figures = figures.map(Vec::into_iter).map_err(|error| error.to_string());
    row.claims
        .iter()
        .map(|claim| {
            let figure = match &mut figures {
                Ok(figures) => figures.next().ok_or_else(|| "not measured".to_owned()),
                Err(error) => Err(error.clone()),
            };
            Line { name: row.name, claim, figure }
        })
        .collect()
}

impl Line {
    fn met(&self) -> bool {
        self.figure.as_ref().is_ok_and(|figure| self.claim.goal.met(figure.value))
    }
}

/// The first two lines of the table.
pub(crate) const HEAD: &str = "| what | measured | yardstick in the same run | result | goal | met | floor |\n|---|---|---|---|---|---|---|";

pub(crate) fn summary(lines: &[Line]) -> String {
    let met = lines.iter().filter(|line| line.met()).count();
    format!("\n{met} of {} goals are met.", lines.len())
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claim { what, yardstick, goal, unit } = self.claim;
        let floor = self.figure.as_ref().ok().and_then(|figure| figure.floor.as_ref());
        let floor =
            floor.map(|(value, text)| format!("{}: {text}", with_unit(*value, unit))).unwrap_or_default();
        let (measured, theirs, result) = match &self.figure {
            Ok(figure) => (figure.measured.clone(), figure.yardstick.as_str(), with_unit(figure.value, unit)),
            Err(error) => (format!("failed: {}", error.replace(['|', '\n'], " ")), "", "–".to_owned()),
        };
        let yardstick = match (yardstick.is_empty(), theirs.is_empty()) {
            (_, true) => (*yardstick).to_owned(),
            (true, false) => theirs.to_owned(),
            (false, false) => format!("{yardstick}: {theirs}"),
        };
        let (goal, met) = (goal.text(unit), if self.met() { "yes" } else { "**no**" });
        write!(f, "| {what} | {measured} | {yardstick} | {result} | {goal} | {met} | {floor} |")
    }
}

pub(crate) fn json(machine: &str, lines: &[Line]) -> String {
    let rows: Vec<_> = (lines.iter())
        .map(|line| {
            let figure = line.figure.as_ref();
            json!({
                "name": line.name,
                "what": line.claim.what,
                "yardstick": line.claim.yardstick,
                "value": figure.ok().map(|figure| figure.value),
                "unit": line.claim.unit,
                "goal": line.claim.goal.text(line.claim.unit),
                "met": line.met(),
                "measured": figure.ok().map(|figure| &figure.measured),
                "floor": figure.ok().and_then(|figure| figure.floor.as_ref()),
                "yardstick_measured": figure.ok().map(|figure| &figure.yardstick),
                "error": figure.err(),
            })
        })
        .collect();
    format!("{:#}\n", json!({"machine": machine, "rows": rows}))
}

//! The text that Prometheus reads: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::{Display, Write};

use super::{Counter, Histogram};

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// It only grows.
    Counter,
    /// It grows and shrinks.
    Gauge,
    /// Several, by size.
    Histogram,
}

/// The text so far.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// What it is served as.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family: its samples follow.
    pub fn family(&mut self, name: &str, of: Type, help: &str) {
        let of = match of {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {of}"));
    }

    /// A sample of the family that was begun.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.line(format_args!("{name}{} {value}", Labels(labels)));
    }

    /// A family of one gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Type::Gauge, help);
        self.sample(name, &[], value);
    }

    /// A family of one counter.
    pub fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.family(name, Type::Counter, help);
        self.sample(name, &[], counter.get());
    }

    /// The samples of a histogram of the family that was begun.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let (below, all, sum) = histogram.read();
        let bucket = format!("{name}_bucket");
        for (bound, count) in below {
            let bound = bound.to_string();
            self.sample(&bucket, &[labels, &[("le", &bound)]].concat(), count);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), all);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, all);
    }

    /// The whole text.
    pub fn into_string(self) -> String {
        self.0
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String can't fail.
        writeln!(self.0, "{line}").ok();
    }
}

struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, (name, value)) in self.0.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            write!(f, "{before}{name}=\"{value}\"")?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_char('}') }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_what_prometheus_reads() {
        let mut text = Text::default();
        text.gauge("a", "What.", 1.5);
        text.family("b_seconds", Type::Histogram, "How long.");
        let histogram = Histogram::new(&[0.1, 5.0]);
        histogram.observe(Duration::from_secs(2));
        text.histogram("b_seconds", &[("kind", "a\"b\\c\nd")], &histogram);
        let expected = r#"# HELP a What.
# TYPE a gauge
a 1.5
# HELP b_seconds How long.
# TYPE b_seconds histogram
b_seconds_bucket{kind="a\"b\\c\nd",le="0.1"} 0
b_seconds_bucket{kind="a\"b\\c\nd",le="5"} 1
b_seconds_bucket{kind="a\"b\\c\nd",le="+Inf"} 1
b_seconds_sum{kind="a\"b\\c\nd"} 2
b_seconds_count{kind="a\"b\\c\nd"} 1
"#;
        assert_eq!(text.into_string(), expected);
    }
}

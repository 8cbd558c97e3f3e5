//! The daemon's own log, on standard error or in the journal.
//!
//! What is told of an attempt, by whatever part, carries `runner`, `run` and `attempt`: its main task and its close are in
//! a span with these fields as long as they are polled.

use std::{
    env,
    fmt::{self, Debug},
    io::{self, IsTerminal, stderr},
};

use serde::Serialize;
use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    field::RecordFields,
    fmt::{
        FormatFields, FormattedFields,
        format::{JsonFields, Writer},
        layer as lines_layer,
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::{json, settings::LogFormat};

/// Changes what is logged while the daemon runs.
#[derive(Clone, Debug)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// From now on this is logged. What is no filter is ignored: settings are checked before they get here.
    pub fn set(&self, filter: &str) {
        let set = EnvFilter::builder().parse(filter).map(|filter| self.0.reload(filter));
        match set {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what is logged could not be changed"),
            Err(error) => tracing::warn!(%error, "what is logged could not be changed"),
        }
    }
}

/// Starts logging. Called once, before anything is worth telling.
///
/// # Errors
/// A sentence about what can't be had.
pub fn start(filter: &str, format: LogFormat) -> Result<Filter, String> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| error.to_string())?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = match format {
        LogFormat::Auto if stderr().is_terminal() => text(),
        // Without its socket the journal still takes lines.
        LogFormat::Auto if to_journal() => journal().unwrap_or_else(|_| json()),
        LogFormat::Auto | LogFormat::Json => json(),
        LogFormat::Text => text(),
        LogFormat::Journald => journal().map_err(|error| {
            format!(
                "`telemetry.format` is \"journald\", but the journal's socket /run/systemd/journal/socket can't be \
                 reached ({error}): it must be \"auto\", \"text\" or \"json\" on this machine"
            )
        })?,
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|error| error.to_string())?;
    Ok(Filter(handle))
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

fn text() -> Lines {
    let colour = stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    lines_layer().with_writer(stderr).with_target(false).with_ansi(colour).boxed()
}

fn json() -> Lines {
    // The outermost span of a line is the attempt's.
    lines_layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .fmt_fields(JsonAsItComes)
        .with_writer(stderr)
        .boxed()
}

/// The fields of an attempt's span.
const SPAN_BYTES: usize = 96;

/// The fields of a span as JSON, as lines take them over. Every attempt has a span, most have no line: the library's own
/// makes a sorted map of values first, which is three quarters of what a span costs.
struct JsonAsItComes;

impl<'w> FormatFields<'w> for JsonAsItComes {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut members = Members(Vec::with_capacity(SPAN_BYTES));
        fields.record(&mut members);
        let Members(mut text) = members;
        if text.is_empty() {
            text.push(b'{');
        }
        text.push(b'}');
        // At once: what grows bit by bit is allocated as often.
        writer.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let mut both = FormattedFields::<JsonFields>::new(std::mem::take(&mut current.fields));
        JsonFields::new().add_fields(&mut both, fields)?;
        current.fields = both.fields;
        Ok(())
    }
}

/// An object, but for its end.
struct Members(Vec<u8>);

impl Members {
    fn add(&mut self, field: &Field, value: &impl Serialize) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        // Neither a Vec nor what fields hold can fail.
        json::write(&mut self.0, &field.name()).ok();
        self.0.push(b':');
        json::write(&mut self.0, value).ok();
    }
}

impl Visit for Members {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, &format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value);
    }
}

/// Fields of their own: `RUNNER=`, `RUN=`, `ATTEMPT=`.
fn journal() -> io::Result<Lines> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier("runward".into())
        .with_priority_mappings(priorities);
    Ok(layer.boxed())
}

/// Whether standard error is the stream to the journal that systemd gave: `$JOURNAL_STREAM` is its device and inode.
fn to_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    nix::sys::stat::fstat(stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_fields_of_a_span_are_json_whatever_they_hold() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer =
            lines_layer().json().flatten_event(true).with_current_span(false).fmt_fields(JsonAsItComes);
        let subscriber = tracing_subscriber::registry().with(layer.with_writer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let (text, late) = ("a \"quoted\"\nline", tracing::field::Empty);
            let span = tracing::error_span!("s", text, shown = %text, run = 1_u32, left = -2, half = 0.5, yes = true, late);
            span.in_scope(|| tracing::info!("first"));
            span.record("late", 7);
            span.in_scope(|| tracing::info!("second"));
            tracing::error_span!("empty").in_scope(|| tracing::info!("third"));
        });
        let lines = lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spans: Vec<Value> = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<Value>(line).expect("JSON")["spans"][0].clone())
            .collect();
        let text = "a \"quoted\"\nline";
        let mut expected = json!({
            "name": "s", "text": text, "shown": text, "run": 1, "left": -2, "half": 0.5, "yes": true
        });
        assert_eq!(spans[0], expected);
        expected["late"] = json!(7);
        assert_eq!(spans[1], expected);
        assert_eq!(spans[2], json!({"name": "empty"}));
    }
}

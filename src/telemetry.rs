//! The daemon's own log, on standard error or in the journal.
//!
//! What is told of an attempt, by whatever part, carries `runner`, `run` and `attempt`: its main task and its close are in
//! a span with these fields as long as they are polled.

use std::{
    env,
    io::{self, IsTerminal, stderr},
};

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::settings::LogFormat;

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
    fmt::layer().with_writer(stderr).with_target(false).with_ansi(colour).boxed()
}

fn json() -> Lines {
    // The outermost span of a line is the attempt's.
    fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(stderr).boxed()
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

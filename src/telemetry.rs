//! The daemon's own log, on standard error.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::settings::LogFormat;

/// Starts logging. Called once, before anything is worth telling.
///
/// # Errors
/// A sentence about the filter, where it is none.
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        format!("`telemetry.filter` is {filter:?}, but must be a level or a list of them: {error}")
    })?;
    let text = match format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let colour = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let registry = tracing_subscriber::registry().with(filter);
    let started = if text {
        registry.with(fmt::layer().with_writer(stderr).with_target(false).with_ansi(colour)).try_init()
    } else {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(stderr)).try_init()
    };
    started.map_err(|error| error.to_string())
}

//! When a failed attempt is followed by another.

use serde_json::Value;

use super::missing;
use crate::{
    http::{
        duration,
        fields::{Fields, invalid},
        problem::Problem,
    },
    job::Retry,
};

/// Attempts of one run: each is in the record and has a directory for its output.
const MAX_ATTEMPTS: u32 = 1000;
/// The fields of a retry.
pub(in crate::http) const RETRY: [&str; 4] =
    ["max_attempts", "initial_backoff", "max_backoff", "on_exit_codes"];

/// Reads `retry`.
///
/// # Errors
/// A [`Problem`] that names the field.
pub(super) fn read(fields: &mut Fields) -> Result<Retry, Problem> {
    let default = Retry::default();
    let Some(value) = fields.value("retry") else { return Ok(default) };
    let mut fields = Fields::open(value, "retry", &RETRY)?;
    let path = fields.path("max_attempts");
    let max_attempts = fields.number("max_attempts", 1..=MAX_ATTEMPTS)?.ok_or_else(|| {
        missing(&path, "it is how often the job is tried in all, as in {\"max_attempts\": 3}")
    })?;
    let initial_backoff = fields.duration("initial_backoff")?.unwrap_or(default.initial_backoff);
    if initial_backoff < Retry::FLOOR {
        let floor = duration::format(Retry::FLOOR);
        return Err(invalid(
            &fields.path("initial_backoff"),
            &format!("{floor} at the least: a job that fails at once must be no busy loop"),
        ));
    }
    let max_backoff =
        fields.duration("max_backoff")?.unwrap_or_else(|| default.max_backoff.max(initial_backoff));
    if max_backoff < initial_backoff {
        let expected = format!("no shorter than `{}`", fields.path("initial_backoff"));
        return Err(invalid(&fields.path("max_backoff"), &expected));
    }
    let on_exit_codes = exit_codes(&mut fields)?;
    Ok(Retry { max_attempts, initial_backoff, max_backoff, on_exit_codes })
}

fn exit_codes(fields: &mut Fields) -> Result<Vec<i32>, Problem> {
    let path = fields.path("on_exit_codes");
    let list = match fields.value("on_exit_codes") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            return Err(invalid(
                &path,
                "a list of exit codes, such as [75, 111]; leave it out for any failure",
            ));
        }
    };
    let code = |(index, value): (usize, &Value)| {
        let code = value.as_u64().and_then(|code| u8::try_from(code).ok()).map(i32::from);
        code.ok_or_else(|| invalid(&format!("{path}[{index}]"), "an exit code, a whole number from 0 to 255"))
    };
    let mut codes = list.iter().enumerate().map(code).collect::<Result<Vec<_>, _>>()?;
    codes.sort_unstable();
    codes.dedup();
    Ok(codes)
}

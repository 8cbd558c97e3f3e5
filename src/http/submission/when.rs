//! When a job may start, and when the time for all of it is up.

use jiff::{Timestamp, fmt::temporal::Pieces};

use crate::{
    http::{
        fields::{Fields, invalid},
        problem::Problem,
    },
    job::Spec,
};

/// Reads `delay`, `start_at` and `deadline`.
///
/// # Errors
/// A [`Problem`] that names the field.
pub(super) fn read(fields: &mut Fields, spec: &mut Spec) -> Result<(), Problem> {
    spec.delay = fields.duration("delay")?.into();
    spec.start_at = start_at(fields)?.into();
    spec.deadline = fields.duration("deadline")?.into();
    if spec.delay.is_some() && spec.start_at.is_some() {
        return Err(invalid("start_at", "left out where `delay` is given: either says when it may start"));
    }
    match (*spec.deadline, *spec.delay) {
        (Some(deadline), _) if deadline.is_zero() => {
            Err(invalid("deadline", "longer than 0; leave it out for no limit"))
        }
        (Some(deadline), Some(delay)) if deadline <= delay => Err(invalid(
            "deadline",
            "longer than `delay`: it is counted from the submission, and the job could never start",
        )),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

/// A time that has passed is no fault: the job may start at once.
fn start_at(fields: &mut Fields) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = fields.text("start_at")? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let expected = match Pieces::parse(&text) {
            // The last hours of the year 9999 are none here.
            Ok(pieces) if pieces.offset().is_some() => {
                "no later than 9999-12-30T22:00:00Z, the last time there is here"
            }
            Ok(_) | Err(_) => {
                "a time as in RFC 3339, with its offset from UTC, such as \"2030-01-31T06:00:00Z\" or \
                 \"2030-01-31T07:00:00+01:00\""
            }
        };
        invalid("start_at", expected)
    })
}

//! Limits of a job, as the API shows them and as it describes what it takes.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::job;

/// Limits of each process, by name.
pub(crate) type Rlimits = BTreeMap<&'static str, Rlimit>;

/// A limit that a process may raise itself, up to one that it may not.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Rlimit {
    /// The limit in force.
    soft: Bound,
    /// What it may be raised to.
    hard: Bound,
}

/// A number, or `unlimited`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Bound {
    /// So much.
    Number(u64),
    /// `unlimited`.
    Word(&'static str),
}

/// Limits of a whole job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Limits {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
    /// Processes and threads at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<u64>,
}

pub(crate) fn rlimits(rlimits: &job::Rlimits) -> Rlimits {
    let shown = |limit: &job::Rlimit| Rlimit { soft: limit.soft.into(), hard: limit.hard.into() };
    rlimits.iter().map(|(resource, limit)| (resource.as_str(), shown(limit))).collect()
}

pub(crate) fn limits(limits: job::Limits) -> Option<Limits> {
    let job::Limits { memory, cpu, pids } = limits;
    (!limits.is_empty()).then_some(Limits { memory, cpu, pids })
}

impl From<job::Bound> for Bound {
    fn from(bound: job::Bound) -> Self {
        match bound {
            job::Bound::Unlimited => Self::Word("unlimited"),
            job::Bound::Number(number) => Self::Number(number),
        }
    }
}

/// A limit of each process: one number for both, or the soft and the hard one.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(super) enum RlimitForm {
    /// Both the same.
    Both(BoundForm),
    /// Each its own.
    Each {
        /// The limit in force.
        soft: BoundForm,
        /// What it may be raised to.
        hard: BoundForm,
    },
}

/// A number, a size such as `512M`, or `unlimited`.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(super) enum BoundForm {
    /// In the unit of the resource: bytes, seconds, or how many.
    Number(u64),
    /// A size, for what is counted in bytes, or `unlimited`.
    Text(String),
}

/// Limits of a whole job. `containment.limits` in `/v1/info` has those that can be had.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(super) struct LimitsForm {
    /// Memory, in bytes or as a size such as `512M`. The job has no swap then, and when it needs more, all of it is
    /// killed.
    memory: Option<SizeForm>,
    /// Processors: 1.5 is one and a half.
    #[schema(minimum = 0.01)]
    cpu: Option<f64>,
    /// Processes and threads at once.
    #[schema(minimum = 1)]
    pids: Option<u64>,
}

/// Bytes.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(super) enum SizeForm {
    /// Bytes.
    Bytes(u64),
    /// With a unit, by 1024: `K`, `M`, `G`, `T`.
    Text(String),
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;
    use crate::http::submission::process::LIMITS;

    #[test]
    fn the_description_has_the_limits_that_are_read() {
        let schema = serde_json::to_value(LimitsForm::schema()).expect("JSON");
        let names: Vec<_> = schema["properties"].as_object().expect("an object").keys().cloned().collect();
        assert_eq!(names, LIMITS);
    }
}

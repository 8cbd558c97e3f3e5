//! Many at once in the API.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::Submission;
use crate::{http::problem::Problem, job::RunnerId};

/// Jobs to submit together.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct Batch {
    /// Each as the body of `POST /v1/runners`.
    #[schema(min_items = 1, max_items = 1000)]
    runners: Vec<Submission>,
}

/// What became of a batch.
#[derive(Serialize, ToSchema)]
pub(crate) struct Submitted {
    /// One for each submission, in their order.
    pub items: Vec<SubmittedItem>,
}

/// What became of one submission of a batch.
#[derive(Serialize, ToSchema)]
pub(crate) struct SubmittedItem {
    /// What it would have been answered with alone: 201, or that of its problem.
    pub status: u16,
    /// The runner that was made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<Made>,
    /// Why it was not accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// A runner that was made. `GET /v1/runners/{id}` has the rest.
#[derive(Serialize, ToSchema)]
pub(crate) struct Made {
    /// Its id.
    #[schema(value_type = String)]
    pub id: RunnerId,
    /// The name it was given.
    pub name: Option<String>,
    /// Whether an earlier batch with this idempotency key made it.
    pub replayed: bool,
}

/// Which runners to cancel: those that are not closed and fit all of it. One field at least.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct CancelFilter {
    /// In one of these states, but `closed`.
    state: Option<Vec<String>>,
    /// In this queue.
    queue: Option<String>,
    /// With this name.
    name: Option<String>,
    /// With all of these labels.
    label: Option<BTreeMap<String, String>>,
    /// All of them; not with the others.
    all: Option<bool>,
}

/// What became of a cancellation of many.
#[derive(Serialize, ToSchema)]
pub(crate) struct CancelledMany {
    /// How many fit, of those that were looked at.
    pub matched: usize,
    /// How many of them are being cancelled now, or were in the queue and are closed.
    pub accepted: usize,
    /// Whether there may be more than the 10,000 of one request: ask again then.
    pub more: bool,
    /// Each of them, those that waited first.
    pub items: Vec<CancelledItem>,
}

/// What became of one of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct CancelledItem {
    /// The runner.
    #[schema(value_type = String)]
    pub id: RunnerId,
    /// `accepted`, `already_so` (it was stopping already), or `refused`.
    pub result: &'static str,
    /// Why it was refused: it has closed meanwhile, or is kept open and idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

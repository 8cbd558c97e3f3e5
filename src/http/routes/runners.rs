//! Runners: list, see, cancel, close.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{From, Id, json, json_list, no_body, no_parameters};
use crate::{
    http::{
        Shared,
        dto::{Cancelled, Runner, RunnerPage},
        problem::{Kind, Problem},
        query::Query,
    },
    job::{Outcome, Record, RunnerId, State as Stage},
    supervisor::{Filter, LOOKS},
};

/// Runners on a page that asks for no number.
pub(super) const PAGE: u64 = 100;
/// The most Runners on a page.
pub(super) const MAX_PAGE: u64 = 1000;
/// How many are read from the store at once: a few large ones fit into memory.
pub(super) const READ: usize = 50;
/// A page ends early when it is this large: a thousand scripts of 1 MiB are no page.
pub(super) const PAGE_BYTES: usize = 4 << 20;
/// Places are positive numbers of the store, which has 63 bits for them.
pub(super) const MAX_PLACE: u64 = i64::MAX as u64;

/// A page, its items written already.
#[derive(Serialize)]
pub(super) struct Page {
    items: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// Items of a page, as long as they fit.
#[derive(Default)]
pub(super) struct Items {
    items: Vec<Box<RawValue>>,
    bytes: usize,
    last: u64,
}

impl Items {
    /// Adds one; `false` once the page is full.
    pub(super) fn add(&mut self, place: u64, item: &impl Serialize) -> Result<bool, Problem> {
        let item = to_raw_value(item).map_err(|error| {
            Problem::new(Kind::StoreUnreadable, format!("the answer can't be written: {error}"))
        })?;
        self.bytes += item.get().len();
        self.items.push(item);
        self.last = place;
        Ok(self.bytes < PAGE_BYTES)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The page, and whether there is more after its last item.
    pub(super) fn page(self, more: bool) -> Page {
        let next = more.then_some(self.last);
        self.page_before(next)
    }

    /// The page, and the place where the next one goes on.
    pub(super) fn page_before(self, next: Option<u64>) -> Page {
        Page { items: self.items, next_cursor: next.map(|next| next.to_string()) }
    }
}

/// Lists runners, newest first.
#[utoipa::path(get, path = "/v1/runners", tag = "runners",
    params(
        ("state" = Option<Vec<String>>, Query, description = "In one of these states; repeat it, or separate them by commas"),
        ("outcome" = Option<Vec<String>>, Query, description = "With one of these outcomes; repeat it, or separate them by commas"),
        ("queue" = Option<String>, Query, description = "In this queue"),
        ("name" = Option<String>, Query, description = "With this name"),
        ("label" = Option<Vec<String>>, Query, description = "With this label, as `team=data`; repeat it for all of several"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000, description = "How many at the most; 100 if not given. A page may be shorter, even empty, and have a `next_cursor`: go on with that"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of runners", body = RunnerPage)))]
pub(super) async fn list(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    let mut query = Query::parse(&uri, &["state", "outcome", "queue", "name", "label", "limit", "cursor"])?;
    let states: Vec<_> = Stage::ALL.iter().map(|state| state.as_str()).collect();
    let outcomes: Vec<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
    let mut filter = Filter {
        states: query.words("state", Stage::from_word, &states)?,
        outcomes: query.words("outcome", Outcome::from_word, &outcomes)?,
        queue: query.one("queue")?,
        name: query.one("name")?,
        labels: query.pairs("label")?,
        before: query.number("cursor", 0..=MAX_PLACE)?,
        limit: 0,
    };
    let limit = query.number("limit", 1..=MAX_PAGE)?.unwrap_or(PAGE) as usize;
    let mut items = Items::default();
    let mut looked = 0;
    let next = 'reading: loop {
        filter.limit = READ.min(limit - items.len());
        let listed = shared.api.supervisor.archive().list(filter.clone()).await?;
        for record in &listed.found {
            if !items.add(record.submitted_seq, &Runner::from(record))? {
                break 'reading Some(record.submitted_seq);
            }
        }
        looked += listed.looked;
        if listed.next.is_none() || items.len() == limit || looked >= LOOKS {
            break listed.next;
        }
        filter.before = listed.next;
    };
    Ok(json_list(&items.page_before(next)))
}

/// The whole record of a runner.
#[utoipa::path(get, path = "/v1/runners/{id}", tag = "runners",
    params(("id" = String, Path, description = "The runner")),
    responses((status = 200, description = "The runner", body = Runner)))]
pub(super) async fn get(State(shared): State<Shared>, id: Id, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let record = record(&shared, id.0).await?;
    Ok(json(StatusCode::OK, &Runner::from(&record)))
}

/// The committed record.
pub(super) async fn record(shared: &Shared, id: RunnerId) -> Result<Record, Problem> {
    let record = shared.api.supervisor.archive().record(id).await?;
    record.ok_or_else(|| Problem::runner_not_found(id))
}

/// Cancels a runner: the first request cancels its main task, a second one forces.
#[utoipa::path(post, path = "/v1/runners/{id}/cancel", tag = "runners",
    params(("id" = String, Path, description = "The runner")),
    responses((status = 202, description = "The receipt so far", body = Cancelled)))]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    id: Id,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let detail = "cancel takes no body: the first request cancels, a second one forces";
    no_body(&shared, &from.0, &headers, body, detail).await?;
    let _taken = shared.api.supervisor.cancel(id.0, from.0.peer.requester()).await?;
    let record = record(&shared, id.0).await?;
    Ok(json(StatusCode::ACCEPTED, &Cancelled::from(&record)))
}

/// Closes a runner: cancels, drains, closes. Idempotent, and never forces.
#[utoipa::path(delete, path = "/v1/runners/{id}", tag = "runners",
    params(("id" = String, Path, description = "The runner")),
    responses(
        (status = 200, description = "It is closed", body = Runner),
        (status = 202, description = "It closes", body = Runner),
    ))]
pub(super) async fn close(
    State(shared): State<Shared>,
    id: Id,
    from: From,
    uri: Uri,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let _taken = shared.api.supervisor.close(id.0, from.0.peer.requester()).await?;
    let record = record(&shared, id.0).await?;
    let status = match record.state {
        Stage::Closed => StatusCode::OK,
        Stage::Queued
        | Stage::Starting
        | Stage::Running
        | Stage::Idle
        | Stage::Cancelling
        | Stage::Draining => StatusCode::ACCEPTED,
    };
    Ok(json(status, &Runner::from(&record)))
}

//! `Runner.run()` again: another run of a Runner that is kept open.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{
    From, Id, json, location, read_json,
    runners::record,
    submit::{check_identity, wait, within},
};
use crate::{
    http::{
        Shared,
        dto::{RunToAdd, Runner},
        idempotency,
        problem::{Kind, Problem},
        query::Query,
        submission,
    },
    job::RunnerId,
};

/// The header with the number of the run.
const RUN: HeaderName = HeaderName::from_static("runward-run");

/// Adds a run to a runner that is kept open: it waits for its turn, and runs in the context that the runs before it
/// left. `Runward-Run` is its number.
#[utoipa::path(post, path = "/v1/runners/{id}/runs", tag = "runners",
    params(
        ("id" = String, Path, description = "The runner"),
        ("wait" = Option<String>, Query, description = "Answer when the run is over (200) or this time is up (202), an hour at the most"),
    ),
    request_body(content((RunToAdd = "application/json"))),
    responses(
        (status = 201, description = "It waits for its turn", body = Runner),
        (status = 200, description = "With `wait`: the run is over", body = Runner),
        (status = 202, description = "With `wait`: the time is up, and it goes on", body = Runner),
    ))]
pub(super) async fn add(
    State(shared): State<Shared>,
    id: Id,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    let mut query = Query::parse(&uri, &["wait"])?;
    let wait = wait(&mut query)?;
    if headers.contains_key(idempotency::HEADER) {
        let detail = "runs take no Idempotency-Key: see in the runner's `runs` whether one was added, and add it if not";
        return Err(Problem::new(Kind::InvalidHeader, detail).field(idempotency::HEADER));
    }
    let value = read_json(&shared, &from.0, &headers, body).await?;
    let runner = record(&shared, id.0).await?;
    let spec = submission::run(value, &runner.spec, &shared.config())?;
    check_identity(&shared, &spec).await?;
    let held = match wait {
        None => None,
        Some(_) => Some(from.0.hold().await?),
    };
    let run = shared.api.supervisor.add_run(id.0, Arc::new(spec.job.clone())).await?;
    let answered = respond(&shared, id.0, run, wait).await;
    drop(held);
    let mut response = answered.unwrap_or_else(|problem| {
        let detail =
            format!("the run was added as number {run}, don't add it again; but {}", problem.detail());
        Problem::new(problem.kind(), detail).runner(id.0).into_response()
    });
    response.headers_mut().insert(RUN, HeaderValue::from(run));
    if let Some(location) = location(id.0) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The answer about a run that was added.
async fn respond(
    shared: &Shared,
    id: RunnerId,
    run: u32,
    wait: Option<Duration>,
) -> Result<Response, Problem> {
    let Some(limit) = wait else {
        return Ok(json(StatusCode::CREATED, &Runner::from(&record(shared, id).await?)));
    };
    let record = within(shared, id, limit, |record| record.is_over(run)).await?;
    let status = if record.is_over(run) { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(json(status, &Runner::from(&*record)))
}

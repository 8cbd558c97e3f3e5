//! `Runner.get_loop()`: what a Runner's loop is at.

use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};

use super::{Id, json, no_parameters};
use crate::http::{Shared, dto::EventLoop, problem::Problem};

/// What is on a runner's loop now: its tasks, how often and how long they were polled, and its blocking work.
#[utoipa::path(get, path = "/v1/runners/{id}/loop", tag = "runners",
    params(("id" = String, Path, description = "The runner")),
    responses((status = 200, description = "The loop; empty before the runner starts", body = EventLoop)))]
pub(super) async fn get_loop(State(shared): State<Shared>, id: Id, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let facts = shared.api.supervisor.get_loop(id.0).await?;
    Ok(json(StatusCode::OK, &EventLoop::from(&facts)))
}

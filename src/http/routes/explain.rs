//! Why is it not running yet, why did it end?

use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};

use super::{Id, json, no_parameters, runners::record};
use crate::{
    http::{Shared, dto::Explained, problem::Problem},
    job::State as Stage,
    supervisor::explain,
};

/// Why a runner is where it is: why it is not running yet, what it is at, why it ended. One sentence, and the facts
/// that it is made of.
#[utoipa::path(get, path = "/v1/runners/{id}/explain", tag = "runners",
    params(("id" = String, Path, description = "The runner")),
    responses((status = 200, description = "Why", body = Explained)))]
pub(super) async fn explain(State(shared): State<Shared>, id: Id, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let record = record(&shared, id.0).await?;
    let standing = match record.state {
        Stage::Queued => shared.api.supervisor.standing(id.0).await?,
        Stage::Starting
        | Stage::Running
        | Stage::Idle
        | Stage::Cancelling
        | Stage::Draining
        | Stage::Closed => None,
    };
    let explanation = explain::explain(&record, standing.as_ref(), shared.config().limits.cancel_grace);
    Ok(json(StatusCode::OK, &Explained::new(&record, &explanation)))
}

//! Letting a held Runner go on.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};

use super::{From, Id, json, no_body, no_parameters, runners::record};
use crate::{
    http::{
        Shared,
        dto::Runner,
        problem::{Kind, Problem},
    },
    supervisor::Taken,
};

/// Releases a runner that is held: it waits for its turn again.
#[utoipa::path(post, path = "/v1/runners/{id}/release", tag = "runners",
    params(("id" = String, Path, description = "The runner")),
    responses((status = 200, description = "It is not held any more", body = Runner)))]
pub(super) async fn release(
    State(shared): State<Shared>,
    id: Id,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    no_body(&shared, &from.0, &headers, body, "release takes no body").await?;
    match shared.api.supervisor.release(id.0, from.0.peer.requester()).await? {
        Taken::Accepted => {}
        Taken::AlreadySo => {
            let detail = "the runner is not held; GET /v1/runners/{id}/explain says what it is at";
            return Err(Problem::new(Kind::RunnerNotHeld, detail).runner(id.0));
        }
    }
    let record = record(&shared, id.0).await?;
    Ok(json(StatusCode::OK, &Runner::from(&record)))
}

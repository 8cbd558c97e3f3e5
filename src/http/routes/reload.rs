//! Reads the settings again.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use tokio::sync::oneshot;

use super::{From, json, no_body, no_parameters};
use crate::{
    http::{
        AskedBy, ReloadRequest, Reloaded, Shared,
        problem::{Kind, Problem},
    },
    supervisor::Refusal,
};

/// Reads the settings again, as SIGHUP does: all of them, or none if one is wrong. Answered when they are in force. No
/// job is touched.
#[utoipa::path(post, path = "/v1/reload", tag = "about",
    responses(
        (status = 200, description = "What has changed, and what needs a restart", body = Reloaded),
        (status = 422, description = "A setting is wrong: nothing was changed"),
    ))]
pub(super) async fn reload(
    State(shared): State<Shared>,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let detail =
        "this route takes no body: the settings are read from where the daemon read them at its start";
    no_body(&shared, &from.0, &headers, body, detail).await?;
    let (answer, reloaded) = oneshot::channel();
    let by = AskedBy::Client(from.0.peer.to_string());
    let request = ReloadRequest { by, answer: Some(answer) };
    shared.api.reload.send(request).await.map_err(|_| Refusal::Ended)?;
    let reloaded: Result<Reloaded, String> = reloaded.await.map_err(|_| Refusal::Ended)?;
    match reloaded {
        Ok(reloaded) => Ok(json(StatusCode::OK, &reloaded)),
        Err(error) => Err(Problem::new(Kind::InvalidSettings, format!("{error}; nothing was changed"))),
    }
}

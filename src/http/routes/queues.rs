//! Queues: see them, change how much they may run, pause them.

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, Uri, request::Parts as Head},
    response::Response,
};

use super::{From, json, no_parameters, read_json};
use crate::{
    http::{
        Shared,
        dto::{Queue, QueueToSet, Queues},
        fields::Fields,
        problem::{Kind, Problem},
        submission,
    },
    job::QueueSettings,
    supervisor::core::QueueStatus,
};

/// Slots of a queue: more than any daemon has.
const MAX_RUNNING: u32 = 1_000_000;

/// The name in the path.
pub(super) struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Head, state: &S) -> Result<Self, Problem> {
        let name =
            Path::<String>::from_request_parts(head, state).await.map(|Path(text)| text).unwrap_or_default();
        if submission::is_queue(&name) {
            return Ok(Self(name));
        }
        let detail = format!("the name of a queue must be {}", submission::QUEUE);
        Err(Problem::new(Kind::InvalidParameter, detail).field("name"))
    }
}

/// All queues that are used, set or configured.
#[utoipa::path(get, path = "/v1/queues", tag = "queues",
    responses((status = 200, description = "The queues, by name", body = Queues)))]
pub(super) async fn list(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let items = shared.api.supervisor.queues().await?.into_iter().map(Queue::from).collect();
    Ok(json(StatusCode::OK, &Queues { items }))
}

/// One queue. Naming a queue makes it, so each name has an answer.
#[utoipa::path(get, path = "/v1/queues/{name}", tag = "queues",
    params(("name" = String, Path, description = "The queue")),
    responses((status = 200, description = "The queue", body = Queue)))]
pub(super) async fn get(State(shared): State<Shared>, name: Name, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    answer(&shared, name.0).await
}

/// Changes a queue, at once and for later starts of the daemon. What is left out stays as it is; what runs goes on.
#[utoipa::path(put, path = "/v1/queues/{name}", tag = "queues",
    params(("name" = String, Path, description = "The queue")),
    request_body(content((QueueToSet = "application/json"))),
    responses((status = 200, description = "The queue, as it is now", body = Queue)))]
pub(super) async fn set(
    State(shared): State<Shared>,
    name: Name,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let value = read_json(&shared, &from.0, &headers, body).await?;
    let mut fields = Fields::open(value, "", &["max_running", "paused"])?;
    let unlimited = fields.is_null("max_running");
    let max_running = fields.number("max_running", 0..=MAX_RUNNING)?;
    let paused = fields.flag("paused")?;
    if max_running.is_none() && !unlimited && paused.is_none() {
        let detail = r#"say what to change: `max_running`, `paused` or both, as in {"paused": true}"#;
        return Err(Problem::new(Kind::MissingField, detail).field("").allowed(["max_running", "paused"]));
    }
    let _alone = shared.queue_changes.lock().await;
    let now = status(&shared, &name.0).await?.settings;
    let settings = QueueSettings {
        max_running: if unlimited { None } else { max_running.or(now.max_running) },
        paused: paused.unwrap_or(now.paused),
    };
    shared.api.supervisor.set_queue(name.0.clone(), Some(settings)).await?;
    answer(&shared, name.0).await
}

/// Forgets what was set over the API: the queue is as the daemon's settings have it.
#[utoipa::path(delete, path = "/v1/queues/{name}", tag = "queues",
    params(("name" = String, Path, description = "The queue")),
    responses((status = 200, description = "The queue, as it is now", body = Queue)))]
pub(super) async fn reset(State(shared): State<Shared>, name: Name, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let _alone = shared.queue_changes.lock().await;
    shared.api.supervisor.set_queue(name.0.clone(), None).await?;
    answer(&shared, name.0).await
}

async fn answer(shared: &Shared, name: String) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &Queue::from(status(shared, &name).await?)))
}

async fn status(shared: &Shared, name: &str) -> Result<QueueStatus, Problem> {
    let queues = shared.api.supervisor.queues().await?;
    let known = queues.into_iter().find(|queue| queue.name == name);
    Ok(known.unwrap_or_else(|| QueueStatus {
        name: name.to_owned(),
        settings: QueueSettings::default(),
        changed: false,
        queued: 0,
        ready: 0,
        running: 0,
        slots: 0,
    }))
}

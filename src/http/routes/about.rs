//! What the daemon tells of itself.

use std::{collections::BTreeMap, time::Instant};

use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{json, no_parameters};
use crate::{
    http::{Shared, access, dto, duration, openapi, problem::Problem, timing},
    supervisor::Stage,
};

/// Whether the process lives.
#[utoipa::path(get, path = "/livez", tag = "about", responses((status = 200, description = "It lives", body = String)))]
pub(super) async fn livez(uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    Ok("ok\n".into_response())
}

/// Whether the daemon takes jobs.
#[derive(Serialize, ToSchema)]
struct Readiness {
    /// `ready`, `recovering`, `store_failing`, `draining` or `ended`.
    status: &'static str,
    /// While it drains: jobs that still run.
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<usize>,
    /// While it drains: jobs that stay queued for the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    queued: Option<usize>,
    /// While it drains: seconds until what still runs is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_left: Option<u64>,
}

fn readiness(shared: &Shared) -> (StatusCode, Readiness) {
    let status = shared.api.supervisor.status();
    let status = status.borrow();
    let word = |status| Readiness { status, active: None, queued: None, seconds_left: None };
    match &status.stage {
        Stage::Ready => (StatusCode::OK, word("ready")),
        Stage::Recovering => (StatusCode::SERVICE_UNAVAILABLE, word("recovering")),
        // The reason is for those with a token: /v1/info.
        Stage::StoreFailing { reason: _ } => (StatusCode::SERVICE_UNAVAILABLE, word("store_failing")),
        Stage::Draining { deadline } => {
            let left = deadline.saturating_duration_since(Instant::now());
            let readiness = Readiness {
                status: "draining",
                active: Some(status.counts.active),
                queued: Some(status.counts.queued),
                seconds_left: Some(left.as_secs()),
            };
            (StatusCode::SERVICE_UNAVAILABLE, readiness)
        }
        Stage::Ended => (StatusCode::SERVICE_UNAVAILABLE, word("ended")),
    }
}

/// Whether it takes jobs.
#[utoipa::path(get, path = "/readyz", tag = "about", responses(
    (status = 200, description = "It takes jobs", body = Readiness),
    (status = 503, description = "It recovers, drains, or its store fails", body = Readiness),
))]
pub(super) async fn readyz(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let (status, readiness) = readiness(&shared);
    Ok(json(status, &readiness))
}

/// What the daemon tells of itself.
#[derive(Serialize, ToSchema)]
struct About {
    /// The version of runward.
    version: String,
    /// As in `/readyz`.
    status: &'static str,
    /// Why the store fails, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The daemon's process.
    pid: u32,
    /// The boot it runs in.
    boot_id: String,
    /// When it started.
    started_at: String,
    /// Since then, in seconds.
    uptime_seconds: u64,
    /// How jobs are kept from escaping.
    containment: Containment,
    /// How many runners are where.
    counts: Counts,
    /// The limits in force.
    limits: Limits,
}

/// How jobs are kept from escaping.
#[derive(Serialize, ToSchema)]
struct Containment {
    /// The tier in force.
    tier: String,
    /// What it is made of, or why it is not a better one.
    detail: String,
    /// The `limits` of a job that can be had: `memory`, `cpu`, `pids`.
    limits: Vec<&'static str>,
    /// For each that can't, why not and what it takes.
    limits_missing: BTreeMap<&'static str, String>,
}

/// How many runners are where.
#[derive(Serialize, ToSchema)]
struct Counts {
    /// Waiting.
    queued: usize,
    /// From their start to their close.
    active: usize,
}

/// The limits in force.
#[derive(Serialize, ToSchema)]
struct Limits {
    /// Jobs that run at once.
    max_running: u32,
    /// Jobs that wait at once.
    max_queued: usize,
    /// The grace of a job that sets none.
    cancel_grace: String,
    /// The drain timeout of a job that sets none.
    drain_timeout: String,
    /// How long a shutdown may take.
    shutdown: String,
    /// Bytes of a body.
    max_body: usize,
    /// Connections at once.
    max_connections: usize,
    /// Headers of a request.
    max_headers: usize,
    /// The longest `wait`.
    max_wait: String,
}

/// Version, uptime, containment, limits.
#[utoipa::path(get, path = "/v1/info", tag = "about",
    responses((status = 200, description = "What the daemon tells of itself", body = About)))]
pub(super) async fn info(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let (_, Readiness { status, .. }) = readiness(&shared);
    let supervisor = shared.api.supervisor.status();
    let (stage, counts) = {
        let now = supervisor.borrow();
        (now.stage.clone(), now.counts)
    };
    let reason = match stage {
        Stage::StoreFailing { reason } => Some(reason),
        Stage::Recovering | Stage::Ready | Stage::Draining { deadline: _ } | Stage::Ended => None,
    };
    let (info, config) = (&shared.api.info, shared.config());
    let limits = config.permits.limits.each();
    let about = About {
        version: info.version.clone(),
        status,
        reason,
        pid: info.pid,
        boot_id: info.boot_id.clone(),
        started_at: dto::time(info.started_at),
        uptime_seconds: info.started.elapsed().as_secs(),
        containment: Containment {
            tier: info.containment.tier.clone(),
            detail: info.containment.detail.clone(),
            limits: limits.iter().filter(|(_, is)| is.is_ok()).map(|(name, _)| *name).collect(),
            limits_missing: limits
                .iter()
                .filter_map(|(name, is)| Some((*name, is.as_ref().err()?.clone())))
                .collect(),
        },
        counts: Counts { queued: counts.queued, active: counts.active },
        limits: Limits {
            max_running: config.limits.max_running,
            max_queued: config.limits.max_queued,
            cancel_grace: duration::format(config.limits.cancel_grace),
            drain_timeout: duration::format(config.drain_timeout),
            shutdown: duration::format(config.limits.shutdown),
            max_body: config.max_body,
            max_connections: shared.api.connections,
            max_headers: access::MAX_HEADERS,
            max_wait: duration::format(timing::MAX_WAIT),
        },
    };
    Ok(json(StatusCode::OK, &about))
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "about",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn document(uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], openapi::json()).into_response())
}

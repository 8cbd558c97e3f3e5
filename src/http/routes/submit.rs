//! Submitting a job.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use tokio::time;

use super::{From, json, location, runners::record};
use crate::{
    http::{
        Shared,
        body::{self, Format},
        dto::{Runner, Submission},
        duration, fields, idempotency, json as strict,
        logs::{self, Wanted},
        problem::Problem,
        query::{self, Query},
        serve::{Held, Place},
        submission, timing,
    },
    job::{Record, RunnerId, Spec},
    supervisor::{self, Submitted, ports::IdempotencyKey},
};

/// Parameters of any submission.
const ANSWER: [&str; 2] = ["wait", "follow"];
/// Parameters of a script or a Python source that is the body itself, besides those of any submission.
const PLAIN: [&str; 5] = ["priority", "weight", "label", "arg", "keep_open"];
/// Those of them that are texts, named as the fields of a submission.
const TEXTS: [&str; 11] = [
    "name",
    "queue",
    "delay",
    "start_at",
    "concurrency_key",
    "deadline",
    "timeout",
    "cancel_grace",
    "drain_timeout",
    "on_lost",
    "on_shutdown",
];
/// Those that are of its `retry`.
const RETRY: [&str; 4] =
    ["retry.max_attempts", "retry.initial_backoff", "retry.max_backoff", "retry.on_exit_codes"];
/// Those that are of its `on_close`.
const ON_CLOSE: [&str; 2] = ["on_close.url", "on_close.secret"];

/// What to answer with.
enum Answer {
    /// The runner, at once.
    AtOnce,
    /// The runner, when it has closed or the time is up.
    Wait(Duration),
    /// Its output.
    Follow,
}

/// Submits a job: creates a runner for it and queues it.
///
/// A body of the type `text/x-shellscript` is the script itself, one of `text/x-python` the source of a Python
/// job; `name`, `queue`, `priority`, `weight`, `label`,
/// `delay`, `start_at`, `concurrency_key`, `deadline`, `retry.max_attempts`, `retry.initial_backoff`,
/// `retry.max_backoff`, `timeout`, `cancel_grace`, `drain_timeout`, `on_lost`, `on_shutdown` and `arg` are then query
/// parameters. The job goes on when the client goes away.
#[utoipa::path(post, path = "/v1/runners", tag = "runners",
    params(
        ("wait" = Option<String>, Query, description = "Answer when the runner has closed (200) or this time is up (202), an hour at the most. With `keep_open`: when its first run is over"),
        ("follow" = Option<bool>, Query, description = "Answer with the output of the job, as it comes, until the runner closes or, with `keep_open`, its first run is over"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters; a retry with the same key and body gets the first answer"),
    ),
    request_body(content((Submission = "application/json"), (String = "text/x-shellscript"), (String = "text/x-python"))),
    responses(
        (status = 201, description = "It is queued; `Location` is its address. With `follow`: its output", body = Runner),
        (status = 200, description = "With `wait`: it has closed, or its first run is over", body = Runner),
        (status = 202, description = "With `wait`: the time is up, and it goes on", body = Runner),
    ))]
pub(super) fn submit(
    State(shared): State<Shared>,
    from: From,
    request: Request,
) -> impl Future<Output = Result<Response, Problem>> {
    // What is let go of early, or long in coming, has a box: the rest is small enough (1 KiB) for the system's allocator to
    // keep it for each thread.
    let order = Box::pin(read(shared.clone(), Arc::clone(&from.0), request));
    async move {
        let Order { spec, key, answer } = order.await?;
        let held = match answer {
            Answer::AtOnce => None,
            Answer::Wait(_) | Answer::Follow => Some(from.0.hold().await?),
        };
        // One that is kept open does not close by itself: what is followed is its first run.
        let run = spec.keep_open.then_some(1);
        let submission = supervisor::Submission { id: RunnerId::new(), spec, key };
        let submitted = match answer {
            Answer::Wait(limit) => {
                shared.api.supervisor.submit_and_wait(submission, time_up(&shared, limit)).await?
            }
            Answer::AtOnce | Answer::Follow => shared.api.supervisor.submit(submission).await?,
        };
        let answered = respond(&shared, answer, &submitted, run, held).await;
        let mut response =
            answered.unwrap_or_else(|problem| accepted_but(&problem, submitted.id).into_response());
        name(&mut response, &submitted);
        Ok(response)
    }
}

/// What a request asks for.
struct Order {
    spec: Arc<Spec>,
    key: Option<Box<IdempotencyKey>>,
    answer: Answer,
}

/// Reads all of a request, and lets go of it.
async fn read(shared: Shared, place: Arc<Place>, request: Request) -> Result<Order, Problem> {
    let (Parts { headers, uri, .. }, body) = request.into_parts();
    let format = body::format(&headers)?;
    let known = match format {
        Format::Json => ANSWER.to_vec(),
        Format::Shell | Format::Python => [&ANSWER[..], &TEXTS, &PLAIN, &RETRY, &ON_CLOSE].concat(),
    };
    let mut query = Query::parse(&uri, &known)?;
    let answer = read_answer(&mut query)?;
    let bytes = body::read(body, &headers, &place, shared.config().max_body).await?;
    let key = idempotency::key(&headers, format, &bytes, query.rest())?.map(Box::new);
    let spec = read_spec(&shared, format, bytes, &mut query).await?;
    Ok(Order { spec, key, answer })
}

/// The answer to a submission that is accepted.
async fn respond(
    shared: &Shared,
    answer: Answer,
    submitted: &Submitted,
    run: Option<u32>,
    held: Option<Held>,
) -> Result<Response, Problem> {
    let id = submitted.id;
    // It comes with the commit: nobody has to read it back.
    let known = submitted.record.clone();
    match answer {
        Answer::AtOnce => {
            let record = match known {
                Some(record) => record,
                None => Arc::new(record(shared, id).await?),
            };
            Ok(json(StatusCode::CREATED, &Runner::from(&*record)))
        }
        Answer::Wait(limit) => {
            let record = match known {
                Some(record) => record,
                None if submitted.replayed => {
                    Box::pin(within(shared, id, limit, Record::is_over_as_submitted)).await?
                }
                None => Arc::new(record(shared, id).await?),
            };
            let over = record.is_over_as_submitted();
            let status = if over { StatusCode::OK } else { StatusCode::ACCEPTED };
            Ok(json(status, &Runner::from(&*record)))
        }
        Answer::Follow => {
            let mut response = Box::pin(logs::answer(shared, Wanted::everything(id, run), held)).await?;
            *response.status_mut() = StatusCode::CREATED;
            Ok(response)
        }
    }
}

/// What is said when all that failed is the answer: nobody is to submit it again.
fn accepted_but(problem: &Problem, id: RunnerId) -> Problem {
    let detail =
        format!("the job was accepted as the runner {id}, don't submit it again; but {}", problem.detail());
    Problem::new(problem.kind(), detail).runner(id)
}

/// How long to wait, if at all.
pub(super) fn wait(query: &mut Query) -> Result<Option<Duration>, Problem> {
    let Some(text) = query.one("wait")? else { return Ok(None) };
    let wait = duration::parse(&text).filter(|wait| *wait <= timing::MAX_WAIT);
    let expected = || {
        let most = duration::format(timing::MAX_WAIT);
        let expected = format!(
            "a duration such as \"30s\", from 0 to {most}; to wait longer, follow the events of the runner: \
             GET /v1/runners/{{id}}/events with `Accept: text/event-stream`"
        );
        query::invalid("wait", &expected)
    };
    wait.map(Some).ok_or_else(expected)
}

fn read_answer(query: &mut Query) -> Result<Answer, Problem> {
    match (wait(query)?, query.flag("follow")?) {
        (None, false) => Ok(Answer::AtOnce),
        (None, true) => Ok(Answer::Follow),
        (Some(wait), false) => Ok(Answer::Wait(wait)),
        (Some(_), true) => {
            Err(query::invalid("wait", "left out with `follow`: that ends when the runner closes"))
        }
    }
}

async fn read_spec(
    shared: &Shared,
    format: Format,
    body: Bytes,
    query: &mut Query,
) -> Result<Arc<Spec>, Problem> {
    let config = shared.config();
    let value = match format {
        Format::Json => strict::parse(&body)?,
        Format::Shell => plain("script", &body, query)?,
        Format::Python => plain("python", &body, query)?,
    };
    let spec = submission::spec(value, &config)?;
    check_identity(shared, &spec).await?;
    Ok(spec)
}

/// Checks that there are the user and the group that a job asks for, and that the daemon may run it so.
pub(super) async fn check_identity(shared: &Shared, spec: &Arc<Spec>) -> Result<(), Problem> {
    if !submission::names_identity(&spec.job) {
        return Ok(());
    }
    let (spec, daemon) = (Arc::clone(spec), nix::unistd::Uid::from_raw(shared.api.access.uid));
    let checked = tokio::task::spawn_blocking(move || submission::check_identity(&spec.job, daemon)).await;
    checked.map_err(|_| fields::invalid("job", "of users and groups of this machine"))?
}

/// A source with its parameters, as the same submission in JSON.
fn plain(kind: &str, body: &[u8], query: &mut Query) -> Result<Value, Problem> {
    let mut job = Map::new();
    job.insert("source".into(), strict::utf8(body)?.into());
    job.insert("args".into(), query.all("arg").into());
    let mut fields = Map::new();
    fields.insert("job".into(), Value::Object(Map::from_iter([(kind.into(), Value::Object(job))])));
    for name in TEXTS {
        if let Some(text) = query.one(name)? {
            fields.insert(name.into(), text.into());
        }
    }
    // What is no number is refused where it is read.
    let number = |text: String| text.parse::<i64>().map_or(Value::String(text), Value::from);
    for name in ["priority", "weight"] {
        if let Some(text) = query.one(name)? {
            fields.insert(name.into(), number(text));
        }
    }
    let mut retry = Map::new();
    for name in RETRY {
        if let Some(text) = query.one(name)? {
            let value = match name {
                "retry.max_attempts" => number(text),
                "retry.on_exit_codes" => text.split(',').map(|code| number(code.trim().to_owned())).collect(),
                _ => text.into(),
            };
            retry.insert(name.trim_start_matches("retry.").into(), value);
        }
    }
    if !retry.is_empty() {
        fields.insert("retry".into(), Value::Object(retry));
    }
    let mut on_close = Map::new();
    for name in ON_CLOSE {
        if let Some(text) = query.one(name)? {
            on_close.insert(name.trim_start_matches("on_close.").into(), text.into());
        }
    }
    if !on_close.is_empty() {
        fields.insert("on_close".into(), Value::Object(on_close));
    }
    if query.flag("keep_open")? {
        fields.insert("keep_open".into(), true.into());
    }
    let mut labels = Map::new();
    for (label, value) in query.pairs("label")? {
        if labels.insert(label, value.into()).is_some() {
            return Err(query::invalid("label", "there once for each label"));
        }
    }
    fields.insert("labels".into(), Value::Object(labels));
    Ok(Value::Object(fields))
}

/// When a wait is up: after its time, or when the daemon stops answering.
async fn time_up(shared: &Shared, limit: Duration) {
    let mut closing = shared.closing.clone();
    tokio::select! {
        () = time::sleep(limit) => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

/// The record when it is so, or as it is when the time is up.
pub(super) async fn within(
    shared: &Shared,
    id: RunnerId,
    limit: Duration,
    so: impl Fn(&Record) -> bool,
) -> Result<Arc<Record>, Problem> {
    let mut changes = shared.api.supervisor.subscribe(id);
    let mut up = std::pin::pin!(time_up(shared, limit));
    let mut latest = Arc::new(record(shared, id).await?);
    while !so(&latest) {
        // What was committed before the daemon stops is told.
        tokio::select! {
            biased;
            record = changes.changed() => latest = record,
            () = &mut up => break,
        }
    }
    Ok(latest)
}

/// Where the runner is, and whether the answer is one to an earlier request.
fn name(response: &mut Response, submitted: &Submitted) {
    const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
    debug_assert!(idempotency::REPLAYED.eq_ignore_ascii_case(REPLAYED.as_str()));
    let headers = response.headers_mut();
    if let Some(location) = location(submitted.id) {
        headers.insert(header::LOCATION, location);
    }
    if submitted.replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
}

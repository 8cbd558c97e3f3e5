//! The routes, in one list: what serves them and what describes them is made from it.

mod about;
mod batch;
mod cancel_many;
mod context;
mod events;
mod explain;
mod get_loop;
mod logs;
mod metrics;
mod queues;
mod release;
mod reload;
mod runners;
mod runs;
mod submit;

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequestParts, MatchedPath, Path, rejection::ExtensionRejection},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts as Head},
    response::{IntoResponse, Response},
    routing::on,
};
use futures_util::stream;
use serde::Serialize;
use utoipa_axum::{PathItemExt, router::OpenApiRouter, routes};

use super::{
    Shared, access, body, json as strict,
    measure::Measured,
    nearest,
    problem::{Kind, Problem},
    serve::Place,
};
use crate::job::RunnerId;

/// The one list of routes, each line one path. It becomes what serves them and what describes them, so that the two can't
/// differ. The descriptions take more time and memory than all else at a start, so they are made when they are asked for.
macro_rules! all_routes {
    ($($($module:ident::$handler:ident),+;)+) => {
        /// All routes with their descriptions.
        pub(super) fn described() -> OpenApiRouter<Shared> {
            OpenApiRouter::new()$(.routes(routes!($($module::$handler),+)))+
        }

        fn served() -> Router<Shared> {
            use utoipa::Path as _;
            let router = Router::new();
            utoipa_axum::paste! {
                $($(
                    let router = $module::[<__path_ $handler>]::methods().iter().fold(router, |router, method| {
                        let path = $module::[<__path_ $handler>]::path();
                        router.route(&path, on(method.to_method_filter(), Measured($module::$handler)))
                    });
                )+)+
            }
            router
        }
    };
}

all_routes! {
    submit::submit, runners::list;
    runners::get, runners::close;
    runners::cancel;
    release::release;
    runs::add;
    explain::explain;
    batch::submit;
    cancel_many::cancel;
    queues::list;
    queues::get, queues::set, queues::reset;
    get_loop::get_loop;
    logs::logs;
    events::of_runner;
    events::all;
    context::list;
    context::get, context::set, context::unset;
    about::info;
    reload::reload;
    metrics::metrics;
    about::livez;
    about::readyz;
    about::document;
}

/// The router that serves them.
pub(super) fn router(shared: Shared) -> Router {
    served().fallback(Measured(no_route)).method_not_allowed_fallback(Measured(no_method)).with_state(shared)
}

async fn no_route(uri: Uri) -> Problem {
    let near = nearest::nearest(uri.path(), access::ROUTES.iter().map(|(_, path, _)| *path));
    let hint = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
    let detail = format!("there is no route {}; {hint}GET /openapi.json lists all of them", uri.path());
    Problem::new(Kind::RouteNotFound, detail)
}

async fn no_method(path: Option<MatchedPath>) -> Response {
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let methods: Vec<_> = access::ROUTES
        .iter()
        .filter(|(_, known, _)| *known == path)
        .map(|(method, _, _)| method.as_str())
        .collect();
    let list = methods.join(", ");
    let problem = Problem::new(Kind::MethodNotAllowed, format!("{path} takes {list}")).allowed(methods);
    ([(header::ALLOW, list)], problem).into_response()
}

/// The id in the path.
struct Id(RunnerId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Head, state: &S) -> Result<Self, Problem> {
        let text =
            Path::<String>::from_request_parts(head, state).await.map(|Path(text)| text).unwrap_or_default();
        text.parse().map(Self).map_err(|_| {
            let detail = format!(
                "{text:?} is no id of a runner; ids are UUIDs in small letters with hyphens, as GET /v1/runners lists \
                 them"
            );
            Problem::new(Kind::RunnerNotFound, detail)
        })
    }
}

/// Where the request came from.
struct From(Arc<Place>);

impl<S: Send + Sync> FromRequestParts<S> for From {
    type Rejection = ExtensionRejection;

    async fn from_request_parts(head: &mut Head, state: &S) -> Result<Self, ExtensionRejection> {
        let axum::Extension(place) = axum::Extension::from_request_parts(head, state).await?;
        Ok(Self(place))
    }
}

/// Refuses every query parameter.
fn no_parameters(uri: &Uri) -> Result<(), Problem> {
    super::query::Query::parse(uri, &[]).map(drop)
}

/// Reads a body that must be JSON.
async fn read_json(
    shared: &Shared,
    place: &Arc<Place>,
    headers: &HeaderMap,
    body: Body,
) -> Result<serde_json::Value, Problem> {
    strict::parse(&read_json_text(shared, place, headers, body).await?)
}

/// The same, not yet parsed.
async fn read_json_text(
    shared: &Shared,
    place: &Arc<Place>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Problem> {
    if body::format(headers)? != body::Format::Json {
        let detail = "this route takes JSON only; send -H 'content-type: application/json'";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail)
            .field("Content-Type")
            .allowed(["application/json"]));
    }
    body::read(body, headers, place, shared.config().max_body).await
}

/// Refuses a body: it would be an order that is not followed, such as `{"force": true}`.
async fn no_body(
    shared: &Shared,
    place: &Arc<Place>,
    headers: &HeaderMap,
    body: Body,
    detail: &str,
) -> Result<(), Problem> {
    match body::read(body, headers, place, shared.config().max_body).await?.is_empty() {
        true => Ok(()),
        false => Err(Problem::new(Kind::InvalidBody, detail)),
    }
}

/// The address of a runner, for `Location`.
fn location(id: RunnerId) -> Option<HeaderValue> {
    ["/v1/runners/", id.encode(&mut [0; RunnerId::LENGTH])].concat().try_into().ok()
}

/// The size of most answers, in bytes: a record. The system's allocator keeps pieces up to this one for each thread.
const RECORD: usize = 1024;

/// An answer in JSON.
fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = Vec::with_capacity(RECORD);
    let written = crate::json::write(&mut body, value).map(|()| {
        // For people at a terminal.
        body.push(b'\n');
        Body::from(body)
    });
    answer(status, written)
}

/// How much of a long answer is in one piece.
const PIECE: usize = 16 << 10;

/// A list of up to a thousand in JSON, in pieces: buffers that double until they hold all of it stay with the allocator.
fn json_list(value: &impl Serialize) -> Response {
    let written = crate::json::write_pieces(value, PIECE).map(|mut pieces| {
        pieces.push(b"\n".to_vec());
        let length: usize = pieces.iter().map(Vec::len).sum();
        let pieces = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
        (length, Body::from_stream(stream::iter(pieces)))
    });
    match written {
        Ok((length, body)) => {
            let mut response = answer(StatusCode::OK, Ok(body));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            response
        }
        Err(error) => answer(StatusCode::OK, Err(error)),
    }
}

fn answer(status: StatusCode, written: serde_json::Result<Body>) -> Response {
    match written {
        Ok(body) => {
            let mut response = Response::new(body);
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        // Our own types with text keys: it can't happen, and says so if it does.
        Err(error) => Problem::new(Kind::StoreUnreadable, format!("the answer can't be written: {error}"))
            .into_response(),
    }
}

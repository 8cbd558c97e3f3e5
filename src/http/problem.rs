//! What is said to somebody whose request was not carried out: RFC 9457 problem details.

use std::fmt;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use crate::{
    job::RunnerId,
    supervisor::{ReadError, Refusal},
};

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What every `type` begins with.
const PREFIX: &str = "urn:runward:problem:";

/// How long to wait before asking again, in seconds, where the reason passes by itself.
const RETRY_SOON: u32 = 1;
/// The same where somebody must do something first, or the daemon must end and start.
const RETRY_LATER: u32 = 10;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $status:ident, $title:literal;)+) => {
        /// The kinds of problem: the one list of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $variant,)+ }

        impl Kind {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable word at the end of its `type`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The status it is answered with.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)+ }
            }

            /// What it is, the same for each of its kind.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// When it is met.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

kinds! {
    /// The body is not JSON: `detail` has the line and the column.
    InvalidJson = "invalid-json", BAD_REQUEST, "The body is not JSON";
    /// A name stands twice in one JSON object.
    DuplicateKey = "duplicate-key", BAD_REQUEST, "A key stands twice";
    /// The JSON is nested more than 64 levels deep.
    TooDeep = "too-deep", BAD_REQUEST, "The body is nested too deeply";
    /// The body did not arrive whole, or is no UTF-8.
    InvalidBody = "invalid-body", BAD_REQUEST, "The body can't be read";
    /// The body has a field that nobody knows.
    UnknownField = "unknown-field", UNPROCESSABLE_ENTITY, "Unknown field";
    /// A field that is needed is not there.
    MissingField = "missing-field", UNPROCESSABLE_ENTITY, "A field is missing";
    /// A field has a value that it can't have.
    InvalidField = "invalid-field", UNPROCESSABLE_ENTITY, "A field is not valid";
    /// A job names a handler that this daemon does not have: `allowed` lists those it has.
    UnknownHandler = "unknown-handler", UNPROCESSABLE_ENTITY, "No such handler";
    /// A limit that this machine, or the place that the daemon has on it, does not offer.
    Unavailable = "unavailable", UNPROCESSABLE_ENTITY, "Not to be had on this machine";
    /// A query parameter that the route does not know.
    UnknownParameter = "unknown-parameter", BAD_REQUEST, "Unknown query parameter";
    /// A query parameter has a value that it can't have.
    InvalidParameter = "invalid-parameter", BAD_REQUEST, "A query parameter is not valid";
    /// A header has a value that it can't have.
    InvalidHeader = "invalid-header", BAD_REQUEST, "A header is not valid";
    /// The token is missing or wrong.
    Unauthorized = "unauthorized", UNAUTHORIZED, "A token is needed";
    /// The token does not allow this.
    InsufficientScope = "insufficient-scope", FORBIDDEN, "The token does not allow this";
    /// The user at the other end of the unix socket is not admitted.
    ForeignUser = "foreign-user", FORBIDDEN, "This user is not admitted";
    /// The `Host` header names neither this machine nor a configured name.
    ForeignHost = "foreign-host", FORBIDDEN, "Foreign host";
    /// The request comes from a page of another site.
    ForeignOrigin = "foreign-origin", FORBIDDEN, "Foreign origin";
    /// There is no such route.
    RouteNotFound = "route-not-found", NOT_FOUND, "No such route";
    /// There is no such Runner.
    RunnerNotFound = "runner-not-found", NOT_FOUND, "No such runner";
    /// The Runner has no such run or attempt.
    AttemptNotFound = "attempt-not-found", NOT_FOUND, "No such run or attempt";
    /// The shared context has no such variable.
    VariableNotFound = "variable-not-found", NOT_FOUND, "No such variable";
    /// The shared context has as many variables, or as large ones, as it may have.
    ContextFull = "context-full", CONFLICT, "The shared context is full";
    /// The route exists, but not with this method: `Allow` has those it takes.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "Method not allowed";
    /// The body did not arrive in time.
    RequestTimeout = "request-timeout", REQUEST_TIMEOUT, "The body came too slowly";
    /// The Runner is closed, so there is nothing left to cancel.
    RunnerClosed = "runner-closed", CONFLICT, "The runner is closed";
    /// Nothing runs on the Runner, which is kept open, so there is nothing to cancel.
    RunnerIdle = "runner-idle", CONFLICT, "Nothing runs on the runner";
    /// The Runner is not held, so it can't be released.
    RunnerNotHeld = "runner-not-held", CONFLICT, "The runner is not held";
    /// The Runner is not kept open, so it takes no further runs.
    RunnerNotKeptOpen = "runner-not-kept-open", CONFLICT, "The runner is not kept open";
    /// The Runner is being closed, so it takes no further runs.
    RunnerClosing = "runner-closing", CONFLICT, "The runner is closing";
    /// The Runner has had as many runs as one may have.
    TooManyRuns = "too-many-runs", CONFLICT, "Too many runs";
    /// The job takes more slots than there are.
    TooHeavy = "too-heavy", UNPROCESSABLE_ENTITY, "The job is too heavy";
    /// The body is larger than the limit.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// The address of the request is longer than the limit.
    UriTooLong = "uri-too-long", URI_TOO_LONG, "The address is too long";
    /// The body is of a type that the route does not take.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The body has the wrong type";
    /// The idempotency key was used before, for another request.
    IdempotencyKeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY, "The idempotency key was used before";
    /// The request has more headers than the limit.
    TooManyHeaders = "too-many-headers", REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many headers";
    /// As many jobs wait as may wait.
    QueueFull = "queue-full", SERVICE_UNAVAILABLE, "The queue is full";
    /// The daemon stops and takes no jobs.
    ShuttingDown = "shutting-down", SERVICE_UNAVAILABLE, "The daemon is shutting down";
    /// As many connections are open, or answers held open, as may be.
    TooManyConnections = "too-many-connections", SERVICE_UNAVAILABLE, "Too many connections";
    /// The store could not be read.
    StoreUnreadable = "store-unreadable", SERVICE_UNAVAILABLE, "The store can't be read";
    /// The output of a job could not be read or followed.
    LogUnreadable = "log-unreadable", SERVICE_UNAVAILABLE, "The log can't be read";
    /// The settings were read again and something in them is wrong: nothing was changed. The detail names the setting and
    /// where it was found.
    InvalidSettings = "invalid-settings", UNPROCESSABLE_ENTITY, "The settings are wrong";
    /// The store takes nothing: nothing was accepted.
    StoreFailing = "store-failing", INSUFFICIENT_STORAGE, "The store takes nothing";
}

impl Kind {
    /// The `type`: stable, to be compared by programs.
    pub fn uri(self) -> String {
        format!("{PREFIX}{}", self.as_str())
    }

    fn retry_after(self) -> Option<u32> {
        match self {
            Self::QueueFull | Self::TooManyConnections => Some(RETRY_SOON),
            Self::ShuttingDown | Self::StoreUnreadable | Self::LogUnreadable | Self::StoreFailing => {
                Some(RETRY_LATER)
            }
            Self::InvalidJson
            | Self::InvalidSettings
            | Self::DuplicateKey
            | Self::TooDeep
            | Self::InvalidBody
            | Self::UnknownField
            | Self::MissingField
            | Self::InvalidField
            | Self::UnknownHandler
            | Self::Unavailable
            | Self::UnknownParameter
            | Self::InvalidParameter
            | Self::InvalidHeader
            | Self::Unauthorized
            | Self::InsufficientScope
            | Self::ForeignUser
            | Self::ForeignHost
            | Self::ForeignOrigin
            | Self::RouteNotFound
            | Self::RunnerNotFound
            | Self::AttemptNotFound
            | Self::VariableNotFound
            | Self::ContextFull
            | Self::MethodNotAllowed
            | Self::RequestTimeout
            | Self::RunnerClosed
            | Self::RunnerIdle
            | Self::RunnerNotHeld
            | Self::RunnerNotKeptOpen
            | Self::RunnerClosing
            | Self::TooManyRuns
            | Self::TooHeavy
            | Self::BodyTooLarge
            | Self::UriTooLong
            | Self::UnsupportedMediaType
            | Self::IdempotencyKeyReused
            | Self::TooManyHeaders => None,
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri())
    }
}

impl PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        let list: Vec<_> =
            Self::ALL.iter().map(|kind| format!("- `{}`: {}", kind.uri(), kind.about())).collect();
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(list.join("\n")))
            .enum_values(Some(Self::ALL.iter().map(|kind| kind.uri())))
            .into()
    }
}

impl ToSchema for Kind {
    fn name() -> std::borrow::Cow<'static, str> {
        "ProblemType".into()
    }
}

/// Why a request was not carried out (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
struct Body {
    /// The kind of problem.
    #[serde(rename = "type")]
    kind: Kind,
    /// What the kind is, in words.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What is wrong this time, and what would be right.
    detail: String,
    /// The field of the body, the query parameter or the header at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What could stand there instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed: Vec<String>,
    /// The Runner it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    runner: Option<RunnerId>,
}

/// Why a request was not carried out.
pub struct Problem(Box<Body>);

impl Problem {
    /// A problem; `detail` says what is wrong and what would be right.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self(Box::new(Body {
            kind,
            title: kind.title(),
            status: kind.status().as_u16(),
            detail: detail.into(),
            field: None,
            allowed: Vec::new(),
            runner: None,
        }))
    }

    /// Names the field, parameter or header at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Says that the field stands in another one: in an item of a list, say.
    #[must_use]
    pub(super) fn within(mut self, parent: &str) -> Self {
        let Some(field) = self.0.field.take_if(|field| field != "Idempotency-Key") else { return self };
        let whole = match field.as_str() {
            "" => parent.to_owned(),
            bracketed if bracketed.starts_with('[') => format!("{parent}{bracketed}"),
            plain => format!("{parent}.{plain}"),
        };
        let detail = &mut self.0.detail;
        match field.as_str() {
            "" => *detail = detail.replacen("the body", &format!("`{whole}`"), 1),
            field => *detail = detail.replacen(&format!("`{field}`"), &format!("`{whole}`"), 1),
        }
        self.field(whole)
    }

    /// Lists what could stand there.
    #[must_use]
    pub fn allowed<T: Into<String>>(mut self, allowed: impl IntoIterator<Item = T>) -> Self {
        self.0.allowed = allowed.into_iter().map(Into::into).collect();
        self
    }

    /// Names the Runner it is about.
    #[must_use]
    pub fn runner(mut self, id: RunnerId) -> Self {
        self.0.runner = Some(id);
        self
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What is wrong this time.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The field at fault.
    pub fn at(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The JSON of it.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // A struct of texts: it can't fail.
        let mut json = serde_json::to_vec(&self.0).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        Body::schema()
    }
}

impl ToSchema for Problem {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Body::schemas(schemas);
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = self.kind();
        let mut response =
            (kind.status(), [(header::CONTENT_TYPE, MEDIA_TYPE)], self.to_json()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = kind.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if kind == Kind::Unauthorized {
            let challenge = HeaderValue::from_static("Bearer realm=\"runward\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Draining => Self::new(
                Kind::ShuttingDown,
                "the daemon is shutting down and takes no jobs; submit again after its next start",
            ),
            Refusal::Ended => Self::new(
                Kind::ShuttingDown,
                "the daemon has stopped its work; ask again after its next start",
            ),
            Refusal::QueueFull => Self::new(
                Kind::QueueFull,
                "as many jobs wait as may wait; submit again when some have started",
            ),
            Refusal::KeyReused { original } => Self::new(
                Kind::IdempotencyKeyReused,
                format!(
                    "this key made the runner {original} from another request; use a new key for a new job"
                ),
            )
            .field("Idempotency-Key")
            .runner(original),
            Refusal::StoreFailing(reason) => Self::new(
                Kind::StoreFailing,
                format!(
                    "nothing was accepted, the store takes nothing: {reason}; make room and send it again"
                ),
            ),
            Refusal::NotRecorded(reason) => Self::new(
                Kind::StoreFailing,
                format!(
                    "it is being carried out, but the store takes nothing, so it would be forgotten if the daemon \
                     died now: {reason}; make room and ask again until it is accepted"
                ),
            ),
            Refusal::NotFound(id) => Self::runner_not_found(id),
            Refusal::TooHeavy { max } => Self::new(
                Kind::TooHeavy,
                format!("`weight` must be {max} at the most: that is how many slots there are"),
            )
            .field("weight"),
            Refusal::Closed { outcome } => Self::new(
                Kind::RunnerClosed,
                format!(
                    "the runner is closed, its outcome is {outcome}: there is nothing left to cancel or to look into, and \
                     it takes no further run"
                ),
            ),
            Refusal::Idle => Self::new(
                Kind::RunnerIdle,
                "nothing runs on the runner, so there is nothing to cancel: it is kept open; DELETE closes it",
            ),
            Refusal::NotKeptOpen => Self::new(
                Kind::RunnerNotKeptOpen,
                "the runner takes one run only; submit a new one, or submit with `\"keep_open\": true` to add runs to it",
            ),
            Refusal::Closing => Self::new(
                Kind::RunnerClosing,
                "the runner is being closed and takes no further runs; submit a new one",
            ),
            Refusal::TooManyRuns { max } => Self::new(
                Kind::TooManyRuns,
                format!("the runner has had {max} runs, as many as one may have; close it and submit a new one"),
            ),
            Refusal::OtherLoop => Self::new(
                Kind::InvalidField,
                "`job` must be a process (command, script, python) on a runner whose first job was one, and one that runs \
                 in the daemon (http, handler) on any other; submit a new runner for it",
            )
            .field("job"),
            Refusal::OtherUser => Self::new(
                Kind::InvalidField,
                "`job` must run as the user and group that the runner's first job runs as: each run sets variables for \
                 the next one; submit a new runner for it",
            )
            .field("job"),
        }
    }
}

impl Problem {
    /// There is no such Runner.
    pub(super) fn runner_not_found(id: RunnerId) -> Self {
        let detail = format!("there is no runner {id}; GET /v1/runners lists those there are");
        Self::new(Kind::RunnerNotFound, detail).runner(id)
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self::new(Kind::StoreUnreadable, format!("{error}; ask again, and see the daemon's own log"))
    }
}

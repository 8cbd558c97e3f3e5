//! The shared context: see, set, unset. It reaches every job, so changing it needs more than submitting one.

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use serde_json::Value;

use super::{From, json, no_parameters};
use crate::{
    http::{
        Shared,
        body::{self, Format},
        dto::{Context, SetVariable, Unset, Variable},
        fields::{Fields, invalid},
        json as strict,
        problem::{Kind, Problem},
    },
    job::{ContextValue, SharedContext},
    secrets::{MAX_VALUE, Vault},
};

/// The longest name: any that programs use fits, and a line too.
const MAX_NAME: usize = 255;
/// Variables in all: a job's environment is made of them each time it starts.
const MAX_VARIABLES: usize = 1000;
/// Names and values in all, bytes: half of what Linux takes as arguments and environment of a process.
const MAX_CONTEXT: usize = 1 << 20;
/// What runward itself tells its jobs.
const OURS: &str = "RUNWARD_";

/// The shared context. The values of secrets are not shown.
#[utoipa::path(get, path = "/v1/context", tag = "context",
    responses((status = 200, description = "The shared context", body = Context)))]
pub(super) async fn list(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    Ok(json(StatusCode::OK, &Context::from(&*shared.api.supervisor.context())))
}

/// A variable of the shared context. The value of a secret is not shown.
#[utoipa::path(get, path = "/v1/context/{name}", tag = "context",
    params(("name" = String, Path, description = "The variable")),
    responses((status = 200, description = "The variable", body = Variable)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let context = shared.api.supervisor.context();
    let variable = context.variables.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(json(StatusCode::OK, &Variable::new(&name, variable)))
}

/// Sets a variable of the shared context. Jobs that start from now on see it.
#[utoipa::path(put, path = "/v1/context/{name}", tag = "context",
    params(("name" = String, Path, description = "The variable")),
    request_body = SetVariable,
    responses((status = 200, description = "The variable", body = Variable)))]
pub(super) async fn set(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    if body::format(&headers)? != Format::Json {
        let detail = "a variable is set with JSON such as {\"value\": \"…\"}; send -H 'content-type: application/json'";
        let problem = Problem::new(Kind::UnsupportedMediaType, detail).field("Content-Type");
        return Err(problem.allowed(["application/json"]));
    }
    check_name(&name)?;
    let bytes = body::read(body, &headers, &from.0, shared.config().max_body).await?;
    let value = read_value(&name, strict::parse(&bytes)?, &shared.api.vault)?;
    check_room(&shared.api.supervisor.context(), &name, &value)?;
    let version = shared.api.supervisor.set_variable(name.clone(), Some(value)).await?;
    let by = from.0.peer.to_string();
    tracing::info!(name, version, by, "a variable of the shared context was set");
    let context = shared.api.supervisor.context();
    // Somebody else may have unset it by now.
    let variable = context.variables.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(json(StatusCode::OK, &Variable::new(&name, variable)))
}

/// Unsets a variable of the shared context. Jobs that start from now on do not see it.
#[utoipa::path(delete, path = "/v1/context/{name}", tag = "context",
    params(("name" = String, Path, description = "The variable")),
    responses((status = 200, description = "It is unset", body = Unset)))]
pub(super) async fn unset(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    from: From,
    uri: Uri,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    if !shared.api.supervisor.context().variables.contains_key(&name) {
        return Err(unknown(&name));
    }
    let version = shared.api.supervisor.set_variable(name.clone(), None).await?;
    let by = from.0.peer.to_string();
    tracing::info!(name, version, by, "a variable of the shared context was unset");
    Ok(json(StatusCode::OK, &Unset { version }))
}

fn unknown(name: &str) -> Problem {
    let detail = format!("the shared context has no variable {name:?}; GET /v1/context lists those it has");
    Problem::new(Kind::VariableNotFound, detail)
}

fn check_name(name: &str) -> Result<(), Problem> {
    let plain = !name.contains('=') && !name.chars().any(char::is_control);
    if name.is_empty() || name.len() > MAX_NAME || !plain {
        let expected = "a name of a variable: 1 to 255 bytes, without `=` and control characters";
        return Err(invalid("name", expected));
    }
    if name.starts_with(OURS) {
        return Err(invalid("name", "another one: those that begin with `RUNWARD_` are runward's own"));
    }
    Ok(())
}

/// What is to be kept of a variable: of a secret only what nobody can read without the daemon's key.
fn read_value(name: &str, body: Value, vault: &Vault) -> Result<ContextValue, Problem> {
    let mut fields = Fields::open(body, "", &["value", "secret", "from"])?;
    let secret = fields.flag("secret")?;
    match (fields.text("value")?, fields.value("from")) {
        (Some(text), None) => {
            check_text(&text)?;
            if !secret.unwrap_or(false) {
                return Ok(ContextValue::Plain(text));
            }
            let sealed = vault.seal(name, &text);
            sealed
                .map(ContextValue::Sealed)
                .map_err(|error| Problem::new(Kind::StoreFailing, error.to_string()))
        }
        (None, Some(from)) => {
            if secret == Some(false) {
                let expected = "left out: what is read from elsewhere is always a secret";
                return Err(invalid("secret", expected));
            }
            read_from(from)
        }
        (Some(_), Some(_)) => Err(invalid("from", "left out where there is a `value`")),
        (None, None) => {
            let detail = "`value` is missing; send {\"value\": \"…\"}, with \"secret\": true to keep it encrypted, or \
                          {\"from\": {\"file\": \"/path\"}}";
            Err(Problem::new(Kind::MissingField, detail).field("value"))
        }
    }
}

fn check_text(text: &str) -> Result<(), Problem> {
    if text.len() > MAX_VALUE {
        return Err(invalid("value", "64 KiB at the most; put more into a file that jobs read themselves"));
    }
    if text.contains('\0') {
        return Err(invalid("value", "free of NUL characters (\\u0000)"));
    }
    Ok(())
}

fn read_from(from: Value) -> Result<ContextValue, Problem> {
    const KNOWN: [&str; 3] = ["file", "env", "credential"];
    let mut fields = Fields::open(from, "from", &KNOWN)?;
    let (file, env, credential) = (fields.text("file")?, fields.text("env")?, fields.text("credential")?);
    match (file, env, credential) {
        (Some(path), None, None) => match path.starts_with('/') && !path.contains('\0') {
            true => Ok(ContextValue::File(path.into())),
            false => Err(invalid("from.file", "an absolute path, one that begins with `/`")),
        },
        (None, Some(name), None) => match name.is_empty() || name.contains(['=', '\0']) {
            false => Ok(ContextValue::Env(name)),
            true => Err(invalid("from.env", "the name of a variable of the daemon's environment")),
        },
        (None, None, Some(name)) => {
            match name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
                false => Ok(ContextValue::Credential(name)),
                true => Err(invalid(
                    "from.credential",
                    "the plain name of a credential, as in systemd's LoadCredential=, without `/` and not beginning with `.`",
                )),
            }
        }
        (_, _, _) => {
            let detail = "`from` must have exactly one key: `file`, `env` or `credential`";
            Err(Problem::new(Kind::InvalidField, detail).field("from").allowed(KNOWN))
        }
    }
}

/// Two at once may both find the last room: then there is one more than said.
fn check_room(context: &SharedContext, name: &str, value: &ContextValue) -> Result<(), Problem> {
    let others = context.variables.iter().filter(|(known, _)| *known != name);
    let (count, bytes) = others.fold((0, 0), |(count, bytes), (name, variable)| {
        (count + 1, bytes + name.len() + length(&variable.value))
    });
    let full =
        |what: String| Err(Problem::new(Kind::ContextFull, format!("{what}; unset some of them first")));
    if count >= MAX_VARIABLES {
        return full(format!("the shared context has {count} variables, as many as it may have"));
    }
    if bytes + name.len() + length(value) > MAX_CONTEXT {
        return full("the variables of the shared context together would be larger than 1 MiB".into());
    }
    Ok(())
}

/// What of a value is here.
fn length(value: &ContextValue) -> usize {
    match value {
        ContextValue::Plain(text) => text.len(),
        ContextValue::Sealed(sealed) => sealed.len(),
        ContextValue::File(_) | ContextValue::Env(_) | ContextValue::Credential(_) => 0,
    }
}

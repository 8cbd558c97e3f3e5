//! The output of a job.

use axum::{extract::State, http::Uri, response::Response};

use super::{From, Id};
use crate::{
    http::{
        Shared,
        logs::{self, Format, Start, Wanted},
        problem::Problem,
        query::{self, Query},
    },
    process::log::Stream,
};

/// More lines than anybody reads; fewer than would keep a worker busy for long.
const MAX_TAIL: u64 = 1_000_000;

/// The output of a runner's job.
///
/// `raw` is the bytes as they came; `Runward-Offset-Next` says where to go on. Each line of `ndjson` is one piece of
/// output with `run`, `attempt`, `offset`, `next` (to go on from), `stream`, `at`, and `text`, or `base64` where the
/// piece is no UTF-8; a line with `gap` says which part was deleted.
#[utoipa::path(get, path = "/v1/runners/{id}/logs", tag = "runners",
    params(
        ("id" = String, Path, description = "The runner"),
        ("stream" = Option<String>, Query, description = "`stdout` or `stderr`; both in their order if not given"),
        ("tail" = Option<u64>, Query, description = "Only the last lines, as many"),
        ("offset" = Option<u64>, Query, description = "From this place on"),
        ("follow" = Option<bool>, Query, description = "Go on as output comes, until the attempt or the run is over, or, where none was asked for, the runner is closed"),
        ("run" = Option<u32>, Query, description = "Of this run; the last if not given"),
        ("attempt" = Option<u32>, Query, description = "Of this attempt; the last if not given"),
        ("format" = Option<String>, Query, description = "`raw` (if not given) or `ndjson`"),
    ),
    responses((status = 200, description = "The output", content((String = "text/plain"), (String = "application/x-ndjson")))))]
pub(super) async fn logs(
    State(shared): State<Shared>,
    id: Id,
    from: From,
    uri: Uri,
) -> Result<Response, Problem> {
    let known = ["stream", "tail", "offset", "follow", "run", "attempt", "format"];
    let mut query = Query::parse(&uri, &known)?;
    let number =
        |query: &mut Query, name| query.number(name, 1..=u64::from(u32::MAX)).map(|n| n.map(|n| n as u32));
    let start = match (query.number("tail", 0..=MAX_TAIL)?, query.number("offset", 0..=i64::MAX as u64)?) {
        (None, offset) => Start::Offset(offset.unwrap_or(0)),
        (Some(lines), None) => Start::Tail(lines as usize),
        (Some(_), Some(_)) => {
            return Err(query::invalid("tail", "left out with `offset`: both say where to begin"));
        }
    };
    let wanted = Wanted {
        id: id.0,
        run: number(&mut query, "run")?,
        attempt: number(&mut query, "attempt")?,
        stream: one_word(&mut query, "stream", &[("stdout", Stream::Stdout), ("stderr", Stream::Stderr)])?,
        start,
        follow: query.flag("follow")?,
        format: one_word(&mut query, "format", &[("raw", Format::Raw), ("ndjson", Format::Ndjson)])?
            .unwrap_or(Format::Raw),
    };
    let held = from.0.hold().await?;
    logs::answer(&shared, wanted, Some(held)).await
}

fn one_word<T: Copy>(query: &mut Query, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Problem> {
    let Some(word) = query.one(name)? else { return Ok(None) };
    let found = words.iter().find(|(known, _)| *known == word).map(|(_, value)| *value);
    let all: Vec<_> = words.iter().map(|(known, _)| *known).collect();
    found.map(Some).ok_or_else(|| query::wrong_word(name, &word, &all))
}

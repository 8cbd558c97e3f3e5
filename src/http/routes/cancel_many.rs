//! Cancelling all that fits a filter.

use std::collections::{BTreeMap, HashSet};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::{From, json, no_parameters, read_json};
use crate::{
    http::{
        Shared,
        dto::{CancelFilter, CancelledItem, CancelledMany},
        fields::{Fields, invalid, texts},
        nearest,
        problem::{Kind, Problem},
    },
    job::{RunnerId, State as Stage},
    supervisor::{Filter, LOOKS, Taken},
};

/// The fields of the filter.
const FIELDS: [&str; 5] = ["state", "queue", "name", "label", "all"];
/// Runners of one request: their ids fit into one answer.
const MAX_CANCELLED: usize = 10_000;
/// Requests that are under way at once: enough for one commit to be on disk while those of the next are decided.
const TOGETHER: usize = 4096;

/// Cancels all runners that are not closed and fit a filter, at the time of the request.
///
/// What is stopping already is left to its grace: only a filter that names the state `cancelling` forces.
#[utoipa::path(post, path = "/v1/runners:cancel", tag = "runners",
    request_body(content((CancelFilter = "application/json"))),
    responses((status = 200, description = "What became of each", body = CancelledMany)))]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let value = read_json(&shared, &from.0, &headers, body).await?;
    let (filter, force) = read_filter(value)?;
    let (found, more) = match force {
        true => find(&shared, filter, MAX_CANCELLED).await?,
        false => find_to_cancel(&shared, filter).await?,
    };
    // Those that wait first: none of them is to start because another one was stopped.
    let (waiting, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|(_, state)| *state == Stage::Queued);
    let by = from.0.peer.requester();
    let mut items = Vec::with_capacity(waiting.len() + others.len());
    for some in [waiting, others] {
        let asked = some.into_iter().map(|(id, state)| {
            let by = by.clone();
            let supervisor = &shared.api.supervisor;
            async move {
                if is_stopping(state) && !force {
                    return item(id, Ok(Taken::AlreadySo));
                }
                item(id, supervisor.cancel(id, by).await.map_err(Problem::from))
            }
        });
        items.extend(stream::iter(asked).buffered(TOGETHER).collect::<Vec<_>>().await);
    }
    let accepted = items.iter().filter(|item| item.result == ACCEPTED).count();
    let answer = CancelledMany { matched: items.len(), accepted, more, items };
    Ok(json(StatusCode::OK, &answer))
}

const ACCEPTED: &str = "accepted";

fn item(id: RunnerId, taken: Result<Taken, Problem>) -> CancelledItem {
    let (result, problem) = match taken {
        Ok(Taken::Accepted) => (ACCEPTED, None),
        Ok(Taken::AlreadySo) => ("already_so", None),
        Err(problem) => ("refused", Some(problem)),
    };
    CancelledItem { id, result, problem }
}

fn is_stopping(state: Stage) -> bool {
    matches!(state, Stage::Cancelling | Stage::Draining)
}

type Found = (Vec<(RunnerId, Stage)>, bool);

/// All that fit now, as far as there is room for them, and whether there are more. Those that are stopping already come
/// last: who cancels more than one request takes is not told of the same ones again and again.
async fn find_to_cancel(shared: &Shared, filter: Filter) -> Result<Found, Problem> {
    let (stopping, others): (Vec<_>, Vec<_>) =
        filter.states.iter().copied().partition(|state| is_stopping(*state));
    let (mut found, mut more) = (Vec::new(), false);
    for states in [others, stopping] {
        // Without a state all would fit.
        if states.is_empty() || more {
            continue;
        }
        let known: HashSet<RunnerId> = found.iter().map(|(id, _)| *id).collect();
        let room = MAX_CANCELLED - found.len();
        let (some, left) = find(shared, Filter { states, ..filter.clone() }, room).await?;
        // One can have begun to stop in between.
        found.extend(some.into_iter().filter(|(id, _)| !known.contains(id)));
        more = left;
    }
    Ok((found, more))
}

/// All that fit now, up to so many, and whether there are more.
async fn find(shared: &Shared, mut filter: Filter, most: usize) -> Result<Found, Problem> {
    let mut found = Vec::new();
    loop {
        let listed = shared.api.supervisor.archive().list_states(filter.clone()).await?;
        found.extend(listed.found);
        if found.len() > most {
            found.truncate(most);
            return Ok((found, true));
        }
        if listed.next.is_none() {
            return Ok((found, false));
        }
        filter.before = listed.next;
    }
}

/// The filter, and whether what is stopping already is to be forced.
fn read_filter(value: Value) -> Result<(Filter, bool), Problem> {
    let mut fields = Fields::open(value, "", &FIELDS)?;
    let states = read_states(&mut fields)?;
    let (queue, name) = (fields.text("queue")?, fields.text("name")?);
    let labels: BTreeMap<_, _> = fields.text_map("label")?;
    let all = fields.flag("all")?.unwrap_or(false);
    let filtered = !states.is_empty() || queue.is_some() || name.is_some() || !labels.is_empty();
    match (all, filtered) {
        (true, true) => return Err(invalid("all", "left out where a filter is given")),
        (false, false) => {
            let detail = "say which: `state`, `queue`, `name` or `label`, or {\"all\": true} for all that are not closed";
            return Err(Problem::new(Kind::MissingField, detail).field("").allowed(FIELDS));
        }
        (true, false) | (false, true) => {}
    }
    let open = || Stage::ALL.iter().copied().filter(|state| *state != Stage::Closed).collect();
    let force = states.contains(&Stage::Cancelling);
    let filter = Filter {
        states: if states.is_empty() { open() } else { states },
        outcomes: Vec::new(),
        queue,
        name,
        labels: labels.into_iter().collect(),
        before: None,
        limit: LOOKS,
    };
    Ok((filter, force))
}

/// One state or several.
fn read_states(fields: &mut Fields) -> Result<Vec<Stage>, Problem> {
    let words = match fields.value("state") {
        None => return Ok(Vec::new()),
        Some(Value::String(word)) => vec![word],
        Some(list) => texts(list, "state")?,
    };
    let known: Vec<_> =
        Stage::ALL.iter().filter(|state| **state != Stage::Closed).map(|state| state.as_str()).collect();
    let find = |word: &String| {
        let found = Stage::from_word(word).filter(|state| *state != Stage::Closed);
        found.ok_or_else(|| {
            Problem::new(Kind::InvalidField, nearest::unknown("value of `state`:", word, &known))
                .field("state")
                .allowed(known.iter().copied())
        })
    };
    words.iter().map(find).collect()
}

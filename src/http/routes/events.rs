//! What happened: pages, and streams of server-sent events.

use std::collections::VecDeque;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event as Sent, KeepAlive, Sse},
    },
};
use futures_util::stream;
use tokio::sync::watch;

use super::{
    From, Id, json_list,
    runners::{Items, MAX_PAGE, MAX_PLACE, PAGE, READ, record},
};
use crate::{
    http::{
        Shared,
        dto::{Event, EventPage},
        problem::{Kind, Problem},
        query::Query,
        serve::Held,
        timing,
    },
    job::{self, EventKind, RunnerId, State as Stage},
    supervisor::{ReadError, Subscription},
};

/// What a client that reconnects sends: the last id it has seen.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// Events of one runner, oldest first. With `Accept: text/event-stream` they are followed until it is closed.
#[utoipa::path(get, path = "/v1/runners/{id}/events", tag = "events",
    params(
        ("id" = String, Path, description = "The runner"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000, description = "How many at the most on a page; 100 if not given"),
        ("cursor" = Option<u64>, Query, description = "Those after this `seq`"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same, for a stream that goes on"),
    ),
    responses(
        (status = 200, description = "A page of events, or a stream of them", content((EventPage = "application/json"), (String = "text/event-stream"))),
        (status = 204, description = "For a stream: the runner is closed, and there is nothing after `Last-Event-ID`"),
    ))]
pub(super) async fn of_runner(
    State(shared): State<Shared>,
    id: Id,
    from: From,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked = Asked::read(&headers, &uri)?;
    // Subscribed before it is read: nothing is missed.
    let changes = shared.api.supervisor.subscribe(id.0);
    let record = record(&shared, id.0).await?;
    if !asked.stream {
        return page(&shared, Some(id.0), &asked).await;
    }
    let after = asked.after.unwrap_or(0);
    if record.state == Stage::Closed && after >= record.last_seq {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let held = from.0.hold().await?;
    Ok(follow(shared, Some(id.0), after, Changes::One(changes), held))
}

/// All events, oldest first. With `Accept: text/event-stream` they are followed: from now on, or from `cursor` or
/// `Last-Event-ID` on.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000, description = "How many at the most on a page; 100 if not given"),
        ("cursor" = Option<u64>, Query, description = "Those after this `seq`; 0 for all"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same, for a stream that goes on"),
    ),
    responses((status = 200, description = "A page of events, or a stream of them", content((EventPage = "application/json"), (String = "text/event-stream")))))]
pub(super) async fn all(
    State(shared): State<Shared>,
    from: From,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked = Asked::read(&headers, &uri)?;
    if !asked.stream {
        return page(&shared, None, &asked).await;
    }
    let last = shared.api.supervisor.last_event();
    let after = asked.after.unwrap_or(*last.borrow());
    let held = from.0.hold().await?;
    Ok(follow(shared, None, after, Changes::All(last), held))
}

struct Asked {
    stream: bool,
    after: Option<u64>,
    limit: usize,
}

impl Asked {
    fn read(headers: &HeaderMap, uri: &Uri) -> Result<Self, Problem> {
        let mut query = Query::parse(uri, &["limit", "cursor"])?;
        let limit = query.number("limit", 1..=MAX_PAGE)?.unwrap_or(PAGE) as usize;
        let mut after = query.number("cursor", 0..=MAX_PLACE)?;
        if let Some(id) = headers.get(LAST_EVENT_ID) {
            let place = id.to_str().ok().and_then(|id| id.parse().ok()).filter(|place| *place <= MAX_PLACE);
            let expected = || {
                let detail = "Last-Event-ID must be the `id` of an event of this stream, a whole number";
                Problem::new(Kind::InvalidHeader, detail).field(LAST_EVENT_ID)
            };
            after = Some(place.ok_or_else(expected)?);
        }
        let accepts = |value: &header::HeaderValue| {
            let types = value.to_str().unwrap_or_default().split(',');
            types
                .map(|kind| kind.split(';').next().unwrap_or_default().trim())
                .any(|kind| kind == "text/event-stream")
        };
        Ok(Self { stream: headers.get_all(header::ACCEPT).iter().any(accepts), after, limit })
    }
}

async fn page(shared: &Shared, runner: Option<RunnerId>, asked: &Asked) -> Result<Response, Problem> {
    let mut after = asked.after.unwrap_or(0);
    let mut items = Items::default();
    let more = 'reading: loop {
        let limit = READ.min(asked.limit - items.len());
        let events = shared.api.supervisor.archive().events(after, runner, limit).await?;
        for event in &events {
            after = event.seq;
            if !items.add(event.seq, &Event::from(event))? {
                break 'reading true;
            }
        }
        if events.len() < limit {
            break false;
        }
        if items.len() == asked.limit {
            break true;
        }
    };
    Ok(json_list(&items.page(more)))
}

/// What tells that there is more to read.
enum Changes {
    One(Subscription),
    All(watch::Receiver<u64>),
}

impl Changes {
    /// `false` when there will never be more.
    async fn changed(&mut self) -> bool {
        match self {
            Self::One(changes) => {
                changes.changed().await;
                true
            }
            Self::All(last) => last.changed().await.is_ok(),
        }
    }
}

/// A stream of events. It reads from the store what it missed while its client was slow: nobody waits for it.
struct Following {
    shared: Shared,
    runner: Option<RunnerId>,
    after: u64,
    read: VecDeque<job::Event>,
    changes: Changes,
    closing: watch::Receiver<bool>,
    over: bool,
    _held: Held,
}

fn follow(shared: Shared, runner: Option<RunnerId>, after: u64, changes: Changes, held: Held) -> Response {
    let closing = shared.closing.clone();
    let following = Following {
        shared,
        runner,
        after,
        read: VecDeque::new(),
        changes,
        closing,
        over: false,
        _held: held,
    };
    let events = stream::unfold(following, |mut following| async move {
        let sent = following.next().await?;
        Some((sent, following))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(timing::KEEP_ALIVE)).into_response()
}

impl Following {
    async fn next(&mut self) -> Option<Result<Sent, ReadError>> {
        loop {
            if let Some(event) = self.read.pop_front() {
                let closed = matches!(event.kind, EventKind::Closed(_));
                // Nothing happens to a closed Runner.
                self.over = closed && self.runner.is_some();
                let sent = Sent::default().id(event.seq.to_string()).event(event.kind.name());
                return Some(
                    sent.json_data(Event::from(&event)).map_err(|error| ReadError(error.to_string())),
                );
            }
            if self.over {
                return None;
            }
            if let Changes::All(last) = &mut self.changes {
                last.mark_unchanged();
            }
            match self.shared.api.supervisor.archive().events(self.after, self.runner, READ).await {
                Ok(events) => {
                    self.after = events.last().map_or(self.after, |event| event.seq);
                    self.read = events.into();
                }
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
            if self.read.is_empty() {
                // What was committed before the daemon stops is told before it ends.
                tokio::select! {
                    biased;
                    more = self.changes.changed() => if !more { return None },
                    _ = self.closing.wait_for(|closing| *closing) => return None,
                }
            }
        }
    }
}

//! Follows what comes: output and events. What broke off goes on where it stopped, without a gap and without
//! anything twice.

use std::{
    cell::Cell,
    ops::ControlFlow,
    rc::Rc,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{Method, header, header::HeaderName};
use serde_json::Value;
use tokio::time::sleep;

use super::{
    client::{Ask, Client},
    error::{Cause, Code, Error},
    printer::Stream,
    record::{self, text},
    screen,
};

/// The first wait before the daemon is tried again; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The wait before which a person is told: what passes sooner is nobody's concern.
const TELL_AT: Duration = Duration::from_millis(400);

/// A connection that broke is tried again for so long.
pub(super) struct Again {
    limit: Duration,
    /// Becomes true when it is over: a daemon that is gone then is not waited for.
    needless: Rc<Cell<bool>>,
    broken: Option<Instant>,
    wait: Duration,
}

impl Again {
    pub(super) fn new(limit: Duration) -> Self {
        Self::unless(limit, Rc::default())
    }

    /// The same, until it is needless.
    pub(super) fn unless(limit: Duration, needless: Rc<Cell<bool>>) -> Self {
        Self { limit, needless, broken: None, wait: FIRST_WAIT }
    }

    /// It works.
    fn well(&mut self) {
        (self.broken, self.wait) = (None, FIRST_WAIT);
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The same, where it is no fault of the connection, or the time is up.
    async fn wait(&mut self, error: Error) -> Result<(), Error> {
        let gone = matches!(error.cause, Cause::Unreachable);
        if !error.is_connection() || (gone && self.needless.get()) {
            return Err(error);
        }
        if self.wait == TELL_AT && self.limit > TELL_AT {
            screen::say(&format!("{}; trying again for {}", error.message, record::span(self.limit)));
        }
        let since = self.broken.get_or_insert_with(Instant::now).elapsed();
        if since >= self.limit {
            let message = format!("{}; it was tried again for {}", error.message, record::span(self.limit));
            return Err(Error { code: Code::Broken, message, ..error });
        }
        sleep(self.wait.min(self.limit - since)).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }
}

/// A piece of output.
pub(super) struct Output<'a> {
    /// The line as it came.
    pub(super) line: &'a [u8],
    pub(super) value: &'a Value,
}

impl Output<'_> {
    pub(super) fn stream(&self) -> Stream {
        if text(self.value, "/stream") == "stderr" { Stream::Err } else { Stream::Out }
    }

    /// The bytes that the job wrote.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self.value.get("base64").and_then(Value::as_str) {
            Some(base64) => BASE64_STANDARD.decode(base64).unwrap_or_default(),
            None => text(self.value, "/text").as_bytes().to_vec(),
        }
    }

    /// What is missing before the next piece.
    pub(super) fn gap(&self) -> Option<u64> {
        let bound = |name| self.value.pointer(name).and_then(Value::as_u64);
        Some(bound("/gap/to")?.saturating_sub(bound("/gap/from")?))
    }
}

/// Which output is wanted.
#[derive(Default)]
pub(super) struct Logs {
    pub(super) id: String,
    pub(super) run: Option<u64>,
    pub(super) attempt: Option<u64>,
    pub(super) stream: Option<&'static str>,
    pub(super) tail: Option<u64>,
    pub(super) offset: Option<u64>,
    pub(super) follow: bool,
}

/// The place behind the last piece: run, attempt, offset.
type Place = (u64, u64, u64);

impl Logs {
    /// Gives piece after piece until there is nothing more, or the taker breaks off.
    pub(super) async fn each(
        &self,
        client: &Client,
        mut again: Again,
        mut take: impl AsyncFnMut(Output<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut place: Option<Place> = None;
        let mut resumed = false;
        loop {
            let path = self.path(place.filter(|_| resumed));
            match self.read(client, &path, &mut place, &mut again, &mut take).await {
                Ok(ControlFlow::Break(())) => return Ok(()),
                Ok(ControlFlow::Continue(())) if !self.follow => return Ok(()),
                // The end of the output, or of the daemon, or of one attempt: the record tells.
                Ok(ControlFlow::Continue(())) => {
                    match client.get(&format!("/v1/runners/{}", self.id)).await {
                        Ok(runner) if self.is_over(&runner, place.filter(|_| resumed)) => return Ok(()),
                        Ok(runner) => {
                            match place.map(|(run, attempt, _)| record::after(&runner, (run, attempt))) {
                                Some((true, Some((run, attempt)))) => place = Some((run, attempt, 0)),
                                // The next attempt is still to come.
                                Some((true, None)) => {
                                    wait_for_attempt(client, &self.id, &mut again).await?;
                                    continue;
                                }
                                Some((false, _)) | None => {
                                    again
                                        .wait(Error::broken(
                                            "the daemon ended its answer before the job was over",
                                        ))
                                        .await?;
                                }
                            }
                        }
                        Err(error) => again.wait(error).await?,
                    }
                }
                Err(error) => again.wait(error).await?,
            }
            resumed = true;
        }
    }

    /// Whether all there will be was given. One that resumed follows attempt by attempt.
    fn is_over(&self, runner: &Value, resumed: Option<Place>) -> bool {
        let later = resumed.and_then(|(run, attempt, _)| record::after(runner, (run, attempt)).1);
        let later = later.filter(|(run, _)| self.run.is_none_or(|wanted| wanted == *run));
        match self.attempt {
            Some(wanted) => {
                let run =
                    self.run.or(record::run(runner, None).and_then(|run| run["run"].as_u64())).unwrap_or(1);
                record::after(runner, (run, wanted)).0
            }
            None => {
                later.is_none()
                    && (record::is_over(runner, self.run)
                        && (self.run.is_some() || record::is_closed(runner)))
            }
        }
    }

    fn path(&self, place: Option<Place>) -> String {
        let mut path = format!("/v1/runners/{}/logs?format=ndjson", self.id);
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                path.extend(["&", name, "=", &value]);
            }
        };
        add("stream", self.stream.map(str::to_owned));
        add("follow", self.follow.then(|| "true".to_owned()));
        match place {
            Some((run, attempt, offset)) => {
                add("run", Some(run.to_string()));
                add("attempt", Some(attempt.to_string()));
                add("offset", Some(offset.to_string()));
            }
            None => {
                add("run", self.run.map(|run| run.to_string()));
                add("attempt", self.attempt.map(|attempt| attempt.to_string()));
                add("tail", self.tail.map(|lines| lines.to_string()));
                add("offset", self.offset.map(|offset| offset.to_string()));
            }
        }
        path
    }

    async fn read(
        &self,
        client: &Client,
        path: &str,
        place: &mut Option<Place>,
        again: &mut Again,
        take: &mut impl AsyncFnMut(Output<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let answer = client.ask(Ask::new(Method::GET, path)).await?;
        let mut lines = answer.lines();
        while let Some(line) = lines.next().await? {
            let value: Value = serde_json::from_slice(line).map_err(|error| {
                Error::new(Code::Internal, format!("the daemon's answer is no JSON: {error}"))
            })?;
            let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64);
            if let (Some(run), Some(attempt), Some(next)) =
                (number("/run"), number("/attempt"), number("/next").or(number("/gap/to")))
            {
                *place = Some((run, attempt, next));
            }
            again.well();
            if take(Output { line, value: &value }).await.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

async fn wait_for_attempt(client: &Client, id: &str, again: &mut Again) -> Result<(), Error> {
    let runner = client.get(&format!("/v1/runners/{id}")).await?;
    let run = record::run(&runner, None);
    let known =
        run.and_then(|run| Some((run["run"].as_u64()?, record::last_attempt(run)?["attempt"].as_u64()?)));
    events(client, Some(id), Some(0), again, async |event| match text(event, "/type") {
        "closed" => ControlFlow::Break(()),
        "starting" if event["run"].as_u64().zip(event["attempt"].as_u64()) > known => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .await
}

/// Gives event after event: of a runner until it has closed, of all for ever, or until the taker breaks off.
pub(super) async fn events(
    client: &Client,
    id: Option<&str>,
    mut after: Option<u64>,
    again: &mut Again,
    mut take: impl AsyncFnMut(&Value) -> ControlFlow<()>,
) -> Result<(), Error> {
    const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
    let path = id.map_or_else(|| "/v1/events".to_owned(), |id| format!("/v1/runners/{id}/events"));
    loop {
        let mut ask = Ask::new(Method::GET, &path).header(header::ACCEPT, "text/event-stream")?;
        if let Some(seq) = after {
            ask = ask.header(LAST_EVENT_ID, &seq.to_string())?;
        }
        match read_events(client, ask, id.is_some(), &mut after, again, &mut take).await {
            Ok(Read::Over) => return Ok(()),
            Ok(Read::BrokeOff) => again.wait(Error::broken("the daemon ended its answer")).await?,
            Err(error) => again.wait(error).await?,
        }
    }
}

enum Read {
    Over,
    BrokeOff,
}

async fn read_events(
    client: &Client,
    ask: Ask<'_>,
    of_one: bool,
    after: &mut Option<u64>,
    again: &mut Again,
    take: &mut impl AsyncFnMut(&Value) -> ControlFlow<()>,
) -> Result<Read, Error> {
    const NO_CONTENT: u16 = 204;
    let answer = client.ask(ask).await?;
    if answer.status == NO_CONTENT {
        return Ok(Read::Over);
    }
    let mut lines = answer.lines();
    while let Some(line) = lines.next().await? {
        // An event is one line of data; its id and its type stand in it too.
        let Some(data) = line.strip_prefix(b"data:") else { continue };
        let event: Value = serde_json::from_slice(data).map_err(|error| {
            Error::new(Code::Internal, format!("an event of the daemon is no JSON: {error}"))
        })?;
        *after = event["seq"].as_u64().or(*after);
        again.well();
        // Nothing happens to a closed runner.
        let last = of_one && text(&event, "/type") == "closed";
        if take(&event).await.is_break() || last {
            return Ok(Read::Over);
        }
    }
    Ok(Read::BrokeOff)
}

/// The record when nothing more will come of it, or of one run of it.
pub(super) async fn over(
    client: &Client,
    id: &str,
    run: Option<u64>,
    again: &mut Again,
) -> Result<Value, Error> {
    let path = format!("/v1/runners/{id}");
    loop {
        match client.get(&path).await {
            Ok(runner) if record::is_over(&runner, run) => return Ok(runner),
            Ok(_) => {}
            Err(error) => {
                again.wait(error).await?;
                continue;
            }
        }
        // All of them from the first on: what happened between the record and the subscription is among them.
        events(client, Some(id), Some(0), again, async |event| match text(event, "/type") {
            "closed" => ControlFlow::Break(()),
            "idle" | "starting" if is_over(client, &path, run).await => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .await?;
    }
}

async fn is_over(client: &Client, path: &str, run: Option<u64>) -> bool {
    client.get(path).await.is_ok_and(|runner| record::is_over(&runner, run))
}

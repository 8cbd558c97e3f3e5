//! `http`: one request, with its redirects. What is secret in it is looked up when it runs, and is in no record,
//! error or log.

mod connect;
mod guard;
mod outcome;
mod post;

use std::collections::BTreeMap;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use url::{Position, Url};

pub use guard::HttpRules;

use super::output::Output;
use crate::{
    job::{Body, Failure, Http, Text},
    process::log::Stream,
    supervisor::ports::End,
};
use connect::{Line, Tls};
use outcome::Received;
pub(super) use outcome::chain;

/// What the server is told who asks.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("runward/", env!("CARGO_PKG_VERSION")));

/// Headers that stay with the origin they were meant for, whoever wrote them.
const OF_THE_ORIGIN: [HeaderName; 4] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION, header::HOST];

/// What all `http` jobs and webhooks share. No connections: each makes its own.
#[derive(Debug)]
pub struct Client {
    rules: watch::Receiver<HttpRules>,
    tls: Tls,
    /// For how many at once there are descriptors.
    places: Semaphore,
}

/// The right to have a connection, until it is dropped. `None` only for want of a semaphore, and that is never closed.
#[derive(Debug)]
pub struct Place<'a>(#[expect(dead_code, reason = "it is there to be dropped")] Option<SemaphorePermit<'a>>);

/// A request, complete.
struct Sending {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
    /// The body came from the context.
    secret_body: bool,
}

impl Client {
    /// A client that keeps to these rules, as they are at each request, and has so many connections at once.
    pub fn new(rules: watch::Receiver<HttpRules>, connections: usize) -> Self {
        Self { rules, tls: Tls::new(), places: Semaphore::new(connections.min(Semaphore::MAX_PERMITS)) }
    }

    /// Waits for its turn to have a connection: first come, first served.
    pub async fn place(&self) -> Place<'_> {
        Place(self.places.acquire().await.ok())
    }

    /// Makes the request. Dropping it closes its connection.
    pub(super) async fn run(&self, job: &Http, context: &BTreeMap<String, String>, output: &Output) -> End {
        self.follow(job, context, output)
            .await
            .unwrap_or_else(|failure| End { error: Some(failure), ..End::default() })
    }

    async fn follow(
        &self,
        job: &Http,
        context: &BTreeMap<String, String>,
        output: &Output,
    ) -> Result<End, Failure> {
        let mut sending = Sending::new(job, context)?;
        // One after the other for all redirects.
        let _place = self.place().await;
        let mut redirects = 0;
        loop {
            let (mut line, answer) = self.send(&sending).await?;
            let next = match job.follow_redirects {
                0 => None,
                _ => location(&sending.url, &answer)?,
            };
            let Some(next) = next else {
                let status = answer.status();
                let received = receive(&mut line, answer, job.max_response_bytes, output).await?;
                let result = outcome::result(status, received, &sending.url, redirects);
                let error = outcome::unexpected(status, &job.expected_status);
                return Ok(End { result: Some(result), error, ..End::default() });
            };
            if redirects == job.follow_redirects {
                let message = format!(
                    "more than {redirects} redirects; `follow_redirects` is how many are followed, and the next was to {}",
                    outcome::shown(&next)
                );
                return Err(Failure::new("http_redirects", message));
            }
            redirects += 1;
            sending.redirect(next, answer.status())?;
        }
    }

    async fn send(&self, sending: &Sending) -> Result<(Line, Response<Incoming>), Failure> {
        let rules = self.rules.borrow().clone();
        let (mut sender, mut line) = connect::connect(&sending.url, &rules, &self.tls).await?;
        let mut request = Request::new(Full::new(sending.body.clone()));
        *request.method_mut() = sending.method.clone();
        *request.headers_mut() = sending.headers.clone();
        let broken = |what: String| Failure::new("http_broken", what);
        let path = &sending.url[Position::BeforePath..Position::AfterQuery];
        *request.uri_mut() = path.parse().map_err(|error| broken(format!("no path to ask for: {error}")))?;
        if !request.headers().contains_key(header::HOST) {
            let host = &sending.url[Position::BeforeHost..Position::AfterPort];
            let host =
                HeaderValue::from_str(host).map_err(|error| broken(format!("no host to name: {error}")))?;
            request.headers_mut().insert(header::HOST, host);
        }
        // From here on the server may have carried it out.
        let answer = line.over(sender.send_request(request)).await;
        let host = sending.url.host_str().unwrap_or_default();
        Ok((line, answer.map_err(|error| broken(format!("{host} gave no answer: {}", chain(&error))))?))
    }
}

impl Sending {
    fn new(job: &Http, context: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let bad = |what: &str| Failure::new("internal", format!("{what} was accepted that can't be sent"));
        let mut headers = HeaderMap::new();
        for (name, value) in &job.headers {
            let path = format!("job.http.headers.{name}");
            let name = HeaderName::try_from(name).map_err(|_| bad("a name of a header"))?;
            let (text, secret) = resolve(value, context, &path)?;
            let mut value = HeaderValue::from_str(text).map_err(|_| {
                let message =
                    format!("what `{path}` holds can't be sent as a header: only visible characters can");
                Failure::new("context_unusable", message)
            })?;
            value.set_sensitive(secret);
            headers.insert(name, value);
        }
        let mut secret_body = false;
        let body = match &job.body {
            None => Bytes::new(),
            Some(Body::Text(text)) => {
                let (text, secret) = resolve(text, context, "job.http.body")?;
                secret_body = secret;
                Bytes::copy_from_slice(text.as_bytes())
            }
            Some(Body::Json(value)) => {
                let json = HeaderValue::from_static("application/json");
                headers.entry(header::CONTENT_TYPE).or_insert(json);
                serde_json::to_vec(value).map_err(|_| bad("a body"))?.into()
            }
        };
        headers.entry(header::USER_AGENT).or_insert(USER_AGENT);
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let method = Method::from_bytes(job.method.as_bytes()).map_err(|_| bad("a method"))?;
        let url = Url::parse(&job.url).map_err(|_| bad("a url"))?;
        Ok(Self { method, url, headers, body, secret_body })
    }

    /// Turns it into what is asked for after a redirect.
    fn redirect(&mut self, next: Url, status: StatusCode) -> Result<(), Failure> {
        let to_get = match status {
            StatusCode::SEE_OTHER => self.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == Method::POST,
            _ => false,
        };
        if to_get {
            self.method = Method::GET;
            self.body = Bytes::new();
            self.secret_body = false;
            for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
                self.headers.remove(name);
            }
        }
        if next.origin() != self.url.origin() {
            if self.secret_body {
                let message = format!(
                    "it was redirected to {}, and its body, which is from the context, does not go to another origin",
                    outcome::shown(&next)
                );
                return Err(Failure::new("http_redirects", message));
            }
            let secret =
                |name: &HeaderName, value: &HeaderValue| value.is_sensitive() || OF_THE_ORIGIN.contains(name);
            let kept = self.headers.iter().filter(|(name, value)| !secret(name, value));
            self.headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        self.url = next;
        Ok(())
    }
}

/// Where an answer sends the client.
fn location(url: &Url, answer: &Response<Incoming>) -> Result<Option<Url>, Failure> {
    let redirects = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = answer.headers().get(header::LOCATION).filter(|_| redirects) else {
        return Ok(None);
    };
    let refused = |why: String| Err(Failure::new("http_redirects", why));
    let next = str::from_utf8(location.as_bytes()).ok().and_then(|location| url.join(location).ok());
    let Some(next) = next else { return refused("it was redirected to something that is no address".into()) };
    match (url.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(Some(next)),
        ("https", "http") => {
            refused(format!("it was redirected from https to http, to {}", outcome::shown(&next)))
        }
        (_, other) => {
            refused(format!("it was redirected to `{other}:`, and only http and https are followed"))
        }
    }
}

/// The text, and whether it is from the context.
fn resolve<'a>(
    text: &'a Text,
    context: &'a BTreeMap<String, String>,
    path: &str,
) -> Result<(&'a str, bool), Failure> {
    match text {
        Text::Plain(text) => Ok((text, false)),
        Text::Context(name) => context.get(name).map(|value| (value.as_str(), true)).ok_or_else(|| {
            let message = format!(
                "`{path}` names the context variable `{name}`, and there is none; set it in `context` of the job or \
                 in the shared context"
            );
            Failure::new("context_missing", message)
        }),
    }
}

/// Reads the body: all of it to the log, its beginning for the result.
async fn receive(
    line: &mut Line,
    answer: Response<Incoming>,
    max: u64,
    output: &Output,
) -> Result<Received, Failure> {
    let (parts, mut body) = answer.into_parts();
    let mut received = Received::new(parts.headers);
    let mut left = max;
    while let Some(frame) = line.over(body.frame()).await {
        let frame = frame.map_err(|error| {
            let message = format!("the answer broke off: {}", chain(&error));
            Failure::new("http_broken", message)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        left -= take as u64;
        received.add(&data[..take]);
        output.write(Stream::Stdout, &data[..take]).await;
        if take < data.len() {
            received.cut();
            break;
        }
    }
    Ok(received)
}

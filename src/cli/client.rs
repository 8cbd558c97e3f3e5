//! HTTP to the daemon: one connection for each request, as a command makes few.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

use super::{
    connect::{Place, Target},
    error::{Cause, Code, Error},
};

/// How long a connection may take: the daemon accepts at once.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take that waits for nothing. A commit on a slow disk is in it.
const ANSWER: Duration = Duration::from_secs(30);

/// A client of one daemon.
#[derive(Clone, Debug)]
pub(super) struct Client {
    target: Target,
}

/// An answer whose head is there.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    body: Incoming,
    /// Ends with it: it carries the bytes.
    _connection: JoinSet<()>,
}

/// One request.
pub(super) struct Ask<'a> {
    method: Method,
    path: &'a str,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    /// How long its answer may take; `None`: it is one that waits.
    patience: Option<Duration>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, headers: Vec::new(), body: Bytes::new(), patience: Some(ANSWER) }
    }

    pub(super) fn json(mut self, body: &Value) -> Self {
        self.headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
        Self { body: Bytes::from(body.to_string()), ..self }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Result<Self, Error> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::usage(format!("{name} can't be {value:?}: visible characters only")))?;
        self.headers.push((name, value));
        Ok(self)
    }

    /// One whose answer may take so long, or for ever.
    pub(super) fn patience(self, patience: Option<Duration>) -> Self {
        Self { patience, ..self }
    }
}

impl Client {
    pub(super) fn new(target: Target) -> Self {
        Self { target }
    }

    /// Whether the daemon is on this machine, with the same files.
    pub(super) fn is_local(&self) -> bool {
        match self.target.place {
            Place::Unix(_) => true,
            Place::Tcp(_) => false,
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(Ask::new(Method::GET, path)).await
    }

    pub(super) async fn post(&self, path: &str) -> Result<Value, Error> {
        self.json(Ask::new(Method::POST, path)).await
    }

    pub(super) async fn json(&self, ask: Ask<'_>) -> Result<Value, Error> {
        self.ask(ask).await?.json().await
    }

    /// Asks, and takes nothing but a success for an answer.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        let answer = self.send(ask).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let status = answer.status;
        Err(Error::of_answer(status, &answer.bytes().await?))
    }

    /// Asks, whatever the answer is.
    pub(super) async fn send(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        let patience = ask.patience;
        let sent = self.exchange(ask);
        match patience {
            None => sent.await,
            Some(limit) => timeout(limit, sent).await.unwrap_or_else(|_| {
                let seconds = limit.as_secs();
                Err(Error::broken(format!("the daemon gave no answer within {seconds} s; see its own log")))
            }),
        }
    }

    async fn exchange(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        match &self.target.place {
            Place::Unix(path) => {
                let stream = self.reach(UnixStream::connect(path)).await?;
                self.over(stream, ask, "localhost").await
            }
            Place::Tcp(address) => {
                let stream = self.reach(TcpStream::connect(address)).await?;
                self.over(stream, ask, address).await
            }
        }
    }

    async fn reach<S>(&self, connecting: impl Future<Output = std::io::Result<S>>) -> Result<S, Error> {
        let unreachable = |code, message| Error { code, cause: Cause::Unreachable, message };
        let connected = timeout(CONNECT, connecting).await.unwrap_or_else(|_| {
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not accept the connection"))
        });
        connected.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                unreachable(Code::NoDaemon, self.target.silent.clone())
            }
            std::io::ErrorKind::PermissionDenied => unreachable(
                Code::Denied,
                format!(
                    "the daemon's socket admits its own user and root only ({error}); ask as one of them"
                ),
            ),
            _ => unreachable(Code::NoDaemon, format!("the daemon can't be reached: {error}")),
        })
    }

    async fn over<S>(&self, stream: S, ask: Ask<'_>, host: &str) -> Result<Answer, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broke =
            |error: hyper::Error| Error::broken(format!("the connection to the daemon broke: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let mut driver = JoinSet::new();
        // What breaks it is told to whoever reads the answer.
        driver.spawn(async move { drop(connection.await) });
        let mut request = Request::new(Full::new(ask.body));
        *request.method_mut() = ask.method;
        *request.uri_mut() = ask
            .path
            .parse()
            .map_err(|error| Error::usage(format!("{:?} can't be asked for: {error}", ask.path)))?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(host).map_err(|_| Error::usage(format!("{host:?} is no host")))?;
        headers.insert(header::HOST, host);
        if let Some(token) = &self.target.token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Error::usage("the token has characters that no token has"))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        headers.extend(ask.headers);
        let response: Response<Incoming> = sender.send_request(request).await.map_err(broke)?;
        let (head, body) = response.into_parts();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, _connection: driver })
    }
}

impl Answer {
    /// All of it.
    pub(super) async fn bytes(self) -> Result<Bytes, Error> {
        let collected = self.body.collect().await;
        collected
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| Error::broken(format!("the daemon's answer broke off: {error}")))
    }

    pub(super) async fn json(self) -> Result<Value, Error> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Code::Internal, format!("the daemon's answer is no JSON: {error}")))
    }

    /// Line by line, as they come.
    pub(super) fn lines(self) -> Lines {
        Lines { answer: self, read: Vec::new(), given: 0 }
    }
}

/// The lines of an answer.
pub(super) struct Lines {
    answer: Answer,
    read: Vec<u8>,
    given: usize,
}

impl Lines {
    /// The next one, without its end; `None` at the end of the answer. A last line that broke off is none.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        self.read.drain(..std::mem::take(&mut self.given));
        let mut searched = 0;
        loop {
            if let Some(at) = self.read[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + at;
                self.given = end + 1;
                return Ok(Some(&self.read[..end]));
            }
            searched = self.read.len();
            match self.answer.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::broken(format!("the daemon's answer broke off: {error}")));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

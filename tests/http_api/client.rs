//! A client that sends exactly what a test says.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

/// After this long without a byte a test fails rather than hangs. Nothing that works comes near it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) enum Client {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

pub(crate) trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// An answer that is still coming.
pub(crate) struct Streaming {
    pub head: Response,
    reader: BufReader<Box<dyn Socket>>,
    buffered: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), headers: Vec::new(), body: None }
    }

    pub(crate) fn target(mut self, target: &str) -> Self {
        self.target = target.into();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn token(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(known, _)| known == name)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        let mut line = |name: &str, value: &[u8]| {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        };
        for (name, value) in &self.headers {
            line(name, value);
        }
        if !self.has("host") {
            line("host", b"localhost");
        }
        if !self.has("connection") {
            line("connection", b"close");
        }
        if let Some(body) = &self.body
            && !self.has("content-length")
        {
            line("content-length", body.len().to_string().as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

impl Client {
    pub(crate) fn tcp(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }

    pub(crate) fn unix(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }

    pub(crate) fn connect(&self) -> Box<dyn Socket> {
        match self {
            Self::Tcp(address) => {
                let socket = TcpStream::connect(address).expect("connected");
                socket.set_read_timeout(Some(PATIENCE)).expect("set");
                Box::new(socket)
            }
            Self::Unix(path) => {
                let socket = UnixStream::connect(path).expect("connected");
                socket.set_read_timeout(Some(PATIENCE)).expect("set");
                Box::new(socket)
            }
        }
    }

    /// Sends a request and reads its answer's head.
    pub(crate) fn open(&self, request: &Request) -> Streaming {
        let mut socket = self.connect();
        socket.write_all(&request.bytes()).expect("sent");
        Streaming::read(socket)
    }

    pub(crate) fn send(&self, request: &Request) -> Response {
        self.open(request).rest()
    }

    /// Sends bytes and reads the answer to them, if there is one.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Response {
        let mut socket = self.connect();
        socket.write_all(bytes).expect("sent");
        Streaming::read(socket).rest()
    }
}

impl Streaming {
    fn read(socket: Box<dyn Socket>) -> Self {
        let mut reader = BufReader::new(socket);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Self { head: Response { status, headers, body: Vec::new() }, reader, buffered: Vec::new() }
    }

    fn chunked(&self) -> bool {
        self.head.header("transfer-encoding") == Some("chunked")
    }

    /// The next chunk; `None` at the end.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.reader.read_line(&mut size).expect("a chunk");
        let size = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).expect("a whole chunk");
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    /// Reads on until this much of the body is there, and takes it.
    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffered.len() < length {
            let chunk = self.chunk().expect("more");
            self.buffered.extend(chunk);
        }
        self.buffered.drain(..length).collect()
    }

    /// Reads on until this text has come, and takes all up to it.
    pub(crate) fn take_until(&mut self, text: &str) -> String {
        loop {
            let found = self.buffered.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let taken = self.buffered.drain(..at + text.len()).collect();
                return String::from_utf8(taken).expect("text");
            }
            let chunk = self.chunk().unwrap_or_else(|| panic!("it ended before {text:?} came"));
            self.buffered.extend(chunk);
        }
    }

    /// The whole answer, once it has ended.
    pub(crate) fn rest(mut self) -> Response {
        let mut body = std::mem::take(&mut self.buffered);
        if self.chunked() {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else {
            self.reader.read_to_end(&mut body).expect("a body");
        }
        self.head.body = body;
        self.head
    }
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The last word of its problem's type.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text());
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        for member in ["title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
        let kind = problem["type"].as_str().expect("a type");
        kind.strip_prefix("urn:runward:problem:").expect("one of ours").to_owned()
    }
}

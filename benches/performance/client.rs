//! The client that makes the load: HTTP/1.1 on kept connections over a unix socket, with little more than the system
//! calls. It shares the cores with what it measures, so what it costs itself is told too.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{UsageWho, getrusage},
    },
};

use crate::Result;

/// Longer than any answer takes; what reaches it hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// A request as it goes over the wire.
pub(crate) fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{kind}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The status and where the body begins and ends, when all of it is there. hyper writes names in small letters.
fn answer(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let Some(head) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let status = bytes.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    let at = bytes[..head].windows(LENGTH.len()).position(|name| name == LENGTH).map(|at| at + LENGTH.len());
    let digits = at.map(|at| bytes[at..head].iter().take_while(|byte| byte.is_ascii_digit()));
    let length = digits.map(|digits| digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')));
    let (Some(status), Some(length)) = (status, length) else {
        return Err(format!("no answer of HTTP: {}", String::from_utf8_lossy(&bytes[..head])).into());
    };
    let ends = head + 4 + length;
    Ok((bytes.len() >= ends).then_some((status, head + 4, ends)))
}

/// One connection, for one request after another.
pub(crate) struct Connection {
    path: PathBuf,
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { path: path.to_owned(), stream, bytes: Vec::with_capacity(64 << 10) })
    }

    /// Sends a request and gives the status and the body of its answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.bytes.clear();
        // The daemon lets go of a connection that has rested for some seconds.
        if self.stream.write_all(request).is_err() || self.fill()? == 0 {
            *self = Self::open(&self.path)?;
            self.stream.write_all(request)?;
        }
        loop {
            if let Some((status, begins, ends)) = answer(&self.bytes)? {
                return Ok((status, &self.bytes[begins..ends]));
            }
            if self.fill()? == 0 {
                return Err("the daemon hung up".into());
            }
        }
    }

    /// The body of an answer that must be a good one.
    pub(crate) fn good(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let (status, answer) = self.ask(&request(method, path, body))?;
        let text = String::from_utf8_lossy(answer).into_owned();
        if (200..300).contains(&status) {
            Ok(text)
        } else {
            Err(format!("{method} {path}: {status} {text}").into())
        }
    }

    /// How long an answer with this status takes.
    pub(crate) fn time(&mut self, request: &[u8], expected: u16) -> Result<Duration> {
        let began = Instant::now();
        let (status, answer) = self.ask(request)?;
        let took = began.elapsed();
        if status == expected { Ok(took) } else { Err(wrong(status, answer)) }
    }

    /// All that comes until the end of a connection, chunks as they are.
    pub(crate) fn text(mut self, path: &str) -> Result<String> {
        let ask = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        self.stream.write_all(ask.as_bytes())?;
        while self.fill()? > 0 {}
        Ok(String::from_utf8_lossy(&self.bytes).into_owned())
    }

    fn fill(&mut self) -> Result<usize> {
        let before = self.bytes.len();
        self.bytes.resize(before + (64 << 10), 0);
        let read = match self.stream.read(&mut self.bytes[before..]) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error.into()),
        };
        self.bytes.truncate(before + read);
        Ok(read)
    }
}

fn wrong(status: u16, body: &[u8]) -> crate::Error {
    format!("{status} {}", String::from_utf8_lossy(&body[..body.len().min(300)])).into()
}

/// When a load ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// What is answered later does not count.
    Time(Duration),
    /// So many are sent.
    Count(usize),
}

/// What a load came to.
pub(crate) struct Load {
    pub(crate) answers: usize,
    pub(crate) took: Duration,
    /// What the client itself cost.
    pub(crate) cpu: Duration,
}

impl Load {
    /// Answers in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }

    /// The share of one core that the client took.
    pub(crate) fn client(&self) -> f64 {
        self.cpu.as_secs_f64() / self.took.as_secs_f64()
    }
}

struct Line {
    stream: UnixStream,
    /// What has come of an answer that is not complete.
    part: Vec<u8>,
    busy: bool,
}

fn thread_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Ok(Duration::from_micros(u64::try_from(micros(usage.user_time()) + micros(usage.system_time()))?))
}

/// Keeps so many connections busy: each sends the next of these requests, over and over, when it has the answer to the
/// one before, which must have this status.
pub(crate) fn load(
    path: &Path,
    connections: usize,
    requests: &[Vec<u8>],
    status: u16,
    until: Until,
) -> Result<Load> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut lines = Vec::with_capacity(connections);
    for number in 0..connections {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        lines.push(Line { stream, part: Vec::new(), busy: false });
    }
    let (limit, count) = match until {
        Until::Time(time) => (time, usize::MAX),
        Until::Count(count) => (PATIENCE, count),
    };
    let (began, cpu) = (Instant::now(), thread_cpu()?);
    let mut sent = 0;
    for line in lines.iter_mut().take(count) {
        send(line, &requests[sent % requests.len()])?;
        sent += 1;
    }
    let (mut answers, mut counted, mut open) = (0, None, connections.min(count));
    let mut events = vec![EpollEvent::empty(); connections];
    let mut bytes = vec![0; 64 << 10];
    while open > 0 {
        let ready = match epoll.wait(&mut events, EpollTimeout::try_from(PATIENCE)?) {
            Ok(0) => return Err("no answer comes any more".into()),
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if counted.is_none() && began.elapsed() >= limit {
            counted = Some((answers, began.elapsed(), thread_cpu()?));
        }
        for event in &events[..ready] {
            let line = &mut lines[event.data() as usize];
            if !receive(line, &mut bytes, status)? {
                continue;
            }
            answers += 1;
            if counted.is_none() && sent < count {
                send(line, &requests[sent % requests.len()])?;
                sent += 1;
            } else {
                line.busy = false;
                open -= 1;
            }
        }
    }
    let (answers, took, spent) = match counted {
        Some(counted) => counted,
        None => (answers, began.elapsed(), thread_cpu()?),
    };
    Ok(Load { answers, took, cpu: spent - cpu })
}

fn send(line: &mut Line, request: &[u8]) -> Result<()> {
    line.busy = true;
    let mut rest = request;
    while !rest.is_empty() {
        match line.stream.write(rest) {
            Ok(written) => rest = &rest[written..],
            // A large one: the daemon reads it whatever else it does, so this can wait for it.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let room = PollFd::new(line.stream.as_fd(), PollFlags::POLLOUT);
                poll(&mut [room], PollTimeout::try_from(PATIENCE)?)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads what is there; whether that completes an answer.
fn receive(line: &mut Line, bytes: &mut [u8], expected: u16) -> Result<bool> {
    let read = match line.stream.read(bytes) {
        Ok(0) if line.busy => return Err("the daemon hung up".into()),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let known = if line.part.is_empty() {
        &bytes[..read]
    } else {
        line.part.extend_from_slice(&bytes[..read]);
        &line.part
    };
    match answer(known)? {
        Some((status, begins, ends)) if status != expected => Err(wrong(status, &known[begins..ends])),
        Some(_) => {
            line.part.clear();
            Ok(true)
        }
        None => {
            if line.part.is_empty() {
                line.part.extend_from_slice(&bytes[..read]);
            }
            Ok(false)
        }
    }
}

/// Followers of one answer that goes on.
pub(crate) struct Followers {
    epoll: Epoll,
    streams: Vec<UnixStream>,
}

impl Followers {
    /// Sends the request on so many connections; they are in when each has the head of its answer.
    pub(crate) fn start(path: &Path, count: usize, request: &[u8]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut streams = Vec::with_capacity(count);
        for number in 0..count {
            let refused = |reason: &dyn std::fmt::Display| {
                format!("{number} of {count} followers were let in: {reason}")
            };
            let mut stream = UnixStream::connect(path).map_err(|error| refused(&error))?;
            stream.write_all(request).map_err(|error| refused(&error))?;
            let mut head = [0; 12];
            stream.read_exact(&mut head).map_err(|error| refused(&error))?;
            if !head.ends_with(b" 200") {
                return Err(refused(&String::from_utf8_lossy(&head)).into());
            }
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
            streams.push(stream);
        }
        Ok(Self { epoll, streams })
    }

    /// Reads until all answers have ended; how often this byte came in each.
    pub(crate) fn count(mut self, marker: u8) -> Result<Vec<usize>> {
        let mut counts = vec![0; self.streams.len()];
        let mut open = counts.len();
        let mut events = vec![EpollEvent::empty(); 64];
        let mut bytes = vec![0; 64 << 10];
        while open > 0 {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::try_from(PATIENCE)?) {
                Ok(0) => return Err("the output does not end".into()),
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..ready] {
                let number = event.data() as usize;
                match self.streams[number].read(&mut bytes) {
                    Ok(0) => return Err("the daemon hung up on a follower".into()),
                    Ok(read) => {
                        counts[number] += bytes[..read].iter().filter(|byte| **byte == marker).count();
                        // The last chunk of an answer of unknown length.
                        if bytes[..read].ends_with(b"0\r\n\r\n") {
                            self.epoll.delete(&self.streams[number])?;
                            open -= 1;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(counts)
    }
}

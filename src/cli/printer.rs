//! Prints output on a thread of its own: whoever does not read on holds up neither Ctrl-C nor the connection.

use std::{
    io::{self, Write},
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    follow::Output,
    screen::{Cleaner, Screen},
};

/// Pieces that wait to be printed: each has 128 KiB at the most.
const WAITING: usize = 16;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

enum Piece {
    Bytes(Stream, Vec<u8>),
    /// Stands on the last line of the terminal until something else is printed.
    Status(String),
    /// The terminal showed what was typed.
    Typed,
    /// Something to say beside the output.
    Said(String),
}

/// The one who prints.
pub(super) struct Printer {
    pieces: mpsc::Sender<Piece>,
    done: oneshot::Receiver<io::Result<()>>,
}

/// Nobody reads on.
#[derive(Debug)]
pub(super) struct Closed;

impl Printer {
    /// Bytes go as they came where there is no terminal, or where `raw` asks for it.
    pub(super) fn start(screen: &Screen, raw: bool) -> Self {
        let (pieces, waiting) = mpsc::channel(WAITING);
        let (tell, done) = oneshot::channel();
        let (out, err) = (screen.out && !raw, screen.err && !raw);
        let paper = Paper {
            out: out.then(Cleaner::default),
            err: err.then(Cleaner::default),
            terminal: screen.err,
            shares_line: screen.out,
            status: false,
            at_start: true,
        };
        // Detached: what nobody reads must not keep the command from ending.
        thread::spawn(move || drop(tell.send(paper.print(waiting))));
        Self { pieces, done }
    }

    pub(super) async fn bytes(&self, stream: Stream, bytes: Vec<u8>) -> Result<(), Closed> {
        self.pieces.send(Piece::Bytes(stream, bytes)).await.map_err(|_| Closed)
    }

    pub(super) async fn line(&self, mut line: String) -> Result<(), Closed> {
        line.push('\n');
        self.bytes(Stream::Out, line.into_bytes()).await
    }

    /// A piece of a job's output, or with `json` the line that told of it.
    pub(super) async fn output(&self, piece: &Output<'_>, json: bool) -> Result<(), Closed> {
        match (piece.gap(), json) {
            (_, true) => self.line(String::from_utf8_lossy(piece.line).into_owned()).await,
            (Some(bytes), false) => {
                self.say(&format!("{bytes} bytes of output are deleted: it was more than is kept"));
                Ok(())
            }
            (None, false) => self.bytes(piece.stream(), piece.bytes()).await,
        }
    }

    /// Left out where the printer is busy: it is of this moment only.
    pub(super) fn status(&self, text: String) {
        drop(self.pieces.try_send(Piece::Status(text)));
    }

    /// The person typed something that shows.
    pub(super) fn typed(&self) {
        drop(self.pieces.try_send(Piece::Typed));
    }

    /// Said even where output is stuck, then past it.
    pub(super) fn say(&self, text: &str) {
        if self.pieces.try_send(Piece::Said(text.to_owned())).is_err() {
            super::screen::say(text);
        }
    }

    /// When all of it is printed.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.pieces);
        self.done.await.unwrap_or(Ok(()))
    }
}

/// What was printed so far, as far as it matters.
struct Paper {
    /// Those that are terminals.
    out: Option<Cleaner>,
    err: Option<Cleaner>,
    /// There is one to show a status on.
    terminal: bool,
    /// Standard output moves its cursor too.
    shares_line: bool,
    status: bool,
    at_start: bool,
}

impl Paper {
    fn print(mut self, mut pieces: mpsc::Receiver<Piece>) -> io::Result<()> {
        while let Some(piece) = pieces.blocking_recv() {
            match self.piece(piece) {
                // Nobody reads on; the sender finds out by the channel.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                printed => printed?,
            }
        }
        self.erase();
        let rest = [(Stream::Out, self.out.take()), (Stream::Err, self.err.take())];
        for (stream, cleaner) in rest {
            if let Some(mut cleaner) = cleaner {
                write(stream, cleaner.finish().as_bytes())?;
            }
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece) -> io::Result<()> {
        match piece {
            Piece::Bytes(stream, bytes) => {
                self.erase();
                let cleaner = match stream {
                    Stream::Out => &mut self.out,
                    Stream::Err => &mut self.err,
                };
                let bytes = match cleaner {
                    Some(cleaner) => cleaner.clean(&bytes).into_bytes(),
                    None => bytes,
                };
                let moves = stream == Stream::Err || self.shares_line;
                if let Some(last) = bytes.last().filter(|_| moves) {
                    self.at_start = *last == b'\n';
                }
                write(stream, &bytes)
            }
            Piece::Status(text) => {
                // Never over a line that the job has begun.
                if self.terminal && self.at_start {
                    let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
                    let line = super::screen::cut(&super::screen::one_line(&text), width.saturating_sub(1));
                    self.status = true;
                    drop(write(Stream::Err, format!("\r\x1b[K{line}").as_bytes()));
                }
                Ok(())
            }
            Piece::Typed => {
                self.at_start &= !self.terminal;
                Ok(())
            }
            Piece::Said(text) => {
                self.erase();
                let break_line = if self.terminal && !self.at_start { "\n" } else { "" };
                self.at_start = true;
                let said = format!("{break_line}runward: {}\n", super::screen::clean(&text));
                // Nobody may read it.
                drop(write(Stream::Err, said.as_bytes()));
                Ok(())
            }
        }
    }

    fn erase(&mut self) {
        if std::mem::take(&mut self.status) {
            drop(write(Stream::Err, b"\r\x1b[K"));
        }
    }
}

fn write(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    let whole = |mut to: Box<dyn Write>| to.write_all(bytes).and_then(|()| to.flush());
    match stream {
        Stream::Out => whole(Box::new(io::stdout().lock())),
        Stream::Err => whole(Box::new(io::stderr().lock())),
    }
}

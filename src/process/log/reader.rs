//! Reading a log, while it is written or after.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{HEADER_BYTES, Header, Stream, segment_name, segment_offset};

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the log.
    pub offset: u64,
    /// Where the next begins: what a follower resumes from.
    pub next: u64,
    /// Which output it is from.
    pub stream: Stream,
    /// When it was read from the job, microseconds since the epoch.
    pub at: u64,
    /// Output before it was lost because it could not be written.
    pub lost_before: bool,
    /// The bytes as they came, 64 KiB at most.
    pub bytes: Vec<u8>,
}

/// What a reader meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Output.
    Frame(Frame),
    /// This part was asked for and is deleted. Reading goes on at `to`.
    Gap {
        /// Where it begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
}

/// Reads frames in order. Holds one frame and one file at a time. Blocking: not for an async worker.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    /// Frames before it are passed over, then it moves along.
    offset: u64,
    segment: Option<Segment>,
}

impl LogReader {
    /// Reads from the first frame at or after `from`, 0 for all. An attempt without output is an empty log.
    pub fn new(dir: &Path, from: u64) -> Self {
        Self { dir: dir.to_owned(), offset: from, segment: None }
    }

    /// What to resume from after the last item.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the last frame ends that was met: the log's end for now, after [`next_item`](Self::next_item) found no more.
    /// Unlike the offset it is where a frame begins, whatever was asked for.
    pub fn end(&self) -> u64 {
        self.segment.as_ref().map_or(0, |segment| segment.next)
    }

    /// The next item; `None` where the log ends for now: a later call sees what was written since.
    ///
    /// # Errors
    /// `InvalidData` for a file that no shim has written.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        loop {
            if let Some(frame) = self.read_frame()? {
                return Ok(Some(Item::Frame(frame)));
            }
            let Some(start) = self.following_segment()? else { return Ok(None) };
            // With a successor a segment is complete, but it may have grown since it was read to its end.
            if let Some(frame) = self.read_frame()? {
                return Ok(Some(Item::Frame(frame)));
            }
            // Deleted between listing and opening: look again.
            let Some(segment) = Segment::open(&self.dir, start)? else { continue };
            self.segment = Some(segment);
            let from = self.offset;
            if from < start {
                self.offset = start;
                return Ok(Some(Item::Gap { from, to: start }));
            }
        }
    }

    fn read_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(segment) = &mut self.segment else { return Ok(None) };
        segment.pass(self.offset)?;
        while let Some(frame) = segment.read_frame()? {
            if frame.offset >= self.offset {
                self.offset = frame.next;
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Where to go on when the current segment has nothing more: the one that holds `offset`, or the first after it.
    fn following_segment(&self) -> io::Result<Option<u64>> {
        let starts = segments(&self.dir)?;
        let current = self.segment.as_ref().map(|segment| segment.start);
        let mut later = starts.iter().copied().filter(|start| current.is_none_or(|current| *start > current));
        Ok(match later.clone().rfind(|start| *start <= self.offset) {
            None => later.next(),
            holding => holding,
        })
    }
}

/// Where a tail begins: at byte `skip` of the frame at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailStart {
    /// For [`LogReader::new`].
    pub offset: u64,
    /// Bytes of the first frame to pass over.
    pub skip: usize,
}

/// Where the last `lines` lines begin, of one stream or of both as they came. An unfinished last line counts. 0: where
/// the log ends. Reads backwards by segments, so the cost is that of the segments that hold the lines.
///
/// # Errors
/// As [`LogReader::next_item`].
pub fn tail(dir: &Path, lines: usize, stream: Option<Stream>) -> io::Result<TailStart> {
    let starts = segments(dir)?;
    // How many newlines back the tail begins; known once the log's last byte is.
    let mut wanted = None;
    let mut begin = TailStart { offset: starts.first().copied().unwrap_or(0), skip: 0 };
    for start in starts.iter().rev() {
        let Some(mut segment) = Segment::open(dir, *start)? else { break };
        if lines == 0 {
            segment.pass(u64::MAX)?;
            return Ok(TailStart { offset: segment.next, skip: 0 });
        }
        let mut newlines = 0;
        let mut last = None;
        while let Some(frame) = segment.read_frame()? {
            if stream.is_none_or(|stream| stream == frame.stream) {
                newlines += newline_places(&frame.bytes).count();
                last = frame.bytes.last().copied().or(last);
            }
        }
        if wanted.is_none() {
            wanted = last.map(|last| lines + usize::from(last == b'\n'));
        }
        let Some(back) = wanted else { continue };
        if newlines < back {
            wanted = Some(back - newlines);
            begin = TailStart { offset: *start, skip: 0 };
            continue;
        }
        return find_newline(dir, *start, newlines - back, stream);
    }
    Ok(begin)
}

/// The place after the newline of that number, from 0, in one segment.
fn find_newline(dir: &Path, start: u64, number: usize, stream: Option<Stream>) -> io::Result<TailStart> {
    let mut left = number;
    if let Some(mut segment) = Segment::open(dir, start)? {
        while let Some(frame) = segment.read_frame()? {
            if stream.is_some_and(|stream| stream != frame.stream) {
                continue;
            }
            let mut places = newline_places(&frame.bytes);
            match places.nth(left) {
                Some(place) => return Ok(TailStart { offset: frame.offset, skip: place + 1 }),
                None => left -= newline_places(&frame.bytes).count(),
            }
        }
    }
    // Deleted meanwhile: the tail begins with what is left.
    Ok(TailStart { offset: start, skip: 0 })
}

fn newline_places(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(place, _)| place)
}

/// The offsets of the segments that exist, ascending. A directory that is not there has none.
fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut offsets = Vec::new();
    for entry in entries {
        offsets.extend(entry?.file_name().to_str().and_then(segment_offset));
    }
    offsets.sort_unstable();
    Ok(offsets)
}

#[derive(Debug)]
struct Segment {
    start: u64,
    /// Where the next frame begins, in the log.
    next: u64,
    file: BufReader<File>,
}

impl Segment {
    /// `None` if it is deleted.
    fn open(dir: &Path, start: u64) -> io::Result<Option<Self>> {
        match File::open(dir.join(segment_name(start))) {
            Ok(file) => Ok(Some(Self { start, next: start, file: BufReader::new(file) })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Passes over the whole frames that begin before `offset`, without their data.
    fn pass(&mut self, offset: u64) -> io::Result<()> {
        if self.next >= offset {
            return Ok(());
        }
        let end = self.start + self.file.get_ref().metadata()?.len();
        while self.next < offset {
            let length = match self.read_header() {
                Ok(header) => u64::from(header.len),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return self.go_back(),
                Err(e) => return Err(e),
            };
            let next = self.next + HEADER_BYTES as u64 + length;
            if next > end {
                return self.go_back();
            }
            self.file.seek_relative(length as i64)?;
            self.next = next;
        }
        Ok(())
    }

    /// To the beginning of a torn frame, which is still being written, or its shim was killed.
    fn go_back(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.next - self.start)).map(drop)
    }

    /// The next whole frame.
    fn read_frame(&mut self) -> io::Result<Option<Frame>> {
        match self.try_read_frame() {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.go_back().map(|()| None),
            frame => frame.map(Some),
        }
    }

    fn read_header(&mut self) -> io::Result<Header> {
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact(&mut header)?;
        Header::decode(&header).ok_or_else(|| {
            let message = format!("no frame at {} in segment {}", self.next - self.start, self.start);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    fn try_read_frame(&mut self) -> io::Result<Frame> {
        let header = self.read_header()?;
        let mut bytes = vec![0; header.len as usize];
        self.file.read_exact(&mut bytes)?;
        let offset = self.next;
        self.next = offset + (HEADER_BYTES + bytes.len()) as u64;
        Ok(Frame {
            offset,
            next: self.next,
            stream: header.stream,
            at: header.at,
            lost_before: header.lost_before,
            bytes,
        })
    }
}

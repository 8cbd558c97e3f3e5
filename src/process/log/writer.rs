//! Writing a log: whole frames, bounded segments, the oldest dropped first.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::super::keeper::complain;
use super::{HEADER_BYTES, Header, Stream, segment_name};

/// Writes the frames of one attempt. A failure to write loses output, which is counted, and nothing else.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    segment_bytes: u64,
    max_bytes: u64,
    /// The file of the last segment; `None` before the first output and after a failure.
    file: Option<File>,
    /// The last segment's file was closed for the time being.
    resting: bool,
    /// The segments that exist, oldest first.
    segments: VecDeque<Segment>,
    /// Where the next frame begins.
    offset: u64,
    dropped: u64,
    /// Output was lost since the last frame.
    lost: bool,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    /// Bytes of the job in it, which are fewer than the file's.
    data: u64,
}

impl LogWriter {
    /// A log in this directory, which is made by its user: files of about `segment_bytes`, and `max_bytes` in all.
    pub fn new(dir: PathBuf, segment_bytes: u64, max_bytes: u64) -> Self {
        // One segment is always kept, so it must not be larger than the quota.
        let segment_bytes = segment_bytes.min(max_bytes);
        Self {
            dir,
            segment_bytes,
            max_bytes,
            file: None,
            resting: false,
            segments: VecDeque::new(),
            offset: 0,
            dropped: 0,
            lost: false,
        }
    }

    /// Bytes of the job that are in no segment.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether it holds a file open.
    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Closes its file until there is more to write.
    pub fn rest(&mut self) {
        self.resting = self.file.take().is_some();
    }

    /// Writes a frame, of 64 KiB at the most, that was read at this time: microseconds since the epoch. What can't be
    /// written is counted as dropped.
    pub fn append(&mut self, stream: Stream, at: u64, data: &[u8]) {
        let full = self.segments.back().is_some_and(|last| self.offset - last.start >= self.segment_bytes);
        if full {
            self.file = None;
            self.resting = false;
        }
        if let Err(_lost) = self.try_append(stream, at, data) {
            self.dropped += data.len() as u64;
            self.lost = true;
            self.abandon_segment();
        }
        self.keep_quota();
    }

    fn try_append(&mut self, stream: Stream, at: u64, data: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None if let Some(last) = self.segments.back().filter(|_| std::mem::take(&mut self.resting)) => {
                let path = self.dir.join(segment_name(last.start));
                self.file.insert(OpenOptions::new().append(true).open(path)?)
            }
            None => {
                let path = self.dir.join(segment_name(self.offset));
                let file =
                    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
                self.segments.push_back(Segment { start: self.offset, data: 0 });
                self.file.insert(file)
            }
        };
        let header = Header { len: data.len() as u32, stream, lost_before: self.lost, at }.encode();
        let mut parts = [IoSlice::new(&header), IoSlice::new(data)];
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            match file.write_vectored(parts)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => IoSlice::advance_slices(&mut parts, written),
            }
        }
        self.lost = false;
        self.offset += (HEADER_BYTES + data.len()) as u64;
        if let Some(segment) = self.segments.back_mut() {
            segment.data += data.len() as u64;
        }
        Ok(())
    }

    /// After a failure: no torn frame stays in the middle of the log, and the next chunk tries a new file.
    fn abandon_segment(&mut self) {
        let Some(file) = self.file.take() else { return };
        let Some(segment) = self.segments.back() else { return };
        let whole = self.offset - segment.start;
        if whole == 0 {
            // The next one has the same name, and creates it again if this fails.
            fs::remove_file(self.dir.join(segment_name(segment.start))).ok();
            self.segments.pop_back();
        } else if let Err(error) = file.set_len(whole) {
            // A reader stops at the torn frame and goes on with the next segment.
            complain(format_args!("shim: can't cut a torn frame: {error}"));
        }
    }

    fn keep_quota(&mut self) {
        while self.segments.len() > 1
            && self.segments.front().is_some_and(|first| self.offset - first.start > self.max_bytes)
            && let Some(oldest) = self.segments.pop_front()
        {
            self.dropped += oldest.data;
            // If it can't be deleted it is only kept longer than promised.
            fs::remove_file(self.dir.join(segment_name(oldest.start))).ok();
        }
    }
}

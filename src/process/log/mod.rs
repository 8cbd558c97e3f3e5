//! The log of one attempt: both streams in the order in which they came, in bounded segments.
//!
//! The log is one stream of frames. It is cut into files `output.<20 digits>`, named by the offset of their first
//! byte in that stream; the oldest are deleted over the quota. A frame:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the data, little-endian like all below |
//! | 4 | stream: 1 stdout, 2 stderr |
//! | 5 | flags: bit 0, output was lost before this frame because it could not be written |
//! | 6..8 | 0 |
//! | 8..16 | when it was read, microseconds since the epoch |
//! | 16.. | the data, as it came |

mod reader;
mod writer;

pub use reader::{Frame, Item, LogReader, TailStart, tail};
pub(super) use writer::LogWriter;

/// Which of the job's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Descriptor 1.
    Stdout = 1,
    /// Descriptor 2.
    Stderr = 2,
}

/// Bytes of a frame before its data.
pub(super) const HEADER_BYTES: usize = 16;

/// The most data in a frame, in bytes: one read. 64 KiB is a whole pipe at its default size.
pub(super) const FRAME_DATA_LIMIT: usize = 64 << 10;

const SEGMENT_PREFIX: &str = "output.";
const SEGMENT_DIGITS: usize = 20;
const LOST_BEFORE: u8 = 1;

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) len: u32,
    pub(super) stream: Stream,
    pub(super) lost_before: bool,
    pub(super) at: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = self.stream as u8;
        bytes[5] = if self.lost_before { LOST_BEFORE } else { 0 };
        bytes[8..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }

    /// `None` for what no writer of ours has written.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        let stream = match rest[0] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let at = u64::from_le_bytes(rest[4..].try_into().ok()?);
        if len as usize > FRAME_DATA_LIMIT || rest[1] > LOST_BEFORE || rest[2..4] != [0, 0] {
            return None;
        }
        Some(Self { len, stream, lost_before: rest[1] == LOST_BEFORE, at })
    }
}

/// The name of the segment that begins at `offset`.
pub(super) fn segment_name(offset: u64) -> String {
    format!("{SEGMENT_PREFIX}{offset:0SEGMENT_DIGITS$}")
}

/// The offset in a segment's name; `None` for any other file.
fn segment_offset(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(SEGMENT_PREFIX)?;
    if digits.len() == SEGMENT_DIGITS { digits.parse().ok() } else { None }
}

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
pub use writer::LogWriter;

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
pub(crate) const FRAME_DATA_LIMIT: usize = 64 << 10;

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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;

    use proptest::prelude::*;

    use super::*;

    /// Reads to the end for now: the frames, and where gaps were.
    fn read(reader: &mut LogReader) -> (Vec<Frame>, Vec<(u64, u64)>) {
        let (mut frames, mut gaps) = (Vec::new(), Vec::new());
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                Item::Frame(frame) => frames.push(frame),
                Item::Gap { from, to } => gaps.push((from, to)),
            }
        }
        (frames, gaps)
    }

    #[test]
    fn a_torn_end_is_met_again_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(dir.path().to_owned(), 1 << 20, 1 << 20);
        log.append(Stream::Stdout, 1, b"first");
        log.append(Stream::Stderr, 2, b"second");
        let file = dir.path().join(segment_name(0));
        let whole = fs::read(&file).unwrap();
        let second_begins = HEADER_BYTES + 5;
        for length in second_begins..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            let mut reader = LogReader::new(dir.path(), 0);
            assert_eq!(read(&mut reader).0.len(), 1, "cut at {length}");
            fs::write(&file, &whole).unwrap();
            let (frames, _) = read(&mut reader);
            assert_eq!(frames.len(), 1);
            assert_eq!((frames[0].stream, &frames[0].bytes[..]), (Stream::Stderr, &b"second"[..]));
        }
    }

    #[test]
    fn what_no_shim_wrote_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(segment_name(0)), [9; 64]).unwrap();
        fs::write(dir.path().join("output.1"), "another file").unwrap();
        let error = LogReader::new(dir.path(), 0).next_item().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(tail(dir.path(), 1, None).is_err());
    }

    #[test]
    fn a_slow_follower_is_told_what_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(dir.path().to_owned(), 100, 300);
        log.append(Stream::Stdout, 1, &[b'a'; 50]);
        let mut reader = LogReader::new(dir.path(), 0);
        assert_eq!(read(&mut reader).0.len(), 1);
        for number in 2..40 {
            log.append(Stream::Stdout, number, &[b'b'; 50]);
        }
        let (frames, gaps) = read(&mut reader);
        // The rest of the segment that it has open is still there for it, though deleted.
        assert_eq!(gaps, [(frames[0].next, frames[1].offset)]);
        assert_eq!(frames.last().map(|frame| frame.at), Some(39));
        let kept: u64 = frames[1..].iter().map(|frame| frame.bytes.len() as u64).sum();
        assert_eq!(log.dropped() + kept, 39 * 50);
    }

    #[test]
    fn a_log_that_rests_goes_on_in_its_file_until_that_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(dir.path().to_owned(), 60, 1 << 20);
        for number in 0..6 {
            log.append(Stream::Stdout, number, &[b'a'; 20]);
            assert!(log.is_open());
            log.rest();
            assert!(!log.is_open());
        }
        let (frames, _) = read(&mut LogReader::new(dir.path(), 0));
        assert_eq!(frames.len(), 6);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "two frames to a file");
        // A file that was deleted meanwhile costs what is written next, not what comes after.
        for file in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        let mut log = LogWriter::new(dir.path().to_owned(), 1000, 1 << 20);
        log.append(Stream::Stdout, 1, b"first");
        log.rest();
        fs::remove_file(dir.path().join(segment_name(0))).unwrap();
        log.append(Stream::Stdout, 2, b"lost");
        log.append(Stream::Stdout, 3, b"third");
        assert_eq!(log.dropped(), 4);
        assert_eq!(read(&mut LogReader::new(dir.path(), 0)).0.len(), 1);
    }

    #[test]
    fn no_log_is_an_empty_log() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        assert_eq!(LogReader::new(&nowhere, 5).next_item().unwrap(), None);
        assert_eq!(tail(&nowhere, 5, None).unwrap(), TailStart { offset: 0, skip: 0 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is written, in whatever segments: it is read back whole from any offset, and every tail is what
        /// splitting the text would give.
        #[test]
        fn reads_what_was_written(
            chunks in prop::collection::vec((any::<bool>(), "[ab\n]{0,12}"), 0..40),
            segment in 1u64..200,
            lines in 0usize..20,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = LogWriter::new(dir.path().to_owned(), segment, 1 << 20);
            for (at, (err, chunk)) in chunks.iter().enumerate() {
                let stream = if *err { Stream::Stderr } else { Stream::Stdout };
                log.append(stream, at as u64, chunk.as_bytes());
            }
            let (frames, gaps) = read(&mut LogReader::new(dir.path(), 0));
            prop_assert!(gaps.is_empty());
            prop_assert_eq!(frames.len(), chunks.len());
            for (frame, (err, chunk)) in frames.iter().zip(&chunks) {
                prop_assert_eq!(&frame.bytes[..], chunk.as_bytes());
                prop_assert_eq!(frame.stream == Stream::Stderr, *err);
            }
            for (number, frame) in frames.iter().enumerate() {
                prop_assert_eq!(&read(&mut LogReader::new(dir.path(), frame.offset)).0[..], &frames[number..]);
                prop_assert_eq!(&read(&mut LogReader::new(dir.path(), frame.offset + 1)).0[..], &frames[number + 1..]);
            }
            for only in [None, Some(Stream::Stdout), Some(Stream::Stderr)] {
                let of = |frames: &[Frame]| -> Vec<u8> {
                    frames.iter().filter(|f| only.is_none_or(|s| s == f.stream)).flat_map(|f| f.bytes.clone()).collect()
                };
                let text = String::from_utf8(of(&frames)).unwrap();
                let all: Vec<&str> = text.split_inclusive('\n').collect();
                let wanted = all[all.len().saturating_sub(lines)..].concat();
                let start = tail(dir.path(), lines, only).unwrap();
                let seen = of(&read(&mut LogReader::new(dir.path(), start.offset)).0);
                prop_assert_eq!(String::from_utf8(seen[start.skip..].to_vec()).unwrap(), wanted);
            }
        }
    }
}

//! How output is written into an answer.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde::Serialize;

use super::follow::Position;
use crate::{
    http::dto,
    process::log::{Frame, Item, Stream},
};

/// How output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// The bytes as they came.
    Raw,
    /// One JSON object for each piece of output.
    Ndjson,
}

/// A line of ndjson.
#[derive(Serialize)]
struct Line<'a> {
    run: u32,
    attempt: u32,
    offset: u64,
    next: u64,
    stream: &'static str,
    at: Option<String>,
    /// Output before it was lost because it could not be written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lost_before: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// A line for what is deleted.
#[derive(Serialize)]
struct Gap {
    run: u32,
    attempt: u32,
    gap: Bounds,
}

#[derive(Serialize)]
struct Bounds {
    from: u64,
    to: u64,
}

impl Format {
    /// The media type of it.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Raw => "text/plain; charset=utf-8",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// Writes what was read; `skip` bytes of the first piece are left out.
    pub(super) fn write(self, into: &mut Vec<u8>, position: Position, item: &Item, skip: usize) {
        match (self, item) {
            // Nothing of it is wanted: a tail begins behind it.
            (Self::Raw | Self::Ndjson, Item::Frame(frame)) if skip > 0 && skip >= frame.bytes.len() => {}
            (Self::Raw, Item::Frame(frame)) => {
                into.extend_from_slice(frame.bytes.get(skip..).unwrap_or_default())
            }
            // Raw bytes have no place for what is not there.
            (Self::Raw, Item::Gap { .. }) => {}
            (Self::Ndjson, Item::Frame(frame)) => line(into, &Line::new(position, frame, skip)),
            (Self::Ndjson, Item::Gap { from, to }) => {
                let gap = Bounds { from: *from, to: *to };
                line(into, &Gap { run: position.run, attempt: position.attempt, gap });
            }
        }
    }
}

impl<'a> Line<'a> {
    fn new(position: Position, frame: &'a Frame, skip: usize) -> Self {
        let bytes = frame.bytes.get(skip..).unwrap_or_default();
        let text = std::str::from_utf8(bytes).ok();
        Self {
            run: position.run,
            attempt: position.attempt,
            offset: frame.offset,
            next: frame.next,
            stream: match frame.stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            },
            at: i64::try_from(frame.at)
                .ok()
                .and_then(|at| Timestamp::from_microsecond(at).ok())
                .map(dto::time),
            lost_before: frame.lost_before,
            text,
            base64: text.is_none().then(|| BASE64_STANDARD.encode(bytes)),
        }
    }
}

fn line(into: &mut Vec<u8>, line: &impl Serialize) {
    // Our own types with text keys, into memory: it can't fail.
    if let Ok(json) = serde_json::to_vec(line) {
        into.extend_from_slice(&json);
        into.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: Format, bytes: &[u8], skip: usize) -> String {
        let frame = Frame {
            offset: 7,
            next: 7 + 16 + bytes.len() as u64,
            stream: Stream::Stderr,
            at: 1_000_001,
            lost_before: false,
            bytes: bytes.to_vec(),
        };
        let mut into = Vec::new();
        format.write(&mut into, Position { run: 1, attempt: 2 }, &Item::Frame(frame), skip);
        String::from_utf8_lossy(&into).into_owned()
    }

    #[test]
    fn text_stays_text_and_bytes_stay_bytes() {
        assert_eq!(written(Format::Raw, b"a\nb", 2), "b");
        assert_eq!(written(Format::Ndjson, b"a\n", 2), "", "what a tail cuts away whole leaves no line");
        assert_eq!(
            written(Format::Ndjson, b"a\nb", 0),
            "{\"run\":1,\"attempt\":2,\"offset\":7,\"next\":26,\"stream\":\"stderr\",\
             \"at\":\"1970-01-01T00:00:01.000001Z\",\"text\":\"a\\nb\"}\n"
        );
        assert!(written(Format::Ndjson, b"\xff\0", 0).ends_with("\"base64\":\"/wA=\"}\n"));
    }
}

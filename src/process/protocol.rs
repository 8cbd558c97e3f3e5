//! What daemon, keeper and shim say to each other. All three are one program image, so there is no version.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ExitReport, Launch, StartFailure};

/// The longest frame, in bytes: arguments and environment may be 2 MiB, standard input 1 MiB, and a factor of
/// two for what these bounds may grow to.
pub const FRAME_LIMIT: usize = 8 << 20;

const LENGTH_BYTES: usize = 4;

/// Daemon to shim.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToShim {
    /// *Go*, and what to do. The ending of the attempt before is on record.
    Start(Box<Launch>),
    Signal {
        signal: i32,
    },
    Kill,
    /// The ending is on record, and there is no more to do.
    Ack,
}

/// [`ToShim::Start`] of a borrowed job.
#[derive(Serialize)]
pub(super) enum Start<'a> {
    Start(&'a Launch),
}

/// Shim to daemon. Times are microseconds since the epoch.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromShim {
    Ready,
    Started {
        pid: i32,
        start_time: u64,
    },
    StartFailed(StartFailure),
    Signalled {
        signal: i32,
        at: u64,
    },
    Killing {
        at: u64,
    },
    KillPending {
        pids: Vec<i32>,
    },
    Exited(ExitReport),
    /// Said before the ending: it is not to be given another attempt.
    Worn,
}

/// Daemon to keeper, one datagram each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToKeeper {
    /// Fork a shim for this slot; its end of the socket comes along as the only descriptor.
    Fork(u32),
    /// Kill the shim that answers nothing, and sweep.
    Kill(u32),
}

impl ToKeeper {
    pub(super) const LEN: usize = 8;

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let (kind, slot) = match self {
            Self::Fork(slot) => (0u32, slot),
            Self::Kill(slot) => (1, slot),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..].copy_from_slice(&slot.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; Self::LEN]) -> Option<Self> {
        let [a, b, c, d, slot @ ..] = bytes;
        let slot = u32::from_le_bytes(slot);
        match u32::from_le_bytes([a, b, c, d]) {
            0 => Some(Self::Fork(slot)),
            1 => Some(Self::Kill(slot)),
            _ => None,
        }
    }
}

/// Keeper to daemon, one datagram each.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeeperReport {
    pub(super) slot: u32,
    pub(super) end: ShimEnd,
}

/// Why a shim is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShimEnd {
    /// It ended with this wait status, and its tree was swept if it left one.
    Waited { status: i32 },
    /// It could not be forked, or its descriptor did not arrive.
    NotForked { errno: i32 },
}

impl KeeperReport {
    pub(super) const LEN: usize = 12;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let (kind, value) = match self.end {
            ShimEnd::Waited { status } => (0u32, status),
            ShimEnd::NotForked { errno } => (1, errno),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.slot.to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (slot, rest) = bytes.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let value = i32::from_le_bytes(rest.try_into().ok()?);
        let end = match u32::from_le_bytes(*kind) {
            0 => ShimEnd::Waited { status: value },
            1 => ShimEnd::NotForked { errno: value },
            _ => return None,
        };
        Some(Self { slot: u32::from_le_bytes(*slot), end })
    }
}

/// A message and its length before it.
pub(super) fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; LENGTH_BYTES]).map_err(io::Error::other)?;
    let length = bytes.len() - LENGTH_BYTES;
    if length > FRAME_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {length} bytes")));
    }
    bytes[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Bytes that arrived, and the frames among them.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// Where to append what was read.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The next whole frame. An error is final: the stream has lost its framing.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let message =
            postcard::from_bytes(payload).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if rest.len() == length {
            // Gives back what a large frame took: a shim keeps one of these for as long as its job runs.
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..LENGTH_BYTES + length);
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Stage;

    #[test]
    fn frames_survive_any_cut() {
        let messages = [
            FromShim::Ready,
            FromShim::Started { pid: 7, start_time: u64::MAX },
            FromShim::KillPending { pids: vec![1, -1, i32::MAX] },
            FromShim::StartFailed(StartFailure::new(Stage::Exec, 2)),
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message).unwrap()).collect();
        for piece in 1..=bytes.len() {
            let mut inbox = Inbox::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(piece) {
                inbox.bytes().extend_from_slice(part);
                while let Some(message) = inbox.next::<FromShim>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, messages, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_is_bounded_on_both_sides() {
        assert!(frame(&vec![0u8; FRAME_LIMIT + 1]).is_err());
        let mut inbox = Inbox::default();
        inbox.bytes().extend_from_slice(&(FRAME_LIMIT as u32 + 1).to_le_bytes());
        assert!(inbox.next::<FromShim>().is_err());
        inbox = Inbox::default();
        inbox.bytes().extend_from_slice(&[1, 0, 0, 0, 0xff]);
        assert!(inbox.next::<FromShim>().is_err(), "no such message");
    }

    #[test]
    fn a_launch_keeps_bytes_that_are_not_text() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'/', 0xff, 0xfe]);
        let argv = vec![odd.clone(), "b".into()];
        let mut launch =
            Launch::new(7, odd.clone().into(), argv, vec![("K".into(), odd.clone())], odd.into());
        launch.stdin = Some((0..=255).collect());
        let mut inbox = Inbox::default();
        inbox.bytes().extend(frame(&Start::Start(&launch)).unwrap());
        assert_eq!(inbox.next().unwrap(), Some(ToShim::Start(Box::new(launch))));
    }

    #[test]
    fn keeper_reports_come_back() {
        for end in [ShimEnd::Waited { status: 9 }, ShimEnd::NotForked { errno: 11 }] {
            let report = KeeperReport { slot: u32::MAX - 5, end };
            assert_eq!(KeeperReport::decode(&report.encode()), Some(report));
        }
        for order in [ToKeeper::Fork(3), ToKeeper::Kill(u32::MAX)] {
            assert_eq!(ToKeeper::decode(order.encode()), Some(order));
        }
        assert_eq!(KeeperReport::decode(&[2; KeeperReport::LEN]), None);
        assert_eq!(KeeperReport::decode(&[0; KeeperReport::LEN - 1]), None);
    }
}

//! The client's key for a submission: a retry gets the first answer.

use axum::http::{HeaderMap, Method};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    body::Format,
    problem::{Kind, Problem},
};
use crate::supervisor::ports::IdempotencyKey;

/// The header with the key.
pub(super) const HEADER: &str = "Idempotency-Key";
/// Said of an answer that an earlier submission with the key made.
pub(super) const REPLAYED: &str = "Idempotency-Replayed";

/// The longest key: a UUID and much more fit.
const MAX_KEY: usize = 255;

/// Reads the key.
///
/// # Errors
/// A [`Problem`] for what is no key.
pub(super) fn given(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(HEADER).iter();
    let key = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(key), None) => key.as_bytes(),
        (Some(_), Some(_)) => b"",
    };
    if key.is_empty() || key.len() > MAX_KEY || !key.iter().all(u8::is_ascii_graphic) {
        let detail = format!(
            "{HEADER} must be there once, with 1 to {MAX_KEY} visible ASCII characters, as a UUID is"
        );
        return Err(Problem::new(Kind::InvalidHeader, detail).field(HEADER));
    }
    Ok(Some(key.iter().copied().map(char::from).collect()))
}

/// Reads the key and binds it to what it was sent with: the method, the body with its type, and the query parameters
/// that shape the job.
///
/// # Errors
/// A [`Problem`] for what is no key.
pub(super) fn key(
    headers: &HeaderMap,
    format: Format,
    body: &[u8],
    shaping: &[(String, String)],
) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(key) = given(headers)? else { return Ok(None) };
    let format: &[u8] = match format {
        Format::Json => b"json",
        Format::Shell => b"shell",
        Format::Python => b"python",
    };
    let mut shaping: Vec<_> = shaping.iter().collect();
    // Stable: the order of a repeated parameter counts, that of different ones does not.
    shaping.sort_by(|a, b| a.0.cmp(&b.0));
    let shaping = shaping.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
    let body = hash([Method::POST.as_str().as_bytes(), format, body].into_iter().chain(shaping));
    Ok(Some(IdempotencyKey { key, body }))
}

/// The key of one submission of a batch: that of the batch and its place in it, bound to what it says.
pub(super) fn of_item(key: &str, place: usize, item: &Value) -> IdempotencyKey {
    let body = hash([b"batch", item.to_string().as_bytes()]);
    IdempotencyKey { key: format!("{key}/{place}"), body }
}

fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that parts can't be taken for others.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(
        key_text: &'static str,
        format: Format,
        body: &[u8],
        query: &[(&str, &str)],
    ) -> Option<IdempotencyKey> {
        let headers = HeaderMap::from_iter([(
            HEADER.parse().expect("a name"),
            HeaderValue::from_bytes(key_text.as_bytes()).expect("a value"),
        )]);
        let query: Vec<_> = query.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        key(&headers, format, body, &query).ok().flatten()
    }

    #[test]
    fn the_same_request_has_the_same_hash() {
        let first = read("k", Format::Shell, b"true", &[("name", "a"), ("queue", "b")]).expect("a key");
        let same = read("k", Format::Shell, b"true", &[("queue", "b"), ("name", "a")]).expect("a key");
        assert_eq!(first, same);
        for other in [
            read("k", Format::Json, b"true", &[("name", "a"), ("queue", "b")]),
            read("k", Format::Shell, b"true ", &[("name", "a"), ("queue", "b")]),
            read("k", Format::Shell, b"true", &[("name", "a")]),
            read("k", Format::Shell, b"true", &[("name", "aqueue"), ("", "b")]),
            read("k", Format::Shell, b"true", &[("name", "b"), ("queue", "a")]),
        ] {
            assert_ne!(first.body, other.expect("a key").body);
        }
    }

    #[test]
    fn a_key_is_visible_and_not_long() {
        assert!(read("550e8400-e29b-41d4-a716-446655440000", Format::Json, b"", &[]).is_some());
        for wrong in ["", "two words", "é"] {
            assert!(read(wrong, Format::Json, b"", &[]).is_none(), "{wrong:?}");
        }
        let long: &'static str = Box::leak("k".repeat(256).into_boxed_str());
        assert!(read(&long[1..], Format::Json, b"", &[]).is_some());
        assert!(read(long, Format::Json, b"", &[]).is_none());
    }
}

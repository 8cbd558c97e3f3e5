//! Reading a body: bounded in size and time.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time;

use super::{
    problem::{Kind, Problem},
    serve::Place,
    timing,
};

/// How much of a body over the limit is read and thrown away: a client that is still sending when the connection
/// closes never sees why.
const DISCARD: usize = 64 << 20;

/// The media types of a body that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A submission.
    Json,
    /// The script itself.
    Shell,
    /// The source of a Python job itself.
    Python,
}

/// Each with the names it goes by, the proper one first.
const TYPES: [(&str, Format); 6] = [
    ("application/json", Format::Json),
    ("text/x-shellscript", Format::Shell),
    ("application/x-sh", Format::Shell),
    ("text/x-python", Format::Python),
    ("application/x-python", Format::Python),
    ("text/x-script.python", Format::Python),
];

/// What kind of body it says it is.
///
/// # Errors
/// A [`Problem`] for any other.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    let given = match (given.next(), given.next()) {
        (Some(given), None) => given.to_str().unwrap_or_default(),
        (Some(_) | None, _) => "",
    };
    let (essence, parameters) = given.split_once(';').unwrap_or((given, ""));
    let essence = essence.trim();
    let utf8 = parameters.split(';').all(|parameter| match parameter.trim().split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            let value = value.trim_matches('"');
            ["utf-8", "utf8", "us-ascii"].iter().any(|known| value.eq_ignore_ascii_case(known))
        }
        Some(_) | None => true,
    });
    let refusal = |detail: String| {
        Err(Problem::new(Kind::UnsupportedMediaType, detail).field("Content-Type").allowed([
            "application/json",
            "text/x-shellscript",
            "text/x-python",
        ]))
    };
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| coding != "identity") {
        let detail = "an encoded body is not taken; send it as it is, without Content-Encoding";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail).field("Content-Encoding"));
    }
    if !utf8 {
        return refusal(format!("{given:?} is not UTF-8; send the body in UTF-8"));
    }
    let known = TYPES.iter().find(|(name, _)| essence.eq_ignore_ascii_case(name));
    match known {
        Some((_, format)) => Ok(*format),
        None if essence.is_empty() => {
            refusal("say once what the body is, with curl: -H 'content-type: application/json'".into())
        }
        None => refusal(format!("{essence:?} is not taken; send -H 'content-type: application/json'")),
    }
}

/// Reads a body whole.
///
/// # Errors
/// A [`Problem`]: too large, too slow, or it did not arrive.
pub(super) async fn read(
    body: Body,
    headers: &HeaderMap,
    place: &Arc<Place>,
    max: usize,
) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail =
            format!("the body is larger than {max} bytes; send less, or raise the limit in the settings");
        Problem::new(Kind::BodyTooLarge, detail)
    };
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    // A client that asks before it sends is told before it sends.
    if headers.contains_key(header::EXPECT) && length.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let _reading = place.reading();
    match time::timeout(timing::BODY, collect(body, max)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(error)) => Err(Problem::new(
            Kind::InvalidBody,
            format!("the body did not arrive whole ({error}); send it again"),
        )),
        Err(_) => {
            let detail =
                format!("the body did not arrive within {} s; send it faster", timing::BODY.as_secs());
            Err(Problem::new(Kind::RequestTimeout, detail))
        }
    }
}

/// `None` where it is over the limit.
async fn collect(mut body: Body, max: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut whole = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len();
        if length <= max && whole.is_empty() && body.is_end_stream() {
            // It came in one piece, as most do.
            return Ok(Some(data));
        }
        if length <= max {
            whole.extend_from_slice(&data);
        } else if length > max.saturating_add(DISCARD) {
            break;
        }
    }
    Ok((length <= max).then(|| whole.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_types_are_taken() {
        let kind = |text: &'static str| {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, header::HeaderValue::from_static(text))]);
            format(&headers).ok()
        };
        assert_eq!(kind("application/json"), Some(Format::Json));
        assert_eq!(kind("Application/JSON; charset=UTF-8"), Some(Format::Json));
        assert_eq!(kind("text/x-shellscript"), Some(Format::Shell));
        assert_eq!(kind("text/x-python; charset=utf-8"), Some(Format::Python));
        for other in
            ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1"]
        {
            assert_eq!(kind(other), None, "{other}");
        }
        assert!(format(&HeaderMap::new()).is_err());
    }
}

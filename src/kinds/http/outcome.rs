//! What is recorded of an answer.

use std::error::Error;

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use url::Url;

use crate::{job::Failure, kinds::MAX_RESULT};

/// The most of a result that headers take, in JSON: half of it is left for the body.
const MAX_HEADERS: usize = MAX_RESULT / 2;

/// What was received. Never more in memory than a result may have, however much was sent.
pub(super) struct Received {
    headers: HeaderMap,
    body: Vec<u8>,
    truncated: bool,
}

impl Received {
    pub(super) fn new(headers: HeaderMap) -> Self {
        Self { headers, body: Vec::new(), truncated: false }
    }

    pub(super) fn add(&mut self, data: &[u8]) {
        let take = data.len().min(MAX_RESULT - self.body.len());
        self.body.extend_from_slice(&data[..take]);
        self.truncated |= take < data.len();
    }

    /// There was more than is read.
    pub(super) fn cut(&mut self) {
        self.truncated = true;
    }
}

/// The result of a job: within its bound whatever was received.
pub(super) fn result(status: StatusCode, received: Received, url: &Url, redirects: u32) -> Value {
    let Received { headers, mut body, mut truncated } = received;
    let (headers, all) = header_map(&headers);
    truncated |= !all;
    loop {
        let (key, text) = readable(&body, truncated);
        let result = json!({
            "status": status.as_u16(),
            "headers": headers,
            key: text,
            "truncated": truncated,
            "url": shown(url),
            "redirects": redirects,
        });
        let over = result.to_string().len().saturating_sub(MAX_RESULT);
        if over == 0 || body.is_empty() {
            return result;
        }
        // A byte is six of JSON at the most: this never cuts more than it must by much, and always something.
        body.truncate(body.len() - over.div_ceil(6).min(body.len()));
        truncated = true;
    }
}

/// A text, or base64 where it is none. A character that was cut at the end is left out.
fn readable(body: &[u8], truncated: bool) -> (&'static str, String) {
    match str::from_utf8(body) {
        Ok(text) => ("body", text.to_owned()),
        Err(error) if truncated && error.error_len().is_none() => {
            ("body", String::from_utf8_lossy(&body[..error.valid_up_to()]).into_owned())
        }
        Err(_) => ("body_base64", STANDARD.encode(body)),
    }
}

/// By name: a text, or a list where a header stands several times. `false`: there are more.
fn header_map(headers: &HeaderMap) -> (Map<String, Value>, bool) {
    let mut map = Map::new();
    let mut left = MAX_HEADERS;
    for name in headers.keys() {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let mut values: Vec<Value> = values.map(Value::from).collect();
        let value = if values.len() == 1 { values.remove(0) } else { values.into() };
        let size = name.as_str().len() + value.to_string().len() + 4;
        if size > left {
            return (map, false);
        }
        left -= size;
        map.insert(name.to_string(), value);
    }
    (map, true)
}

/// Whether the status is none of those that are expected.
pub(super) fn unexpected(status: StatusCode, expected: &[String]) -> Option<Failure> {
    let code = status.as_u16().to_string();
    let fits = |expected: &String| {
        let class = expected.strip_suffix("xx");
        *expected == code || class.is_some_and(|class| code.starts_with(class))
    };
    if expected.iter().any(fits) {
        return None;
    }
    let message = format!("the answer is {status}, and `expected_status` has {}", expected.join(", "));
    Some(Failure::new("http_status", message))
}

/// An address without what only the server needs to know: a user, a password, a fragment.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_fragment(None);
    // These fail only for an address without a host.
    url.set_username("").ok();
    url.set_password(None).ok();
    url.into()
}

/// An error and its causes.
pub(in crate::kinds) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &[u8], headers: HeaderMap) -> Value {
        let mut received = Received::new(headers);
        received.add(body);
        let url = "http://u:p@x/a#f".parse().expect("a url");
        result(StatusCode::OK, received, &url, 0)
    }

    #[test]
    fn a_result_stays_within_its_bound() {
        for byte in [b'a', 0, b'"', 0xff, "é".as_bytes()[0]] {
            let result = of(&vec![byte; 1 << 20], HeaderMap::new());
            let size = result.to_string().len();
            assert!(size <= MAX_RESULT && size > MAX_RESULT / 2, "{byte}: {size}");
            assert_eq!(result["truncated"], true);
        }
        let mut headers = HeaderMap::new();
        for number in 0..1000 {
            let name = hyper::header::HeaderName::try_from(format!("x-{number}")).expect("a name");
            headers.insert(name, "v".repeat(100).parse().expect("a value"));
        }
        let result = of(b"short", headers);
        assert!(result.to_string().len() <= MAX_RESULT);
        assert_eq!((&result["body"], &result["truncated"]), (&"short".into(), &true.into()));
    }

    #[test]
    fn a_body_is_text_where_it_is_text() {
        assert_eq!(of("äöü".as_bytes(), HeaderMap::new())["body"], "äöü");
        assert_eq!(of(b"\xff\0", HeaderMap::new())["body_base64"], "/wA=");
        let text = "é".repeat(MAX_RESULT);
        assert!(
            of(text.as_bytes(), HeaderMap::new())["body"].as_str().expect("text").chars().all(|c| c == 'é')
        );
        assert_eq!(of(b"", HeaderMap::new())["url"], "http://x/a");
    }

    #[test]
    fn codes_and_classes_are_expected() {
        let unexpected = |status: u16, expected: &[&str]| {
            let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
            unexpected(StatusCode::from_u16(status).expect("a status"), &expected).is_some()
        };
        assert!(!unexpected(204, &["2xx"]) && !unexpected(404, &["2xx", "404"]));
        assert!(unexpected(500, &["2xx", "404"]) && unexpected(200, &["204"]));
    }
}

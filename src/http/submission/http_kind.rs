//! The fields of an `http` job.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue, Method, header};
use serde_json::Value;
use url::Url;

use super::missing;
use crate::{
    http::{
        fields::{Fields, invalid, texts},
        problem::Problem,
    },
    job::{Body, Http, Text},
    json::join,
};

/// The fields of an `http` job.
pub(in crate::http) const HTTP: [&str; 7] =
    ["method", "url", "headers", "body", "expected_status", "follow_redirects", "max_response_bytes"];

/// What a redirect is followed without saying so.
const REDIRECTS: u32 = 5;
/// As many as a chain that leads anywhere ever has.
const MAX_REDIRECTS: u32 = 20;
/// What is read of an answer that nobody says anything of.
const RESPONSE: u64 = 1 << 20;
/// It goes to the log, whose quota is of this size by default.
const MAX_RESPONSE: u64 = 64 << 20;
/// More than any server takes.
const MAX_URL: usize = 8 << 10;
/// Headers of the connection, not of the request: they are not the job's to choose.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
];

pub(super) fn read(value: Value) -> Result<Http, Problem> {
    const PATH: &str = "job.http";
    let mut fields = match value {
        Value::String(given) => {
            return Ok(Http {
                method: "GET".into(),
                url: url(given, PATH)?,
                headers: BTreeMap::new(),
                body: None,
                expected_status: success(),
                follow_redirects: REDIRECTS,
                max_response_bytes: RESPONSE,
            });
        }
        Value::Object(_) => Fields::open(value, PATH, &HTTP)?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return Err(invalid(PATH, "an address, as in \"https://example.com\", or an object with `url`"));
        }
    };
    let path = fields.path("url");
    let given = fields.text("url")?.ok_or_else(|| missing(&path, "it is the address to ask, a string"))?;
    Ok(Http {
        method: method(&mut fields)?,
        url: url(given, &path)?,
        headers: headers(&mut fields)?,
        body: body(&mut fields)?,
        expected_status: expected(&mut fields)?,
        follow_redirects: number(&mut fields, "follow_redirects", 0, MAX_REDIRECTS.into())?
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(REDIRECTS),
        max_response_bytes: number(&mut fields, "max_response_bytes", 0, MAX_RESPONSE)?.unwrap_or(RESPONSE),
    })
}

fn success() -> Vec<String> {
    vec!["2xx".into()]
}

fn method(fields: &mut Fields) -> Result<String, Problem> {
    let Some(given) = fields.text("method")? else { return Ok("GET".into()) };
    let method = given.to_ascii_uppercase();
    match Method::from_bytes(method.as_bytes()) {
        Ok(known) if known != Method::CONNECT => Ok(method),
        Ok(_) | Err(_) => {
            Err(invalid(&fields.path("method"), "a method of HTTP such as \"GET\" or \"POST\", not CONNECT"))
        }
    }
}

fn url(given: String, path: &str) -> Result<String, Problem> {
    if given.len() > MAX_URL {
        return Err(invalid(path, "8 KiB at the most"));
    }
    let url = Url::parse(&given).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(url) = url.filter(Url::has_host) else {
        return Err(invalid(path, "a whole address that begins with `http://` or `https://`"));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(
            path,
            "without a user or a password, which would stand in the record; send them in the header `authorization`, \
             from the context: {\"context\": \"NAME\"}",
        ));
    }
    Ok(url.into())
}

fn headers(fields: &mut Fields) -> Result<BTreeMap<String, Text>, Problem> {
    let path = fields.path("headers");
    let map = match fields.value("headers") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(invalid(&path, "an object with the names of headers as its keys")),
    };
    let mut headers = BTreeMap::new();
    for (given, value) in map {
        let path = join(&path, &given);
        let name = HeaderName::try_from(&given)
            .map_err(|_| invalid(&path, "the name of a header: letters, digits and `-`"))?;
        if OF_THE_CONNECTION.contains(&name) {
            return Err(invalid(&path, "left out: it is set as the connection needs it"));
        }
        let text = match value {
            Value::String(text) => Text::Plain(text),
            value => reference(&value, &path, "a string")?,
        };
        if let Text::Plain(text) = &text
            && HeaderValue::from_str(text).is_err()
        {
            return Err(invalid(&path, "without control characters"));
        }
        if headers.insert(name.as_str().to_owned(), text).is_some() {
            return Err(invalid(&path, "there once: names of headers are the same in upper and lower case"));
        }
    }
    Ok(headers)
}

/// `{"context": "NAME"}`
fn reference(value: &Value, path: &str, or: &str) -> Result<Text, Problem> {
    context_name(value).map(Text::Context).ok_or_else(|| {
        invalid(path, &format!("{or}, or {{\"context\": \"NAME\"}} for what a context variable holds"))
    })
}

fn context_name(value: &Value) -> Option<String> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get("context")?.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

fn body(fields: &mut Fields) -> Result<Option<Body>, Problem> {
    Ok(fields.value("body").map(|value| match (context_name(&value), value) {
        (Some(name), _) => Body::Text(Text::Context(name)),
        (None, Value::String(text)) => Body::Text(Text::Plain(text)),
        (None, value) => Body::Json(value),
    }))
}

fn expected(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let path = fields.path("expected_status");
    let list = match fields.value("expected_status") {
        None => return Ok(success()),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(_) => {
            return Err(invalid(&path, "a non-empty list of codes and classes, as in [\"2xx\", 404]"));
        }
    };
    let as_text = |value: Value| match value {
        Value::Number(number) => Value::String(number.to_string()),
        value => value,
    };
    let list = texts(list.into_iter().map(as_text).collect::<Vec<_>>().into(), &path)?;
    for (index, text) in list.iter().enumerate() {
        let class = matches!(text.as_str(), "1xx" | "2xx" | "3xx" | "4xx" | "5xx");
        let code = text.parse().is_ok_and(|code: u16| (100..600).contains(&code) && text.len() == 3);
        if !class && !code {
            return Err(invalid(
                &format!("{path}[{index}]"),
                "a code from 100 to 599 or a class such as \"2xx\"",
            ));
        }
    }
    Ok(list)
}

fn number(fields: &mut Fields, name: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
    let Some(value) = fields.value(name) else { return Ok(None) };
    let number = value.as_u64().filter(|number| (min..=max).contains(number));
    let expected = || invalid(&fields.path(name), &format!("a whole number from {min} to {max}"));
    number.map(Some).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_short_form_is_a_get() {
        let short = read(json!("https://example.com")).expect("short");
        assert_eq!(short, read(json!({"url": "https://example.com/"})).expect("long"));
        assert_eq!((short.method.as_str(), short.follow_redirects), ("GET", 5));
    }

    #[test]
    fn all_fields_arrive() {
        let http = read(json!({
            "method": "post", "url": "http://[::1]:80/a?b", "headers": {"X-A": "b", "Authorization": {"context": "T"}},
            "body": {"a": 1}, "expected_status": [201, "4xx"], "follow_redirects": 0, "max_response_bytes": 7,
        }))
        .expect("valid");
        assert_eq!(http.method, "POST");
        assert_eq!(http.headers["authorization"], Text::Context("T".into()));
        assert_eq!(http.headers["x-a"], Text::Plain("b".into()));
        assert_eq!(http.body, Some(Body::Json(json!({"a": 1}))));
        assert_eq!(http.expected_status, ["201", "4xx"]);
        assert_eq!((http.follow_redirects, http.max_response_bytes), (0, 7));
        let body = |body| read(json!({"url": "http://x", "body": body})).expect("valid").body;
        assert_eq!(body(json!({"context": "B"})), Some(Body::Text(Text::Context("B".into()))));
        assert_eq!(body(json!("b")), Some(Body::Text(Text::Plain("b".into()))));
        assert_eq!(body(json!({"context": "B", "c": 1})), Some(Body::Json(json!({"context": "B", "c": 1}))));
    }

    #[test]
    fn each_fault_names_its_field() {
        for (http, field) in [
            (json!(1), "job.http"),
            (json!("ftp://x"), "job.http"),
            (json!({}), "job.http.url"),
            (json!({"url": "example.com"}), "job.http.url"),
            (json!({"url": "http://u:p@x"}), "job.http.url"),
            (json!({"url": format!("http://x/{}", "a".repeat(9000))}), "job.http.url"),
            (json!({"url": "http://x", "uri": 1}), "job.http.uri"),
            (json!({"url": "http://x", "method": "G T"}), "job.http.method"),
            (json!({"url": "http://x", "method": "connect"}), "job.http.method"),
            (json!({"url": "http://x", "headers": []}), "job.http.headers"),
            (json!({"url": "http://x", "headers": {"a b": "c"}}), "job.http.headers[\"a b\"]"),
            (json!({"url": "http://x", "headers": {"a": "c\n"}}), "job.http.headers.a"),
            (json!({"url": "http://x", "headers": {"a": 1}}), "job.http.headers.a"),
            (json!({"url": "http://x", "headers": {"a": {"context": ""}}}), "job.http.headers.a"),
            (json!({"url": "http://x", "headers": {"a": "b", "A": "b"}}), "job.http.headers.A"),
            (json!({"url": "http://x", "headers": {"Upgrade": "b"}}), "job.http.headers.Upgrade"),
            (json!({"url": "http://x", "expected_status": []}), "job.http.expected_status"),
            (json!({"url": "http://x", "expected_status": ["2xx", 99]}), "job.http.expected_status[1]"),
            (json!({"url": "http://x", "follow_redirects": 21}), "job.http.follow_redirects"),
            (json!({"url": "http://x", "max_response_bytes": -1}), "job.http.max_response_bytes"),
        ] {
            let problem = read(http.clone()).expect_err(&http.to_string());
            assert_eq!(problem.at(), Some(field), "{}", problem.detail());
        }
    }
}

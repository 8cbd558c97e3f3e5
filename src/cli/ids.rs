//! Which runner is meant: by its id, a part of it, its name, or `-` for the latest.

use serde_json::Value;

use super::{
    client::Client,
    error::{Code, Error},
    record::{self, short, text},
};

/// How many of the latest runners a part of an id is looked for in: one page.
const SEARCHED: u32 = 1000;

/// The fewest characters that are taken for a part of an id.
const LEAST: usize = 4;

/// What stands in `--help` for such an argument.
pub(super) const HELP: &str =
    "Its id, four or more characters of the id's end or beginning, its name, or `-` for the latest";

/// The full id.
pub(super) async fn resolve(client: &Client, given: &str) -> Result<String, Error> {
    if is_id(given) {
        return Ok(given.to_lowercase());
    }
    if given == "-" {
        let latest = list(client, "limit=1").await?;
        let none = || Error::new(Code::NotFound, "there is no runner yet; submit one with `runward submit`");
        return latest.first().map(|runner| text(runner, "/id").to_owned()).ok_or_else(none);
    }
    if given.is_empty() {
        return Err(Error::usage("a runner's id or name must not be empty"));
    }
    let named = list(client, &format!("limit={SEARCHED}&name={}", encoded(given))).await?;
    if let Some(id) = of_name(given, &named)? {
        return Ok(id);
    }
    let part = given.to_lowercase();
    if part.len() >= LEAST && part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        let latest = list(client, &format!("limit={SEARCHED}")).await?;
        let ids = latest.iter().map(|runner| text(runner, "/id"));
        let found: Vec<&str> = ids.filter(|id| id.ends_with(&part) || id.starts_with(&part)).collect();
        match found[..] {
            [] => {}
            [id] => return Ok(id.to_owned()),
            [first, second, ..] => {
                let message = format!(
                    "{given:?} is a part of {} ids, among them {first} and {second}; give more of it",
                    found.len()
                );
                return Err(Error::usage(message));
            }
        }
    }
    let message = format!(
        "no runner has the name {given:?}, and none of the latest {SEARCHED} such an id; `runward ps -a` lists them"
    );
    Err(Error::new(Code::NotFound, message))
}

/// Of those with a name the one that is open, else the latest.
fn of_name(name: &str, named: &[Value]) -> Result<Option<String>, Error> {
    let open: Vec<&Value> = named.iter().filter(|runner| !record::is_closed(runner)).collect();
    match open[..] {
        [] => Ok(named.first().map(|runner| text(runner, "/id").to_owned())),
        [one] => Ok(Some(text(one, "/id").to_owned())),
        [first, second, ..] => {
            let ids = [first, second].map(|runner| short(text(runner, "/id")));
            let message = format!(
                "{} open runners have the name {name:?}, among them {} and {}; say which by id",
                open.len(),
                ids[0],
                ids[1]
            );
            Err(Error::usage(message))
        }
    }
}

async fn list(client: &Client, query: &str) -> Result<Vec<Value>, Error> {
    let mut page = client.get(&format!("/v1/runners?{query}")).await?;
    match page["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(Error::new(Code::Internal, "the daemon's answer has no items")),
    }
}

fn is_id(text: &str) -> bool {
    let hyphen = |at| matches!(at, 8 | 13 | 18 | 23);
    text.len() == 36
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if hyphen(at) { byte == b'-' } else { byte.is_ascii_hexdigit() })
}

/// A text in a query or a path.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_means_the_open_one_or_the_latest_and_two_open_ones_are_none() {
        let runner = |id: &str, state: &str| json!({"id": id, "state": state});
        let closed = [runner("aaaa", "closed"), runner("bbbb", "closed")];
        assert_eq!(of_name("x", &closed).expect("one"), Some("aaaa".into()));
        let open = [runner("aaaa", "closed"), runner("bbbb", "running")];
        assert_eq!(of_name("x", &open).expect("one"), Some("bbbb".into()));
        let both = [runner("aaaa", "queued"), runner("bbbb", "running")];
        let error = of_name("x", &both).expect_err("ambiguous");
        assert!(error.message.contains("aaaa and bbbb"), "{}", error.message);
        assert_eq!(of_name("x", &[]).expect("none"), None);
    }

    #[test]
    fn ids_are_told_from_names() {
        assert!(is_id("0199f2c1-7b3a-7cc0-8001-0123456789ab"));
        assert!(!is_id("0199f2c1-7b3a-7cc0-8001-0123456789a") && !is_id("nightly"));
        assert_eq!(encoded("a b/ü"), "a%20b%2F%C3%BC");
    }
}

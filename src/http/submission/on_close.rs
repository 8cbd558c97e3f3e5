//! Who is told when a Runner has closed.

use axum::http::Uri;

use super::{missing, printable};
use crate::{
    http::{
        fields::{Fields, invalid},
        problem::Problem,
    },
    job::Webhook,
};

/// The longest address: what servers and proxies take.
const MAX_URL: usize = 2048;
/// The fields of a webhook.
pub(in crate::http) const ON_CLOSE: [&str; 2] = ["url", "secret"];

/// Reads `on_close`.
///
/// # Errors
/// A [`Problem`] that names the field.
pub(super) fn read(fields: &mut Fields) -> Result<Option<Webhook>, Problem> {
    let Some(value) = fields.value("on_close") else { return Ok(None) };
    let mut fields = Fields::open(value, "on_close", &ON_CLOSE)?;
    let path = fields.path("url");
    let url = fields
        .text("url")?
        .ok_or_else(|| missing(&path, "it is who is told, as in {\"url\": \"https://example.org/done\"}"))?;
    if !is_web_address(&url) {
        return Err(invalid(
            &path,
            "an address that begins with http:// or https:// and names a host, without a user or a password, 2048 \
             characters at the most",
        ));
    }
    let secret = fields.text("secret")?;
    if let Some(name) = &secret {
        let path = fields.path("secret");
        printable(name, &path)?;
        if name.contains('=') {
            return Err(invalid(
                &path,
                "the name of a variable of the shared context that holds the key to sign with, not the key itself",
            ));
        }
    }
    Ok(Some(Webhook { url, secret }))
}

fn is_web_address(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host =
        uri.authority().filter(|authority| !authority.as_str().contains('@')).map(|named| named.host());
    url.len() <= MAX_URL
        && url::Url::parse(url).is_ok_and(|url| url.has_host())
        && matches!(uri.scheme_str(), Some("http" | "https"))
        && host.is_some_and(|host| !host.is_empty())
}

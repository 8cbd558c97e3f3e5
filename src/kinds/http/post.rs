//! A message that the daemon itself sends, by the rules of `http` jobs.

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, header};
use url::Url;

use super::{Client, Place, Sending, USER_AGENT};
use crate::job::Failure;

impl Client {
    /// Posts JSON. No redirect is followed and nothing of the answer is read but its status. Dropping it closes its
    /// connection, for which the place is.
    ///
    /// # Errors
    /// There was no answer, or the address is none that may be reached.
    pub async fn post(
        &self,
        _place: &Place<'_>,
        url: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<StatusCode, Failure> {
        let url =
            Url::parse(url).map_err(|error| Failure::new("http_connect", format!("{url:?}: {error}")))?;
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let sending = Sending { method: Method::POST, url, headers, body, secret_body: false };
        self.send(&sending).await.map(|(_, answer)| answer.status())
    }
}

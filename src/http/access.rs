//! Who may ask for what. Submitting a job is executing code, so nothing is open but the probes.

use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method, Uri, header, uri::Authority},
};

use super::{
    Shared,
    problem::{Kind, Problem},
    serve::Place,
    token::Token,
};
use crate::job::Requester;

/// Headers of one request: more than any client sends. Below hyper's own limit of 100, which it answers without a problem:
/// most who send too many are told in words.
pub const MAX_HEADERS: usize = 64;
/// The longest path and query: every filter of a list at its longest fits.
pub const MAX_URI: usize = 16 << 10;

/// What a token allows. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// To see.
    Read,
    /// To submit and to stop jobs.
    Submit,
    /// Everything.
    Admin,
}

impl Scope {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Admin => "admin",
        }
    }
}

/// What a route asks of whoever calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it discloses nothing.
    Nothing,
    /// A scope.
    Scope(Scope),
}

/// Each route and what it needs. What is not listed needs everything.
pub const ROUTES: &[(Method, &str, Need)] = &[
    (Method::GET, "/livez", Need::Nothing),
    (Method::GET, "/readyz", Need::Nothing),
    (Method::GET, "/openapi.json", Need::Scope(Scope::Read)),
    (Method::GET, "/metrics", Need::Scope(Scope::Read)),
    (Method::POST, "/v1/reload", Need::Scope(Scope::Admin)),
    (Method::GET, "/v1/info", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/events", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/context", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/context/{name}", Need::Scope(Scope::Read)),
    (Method::PUT, "/v1/context/{name}", Need::Scope(Scope::Admin)),
    (Method::DELETE, "/v1/context/{name}", Need::Scope(Scope::Admin)),
    (Method::GET, "/v1/runners", Need::Scope(Scope::Read)),
    (Method::POST, "/v1/runners", Need::Scope(Scope::Submit)),
    (Method::POST, "/v1/runners:batch", Need::Scope(Scope::Submit)),
    (Method::POST, "/v1/runners:cancel", Need::Scope(Scope::Submit)),
    (Method::GET, "/v1/runners/{id}", Need::Scope(Scope::Read)),
    (Method::DELETE, "/v1/runners/{id}", Need::Scope(Scope::Submit)),
    (Method::POST, "/v1/runners/{id}/cancel", Need::Scope(Scope::Submit)),
    (Method::GET, "/v1/runners/{id}/loop", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/runners/{id}/events", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/runners/{id}/logs", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/runners/{id}/explain", Need::Scope(Scope::Read)),
    (Method::POST, "/v1/runners/{id}/runs", Need::Scope(Scope::Submit)),
    (Method::POST, "/v1/runners/{id}/release", Need::Scope(Scope::Submit)),
    (Method::GET, "/v1/queues", Need::Scope(Scope::Read)),
    (Method::GET, "/v1/queues/{name}", Need::Scope(Scope::Read)),
    // A queue is everybody's, and its settings outlive the daemon: they are the operator's.
    (Method::PUT, "/v1/queues/{name}", Need::Scope(Scope::Admin)),
    (Method::DELETE, "/v1/queues/{name}", Need::Scope(Scope::Admin)),
];

/// Who is admitted.
#[derive(Debug)]
pub struct Access {
    /// The token, with all scopes, for TCP.
    pub token: Token,
    /// The user that the unix socket admits besides root: the daemon's own.
    pub uid: u32,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine, on the unix socket.
    Unix {
        /// Its user.
        uid: u32,
    },
    /// Anybody.
    Tcp {
        /// Its address.
        remote: SocketAddr,
        /// The address it connected to.
        local: SocketAddr,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid } => write!(f, "user {uid} on the unix socket"),
            Self::Tcp { remote, local: _ } => write!(f, "token from {remote}"),
        }
    }
}

impl Peer {
    /// As whom it asks the supervisor for something.
    pub fn requester(&self) -> Requester {
        Requester(self.to_string())
    }
}

/// Lets a request pass to its route, also to one that is not there, or refuses it.
pub(super) fn check(shared: &Shared, request: &Request) -> Result<(), Problem> {
    is_allowed(&shared.api.access, &shared.config().hosts, request).inspect_err(|problem| {
        tracing::debug!(kind = problem.kind().as_str(), detail = problem.detail(), "a request was refused");
    })
}

fn is_allowed(access: &Access, hosts: &[String], request: &Request) -> Result<(), Problem> {
    // Without a place nobody knows who asks: a mistake of ours must not open a door.
    let place = request.extensions().get::<Arc<Place>>().ok_or_else(unauthorized)?;
    let headers = request.headers();
    within_limits(headers, request.uri())?;
    match &place.peer {
        Peer::Unix { .. } => {}
        Peer::Tcp { local, .. } => host(hosts, headers, request.uri(), *local)?,
    }
    origin(headers)?;
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Need::Scope(needed) = need(request.method(), matched) else { return Ok(()) };
    let granted = access.granted(&place.peer, headers)?;
    if granted < needed {
        let detail =
            format!("this token allows to {}, and this needs to {}", granted.as_str(), needed.as_str());
        return Err(Problem::new(Kind::InsufficientScope, format!("{detail}; use a token with that scope")));
    }
    Ok(())
}

/// What a route needs. Of what is no route only the right to read, to be told so.
fn need(method: &Method, matched: Option<&str>) -> Need {
    let Some(path) = matched else { return Need::Scope(Scope::Read) };
    // A HEAD is a GET without its body.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let mut of_path = ROUTES.iter().filter(|(_, known, _)| *known == path).peekable();
    if of_path.peek().is_none() {
        return Need::Scope(Scope::Admin);
    }
    // Another method of a known path is answered with those it has.
    of_path.find(|(known, _, _)| known == method).map_or(Need::Scope(Scope::Read), |(_, _, need)| *need)
}

fn within_limits(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    if headers.len() > MAX_HEADERS {
        let detail = format!("{} headers; send {MAX_HEADERS} at the most", headers.len());
        return Err(Problem::new(Kind::TooManyHeaders, detail));
    }
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if length > MAX_URI {
        let detail = format!("path and query are {length} bytes long; send {MAX_URI} at the most");
        return Err(Problem::new(Kind::UriTooLong, detail));
    }
    Ok(())
}

impl Access {
    fn granted(&self, peer: &Peer, headers: &HeaderMap) -> Result<Scope, Problem> {
        match peer {
            Peer::Unix { uid } if *uid == 0 || *uid == self.uid => Ok(Scope::Admin),
            Peer::Unix { uid } => Err(Problem::new(
                Kind::ForeignUser,
                format!(
                    "the unix socket admits the daemon's own user ({}) and root, not the user {uid}; use sudo, or TCP \
                     with the token",
                    self.uid
                ),
            )),
            Peer::Tcp { .. } => {
                let mut given = headers.get_all(header::AUTHORIZATION).iter();
                match (given.next(), given.next()) {
                    (Some(given), None) if self.is_ours(given.as_bytes()) => Ok(Scope::Admin),
                    (Some(_) | None, _) => Err(unauthorized()),
                }
            }
        }
    }

    fn is_ours(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && self.token.matches(token.trim_ascii())
    }
}

/// A name that an attacker points at this machine (DNS rebinding) is not among those that pass. A request may
/// name its host in its first line too, and then both must pass.
fn host(hosts: &[String], headers: &HeaderMap, uri: &Uri, local: SocketAddr) -> Result<(), Problem> {
    let mut given = headers.get_all(header::HOST).iter();
    let named = match (given.next(), given.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        (Some(_) | None, _) => None,
    };
    let passes = |authority: &Authority| is_this_machine(hosts, authority, local);
    if named.as_ref().is_some_and(passes) && uri.authority().is_none_or(passes) {
        return Ok(());
    }
    Err(Problem::new(
        Kind::ForeignHost,
        "the Host header must be there once and name localhost, 127.0.0.1, [::1], the address that runward \
         listens on, or a name from its settings",
    )
    .field("Host"))
}

fn is_this_machine(hosts: &[String], authority: &Authority, local: SocketAddr) -> bool {
    // User names before an `@` mislead people and parsers.
    let port = authority.as_str().strip_prefix(authority.host());
    let plain =
        port.is_some_and(|port| port.trim_start_matches(':').bytes().all(|byte| byte.is_ascii_digit()));
    if !plain {
        return false;
    }
    let host = authority.host().trim_end_matches('.');
    let ours = ["localhost", "127.0.0.1", "[::1]"].into_iter().chain(hosts.iter().map(String::as_str));
    ours.into_iter().any(|name| name.eq_ignore_ascii_case(host)) || is_address(host, local)
}

fn is_address(host: &str, local: SocketAddr) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<std::net::IpAddr>().is_ok_and(|address| address == local.ip().to_canonical())
}

/// Pages of other sites may not ask, whatever they know.
fn origin(headers: &HeaderMap) -> Result<(), Problem> {
    let foreign = |detail: &str, field: &str| Err(Problem::new(Kind::ForeignOrigin, detail).field(field));
    if headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"))
    {
        return foreign(
            "a page of another site may not ask runward for anything; use curl",
            "Sec-Fetch-Site",
        );
    }
    let host = headers.get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    let same = |origin: &[u8]| {
        let rest = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        rest.is_some_and(|rest| !host.is_empty() && rest.eq_ignore_ascii_case(host))
    };
    if headers.get_all(header::ORIGIN).iter().any(|origin| !same(origin.as_bytes())) {
        return foreign("the Origin header must be absent or name the same host and port as Host", "Origin");
    }
    Ok(())
}

fn unauthorized() -> Problem {
    Problem::new(
        Kind::Unauthorized,
        "send `Authorization: Bearer <token>`; the token is in the file `token` in the daemon's state directory, or \
         use its unix socket `api.sock` there, which needs none",
    )
    .field("Authorization")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn access() -> Access {
        Access { token: Token::new("secret"), uid: 1000 }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn hosts() -> Vec<String> {
        vec!["build.example".into()]
    }

    fn tcp() -> Peer {
        let local = "192.0.2.7:7711".parse().expect("an address");
        Peer::Tcp { remote: "192.0.2.9:40000".parse().expect("an address"), local }
    }

    #[test]
    fn case_41_only_hosts_of_this_machine_pass() {
        let local = "192.0.2.7:7711".parse().expect("an address");
        let uri = Uri::from_static("/v1/runners");
        for name in [
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "127.0.0.1:7711",
            "[::1]",
            "[::1]:7711",
            "192.0.2.7",
            "192.0.2.7:1",
            "build.example:443",
        ] {
            assert!(host(&hosts(), &headers(&[("host", name)]), &uri, local).is_ok(), "{name}");
        }
        for name in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.0.2.8",
            "evil@localhost",
            "localhost@evil",
            "127.0.0.1:x",
            "local host",
            "[::2]",
            "2130706433",
            "0x7f.1",
        ] {
            assert!(host(&hosts(), &headers(&[("host", name)]), &uri, local).is_err(), "{name}");
        }
        assert!(host(&hosts(), &headers(&[]), &uri, local).is_err());
        assert!(
            host(&hosts(), &headers(&[("host", "localhost"), ("host", "localhost")]), &uri, local).is_err()
        );
        let absolute = Uri::from_static("http://evil.example/livez");
        assert!(host(&hosts(), &headers(&[("host", "localhost")]), &absolute, local).is_err());
    }

    #[test]
    fn case_41_only_the_own_origin_passes() {
        let host = ("host", "localhost:7711");
        assert!(origin(&headers(&[host])).is_ok());
        assert!(origin(&headers(&[host, ("origin", "http://localhost:7711")])).is_ok());
        assert!(origin(&headers(&[host, ("sec-fetch-site", "same-origin")])).is_ok());
        for foreign in
            ["null", "", "http://localhost", "http://localhost:3000", "http://evil.example", "localhost:7711"]
        {
            assert!(origin(&headers(&[host, ("origin", foreign)])).is_err(), "{foreign}");
        }
        assert!(origin(&headers(&[host, ("sec-fetch-site", "cross-site")])).is_err());
        assert!(origin(&headers(&[("origin", "http://")])).is_err());
    }

    #[test]
    fn case_44_only_the_token_opens_tcp() {
        let kind = |pairs: &[(&'static str, &'static str)]| {
            access().granted(&tcp(), &headers(pairs)).map_err(|problem| problem.kind())
        };
        assert_eq!(kind(&[("authorization", "Bearer secret")]), Ok(Scope::Admin));
        assert_eq!(kind(&[("authorization", "bearer  secret")]), Ok(Scope::Admin));
        for wrong in ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secrett", "Basic secret", "secret"] {
            assert_eq!(kind(&[("authorization", wrong)]), Err(Kind::Unauthorized), "{wrong}");
        }
        assert_eq!(kind(&[]), Err(Kind::Unauthorized));
        let two = [("authorization", "Bearer secret"), ("authorization", "Bearer secret")];
        assert_eq!(kind(&two), Err(Kind::Unauthorized));
    }

    #[test]
    fn the_socket_admits_its_user_and_root() {
        let granted =
            |uid| access().granted(&Peer::Unix { uid }, &HeaderMap::new()).map_err(|problem| problem.kind());
        assert_eq!(granted(0), Ok(Scope::Admin));
        assert_eq!(granted(1000), Ok(Scope::Admin));
        assert_eq!(granted(1001), Err(Kind::ForeignUser));
    }

    #[test]
    fn what_is_not_listed_needs_everything() {
        assert_eq!(need(&Method::GET, Some("/v1/forgotten")), Need::Scope(Scope::Admin));
        assert_eq!(need(&Method::HEAD, Some("/livez")), Need::Nothing);
        assert_eq!(need(&Method::DELETE, Some("/livez")), Need::Scope(Scope::Read));
        assert_eq!(need(&Method::GET, None), Need::Scope(Scope::Read));
    }
}

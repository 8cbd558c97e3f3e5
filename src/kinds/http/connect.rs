//! One connection for one request: resolve, check, connect to what was checked. Between the check and the use no
//! name is looked up again, and no proxy stands in between.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::OnceCell,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};
use url::{Host, Url};

use super::HttpRules;
use crate::job::Failure;

/// How long name, connection and TLS may take together. A server that is there answers in far less; the job's
/// own `timeout` is for all of it.
const CONNECT: Duration = Duration::from_secs(10);

/// The most of an answer's headers, bytes: several times what servers themselves take.
const MAX_HEADERS: usize = 64 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The roots of the system, read once when the first `https` job needs them.
pub(super) type Tls = OnceCell<Arc<ClientConfig>>;

/// Sends the one request.
pub(super) type Sender = http1::SendRequest<Full<Bytes>>;

/// A connection that moves while something is awaited [over](Self::over) it: it needs no task of its own.
pub(super) struct Line(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Line {
    /// Awaits what needs the connection.
    pub(super) async fn over<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Some(connection) = &mut self.0
                && connection.as_mut().poll(cx).is_ready()
            {
                self.0 = None;
            }
            work.as_mut().poll(cx)
        })
        .await
    }
}

/// Connects to the host of `url`.
pub(super) async fn connect(url: &Url, rules: &HttpRules, tls: &Tls) -> Result<(Sender, Line), Failure> {
    let host = url.host_str().unwrap_or_default();
    let connected = timeout(CONNECT, async {
        let stream = tcp(url, rules).await?;
        let stream: Box<dyn Stream> = match url.scheme() {
            "https" => Box::new(secured(stream, url, tls).await?),
            _ => Box::new(stream),
        };
        let builder = http1::Builder::new().max_buf_size(MAX_HEADERS).handshake(TokioIo::new(stream)).await;
        builder.map_err(|error| Failure::new("http_connect", format!("no HTTP with {host}: {error}")))
    });
    let (sender, connection) = connected.await.unwrap_or_else(|_| {
        let message = format!("{host} could not be connected to within {} seconds", CONNECT.as_secs());
        Err(Failure::new("http_connect", message))
    })?;
    // Its errors are told to whoever awaits something of it.
    Ok((sender, Line(Some(Box::pin(connection.map(drop))))))
}

async fn tcp(url: &Url, rules: &HttpRules) -> Result<TcpStream, Failure> {
    let failed = |what: &str, error: io::Error| {
        let errno = error.raw_os_error();
        let host = url.host_str().unwrap_or_default();
        Failure { errno, ..Failure::new("http_connect", format!("{host} {what}: {error}")) }
    };
    // Only `http` and `https` come here, and both have one.
    let port = url.port_or_known_default().unwrap_or(80);
    let addresses: Vec<SocketAddr> = match url.host() {
        Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
        Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
        Some(Host::Domain(name)) => lookup_host((name, port))
            .await
            .map_err(|error| failed("could not be resolved to an address", error))?
            .collect(),
        None => Vec::new(),
    };
    let mut refused = None;
    let mut last = None;
    // One that does not even refuse must leave time for the others.
    let each = CONNECT / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in addresses {
        if let Some(why) = rules.refuse(address) {
            refused = Some(why);
            continue;
        }
        let connected = timeout(each, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                // Before a byte is sent: it may be one of this machine's own addresses.
                let (peer, local) = (stream.peer_addr(), stream.local_addr());
                let ends = peer.and_then(|peer| Ok((peer, local?)));
                let (peer, local) = ends.map_err(|error| failed("went at once", error))?;
                match rules.refuse_connected(peer, local) {
                    Some(why) => refused = Some(why),
                    None => {
                        // A request is one piece; if this fails it is only slower.
                        drop(stream.set_nodelay(true));
                        return Ok(stream);
                    }
                }
            }
            Err(error) => last = Some(error),
        }
    }
    match (refused, last) {
        (Some(why), _) => Err(Failure::new("http_refused", why)),
        (None, Some(error)) => Err(failed("could not be connected to", error)),
        (None, None) => Err(failed("has no address", io::ErrorKind::NotFound.into())),
    }
}

async fn secured(stream: TcpStream, url: &Url, tls: &Tls) -> Result<impl Stream + use<>, Failure> {
    let failed = |message: String| Failure::new("http_tls", message);
    let config = tls
        .get_or_try_init(|| async {
            // It reads files.
            let loaded = tokio::task::spawn_blocking(client_config).await;
            loaded.unwrap_or_else(|error| Err(error.to_string()))
        })
        .await
        .map_err(failed)?;
    let host = url.host_str().unwrap_or_default();
    let name = match url.host() {
        Some(Host::Ipv4(ip)) => Ok(ServerName::from(std::net::IpAddr::from(ip))),
        Some(Host::Ipv6(ip)) => Ok(ServerName::from(std::net::IpAddr::from(ip))),
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()),
        None => ServerName::try_from(String::new()),
    };
    let name = name.map_err(|_| failed(format!("{host:?} is no name for a certificate")))?;
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(|error| {
        failed(format!(
            "TLS with {host} failed: {error}. If an authority of your own signs its certificate, add that to the \
             system's (update-ca-certificates) and start the daemon again"
        ))
    })
}

fn client_config() -> Result<Arc<ClientConfig>, String> {
    const INSTALL: &str = "install the package `ca-certificates`, or name a file of them in SSL_CERT_FILE";
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(format!("this system has no root certificates{why}; {INSTALL}"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error: rustls::Error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

//! A real HTTP server for the jobs to ask.

use std::{io, net::SocketAddr, sync::Arc, thread};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Builder,
    sync::oneshot,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

/// Serves until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::run(|listener| async { axum::serve(listener, router()).await.expect("it serves") })
    }

    /// With TLS; also gives its certificate, for those who trust it.
    pub(crate) fn secure() -> (Self, String) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let pem = made.cert.pem();
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = Self::run(|listener| async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                // Who does not trust it goes away.
                drop(answer(&acceptor, stream).await);
            }
        });
        (server, pem)
    }

    fn run<Fut: Future<Output = ()>>(serve: impl FnOnce(TcpListener) -> Fut + Send + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                listener.set_nonblocking(true).expect("set");
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
}

async fn answer(acceptor: &TlsAcceptor, stream: tokio::net::TcpStream) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let host = request.windows(6).any(|part| part.eq_ignore_ascii_case(b"host: "));
    let status = if host { "200 OK" } else { "400 Bad Request" };
    stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nsafe").as_bytes()).await?;
    stream.shutdown().await
}

fn router() -> Router {
    Router::new()
        .route("/", any(|| async { "hello" }))
        .route("/echo", any(echo))
        .route(
            "/status/{code}",
            any(|Path(code): Path<u16>| async move { (StatusCode::from_u16(code).unwrap(), "as asked") }),
        )
        .route("/hops/{left}", any(hops))
        .route("/loop", any(|| async { to(302, "/loop") }))
        .route("/to", any(redirect))
        .route("/big", any(|| async { "x".repeat(300_000) }))
        .route("/binary", any(|| async { Bytes::from_static(b"\xff\0") }))
        .route("/twice", any(twice))
        .route("/never", any(std::future::pending::<()>))
        .route("/dribble", any(dribble))
}

async fn echo(method: Method, headers: HeaderMap, body: Bytes) -> Response {
    let headers: Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let body = String::from_utf8_lossy(&body);
    json!({"method": method.as_str(), "headers": headers, "body": body}).to_string().into_response()
}

fn to(status: u16, place: &str) -> Response {
    let location = HeaderValue::from_str(place).expect("a place");
    (StatusCode::from_u16(status).expect("a status"), [(header::LOCATION, location)]).into_response()
}

async fn hops(Path(left): Path<u32>) -> Response {
    if left == 0 { "arrived".into_response() } else { to(302, &format!("{}", left - 1)) }
}

#[derive(serde::Deserialize)]
struct To {
    place: String,
    status: u16,
}

async fn redirect(Query(To { place, status }): Query<To>) -> Response {
    to(status, &place)
}

async fn twice() -> Response {
    let mut response = "ok".into_response();
    for value in ["a=1", "b=2"] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().append(HeaderName::from_static("set-cookie"), value);
    }
    response
}

/// A beginning, and no end.
async fn dribble() -> Response {
    let chunks = futures_util::stream::unfold(false, |begun| async move {
        if begun {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, io::Error>("beginning\n"), true))
    });
    Body::from_stream(chunks).into_response()
}

//! The transport: connections, their number, and what becomes of slow ones.
//!
//! Each transport (TCP, unix socket) has its own half of the connections, so what is done to one can't crowd out
//! the other. When a half is full, a new connection takes the place of the one that has kept the daemon waiting
//! longest: for headers, for a body, or to take an answer. So a thousand dribbling clients make room for whoever
//! comes with a request, and a connection whose answer is being worked out is never given up. Answers that are
//! held open (follow, wait, event streams) are at most half of a transport's connections, and a new one takes the
//! place of a client that has stopped taking its own. Where nothing can be given up, the new client is told so.

mod io;
mod listener;
mod slots;

use std::{convert::Infallible, pin::pin, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use futures_util::future::join_all;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, watch},
    task::JoinSet,
    time,
};
use tower::ServiceExt;

pub use listener::Listener;
pub(super) use slots::{Held, Place};

use super::{Api, Parts, Shared, logs::Feeds, measure::Requests, routes, timing};
use crate::metrics::{Connections, Metrics};
use io::Watched;
use listener::{Open, Stream};
use slots::{Busy, Slot, Slots};

/// What is buffered of one connection, and with it the size of all headers.
const BUFFER: usize = 64 << 10;

/// Serves the control plane until `shutdown`, then lets answers in flight finish, for a second at most.
/// Dropping the future ends everything at once.
pub async fn serve(listeners: Vec<Listener>, api: Api, shutdown: impl Future<Output = ()>) {
    let (close, closing) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let feeds = Feeds::start(&mut tasks)
        .inspect_err(|error| tracing::warn!(%error, "no inotify instance: output can't be followed"))
        .ok();
    let metrics = Arc::clone(&api.metrics);
    let half = api.connections / 2;
    let parts = Parts {
        api,
        feeds,
        queue_changes: Mutex::default(),
        closing: closing.clone(),
        requests: Requests::default(),
    };
    let router = routes::router(Shared(Arc::new(parts)));
    let (tcp, unix) = (Slots::new(half), Slots::new(half));
    let accepting = listeners.into_iter().filter_map(|listener| {
        let slots = match listener {
            Listener::Tcp { .. } => &tcp,
            Listener::Unix { .. } => &unix,
        };
        let address = listener.address();
        let open =
            listener.open().inspect_err(|error| tracing::error!(%error, "{address} can't be served")).ok()?;
        Some(accept(open, Arc::clone(slots), router.clone(), closing.clone(), Arc::clone(&metrics)))
    });
    let signal = async {
        shutdown.await;
        close.send_replace(true);
    };
    tokio::join!(join_all(accepting), signal);
    tasks.shutdown().await;
}

async fn accept(
    listener: Open,
    slots: Arc<Slots>,
    router: Router,
    mut closing: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            _ = closing.wait_for(|closing| *closing) => break,
        };
        match accepted {
            Ok((stream, peer)) => match slots.enter(peer) {
                Some(slot) => {
                    let (router, closing, metrics) = (router.clone(), closing.clone(), Arc::clone(&metrics));
                    connections.spawn(async move {
                        let Connections { tcp, unix } = &metrics.connections;
                        let _open = match &stream {
                            Stream::Tcp(_) => tcp.count(),
                            Stream::Unix(_) => unix.count(),
                        };
                        serve_stream(stream, slot, router, closing).await;
                    });
                }
                None => stream.turn_away(),
            },
            Err(error) => {
                // Out of descriptors, most likely: one comes free when somebody who is slow is let go.
                tracing::warn!(%error, "a connection could not be accepted");
                slots.evict_oldest();
                time::sleep(timing::ACCEPT_PAUSE).await;
            }
        }
        // More than have a place: one that was given up has its descriptor until it has ended, which is at once.
        while connections.len() > slots.limit()
            && let Some(ended) = connections.join_next().await
        {
            report(ended);
        }
    }
    let finish = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if time::timeout(timing::GOODBYE, finish).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut: their answers took too long");
        connections.shutdown().await;
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked; this is a bug of runward");
    }
}

async fn serve_stream(stream: Stream, slot: Slot, router: Router, closing: watch::Receiver<bool>) {
    match stream {
        Stream::Tcp(stream) => connection(stream, slot, router, closing).await,
        Stream::Unix(stream) => connection(stream, slot, router, closing).await,
    }
}

async fn connection<S>(stream: S, slot: Slot, router: Router, mut closing: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = slot.place();
    let service = service_fn(|request: Request<Incoming>| {
        let router = router.clone();
        let place = Arc::clone(&place);
        async move {
            let busy = Busy::new(&place);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(place);
            let response: Response<Body> = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            Ok::<_, Infallible>(response.map(|body| busy.during(body)))
        }
    });
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&place)));
    let mut connection = pin!(http1::Builder::new().max_buf_size(BUFFER).serve_connection(io, service));
    let mut late = pin!(place.late());
    let mut leaving = false;
    let ended = loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => break ended,
            () = place.evicted() => return,
            () = late.as_mut() => return,
            _ = closing.wait_for(|closing| *closing), if !leaving => {
                if place.idle() {
                    return;
                }
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %place.peer, "a connection ended badly");
    }
}

//! How many requests each route had, how they were answered, and how long that took until the answer began.

use std::{
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request},
    handler::Handler,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::future::Either;
use pin_project_lite::pin_project;

use super::{
    Shared,
    access::{self, ROUTES},
};
use crate::metrics::{Counter, Histogram, Text, Type};

/// Seconds. A client may ask to wait for up to a minute.
const DURATIONS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The classes of status codes that are answered with.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The requests so far.
#[derive(Debug)]
pub(super) struct Requests {
    /// One for each of [`ROUTES`].
    routes: Vec<Route>,
    /// What is no route.
    other: Route,
}

#[derive(Debug)]
struct Route {
    answered: [Counter; CLASSES.len()],
    took: Histogram,
}

impl Route {
    fn new() -> Self {
        Self { answered: Default::default(), took: Histogram::new(DURATIONS) }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self { routes: ROUTES.iter().map(|_| Route::new()).collect(), other: Route::new() }
    }
}

impl Requests {
    fn of(&self, method: &Method, path: Option<&MatchedPath>) -> &Route {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let path = path.map(MatchedPath::as_str);
        let known = ROUTES.iter().position(|(known, route, _)| known == method && Some(*route) == path);
        known.map_or(&self.other, |place| &self.routes[place])
    }

    pub(super) fn write(&self, text: &mut Text) {
        let named = ROUTES.iter().map(|(method, path, _)| (method.as_str(), *path));
        let all = || named.clone().chain([("", "none")]).zip(self.routes.iter().chain([&self.other]));
        let name = "runward_http_requests_total";
        text.family(name, Type::Counter, "Requests to the API, by route and class of the answer's status.");
        for ((method, path), route) in all() {
            for (class, counter) in CLASSES.iter().zip(&route.answered) {
                text.sample(name, &[("method", method), ("route", path), ("status", class)], counter.get());
            }
        }
        let name = "runward_http_request_duration_seconds";
        let help =
            "How long requests took until their answer began; with `wait` that is what was waited for.";
        text.family(name, Type::Histogram, help);
        for ((method, path), route) in all() {
            text.histogram(name, &[("method", method), ("route", path)], &route.took);
        }
    }
}

/// A handler that is called when [`access::check`] does not refuse the request, and of which is counted what became of
/// it. All have it around them; a layer around the router would wrap each of its services and futures once more.
#[derive(Clone)]
pub(super) struct Measured<H>(pub(super) H);

impl<H: Handler<T, Shared>, T: 'static> Handler<T, Shared> for Measured<H> {
    type Future = Measuring<Either<H::Future, Ready<Response>>>;

    fn call(self, request: Request, shared: Shared) -> Self::Future {
        let started = Instant::now();
        let method = request.method().clone();
        let path = request.extensions().get::<MatchedPath>().cloned();
        let answer = match access::check(&shared, &request) {
            Ok(()) => Either::Left(self.0.call(request, shared.clone())),
            Err(refused) => Either::Right(ready(refused.into_response())),
        };
        Measuring { answer, shared, method, path, started }
    }
}

pin_project! {
    /// An answer that is being made.
    pub(super) struct Measuring<F> {
        #[pin]
        answer: F,
        shared: Shared,
        method: Method,
        path: Option<MatchedPath>,
        started: Instant,
    }
}

impl<F: Future<Output = Response>> Future for Measuring<F> {
    type Output = Response;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let this = self.project();
        let response = ready!(this.answer.poll(cx));
        let route = this.shared.requests.of(this.method, this.path.as_ref());
        route.answered[class(response.status())].inc();
        route.took.observe(this.started.elapsed());
        Poll::Ready(response)
    }
}

fn class(status: StatusCode) -> usize {
    match status.as_u16() {
        ..300 => 0,
        300..400 => 1,
        400..500 => 2,
        500.. => 3,
    }
}

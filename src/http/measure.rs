//! How many requests each route had, how they were answered, and how long that took until the answer began.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};

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

/// The one layer around all routes: refuses what [`access::check`] does, and counts what became of a request. No `async fn`:
/// its future would hold the request, too.
pub(super) fn measure(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> impl Future<Output = Response> {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let answer = access::check(&shared, &request).map(|()| next.run(request));
    async move {
        let response = match answer {
            Ok(answer) => answer.await,
            Err(refused) => refused.into_response(),
        };
        let route = shared.requests.of(&method, path.as_ref());
        route.answered[class(response.status())].inc();
        route.took.observe(started.elapsed());
        response
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

//! Pages of the list beside a backlog: every combination of filters, with values that are common, rare, or nobody's, and
//! with values that are common but never meet; at its begin, in its middle and at its end.

use std::time::{Duration, Instant};

use super::{millis, percentile};
use crate::{Bench, Result, client::request, daemon::Daemon};

/// How long one query takes, in ms.
pub(super) struct Page {
    pub(super) query: String,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// Each filter with a value of each sort.
const FILTERS: [[&str; 3]; 5] = [
    ["state=queued", "state=queued,running", "state=running"],
    ["outcome=succeeded", "outcome=succeeded", "outcome=failed"],
    ["queue=other", "queue=default", "queue=nobody"],
    ["name=n7", "name=rare", "name=nobody"],
    ["label=team=t7", "label=team=rare", "label=team=nobody"],
];

/// What is common, and never together.
const CROSSED: [&str; 4] = [
    "queue=other&name=n2",
    "queue=other&label=team=t2",
    "name=n3&label=team=t2",
    "state=queued&queue=default&label=team=t3",
];

fn queries(count: usize) -> Vec<String> {
    let mut filters = vec!["limit=1000".to_owned()];
    filters.extend(CROSSED.map(str::to_owned));
    for combination in 0..1 << FILTERS.len() {
        for sort in 0..3 {
            let chosen = FILTERS.iter().enumerate().filter(|(bit, _)| combination & 1 << bit != 0);
            let query = chosen.map(|(_, values)| values[sort]).collect::<Vec<_>>().join("&");
            if !filters.contains(&query) {
                filters.push(query);
            }
        }
    }
    let cursors = [String::new(), format!("cursor={}", count / 2), "cursor=2000".to_owned()];
    let at = |filter: &String| {
        let join = |cursor: &String| {
            let parts = [filter.as_str(), cursor.as_str()];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&")
        };
        cursors.iter().map(join).collect::<Vec<_>>()
    };
    filters.iter().flat_map(at).collect()
}

/// Times all of them.
pub(super) fn all(bench: &Bench, daemon: &Daemon, count: usize) -> Result<Vec<Page>> {
    let mut connection = daemon.connection()?;
    let patience = Duration::from_millis(bench.pick(1000, 100));
    let mut pages = Vec::new();
    for query in queries(count) {
        let ask = request("GET", &format!("/v1/runners?{query}"), "");
        let (mut times, began) = (Vec::new(), Instant::now());
        // The slow ones show it with few.
        while times.len() < 100 && (times.len() < 2 || began.elapsed() < patience) {
            times.push(millis(connection.time(&ask, 200)?));
        }
        pages.push(Page { p50: percentile(&times, 0.5), p99: percentile(&times, 0.99), query });
    }
    Ok(pages)
}

//! Submissions alone: to a queue that is paused, so that nothing runs.

use std::time::Duration;

use super::{CONNECTIONS, backlog, median, millis};
use crate::{
    Bench, Result,
    client::{Connection, Until, load, request},
    daemon::Daemon,
    table::{Figure, number},
    yardstick::{Server, Synced},
};

const JOB: &str = r#"{"job":{"command":["/bin/true"]}}"#;
/// Batches at once: the store takes one after the other, and this keeps it busy.
const BATCHES: usize = 4;
/// Room for what all rounds submit.
pub(super) const ROOM: (&str, usize) = ("JOBS__MAX_QUEUED", 10_000_000);

pub(super) fn many(bench: &Bench) -> Result<Vec<Figure>> {
    let (rounds, during) = bench.pick((7, Duration::from_secs(2)), (3, Duration::from_secs(1)));
    let daemon = Daemon::start(bench, &[ROOM])?;
    Daemon::pause(&mut daemon.connection()?, "default")?;
    let (server, durable) = (Server::start(bench)?, Server::durable(bench)?);
    let submit = [request("POST", "/v1/runners", JOB)];
    let (mut ours, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut client, mut bare_client) = (Vec::new(), Vec::new());
    let (mut least, mut floors) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let theirs = load(server.socket(), CONNECTIONS, &submit, 201, Until::Time(during))?;
        let loaded = load(&daemon.socket(), CONNECTIONS, &submit, 201, Until::Time(during))?;
        let floor = load(durable.socket(), CONNECTIONS, &submit, 201, Until::Time(during))?.rate();
        // The first round warms up.
        if round > 0 {
            ours.push(loaded.rate());
            bare.push(theirs.rate());
            ratios.push(loaded.rate() / theirs.rate());
            least.push(floor);
            floors.push(floor / theirs.rate());
            client.push(loaded.client() * 100.0);
            bare_client.push(theirs.client() * 100.0);
        }
    }
    let text = |rates: &[f64], client: &[f64]| {
        format!("{}/s (the client took {:.0} % of a core)", number(median(rates)), median(client))
    };
    let figure = Figure::new(median(&ratios), text(&ours, &client), text(&bare, &bare_client));
    Ok(vec![figure.with_floor(median(&floors), format!("{}/s", number(median(&least))))])
}

pub(super) fn batches(bench: &Bench) -> Result<Vec<Figure>> {
    let (rounds, during) = bench.pick((7, Duration::from_secs(2)), (3, Duration::from_secs(1)));
    let daemon = Daemon::start(bench, &[ROOM])?;
    Daemon::pause(&mut daemon.connection()?, "default")?;
    let jobs = vec![JOB; backlog::BATCH].join(",");
    let batch = [request("POST", "/v1/runners:batch", &format!(r#"{{"runners":[{jobs}]}}"#))];
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let loaded = load(&daemon.socket(), BATCHES, &batch, 200, Until::Time(during))?;
        rates.push(loaded.rate() * backlog::BATCH as f64);
    }
    let rate = median(&rates);
    Ok(vec![Figure::new(rate, format!("{} jobs/s", number(rate)), "")])
}

pub(super) fn one(bench: &Bench) -> Result<Vec<Figure>> {
    let queued = bench.pick(100_000, 10_000);
    let (empty, full) = (Daemon::start(bench, &[])?, Daemon::start(bench, &[])?);
    Daemon::pause(&mut empty.connection()?, "default")?;
    backlog::fill(&full, 0, queued)?;
    Daemon::pause(&mut full.connection()?, "default")?;
    let (mut few, mut many) = (empty.connection()?, full.connection()?);
    let (mut synced, durable) = (Synced::make(bench)?, Server::durable(bench)?);
    let mut least = Connection::open(durable.socket())?;
    let submit = request("POST", "/v1/runners", JOB);
    let (mut with_none, mut with_many, mut syncs, mut floors) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.pick(1000, 100) {
        with_none.push(millis(few.time(&submit, 201)?));
        syncs.push(millis(synced.one()?));
        with_many.push(millis(many.time(&submit, 201)?));
    }
    // By itself: in turn with the others it would take their caches.
    for _ in 0..with_none.len() {
        floors.push(millis(least.time(&submit, 201)?));
    }
    let (none, many, sync, floor) = (median(&with_none), median(&with_many), median(&syncs), median(&floors));
    Ok(vec![
        Figure::new(none / sync, format!("{none:.3} ms"), format!("{sync:.3} ms"))
            .with_floor(floor / sync, format!("{floor:.3} ms")),
        Figure::new(
            many / none,
            format!("{many:.3} ms with {}", number(queued as f64)),
            format!("{none:.3} ms"),
        ),
    ])
}

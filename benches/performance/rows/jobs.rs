//! Jobs from their submission to their end.

use std::time::Duration;

use super::{CONNECTIONS, median, millis, submits::ROOM};
use crate::{
    Bench, Result,
    client::{Connection, Until, load, request},
    daemon::Daemon,
    table::{Figure, number},
    yardstick::{Server, Spawner, Synced},
};

const TRUE: &str = r#"{"job":{"command":["/bin/true"]}}"#;
const ECHO: &str = r#"{"job":{"handler":{"name":"echo","args":1}}}"#;

/// Room for what all rounds close: forgetting what closed long ago is not part of a job's life.
const KEPT: (&str, usize) = ("RETENTION__MAX_RECORDS", 10_000_000);

fn rounds(bench: &Bench) -> (usize, Duration) {
    bench.pick((7, Duration::from_secs(3)), (3, Duration::from_secs(1)))
}

pub(super) fn many(bench: &Bench) -> Result<Vec<Figure>> {
    let (rounds, during) = rounds(bench);
    let daemon = Daemon::start(bench, &[])?;
    let (mut spawner, durable) = (Spawner::start()?, Server::durable(bench)?);
    let waited = [request("POST", "/v1/runners?wait=1m", TRUE)];
    let (mut jobs, mut bare, mut ratios, mut client) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut least, mut floors) = (Vec::new(), Vec::new());
    load(&daemon.socket(), CONNECTIONS, &waited, 200, Until::Time(during / 3))?;
    for _ in 0..rounds {
        bare.push(spawner.rate(bench.cores, during)?);
        let loaded = load(&daemon.socket(), CONNECTIONS, &waited, 200, Until::Time(during))?;
        jobs.push(loaded.rate());
        client.push(loaded.client());
        ratios.push(jobs[jobs.len() - 1] / bare[bare.len() - 1]);
        least.push(load(durable.socket(), CONNECTIONS, &waited, 200, Until::Time(during))?.rate());
        floors.push(least[least.len() - 1] / bare[bare.len() - 1]);
    }
    let measured =
        format!("{}/s (the client took {:.0} % of a core)", number(median(&jobs)), median(&client) * 100.0);
    let figure = Figure::new(median(&ratios), measured, format!("{}/s", number(median(&bare))));
    Ok(vec![figure.with_floor(median(&floors), format!("{}/s", number(median(&least))))])
}

pub(super) fn one(bench: &Bench) -> Result<Vec<Figure>> {
    let daemon = Daemon::start(bench, &[])?;
    let mut connection = daemon.connection()?;
    let (mut spawner, mut synced, durable) =
        (Spawner::start()?, Synced::make(bench)?, Server::durable(bench)?);
    let mut least = Connection::open(durable.socket())?;
    let waited = request("POST", "/v1/runners?wait=1m", TRUE);
    let (mut jobs, mut spawns, mut syncs, mut floors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.pick(500, 50) {
        jobs.push(millis(connection.time(&waited, 200)?));
        spawns.push(millis(spawner.one()?));
        syncs.push(millis(synced.one()?));
        syncs.push(millis(synced.one()?));
    }
    // By itself: in turn with the others it would take their caches.
    for _ in 0..jobs.len() {
        floors.push(millis(least.time(&waited, 200)?));
    }
    let (job, spawn, sync, floor) = (median(&jobs), median(&spawns), median(&syncs), median(&floors));
    let bare = spawn + 2.0 * sync;
    let parts = format!("{spawn:.2} + 2 × {sync:.2} = {bare:.2} ms");
    let figure = Figure::new(job / bare, format!("{job:.2} ms"), parts);
    Ok(vec![figure.with_floor(floor / bare, format!("{floor:.2} ms"))])
}

pub(super) fn in_process(bench: &Bench) -> Result<Vec<Figure>> {
    let (rounds, during) = rounds(bench);
    let daemon = Daemon::start(bench, &[KEPT, ROOM])?;
    Daemon::pause(&mut daemon.connection()?, "paused")?;
    let waited = [request("POST", "/v1/runners?wait=1m", ECHO)];
    // What only waits: the same job in a queue that is paused.
    let queued = [request("POST", "/v1/runners", &ECHO.replacen('{', r#"{"queue":"paused","#, 1))];
    let durable = Server::durable(bench)?;
    let (mut jobs, mut submits, mut ratios, mut floors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    load(&daemon.socket(), CONNECTIONS, &waited, 200, Until::Time(during / 3))?;
    for _ in 0..rounds {
        submits.push(load(&daemon.socket(), CONNECTIONS, &queued, 201, Until::Time(during))?.rate());
        jobs.push(load(&daemon.socket(), CONNECTIONS, &waited, 200, Until::Time(during))?.rate());
        ratios.push(jobs[jobs.len() - 1] / submits[submits.len() - 1]);
        let least = load(durable.socket(), CONNECTIONS, &queued, 201, Until::Time(during))?.rate();
        floors.push(load(durable.socket(), CONNECTIONS, &waited, 200, Until::Time(during))?.rate() / least);
    }
    let yardstick = format!("{}/s", number(median(&submits)));
    let figure = Figure::new(median(&ratios), format!("{}/s", number(median(&jobs))), yardstick);
    Ok(vec![figure.with_floor(median(&floors), "two commits beside one".into())])
}

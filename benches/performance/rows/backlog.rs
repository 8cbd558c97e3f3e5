//! Jobs that wait, up to a million of them.

use super::{median, millis, pages, percentile};
use crate::{
    Bench, Result,
    client::{Until, load, request},
    daemon::Daemon,
    machine,
    table::{Figure, number},
    yardstick::Synced,
};

/// The most that one batch may hold.
pub(super) const BATCH: usize = 1000;

/// A backlog is in two queues by turns, has a thousand names and ten labels; but for the oldest of it.
fn job(number: usize) -> String {
    let (queue, team) = (["default", "other"][number % 2], number % 10);
    format!(
        r#"{{"job":{{"command":["/bin/true"]}},"queue":"{queue}","name":"n{number}","labels":{{"team":"t{team}"}}}}"#
    )
}

/// Adds jobs that wait to `already` of them.
pub(crate) fn fill(daemon: &Daemon, already: usize, count: usize) -> Result<()> {
    let mut connection = daemon.connection()?;
    let mut left = count;
    if already == 0 {
        Daemon::pause(&mut connection, "default")?;
        Daemon::pause(&mut connection, "other")?;
        let rare = r#"{"job":{"command":["/bin/true"]},"name":"rare","labels":{"team":"rare"}}"#;
        connection.good("POST", "/v1/runners", rare)?;
        left -= 1;
    }
    let batch = |count: usize| {
        let jobs: Vec<_> = (0..count).map(job).collect();
        request("POST", "/v1/runners:batch", &format!(r#"{{"runners":[{}]}}"#, jobs.join(",")))
    };
    load(&daemon.socket(), 4, &[batch(BATCH)], 200, Until::Count(left / BATCH))?;
    if !left.is_multiple_of(BATCH) {
        connection.ask(&batch(left % BATCH))?;
    }
    let queued = Daemon::metric(&mut connection, "runward_runners_queued")?;
    match queued as usize == already + count {
        true => Ok(()),
        false => Err(format!("{queued} are queued instead of {}", already + count).into()),
    }
}

/// How long single submits take beside this backlog, and by turns one fdatasync, in ms. Each is cancelled, so the
/// backlog stays as it is.
pub(crate) fn submits_at(daemon: &Daemon, synced: &mut Synced, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut connection = daemon.connection()?;
    let submit = request("POST", "/v1/runners", r#"{"job":{"command":["/bin/true"]},"name":"timed"}"#);
    let (mut times, mut syncs) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        syncs.push(millis(synced.one()?));
        times.push(millis(connection.time(&submit, 201)?));
        connection.good("POST", "/v1/runners:cancel", r#"{"name":"timed","state":["queued"]}"#)?;
    }
    Ok((times, syncs))
}

pub(super) fn million(bench: &Bench) -> Result<Vec<Figure>> {
    let count = bench.pick(1_000_000, 50_000);
    let mut daemon = Daemon::start(bench, &[])?;
    daemon.connection()?.good("POST", "/v1/runners?wait=1m", r#"{"job":{"command":["/bin/true"]}}"#)?;
    let empty = machine::settled(machine::pss, daemon.pid())?;
    let began = std::time::Instant::now();
    fill(&daemon, 0, count)?;
    let filled = count as f64 / began.elapsed().as_secs_f64();
    let full = machine::settled(machine::pss, daemon.pid())?;
    let more = (full - empty) / 1024.0;
    let pages = pages::all(bench, &daemon, count)?;
    let read = (machine::settled(machine::pss, daemon.pid())? - empty) / 1024.0;
    let mut starts = Vec::new();
    for _ in 0..bench.pick(3, 1) {
        starts.push(daemon.restart()?.as_secs_f64());
    }
    let again = machine::settled(machine::pss, daemon.pid())? / 1024.0;
    let start = median(&starts);
    let memory = format!(
        "+{more:.1} MiB with {} (queued at {}/s); +{read:.1} MiB after reading all those pages; {again:.1} MiB in all after a \
         restart",
        number(count as f64),
        number(filled)
    );
    let medians: Vec<f64> = pages.iter().map(|page| page.p50).collect();
    let worst = pages.iter().max_by(|a, b| a.p99.total_cmp(&b.p99)).ok_or("no pages")?;
    let slow = pages.iter().filter(|page| page.p99 > 50.0).count();
    let list = format!(
        "{:.1} ms for `{}` (p50 {:.1} ms); {slow} of {} queries take more than 50 ms; p50 of the median query {:.1} ms, of \
         the 99th of a hundred {:.1} ms",
        worst.p99,
        worst.query,
        worst.p50,
        pages.len(),
        median(&medians),
        percentile(&medians, 0.99),
    );
    Ok(vec![
        Figure::new(more, memory, format!("{:.1} MiB", empty / 1024.0)),
        Figure::new(worst.p99, list, ""),
        Figure::new(start, format!("{start:.2} s, median of {}", starts.len()), ""),
    ])
}

//! What jobs that only wait take, and what a daemon without any takes.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::millis;
use crate::{
    Bench, Result,
    client::{Connection, request},
    daemon::Daemon,
    machine,
    table::{Figure, number},
};

const NAP: &str = r#"{"job":{"handler":{"name":"sleep","args":{"for":"10h"}}}}"#;
const SLEEP: &str = r#"{"job":{"command":["/bin/sleep","36000"]}}"#;
const UNDER_WAY: &str = "state=queued,starting,running,cancelling,draining";

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs so many of a job, and waits until they run.
pub(super) fn run(connection: &mut Connection, job: &str, count: usize) -> Result<()> {
    for start in (0..count).step_by(1000) {
        let jobs = vec![job; 1000.min(count - start)].join(",");
        let (status, answer) =
            connection.ask(&request("POST", "/v1/runners:batch", &format!(r#"{{"runners":[{jobs}]}}"#)))?;
        if status != 200 || answer.windows(9).any(|part| part == b"\"problem\"") {
            return Err(format!("a batch was answered {status}").into());
        }
    }
    Daemon::wait_for_none(connection, "state=queued,starting")
}

/// Cancels all there is. One request takes as many as it says, and tells whether there are more.
fn cancel_all(connection: &mut Connection) -> Result<()> {
    let began = Instant::now();
    while connection.good("POST", "/v1/runners:cancel", r#"{"all":true}"#)?.contains(r#""more":true"#) {
        if began.elapsed() > PATIENCE {
            return Err("there is always more to cancel".into());
        }
    }
    Ok(())
}

/// A daemon that has done everything once: what it takes then is no job's.
fn warm(connection: &mut Connection, job: &str) -> Result<()> {
    run(connection, job, 10)?;
    cancel_all(connection)?;
    Daemon::wait_for_none(connection, UNDER_WAY)
}

pub(super) fn asleep(bench: &Bench) -> Result<Vec<Figure>> {
    let count = bench.pick(50_000, 5_000);
    let daemon = Daemon::start(bench, &[])?;
    let mut connection = daemon.connection()?;
    warm(&mut connection, NAP)?;
    let empty = machine::settled(machine::pss, daemon.pid())?;
    run(&mut connection, NAP, count)?;
    let full = machine::settled(machine::pss, daemon.pid())?;
    let each = (full - empty) / count as f64;
    let began = Instant::now();
    cancel_all(&mut connection)?;
    while Daemon::metric(&mut connection, "runward_runners_active")? > 0.0 && began.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(20));
    }
    Daemon::wait_for_none(&mut connection, UNDER_WAY)?;
    let cancelled = began.elapsed().as_secs_f64();
    let mib = |kib: f64| format!("{:.1} MiB", kib / 1024.0);
    Ok(vec![
        Figure::new(each, format!("{} with {}", mib(full), number(count as f64)), mib(empty)),
        Figure::new(cancelled, format!("{cancelled:.2} s"), ""),
    ])
}

pub(super) fn sleeps(bench: &Bench) -> Result<Vec<Figure>> {
    let count = bench.pick(2_000, 200);
    let daemon = Daemon::start(bench, &[("JOBS__MAX_RUNNING", count)])?;
    let mut connection = daemon.connection()?;
    warm(&mut connection, SLEEP)?;
    let empty = machine::settled(machine::anonymous, daemon.pid())?;
    run(&mut connection, SLEEP, count)?;
    let full = machine::settled(machine::anonymous, daemon.pid())?;
    let shims = daemon.shims()?;
    if shims.len() != count {
        return Err(format!("{} shims for {count} jobs", shims.len()).into());
    }
    let shim = shims.iter().map(|pid| machine::pss(*pid)).sum::<Result<f64>>()? / count as f64;
    let all: Vec<u32> = shims.into_iter().chain([daemon.pid(), daemon.keeper()?]).collect();
    let taken = || all.iter().map(|pid| machine::cpu(*pid)).sum::<Result<Duration>>();
    let window = bench.pick(Duration::from_secs(20), Duration::from_secs(5));
    let (before, began) = (taken()?, Instant::now());
    thread::sleep(window);
    let took = taken()?.saturating_sub(before);
    let share = took.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    Ok(vec![
        Figure::new(
            (full - empty) / count as f64,
            format!("{full:.0} KiB with {}", number(count as f64)),
            format!("{empty:.0} KiB"),
        ),
        Figure::new(shim, format!("{shim:.0} KiB, mean of all"), ""),
        Figure::new(share, format!("{:.1} ms in {:.0} s", millis(took), window.as_secs_f64()), ""),
    ])
}

pub(super) fn idle(bench: &Bench) -> Result<Vec<Figure>> {
    let daemon = Daemon::start(bench, &[])?;
    daemon.connection()?.good("POST", "/v1/runners?wait=1m", r#"{"job":{"command":["/bin/true"]}}"#)?;
    let all = [daemon.pid(), daemon.keeper()?];
    // Connections and threads that are not needed any more are given up after 10 s.
    thread::sleep(Duration::from_secs(15));
    let pss = all.map(machine::pss).into_iter().sum::<Result<f64>>()? / 1024.0;
    let switches = || all.iter().map(|pid| machine::switches(*pid)).collect::<Result<Vec<_>>>();
    let before = switches()?;
    thread::sleep(Duration::from_secs(20));
    let (mut woken, mut names) = (0, Vec::new());
    for (before, after) in before.into_iter().zip(switches()?) {
        for (thread, (name, count)) in after {
            let times = count - before.get(&thread).map_or(0, |(_, count)| *count);
            woken += times;
            if times > 0 {
                names.push(format!("{name} {times}"));
            }
        }
    }
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    Ok(vec![
        Figure::new(pss, format!("{pss:.1} MiB"), ""),
        Figure::new(woken as f64, format!("{woken}{names}"), ""),
    ])
}

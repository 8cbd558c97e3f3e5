//! What a job writes, and those who follow it.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use super::median;
use crate::{
    Bench, Result,
    client::{Followers, request},
    daemon::Daemon,
    machine,
    table::Figure,
};

const GIB: u64 = 1 << 30;

pub(super) fn flood(bench: &Bench) -> Result<Vec<Figure>> {
    // The yardstick keeps it all, and the disk keeps some room.
    let room = machine::free_space(&bench.base)? / GIB;
    let size = bench.pick(8, 1).min(room / 2);
    if size == 0 {
        return Err(format!("the disk has {room} GiB left").into());
    }
    let daemon = Daemon::start(bench, &[])?;
    let mut connection = daemon.connection()?;
    let job = format!(r#"{{"job":{{"command":["head","-c","{size}G","/dev/zero"]}}}}"#);
    let file = bench.base.join("flood");
    let (mut ours, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.pick(3, 2) {
        let began = Instant::now();
        let script = format!("head -c {size}G /dev/zero | cat > {}", file.display());
        let status = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status()?;
        let theirs = size as f64 / began.elapsed().as_secs_f64();
        fs::remove_file(&file)?;
        if !status.success() {
            return Err(format!("{script}: {status}").into());
        }
        let began = Instant::now();
        let record = connection.good("POST", "/v1/runners?wait=10m", &job)?;
        let rate = size as f64 / began.elapsed().as_secs_f64();
        if !record.contains(r#""outcome":"succeeded""#) {
            return Err(record.into());
        }
        ours.push(rate);
        bare.push(theirs);
        ratios.push(rate / theirs);
    }
    let scaled = if size == 8 { String::new() } else { format!(", {size} GiB of it") };
    let measured = format!("{:.2} GiB/s{scaled}", median(&ours));
    Ok(vec![Figure::new(median(&ratios), measured, format!("{:.2} GiB/s", median(&bare)))])
}

/// Lines that are followed.
const LINES: usize = 400;

/// Computes for some 10 ms between two lines, begins when told, and says how long it took in ns.
fn computing(go: &str) -> String {
    format!(
        "while [ ! -e {go} ]; do sleep 0.02; done; began=$(date +%s%N); n=0
while [ $n -lt {LINES} ]; do i=0; while [ $i -lt 8000 ]; do i=$((i+1)); done
echo \"~ $n: as long as a line of a log may be, with a time, a level and words\"; n=$((n+1)); done
echo took $(($(date +%s%N) - began))"
    )
}

/// How long the job takes with so many followers, in seconds. Each of them must get all of it.
fn followed(bench: &Bench, daemon: &Daemon, count: usize) -> Result<f64> {
    let go = bench.base.join("go");
    drop(fs::remove_file(&go));
    let mut connection = daemon.connection()?;
    let script = serde_json::to_string(&computing(&go.display().to_string()))?;
    let record = connection.good("POST", "/v1/runners", &format!(r#"{{"job":{{"script":{script}}}}}"#))?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let id = record["id"].as_str().ok_or("a record without its id")?.to_owned();
    let follow = request("GET", &format!("/v1/runners/{id}/logs?follow=true"), "");
    let followers = Followers::start(&daemon.socket(), count, &follow);
    // The job waits for it, whatever becomes of the followers.
    fs::write(&go, "")?;
    let counts =
        thread::spawn(move || followers?.count(b'~')).join().map_err(|_| "the client has panicked")??;
    if let Some(missing) = counts.iter().find(|lines| **lines != LINES) {
        return Err(format!("a follower got {missing} of {LINES} lines").into());
    }
    let tail = daemon.connection()?.text(&format!("/v1/runners/{id}/logs?tail=1"))?;
    let took =
        tail.split("took ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    Ok(took.ok_or_else(|| format!("the job does not say how long it took: {tail}"))? / 1e9)
}

pub(super) fn followers(bench: &Bench) -> Result<Vec<Figure>> {
    let count = bench.pick(1000, 100);
    let daemon = Daemon::start(bench, &[])?;
    let (mut one, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.pick(5, 2) {
        one.push(followed(bench, &daemon, 1)?);
        many.push(followed(bench, &daemon, count)?);
        ratios.push(many[many.len() - 1] / one[one.len() - 1]);
    }
    let slower = (median(&ratios) - 1.0) * 100.0;
    let measured = format!("{:.2} s with {count}, each with every line", median(&many));
    Ok(vec![Figure::new(slower, measured, format!("{:.2} s", median(&one)))])
}

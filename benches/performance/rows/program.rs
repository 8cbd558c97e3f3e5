//! The daemon as a program: its start, its stop, its size.

use std::{fs, time::Instant};

use super::{median, memory, millis};
use crate::{
    Bench, Result,
    daemon::{Daemon, cargo_without},
    table::Figure,
    yardstick::Spawner,
};

pub(super) fn start(bench: &Bench) -> Result<Vec<Figure>> {
    let (mut new, mut known) = (Vec::new(), Vec::new());
    for _ in 0..bench.pick(20, 5) {
        let began = Instant::now();
        let mut daemon = Daemon::start(bench, &[])?;
        new.push(millis(began.elapsed()));
        known.push(millis(daemon.restart()?));
        daemon.stop()?;
    }
    let (new, known) = (median(&new), median(&known));
    let measured =
        format!("{new:.1} ms, with a store to make; {known:.1} ms with one that is there and empty");
    Ok(vec![Figure::new(new, measured, "")])
}

pub(super) fn stop(bench: &Bench) -> Result<Vec<Figure>> {
    let count = bench.pick(1000, 100);
    let mut spawner = Spawner::start()?;
    let (mut ours, mut bare, mut ratios, mut floors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.pick(3, 2) {
        bare.push(millis(spawner.stop_sleeps(count)?));
        floors.push(millis(spawner.stop_sleeps_of_others(count)?));
        let mut daemon = Daemon::start(bench, &[("JOBS__MAX_RUNNING", count)])?;
        let sleep = r#"{"job":{"command":["/bin/sleep","1000"]}}"#;
        memory::run(&mut daemon.connection()?, sleep, count)?;
        ours.push(millis(daemon.stop()?));
        ratios.push(ours[ours.len() - 1] / bare[bare.len() - 1]);
    }
    let measured = format!("{:.0} ms with {count}, all recorded", median(&ours));
    let floor = median(&floors);
    let figure = Figure::new(median(&ratios), measured, format!("{:.0} ms", median(&bare)));
    let text = format!("{floor:.0} ms where each has a cgroup and a parent that is told");
    Ok(vec![figure.with_floor(floor / median(&bare), text)])
}

pub(super) fn binary(bench: &Bench) -> Result<Vec<Figure>> {
    let size = fs::metadata(&bench.program)?.len() as f64 / f64::from(1 << 20);
    Ok(vec![Figure::new(size, format!("{size:.1} MiB"), "")])
}

pub(super) fn build(bench: &Bench) -> Result<Vec<Figure>> {
    let target = tempfile::Builder::new().prefix("build").tempdir_in(&bench.base)?;
    let began = Instant::now();
    let status = cargo_without(&["CARGO_PROFILE_"])
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(target.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    if !status.success() {
        return Err(format!("cargo build: {status}").into());
    }
    Ok(vec![Figure::new(minutes, format!("{minutes:.1} min on {} cores", bench.cores), "")])
}

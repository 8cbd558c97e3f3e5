//! Every goal of performance beside its yardstick, in one run: `cargo bench --bench performance`.
//!
//! The program is measured as its users have it: its own process, its HTTP, its files on a disk. What is measured and
//! its yardstick take turns, so that what else the machine does hits both, and medians are compared.
//!
//! After `--`: `--list` names the measurements, `--only NAME,…` takes some, `--quick` takes fewer and shorter rounds,
//! `--build` times a clean build too, `--json FILE` keeps the figures, `--plot` draws submit latency and memory
//! against the backlog.

mod client;
mod daemon;
mod floor;
mod machine;
mod plot;
mod rows;
mod table;
mod yardstick;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

/// What went wrong, in words: a measurement that failed is a row that says so.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// What all measurements need to know.
struct Bench {
    /// What is measured.
    program: PathBuf,
    /// Where state directories and files are made: on a disk.
    base: PathBuf,
    quick: bool,
    /// Jobs, connections and rounds that hold for all are multiples of these.
    cores: usize,
}

impl Bench {
    /// One of two: what a full run takes, and what a quick one.
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

#[derive(Default)]
struct Arguments {
    list: bool,
    only: Option<Vec<String>>,
    quick: bool,
    build: bool,
    json: Option<PathBuf>,
    plot: bool,
}

fn arguments() -> Result<Arguments> {
    let mut all = Arguments::default();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--list" => all.list = true,
            "--only" => all.only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--quick" => all.quick = true,
            "--build" => all.build = true,
            "--json" => all.json = Some(value()?.into()),
            "--plot" => all.plot = true,
            other => return Err(format!("there is no option {other}; see the head of {}", file!()).into()),
        }
    }
    let known = |name: &String| rows::ALL.iter().any(|row| row.name == name);
    if let Some(unknown) = all.only.iter().flatten().find(|name| !known(name)) {
        return Err(format!("there is no measurement {unknown}; --list names them").into());
    }
    Ok(all)
}

fn run() -> Result<()> {
    let arguments = arguments()?;
    if arguments.list {
        for row in rows::ALL {
            println!("{:10} {}", row.name, row.claims[0].what);
        }
        return Ok(());
    }
    let base = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("performance");
    fs::create_dir_all(&base)?;
    let cores = std::thread::available_parallelism()?.get();
    let program = daemon::build()?;
    let bench = Bench { program, base, quick: arguments.quick, cores };
    let header = machine::describe(&bench)?;
    println!("{header}");
    if arguments.plot {
        return plot::draw(&bench, &header);
    }
    let wanted = |name: &str| match &arguments.only {
        Some(only) => only.iter().any(|wanted| wanted == name),
        None => name != "build" || arguments.build,
    };
    println!("{}", table::HEAD);
    let mut lines = Vec::new();
    for row in rows::ALL.iter().filter(|row| wanted(row.name)) {
        let began = Instant::now();
        let figures = (row.measure)(&bench);
        eprintln!("{}: {:.0} s", row.name, began.elapsed().as_secs_f64());
        for line in table::lines(row, figures) {
            println!("{line}");
            lines.push(line);
        }
    }
    println!("{}", table::summary(&lines));
    if let Some(path) = arguments.json {
        fs::write(path, table::json(&header, &lines))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    // A process of its own for what is measured bare.
    if let Some(helper) =
        std::env::args().nth(1).and_then(|first| first.strip_prefix("--helper=").map(str::to_owned))
    {
        return yardstick::help(&helper);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

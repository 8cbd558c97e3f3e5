//! Submit latency and memory against the backlog, drawn.

use std::{fmt::Write, fs, path::Path};

use crate::{
    Bench, Result,
    daemon::Daemon,
    machine,
    rows::{fill, percentile, submits_at},
    table::number,
    yardstick::Synced,
};

/// Where the drawings are kept.
const PLACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance");

struct Point {
    backlog: usize,
    p50: f64,
    p99: f64,
    sync: f64,
    memory: f64,
}

/// Measures, prints the table and writes the drawings.
pub(crate) fn draw(bench: &Bench, machine: &str) -> Result<()> {
    let daemon = Daemon::start(bench, &[("JOBS__MAX_QUEUED", 1_100_000)])?;
    let mut synced = Synced::make(bench)?;
    let (mut points, mut already) = (Vec::new(), 0);
    let last = bench.pick(6, 4);
    for backlog in (1..=last).map(|power| 10_usize.pow(power)) {
        fill(&daemon, already, backlog - already)?;
        already = backlog;
        let memory = machine::settled(machine::pss, daemon.pid())? / 1024.0;
        let (times, syncs) = submits_at(&daemon, &mut synced, bench.pick(500, 100))?;
        let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
        points.push(Point { backlog, p50, p99, sync: percentile(&syncs, 0.5), memory });
    }
    println!(
        "| queued | submit p50 ms | p99 ms | one fdatasync p50 ms | daemon MiB (PSS) |\n|---|---|---|---|---|"
    );
    for Point { backlog, p50, p99, sync, memory } in &points {
        println!("| {} | {p50:.3} | {p99:.3} | {sync:.3} | {memory:.1} |", number(*backlog as f64));
    }
    fs::create_dir_all(PLACE)?;
    let series =
        |of: fn(&Point) -> f64| points.iter().map(|point| (point.backlog, of(point))).collect::<Vec<_>>();
    let latency = [
        ("p99", "#c0392b", series(|point| point.p99)),
        ("p50", "#1f6fb2", series(|point| point.p50)),
        ("one fdatasync", "#7f8c8d", series(|point| point.sync)),
    ];
    let memory = [("daemon", "#1f6fb2", series(|point| point.memory))];
    write(&Path::new(PLACE).join("latency.svg"), "One durable submit, ms", machine, &latency)?;
    write(&Path::new(PLACE).join("memory.svg"), "Memory of the daemon (PSS), MiB", machine, &memory)
}

/// A line: its name, its colour, and a value for each backlog.
type Series = (&'static str, &'static str, Vec<(usize, f64)>);

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 84.0;
/// Letters in a line of the note below.
const NOTE: usize = 140;

/// A step of the vertical axis that is 1, 2 or 5 times a power of ten, about a fifth of it.
fn step(highest: f64) -> f64 {
    let rough = highest / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough).unwrap_or(rough)
}

fn write(path: &Path, title: &str, machine: &str, series: &[Series]) -> Result<()> {
    let values = || series.iter().flat_map(|(_, _, points)| points);
    let highest = values().map(|(_, value)| *value).fold(0.0, f64::max);
    let step = step(highest);
    let top = (highest / step).ceil() * step;
    let last = values().map(|(backlog, _)| *backlog).max().unwrap_or(10) as f64;
    let x = |backlog: f64| LEFT + (backlog.log10() - 1.0) / (last.log10() - 1.0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#333\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    );
    let mut grid = 0.0;
    while grid <= top * 1.001 {
        let at = y(grid);
        writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>")?;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            number(grid)
        )?;
        grid += step;
    }
    let mut power = 10.0;
    while power <= last {
        let at = x(power);
        writeln!(svg, "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#eee\"/>")?;
        writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            number(power)
        )?;
        power *= 10.0;
    }
    let middle = f64::midpoint(LEFT, right);
    writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">jobs queued</text>", bottom + 35.0)?;
    // The machine and the day, in lines that fit.
    let note = machine.trim().replace(['&', '<', '>'], " ").replace("**", "");
    let mut lines = vec![String::new()];
    for word in note.split(' ') {
        if lines[lines.len() - 1].len() + word.len() > NOTE {
            lines.push(String::new());
        }
        let line = lines.len() - 1;
        lines[line] += &format!("{word} ");
    }
    for (line, text) in lines.iter().rev().enumerate() {
        let at = HEIGHT - 6.0 - 10.0 * line as f64;
        writeln!(svg, "<text x=\"6\" y=\"{at}\" font-size=\"8\" fill=\"#888\">{text}</text>")?;
    }
    // Names beside the ends of their lines, none over another.
    let mut names: Vec<_> = series
        .iter()
        .filter_map(|(name, colour, points)| Some((y(points.last()?.1), *name, *colour)))
        .collect();
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    for place in 1..names.len() {
        names[place].0 = names[place].0.max(names[place - 1].0 + 14.0);
    }
    for (at, name, colour) in names {
        writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>", right + 8.0, at + 4.0)?;
    }
    for (_, colour, points) in series {
        let at: Vec<_> = points
            .iter()
            .map(|(backlog, value)| format!("{:.1},{:.1}", x(*backlog as f64), y(*value)))
            .collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            at.join(" ")
        )?;
        for point in at {
            let (x, y) = point.split_once(',').unwrap_or_default();
            writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>")?;
        }
    }
    svg.push_str("</svg>\n");
    Ok(fs::write(path, svg)?)
}

//! A runner's record, as the API answers with it, in the words of the command line.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::{error::Code, screen::Look};

/// A text at a path; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// How a person writes a time span: its two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => format!("{} ms", span.as_millis()),
        (0, 0, 0, 1..10) => format!("{}.{} s", seconds, span.subsec_millis() / 100),
        (0, 0, 0, _) => format!("{seconds} s"),
        (0, 0, _, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _, _) => format!("{hours} h {minutes} min"),
        (_, _, _, _) => format!("{days} d {hours} h"),
    }
}

fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// How long ago that was, or how long it is until then.
pub(super) fn ago(at: &str, now: Timestamp) -> String {
    let Some(at) = instant(at) else { return String::new() };
    match Duration::try_from(now.duration_since(at)) {
        Ok(since) => format!("{} ago", coarse(since)),
        Err(_) => format!("in {}", coarse(now.duration_since(at).unsigned_abs())),
    }
}

/// One unit is enough for an age.
fn coarse(since: Duration) -> String {
    match since.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// From one time to another, or to now.
pub(super) fn between(from: &str, to: &str, now: Timestamp) -> String {
    let Some(from) = instant(from) else { return String::new() };
    let to = instant(to).unwrap_or(now);
    Duration::try_from(to.duration_since(from)).map(span).unwrap_or_default()
}

/// The short form of an id, which every command takes: its random end. The beginning is the time, much the same for
/// all of a day.
pub(super) fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}

pub(super) fn is_closed(record: &Value) -> bool {
    text(record, "/state") == "closed"
}

fn runs(record: &Value) -> &[Value] {
    record.get("runs").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A run by its number; the last that was started.
pub(super) fn run(record: &Value, number: Option<u64>) -> Option<&Value> {
    let runs = runs(record);
    match number {
        Some(number) => runs.iter().find(|run| run["run"] == number),
        None => runs.iter().rev().find(|run| last_attempt(run).is_some()).or(runs.last()),
    }
}

fn attempts(run: &Value) -> &[Value] {
    run.get("attempts").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn last_attempt(run: &Value) -> Option<&Value> {
    attempts(run).last()
}

/// Whether nothing more will come of a run, or of any.
pub(super) fn is_over(record: &Value, number: Option<u64>) -> bool {
    match (text(record, "/state"), number) {
        ("closed" | "idle", _) => true,
        (_, Some(number)) => {
            runs(record).iter().any(|run| run["run"].as_u64() > Some(number) && last_attempt(run).is_some())
        }
        (_, None) => false,
    }
}

/// Whether an attempt of a run has ended, and the next one if there is one.
pub(super) fn after(record: &Value, (number, attempt): (u64, u64)) -> (bool, Option<(u64, u64)>) {
    let all = runs(record).iter().flat_map(|run| {
        let number = run["run"].as_u64().unwrap_or(0);
        attempts(run).iter().map(move |attempt| ((number, attempt["attempt"].as_u64().unwrap_or(0)), attempt))
    });
    let mut ended = is_closed(record);
    let mut next = None;
    for (position, attempt_value) in all {
        if position == (number, attempt) {
            ended |= text(attempt_value, "/state") == "ended";
        } else if position > (number, attempt) && next.is_none() {
            next = Some(position);
        }
    }
    (ended || next.is_some(), next)
}

/// The state, or what became of it, in one word.
pub(super) fn word(record: &Value) -> &str {
    match text(record, "/state") {
        "closed" => text(record, "/outcome"),
        "queued" if record["held"] == true => "held",
        "queued" if record["not_before"].is_string() => "delayed",
        state => state,
    }
}

pub(super) fn look(word: &str) -> Look {
    match word {
        "succeeded" => Look::Green,
        "failed" | "killed" | "timed_out" | "lost" => Look::Red,
        "cancelled" | "cancelling" | "held" | "draining" | "paused" => Look::Yellow,
        "running" | "starting" => Look::Blue,
        "queued" | "delayed" | "idle" => Look::Plain,
        _ => Look::Plain,
    }
}

/// How the last process of a run ended: `0`, `signal 9`, or the kind of failure.
pub(super) fn exit(record: &Value) -> String {
    let Some(attempt) = run(record, None).and_then(last_attempt) else { return String::new() };
    if let Some(code) = attempt.pointer("/exit/code").and_then(Value::as_i64) {
        return code.to_string();
    }
    if let Some(signal) = attempt.pointer("/exit/signal").and_then(Value::as_i64) {
        return format!("signal {signal}");
    }
    text(attempt, "/error/kind").to_owned()
}

/// What the job does, on one line, as one would type it.
pub(super) fn job(job: &Value) -> String {
    let list = |value: &Value| -> Vec<String> {
        let words = value.as_array().map(Vec::as_slice).unwrap_or_default();
        words.iter().filter_map(Value::as_str).map(quoted).collect()
    };
    let Some((kind, spec)) = job.as_object().and_then(|job| job.iter().next()) else { return String::new() };
    match kind.as_str() {
        "command" => list(&spec["argv"]).join(" "),
        "script" => first_line(text(spec, "/source")),
        "http" => format!("{} {}", text(spec, "/method"), text(spec, "/url")),
        "handler" => text(spec, "/name").to_owned(),
        "python" => match text(spec, "/target") {
            "" => format!("python: {}", first_line(text(spec, "/source"))),
            target => format!("python {target}"),
        },
        other => other.to_owned(),
    }
}

/// The first line that says something.
fn first_line(source: &str) -> String {
    let mut lines = source.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let first = lines.next().unwrap_or_default().trim();
    if lines.next().is_some() { format!("{first} …") } else { first.to_owned() }
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./:=,+@%^".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The exit code that passes on what became of a run.
pub(super) fn exit_code(record: &Value, number: Option<u64>) -> u8 {
    let attempt = run(record, number).and_then(last_attempt);
    let outcome = match attempt.map(|attempt| text(attempt, "/outcome")) {
        // Closed before it began.
        None | Some("") => text(record, "/outcome"),
        Some(outcome) => outcome,
    };
    match outcome {
        "succeeded" => passed_on(attempt).unwrap_or(Code::Ok as u8),
        "failed" => match passed_on(attempt) {
            None | Some(0) => not_executed(attempt).unwrap_or(Code::Failed as u8),
            Some(code) => code,
        },
        "cancelled" => Code::Cancelled as u8,
        "killed" => Code::Killed as u8,
        "timed_out" => Code::TimedOut as u8,
        "lost" => Code::Lost as u8,
        _ => Code::Internal as u8,
    }
}

fn passed_on(attempt: Option<&Value>) -> Option<u8> {
    let exit = attempt?.get("exit")?;
    let code = exit.get("code").and_then(Value::as_u64);
    let signal = exit.get("signal").and_then(Value::as_u64).map(|signal| 128 + signal);
    u8::try_from(code.or(signal)?).ok()
}

/// As a shell says it: 127, there is no such program; 126, it can't be executed.
fn not_executed(attempt: Option<&Value>) -> Option<u8> {
    const ENOENT: u64 = 2;
    let error = attempt?.get("error")?;
    let of_exec = text(error, "/kind") == "start_failed" && text(error, "/stage") == "exec";
    of_exec.then(|| if error["errno"] == ENOENT { 127 } else { 126 })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_became_of_it_is_the_exit_code() {
        for (attempt, code) in [
            (json!({"outcome": "succeeded", "exit": {"code": 0}}), 0),
            (json!({"outcome": "succeeded", "exit": {"code": 3}}), 3),
            (json!({"outcome": "succeeded", "exit": null}), 0),
            (json!({"outcome": "failed", "exit": {"code": 7}}), 7),
            (json!({"outcome": "failed", "exit": {"signal": 11}}), 139),
            (json!({"outcome": "failed", "error": {"kind": "http_status"}}), 1),
            (
                json!({"outcome": "failed", "error": {"kind": "start_failed", "stage": "exec", "errno": 2}}),
                127,
            ),
            (
                json!({"outcome": "failed", "error": {"kind": "start_failed", "stage": "exec", "errno": 13}}),
                126,
            ),
            (json!({"outcome": "failed", "error": {"kind": "start_failed", "stage": "cwd", "errno": 2}}), 1),
            (json!({"outcome": "cancelled", "exit": {"code": 0}}), 130),
            (json!({"outcome": "killed", "exit": {"signal": 9}}), 137),
            (json!({"outcome": "timed_out"}), 124),
            (json!({"outcome": "lost"}), 125),
        ] {
            let record = json!({"state": "closed", "runs": [{"run": 1, "attempts": [attempt]}]});
            assert_eq!(exit_code(&record, Some(1)), code, "{record}");
        }
        let before = json!({"state": "closed", "outcome": "cancelled", "runs": [{"run": 1, "attempts": []}]});
        assert_eq!(exit_code(&before, Some(1)), 130);
    }

    #[test]
    fn a_follower_that_lost_its_place_finds_the_next_attempt() {
        let attempt = |attempt: u32, state| json!({"attempt": attempt, "state": state});
        let record = json!({"state": "running", "runs": [
            {"run": 1, "attempts": [attempt(1, "ended"), attempt(2, "running")]}, {"run": 2, "attempts": []}]});
        assert_eq!(after(&record, (1, 1)), (true, Some((1, 2))));
        assert_eq!(after(&record, (1, 2)), (false, None));
    }

    #[test]
    fn jobs_look_as_they_are_typed() {
        let shown = |value| job(&value);
        assert_eq!(
            shown(json!({"command": {"argv": ["sh", "-c", "echo 'a b'"]}})),
            r"sh -c 'echo '\''a b'\'''"
        );
        assert_eq!(shown(json!({"script": {"source": "#!/bin/sh\n\n# why\necho a\necho b\n"}})), "echo a …");
        assert_eq!(shown(json!({"http": {"method": "GET", "url": "http://x/"}})), "GET http://x/");
    }

    #[test]
    fn times_are_told_in_the_units_of_people() {
        for (seconds, text) in
            [(0.25, "250 ms"), (1.5, "1.5 s"), (59.0, "59 s"), (61.0, "1 min 1 s"), (3700.0, "1 h 1 min")]
        {
            assert_eq!(span(Duration::from_secs_f64(seconds)), text);
        }
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().expect("a time");
        assert_eq!(ago("2026-01-01T23:59:00.5Z", now), "59 s ago");
        assert_eq!(ago("2026-01-02T02:00:00Z", now), "in 2 h");
    }
}
